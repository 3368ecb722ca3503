"""The `convt` command: info, demo, bench."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

BACKENDS = ("auto", "native", "aten")


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
    overhead = suites.add_parser("overhead", help="nanoseconds per call on one element")
    overhead.add_argument("--quick", action="store_true", help="a tenth of the repeats: numbers are rough")
    overhead.add_argument("--out", type=Path, help="append JSON lines to this file")
    overhead.set_defaults(run=_bench_overhead)
    return parser


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


def _bench_overhead(options: argparse.Namespace) -> int:
    from convt.bench import overhead

    return overhead.run(quick=options.quick, out=options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code (2 for a bad argument, 130 after Ctrl-C)."""
    options = _parser().parse_args(arguments)
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
