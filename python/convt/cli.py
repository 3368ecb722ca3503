"""The `convt` command: info, demo, explain, bench, report, tune."""

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

    _add_benches(commands)
    _add_tune(commands)
    report = commands.add_parser("report", help="results files as one HTML page with pictures")
    report.add_argument("results", nargs="+", type=Path, help="files that `convt bench --out` wrote")
    report.add_argument("--against", type=Path, metavar="RESULTS", help="older results: what became slower comes first")
    report.add_argument("--out", type=Path, default=Path("convt-report"), help="a directory (convt-report)")
    report.add_argument("--check", action="store_true", help="exit code 1 when something became slower or wrong")
    report.set_defaults(run=_report)
    return parser


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser("tune", help="measure what computes problems fastest here, for the plan to remember")
    tune.add_argument("suite", nargs="?", help="kernelbench, zoo, cpu, or a JSON file of problems")
    tune.add_argument("--model", metavar="MODULE:FUNCTION", help="a function that returns a model and example inputs")
    tune.add_argument("--filter", nargs="+", default=[], metavar="WORD", help="of a suite, as in convt bench")
    tune.add_argument("--train", action="store_true", help="the gradients too")
    tune.add_argument("--precision", nargs="+", choices=("tf32", "ieee", "bf16", "fp16", "fp64"), help="of a suite")
    tune.add_argument("--layout", nargs="+", choices=("contiguous", "channels_last"), help="of a suite")
    tune.add_argument("--device", choices=("cpu", "cuda"), help="of a suite; a GPU by default when PyTorch sees one")
    tune.add_argument("--seconds", type=_positive, default=0.3, help="for each operator of each problem (0.3)")
    tune.add_argument("--show", action="store_true", help="what was chosen on this device so far")
    tune.add_argument("--clear", action="store_true", help="forget what was chosen on this device")
    tune.set_defaults(run=_tune)


