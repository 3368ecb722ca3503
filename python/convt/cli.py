"""The `convt` command: info, demo, explain, bench."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BACKENDS = ("auto", "native", "aten")
OPERATORS = ("forward", "grad_input", "grad_weight")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convt", description="Transposed convolution for PyTorch as one implicit GEMM."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    info = commands.add_parser("info", help="build, instruction set, PyTorch, CUDA and GPU")
    info.add_argument("--json", action="store_true", help="one JSON object")
    info.set_defaults(run=_info)

    demo = commands.add_parser("demo", help="solve five problems, judged against float64 and timed against PyTorch")
    demo.add_argument("--full", action="store_true", help="real sizes on a CPU too (up to 8 GB, minutes)")
    demo.add_argument("--device", choices=("cpu", "cuda"), help="a GPU by default when PyTorch sees one")
    demo.add_argument("--backend", choices=BACKENDS, default="auto")
    demo.add_argument("--seconds", type=_positive, default=3.0, help="time to measure each problem for (3)")
    demo.set_defaults(run=_demo)

    explain = commands.add_parser("explain", help="how a problem is computed, what that should cost, and what lost")
    explain.add_argument("what", nargs="+", metavar="PROBLEM", help="1d, 2d or 3d; or kernelbench and a number")
    for name, standard in (("input", None), ("weight", None), ("stride", 1), ("padding", 0), ("output-padding", 0)):
        explain.add_argument(f"--{name}", nargs="+", type=int, default=None if standard is None else [standard])
    explain.add_argument("--dilation", nargs="+", type=int, default=[1])
    explain.add_argument("--groups", type=int, default=1)
    explain.add_argument("--bias", action="store_true")
    explain.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    explain.add_argument("--precision", choices=("ieee", "tf32"), help="of float32; PyTorch's own switch by default")
    explain.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    explain.add_argument(
        "--operator",
        choices=OPERATORS,
        help="the forward by default; on a CPU all of them",
    )
    explain.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    explain.add_argument("--gpu", choices=("current", "h200", "a100"), default="current", help="an H200 without a GPU")
    explain.add_argument("--config", metavar="NAME", help="force a kernel (simt, depthwise, ...) or a configuration")
    explain.add_argument("--json", action="store_true", help="one JSON object")
    explain.set_defaults(run=_explain)

    bench = commands.add_parser("bench", help="convt against PyTorch, interleaved, in medians")
    suites = bench.add_subparsers(dest="suite", required=True)
    for suite, what in (
        ("cpu", "layers on the CPU"),
        ("sweep", "300 layers on the CPU, what the plan's rule rests on"),
    ):
        layers = suites.add_parser(suite, help=what)
        layers.add_argument(
            "--filter", nargs="+", default=[], metavar="WORD", help="only layers whose name has every word"
        )
        layers.add_argument(
            "--direction",
            choices=("forward", "backward", "grad_input", "grad_weight", "both", "operators"),
            default="both",
            help="both: forward and backward (the default); operators: forward, grad_input and grad_weight apart",
        )
        layers.add_argument("--backend", choices=BACKENDS, default="auto")
        layers.add_argument("--seconds", type=_positive, default=1.0, help="time to measure each line for (1)")
        layers.add_argument("--quick", action="store_true", help="a tenth of a second per line: numbers are rough")
        layers.add_argument("--out", type=Path, help="append JSON lines to this file")
        layers.set_defaults(run=_bench_layers)
    _add_gpu_benches(suites)
    overhead = suites.add_parser("overhead", help="nanoseconds per call on one element")
    overhead.add_argument("--quick", action="store_true", help="a tenth of the repeats: numbers are rough")
    overhead.add_argument("--out", type=Path, help="append JSON lines to this file")
    overhead.set_defaults(run=_bench_overhead)
    return parser


def _add_gpu_benches(suites: Any) -> None:
    for suite, what in (
        ("kernelbench", "its 17 layers, on a GPU (or, made small, on the CPU)"),
        ("zoo", "128 layers of 36 models, in the same ways"),
    ):
        bench = suites.add_parser(suite, help=what)
        _add_gpu_bench(bench)
        if suite == "zoo":
            bench.add_argument("--train", action="store_true", help="only layers of training runs")
    _add_table_and_roofline(suites)


def _add_gpu_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "--filter",
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only these names or numbers, and of the rest those that have every word",
    )
    bench.add_argument("--direction", nargs="+", choices=("forward", "forward_backward"), default=["forward"])
    bench.add_argument(
        "--precision",
        nargs="+",
        choices=("tf32", "ieee", "bf16", "fp16"),
        help="tf32 ieee bf16 on a GPU, ieee on a CPU, unless named",
    )
    bench.add_argument("--layout", nargs="+", choices=("contiguous", "channels_last"), default=["contiguous"])
    bench.add_argument(
        "--rivals",
        choices=("all", "eager", "none"),
        default="all",
        help="of PyTorch's: its defaults and its fastest setting (all, the default), its defaults, or none",
    )
    bench.add_argument(
        "--config",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help="a line for each kernel or configuration named (of every operator, or grad_weight=NAME,...); auto is the "
        "plan's choice",
    )
    bench.add_argument("--backend", choices=BACKENDS, default="native", help="convt's own code unless named")
    bench.add_argument("--device", choices=("cpu", "cuda"), help="a GPU by default when PyTorch sees one")
    bench.add_argument(
        "--shrink",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="two small images of each layer: right or wrong, not fast or slow (on a CPU unless told otherwise)",
    )
    bench.add_argument("--seconds", type=_positive, default=0.5, help="time to measure each line for (0.5)")
    bench.add_argument("--quick", action="store_true", help="three turns per line: numbers are rough")
    bench.add_argument("--stop-after", type=_positive, metavar="SECONDS", help="begin no further line after this time")
    bench.add_argument("--out", type=Path, help="append JSON lines to this file")
    bench.add_argument("--resume", action="store_true", help="leave out what --out has of this commit and machine")
    bench.set_defaults(run=_bench_gpu, train=False)


def _add_table_and_roofline(suites: Any) -> None:
    table = suites.add_parser("table", help="results of kernelbench and zoo as Markdown, for the documentation")
    table.add_argument("results", nargs="*", type=Path, help="files that --out wrote")
    table.add_argument(
        "--kind",
        choices=("layers", "training", "means", "torch", "facts"),
        default="layers",
        help="a row per problem (the default), the same for forward and backward with losses first, geometric means, "
        "PyTorch's settings, or the machine",
    )
    table.add_argument(
        "--filter", nargs="+", default=[], metavar="WORD", help="only these directions, precisions, layouts, problems"
    )
    table.add_argument(
        "--update", nargs="+", default=[], type=Path, metavar="DOCUMENT", help="write the tables that documents ask for"
    )
    table.set_defaults(run=_bench_table)

    roofline = suites.add_parser("roofline", help="what this machine copies and multiplies per second")
    roofline.add_argument("--device", choices=("cpu", "cuda"), help="a GPU by default when PyTorch sees one")
    roofline.add_argument("--seconds", type=_positive, default=0.3, help="time to measure each line for (0.3)")
    roofline.add_argument("--out", type=Path, help="append JSON lines to this file")
    roofline.set_defaults(run=_bench_roofline)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


# Each command imports what it needs: `convt --help` answers without PyTorch.
def _info(options: argparse.Namespace) -> int:
    from convt import info

    return info.show(as_json=options.json)


def _demo(options: argparse.Namespace) -> int:
    from convt import demo

    return demo.run(full=options.full, device=options.device, backend=options.backend, seconds=options.seconds)


def _explain(options: argparse.Namespace) -> int:
    from convt import explain

    arguments = ("input", "weight", "stride", "padding", "output_padding", "groups", "dilation", "bias")
    problem, bias = explain.problem_from(options.what, **{name: getattr(options, name) for name in arguments})
    if options.device == "cpu":
        facts = explain.on_a_cpu(problem, dtype=options.dtype, layout=options.layout, operator=options.operator)
    else:
        facts = explain.choose(
            problem,
            dtype=options.dtype,
            precision=options.precision,
            layout=options.layout,
            bias=bias,
            gpu=options.gpu,
            config=options.config,
            operator=options.operator or OPERATORS[0],
        )
    return explain.show(facts, as_json=options.json)


def _bench_layers(options: argparse.Namespace) -> int:
    from convt.bench import layers

    groups = {"both": layers.BOTH, "operators": layers.OPERATORS}
    return layers.run(
        options.suite,
        words=options.filter,
        directions=groups.get(options.direction, (options.direction,)),
        backend=options.backend,
        seconds=0.1 if options.quick else options.seconds,
        out=options.out,
    )


def _bench_gpu(options: argparse.Namespace) -> int:
    from convt.bench import gpu, suite

    device = options.device or _standard_device()
    shrunk = device == "cpu" if options.shrink is None else options.shrink
    work = suite.cases(
        options.filter,
        precisions=options.precision or (("tf32", "ieee", "bf16") if device == "cuda" else ("ieee",)),
        layouts=options.layout,
        directions=options.direction,
        configs=options.config,
        shrunk=shrunk,
        suite=options.suite,
        train=options.train,
    )
    how = gpu.Options(
        device=device,
        backend=options.backend,
        rivals=options.rivals,
        shrunk=shrunk,
        quick=options.quick,
        seconds=0.05 if options.quick else options.seconds,
    )

    def restart(left: float | None) -> None:
        command = [sys.executable, "-m", "convt.cli", *options.arguments, "--resume"]
        command += [] if left is None else ["--stop-after", f"{left:.0f}"]
        os.execv(sys.executable, command)

    return suite.run(
        work,
        how,
        out=options.out,
        resume=options.resume,
        stop_after=options.stop_after,
        restart=restart if options.out is not None else None,
    )


def _bench_roofline(options: argparse.Namespace) -> int:
    from convt.bench import roofline

    return roofline.run(device=options.device or _standard_device(), seconds=options.seconds, out=options.out)


def _bench_table(options: argparse.Namespace) -> int:
    from convt.bench import tables

    if not options.results and not options.update:
        raise ValueError("table: nothing to do; name results files, or documents with --update")
    for document in options.update:
        print(f"{document}: {'written' if tables.update(document) else 'unchanged'}")
    if options.results:
        print(tables.KINDS[options.kind](tables.read(options.results, options.filter)))
    return 0


def _standard_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _bench_overhead(options: argparse.Namespace) -> int:
    from convt.bench import overhead

    return overhead.run(quick=options.quick, out=options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code (2 for a bad argument, 130 after Ctrl-C)."""
    options = _parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, not a traceback
    try:
        return int(options.run(options))
    except ValueError as error:
        print(f"convt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
