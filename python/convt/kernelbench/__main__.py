"""`python -m convt.kernelbench`: run, write, precision, table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m convt.kernelbench", description="KernelBench level 1's transposed convolutions with convt."
    )
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="KernelBench's check and clock on the 17 submissions")
    run.add_argument("--problems", nargs="+", default=[], metavar="NUMBER")
    run.add_argument("--device", choices=("cpu", "cuda"), help="a GPU by default when PyTorch sees one")
    run.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    run.add_argument("--quick", action="store_true", help="2 trials and 5 timed calls instead of 5 and 100")
    run.add_argument(
        "--full", action=argparse.BooleanOptionalAction, default=None, help="KernelBench's sizes (on a GPU unless told)"
    )
    run.add_argument("--submissions", type=Path, metavar="DIR", help="sources from there instead of convt's own")
    run.add_argument("--references", type=Path, metavar="DIR", help="KernelBench's own files, its KernelBench/level1")

    write = commands.add_parser("write", help="the 17 submissions as files")
    write.add_argument("folder", type=Path, metavar="DIR")
    write.add_argument(
        "--backend", choices=("native", "auto"), default="native", help="convt's kernels alone, or the plan's choice"
    )

    precision = commands.add_parser("precision", help="the roundings of float32 under the check's tolerance")
    precision.add_argument("--problems", nargs="+", default=[], metavar="NUMBER")
    precision.add_argument("--out", type=Path, required=True, help="JSON lines")

    table = commands.add_parser("table", help="results as Markdown")
    table.add_argument("kind", nargs="?", choices=("passing", "errors"), default="passing")
    table.add_argument("results", nargs="?", type=Path)
    table.add_argument("--update", nargs="+", default=[], type=Path, metavar="DOCUMENT")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, 1 when a problem fails, 2 for a bad argument."""
    options = parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except ValueError as error:
        print(f"convt.kernelbench: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    from convt.kernelbench import runner

    return runner.run(
        options.problems,
        device=options.device,
        dtype=options.dtype,
        full=options.full,
        quick=options.quick,
        folder=options.submissions,
        references=options.references,
    )


def _write(options: argparse.Namespace) -> int:
    from convt.kernelbench import runner

    for path in runner.write(options.folder, backend=options.backend):
        print(path)
    return 0


def _precision(options: argparse.Namespace) -> int:
    from convt.kernelbench import precision

    precision.write(options.out, options.problems)
    print(precision.passing(options.out))
    return 0


def _table(options: argparse.Namespace) -> int:
    from convt.kernelbench import documents

    if options.results is None and not options.update:
        raise ValueError("table: nothing to do; name a kind and its results, or documents with --update")
    for document in options.update:
        print(f"{document}: {'written' if documents.update(document) else 'unchanged'}")
    if options.results is not None:
        print(documents.KINDS[options.kind](options.results))
    return 0


_COMMANDS = {"run": _run, "write": _write, "precision": _precision, "table": _table}

if __name__ == "__main__":
    sys.exit(main())