class _BenchParser(argparse.ArgumentParser):
    """`convt bench FILE.json` is `convt bench file FILE.json`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if args and str(args[0]).endswith(".json"):
            args = ["file", *args]
        return super().parse_known_args(args, namespace)


def _add_benches(commands: Any) -> None:
    bench = commands.add_parser("bench", help="convt against PyTorch, interleaved, in medians")
    bench.__class__ = _BenchParser
    suites = bench.add_subparsers(dest="suite", required=True, parser_class=argparse.ArgumentParser)
    for suite, what in (
        ("kernelbench", "its 17 layers"),
        ("zoo", "128 layers of 36 models"),
        ("cpu", "25 layers of every kind for a processor, each with its own dtype and layout"),
        ("sweep", "370 layers for a processor: what the plan's rule rests on"),
        ("file", "the problems of a JSON file; `convt bench FILE.json` for short"),
    ):
        _add_suite(suites.add_parser(suite, help=what), suite)
    _add_table_and_roofline(suites)
    overhead = suites.add_parser("overhead", help="nanoseconds per call on one element")
    overhead.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    overhead.add_argument("--backend", choices=BACKENDS, default="auto")
    overhead.add_argument("--quick", action="store_true", help="few repeats, nothing compiled: numbers are rough")
    overhead.add_argument("--out", type=Path, help="append JSON lines to this file")
    overhead.set_defaults(run=_bench_overhead)


DIRECTIONS = ("forward", "forward_backward", "backward", "grad_input", "grad_weight")
# Names for several directions: what a user waits for, and what the plan decides on.
GROUPS = {"both": ("forward", "forward_backward"), "operators": ("forward", "grad_input", "grad_weight")}


def _add_suite(bench: argparse.ArgumentParser, suite: str) -> None:
    if suite == "file":
        bench.add_argument("file", metavar="FILE", help="a list of objects with input and weight: docs/benchmarks.md")
    bench.add_argument(
        "--filter",
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only these names or numbers, and of the rest those that have every word",
    )
    bench.add_argument(
        "--direction",
        nargs="+",
        choices=(*DIRECTIONS, *GROUPS),
        default=["operators" if suite == "sweep" else "both" if suite == "cpu" else "forward"],
        help="both: forward, and forward with backward; operators: forward, grad_input and grad_weight apart",
    )
    bench.add_argument(
        "--precision",
        nargs="+",
        choices=("tf32", "ieee", "bf16", "fp16", "fp64"),
        help="tf32 ieee bf16 on a GPU, ieee on a CPU, unless named; of layers with a dtype those to keep",
    )
    bench.add_argument(
        "--layout",
        nargs="+",
        choices=("contiguous", "channels_last"),
        help="contiguous unless named; of layers with a layout those to keep",
    )
    bench.add_argument(
        "--rivals",
        choices=("all", "settings", "eager", "none"),
        help="of PyTorch's: its defaults, its fastest setting and torch.compile (all), the first two (settings; the "
        "default with --quick), its defaults, or none",
    )
    bench.add_argument(
        "--config",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help="a line for each kernel or configuration named (of every operator, or grad_weight=NAME,...); auto is the "
        "plan's choice",
    )
    bench.add_argument(
        "--backend",
        choices=BACKENDS,
        help="convt's own code (native) on a GPU and the plan's choice on a CPU, by default",
    )
    bench.add_argument("--device", choices=("cpu", "cuda"), help="a GPU by default when PyTorch sees one")
    bench.add_argument(
        "--sizes",
        choices=("full", "reduced", "tiny"),
        help="full, or on a CPU fewer and smaller images (reduced; not of the suites for a CPU); tiny ones tell right "
        "from wrong, not fast from slow",
    )
    bench.add_argument("--seconds", type=_positive, default=0.5, help="time to measure each line for (0.5)")
    bench.add_argument("--quick", action="store_true", help="three turns per line, no torch.compile: numbers are rough")
    bench.add_argument(
        "--graph-below", type=_positive, metavar="US", default=0.0,
        help="replay calls from a CUDA graph where the machine's least time is less than this, microseconds (never)",
    )  # fmt: skip
    bench.add_argument("--stop-after", type=_positive, metavar="SECONDS", help="begin no further line after this time")
    bench.add_argument("--out", type=Path, help="append JSON lines to this file")
    bench.add_argument("--resume", action="store_true", help="leave out what --out has of this commit and machine")
    bench.set_defaults(run=_bench_suite, train=False)
    if suite == "zoo":
        bench.add_argument("--train", action="store_true", help="only layers of training runs")


def _add_table_and_roofline(suites: Any) -> None:
    table = suites.add_parser("table", help="results of kernelbench and zoo as Markdown, for the documentation")
    table.add_argument("results", nargs="*", type=Path, help="files that --out wrote")
    table.add_argument(
        "--kind",
        choices=("layers", "training", "means", "torch", "facts", "overhead"),
        default="layers",
        help="a row per problem (the default), the same for forward and backward with losses first, geometric means, "
        "PyTorch's settings, the machine, or what calls cost",
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


def _bench_suite(options: argparse.Namespace) -> int:
    from convt.bench import devices, suite
    from convt.bench.protocol import Options
    from convt.testing import SUITES

    machine = devices.DEVICES[options.device or devices.standard()]
    own = options.suite in SUITES  # these have sizes, dtypes and layouts for a CPU
    sizes = options.sizes or ("full" if own else machine.sizes)
    directions = dict.fromkeys(name for word in options.direction for name in GROUPS.get(word, (word,)))
    work = suite.cases(
        options.filter,
        precisions=options.precision or (None if own else machine.precisions),
        layouts=options.layout,
        directions=tuple(directions),
        configs=options.config,
        sizes=sizes,
        suite=options.file if options.suite == "file" else options.suite,
        train=options.train,
    )
    how = Options(
        device=machine.name,
        backend=options.backend or machine.backend,
        rivals=options.rivals or ("settings" if options.quick else "all"),
        sizes=sizes,
        quick=options.quick,
        seconds=0.05 if options.quick else options.seconds,
        graph_below=options.graph_below,
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


def _tune(options: argparse.Namespace) -> int:
    from convt import tune_command

    return tune_command.run(options)


def _report(options: argparse.Namespace) -> int:
    try:
        from convt.report import page
    except ModuleNotFoundError as error:
        raise ValueError(f"report: {error}; pip install 'convt[report]'") from None

    changes = page.write(options.results, options.out, against=options.against)
    kinds = [change.kind for change in changes]
    worse = kinds.count("slower") + kinds.count("wrong")
    if options.against is not None:
        print(f"{worse} slower or wrong, {kinds.count('faster')} faster, of {len(changes)} in both files")
    print(options.out / "index.html")
    return int(options.check and worse > 0)


def _bench_roofline(options: argparse.Namespace) -> int:
    from convt.bench import devices, roofline

    return roofline.run(device=options.device or devices.standard(), seconds=options.seconds, out=options.out)


def _bench_table(options: argparse.Namespace) -> int:
    from convt.bench import tables

    if not options.results and not options.update:
        raise ValueError("table: nothing to do; name results files, or documents with --update")
    for document in options.update:
        print(f"{document}: {'written' if tables.update(document) else 'unchanged'}")
    if options.results:
        print(tables.made(options))
    return 0


def _bench_overhead(options: argparse.Namespace) -> int:
    from convt.bench import overhead

    return overhead.run(device=options.device, backend=options.backend, quick=options.quick, out=options.out)


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
