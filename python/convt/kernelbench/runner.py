"""`python -m convt.kernelbench run` and `write`: all submissions checked and timed, or written as files."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from convt.kernelbench import harness, sources
from convt.kernelbench.harness import Times, Verdict
from convt.terminal import plain_table, print_whole
from convt.testing.kernelbench import PROBLEMS, shrunk

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """One problem: its verdict, and both times where it was timed."""

    number: str
    verdict: Verdict
    times: Times | None = None
    reference_times: Times | None = None

    @property
    def speedup(self) -> float | None:
        """The reference's mean over the submission's."""
        return self.reference_times.mean / self.times.mean if self.times and self.reference_times else None


def evaluate(
    number: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    full: bool = False,
    trials: int = harness.TRIALS,
    timed: int = harness.TIMED,
    submission: str | None = None,
    reference: str | None = None,
) -> Outcome:
    """Check one problem and, when it is correct, time it.

    Args:
        full: KernelBench's own sizes; otherwise two small images of the same layer.
        timed: calls to time; 0 for none.
        submission, reference: other sources than convt's.

    Raises:
        ValueError: there is no such problem.
    """
    submission = submission or sources.submission(number)
    problem = PROBLEMS[number]
    loaded = harness.load(reference or sources.reference(number, problem if full else shrunk(problem)), submission)
    verdict = harness.check(loaded, device=device, dtype=dtype, trials=trials)
    times: list[Times] = []
    if verdict.correct and timed:
        inputs = harness.timing_inputs(loaded, device, dtype)
        times = [
            harness.clock(model, inputs, device=device, trials=timed) for model in harness.build(loaded, device, dtype)
        ]
    return Outcome(number, verdict, *reversed(times))


def run(
    numbers: Sequence[str] = (),
    *,
    device: str | None = None,
    dtype: str = "fp32",
    full: bool | None = None,
    quick: bool = False,
    folder: Path | None = None,
    references: Path | None = None,
    console: Console | None = None,
) -> int:
    """Evaluate problems and print a row for each; the last line is `k of n problems pass`.

    Args:
        numbers: problems, all 17 by default.
        device: "cpu" or "cuda"; by default a GPU when PyTorch sees one.
        full: KernelBench's sizes; by default on a GPU only.
        quick: 2 trials of the check and 5 timed calls, instead of 5 and 100.
        folder: submissions from there, as `write` names them.
        references: KernelBench's own problem files (its folder KernelBench/level1), which fixes the sizes.

    Returns:
        0 when all pass, 1 otherwise.

    Raises:
        ValueError: an unknown problem, a file that is not there, or "cuda" without a GPU.
    """
    console = console or Console()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda', but PyTorch sees no GPU; legal here is 'cpu'")
    full = device == "cuda" if full is None else full
    trials, timed = (2, 5) if quick else (harness.TRIALS, harness.TIMED)
    table = plain_table()
    for column in ("problem", "verdict", "max difference", "beyond", "eager ms", "convt ms", "speed-up"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("problem", "verdict") else "right")
    chosen = list(numbers or sources.NUMBERS)
    for number in chosen:
        sources.submission(number)  # raises for an unknown one before anything is measured
    given = [(_file(folder, number, "*.py"), _file(references, number, "*.py")) for number in chosen]
    passed = 0
    for number, (submission, reference) in zip(chosen, given, strict=True):
        outcome = evaluate(
            number,
            device=device,
            dtype=DTYPES[dtype],
            full=full,
            trials=trials,
            timed=timed,
            submission=submission,
            reference=reference,
        )
        passed += outcome.verdict.correct
        table.add_row(*_row(outcome))
        gc.collect()
    print_whole(console, table)
    sizes = (
        "KernelBench's sizes"
        if full or references
        else "two small images of each layer: right or wrong, not fast or slow"
    )
    console.print(f"[dim]{device}, {dtype}, torch {torch.__version__}, {sizes}.[/]", highlight=False)
    print(f"{passed} of {len(chosen)} problems pass", flush=True)
    return 0 if passed == len(chosen) else 1


def write(folder: Path, *, backend: str = "native") -> list[Path]:
    """Write the 17 submissions as `level_1_problem_NUMBER_sample_0_kernel.py`, KernelBench's own name for them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in sources.NUMBERS:
        path = folder / f"level_1_problem_{number}_sample_0_kernel.py"
        path.write_text(sources.submission(number, backend=backend))
        paths.append(path)
    return paths


def _file(folder: Path | None, number: str, pattern: str) -> str | None:
    """The text of a problem's file in a folder: `57_....py`, or as `write` names it."""
    if folder is None:
        return None
    found = [p for p in sorted(folder.glob(pattern)) if p.name.startswith((f"{number}_", f"level_1_problem_{number}_"))]
    if len(found) != 1:
        raise ValueError(f"problem {number}: {len(found)} files of it are in {folder}, 1 is legal")
    return found[0].read_text()


def _row(outcome: Outcome) -> tuple[str, ...]:
    def mean(times: Times | None) -> str:
        return "" if times is None else f"{times.mean:.3f}"

    verdict = outcome.verdict
    word = "[green]pass[/]" if verdict.correct else f"[bold red]FAIL {verdict.passed}/{verdict.trials}[/]"
    ratio = "" if outcome.speedup is None else f"{outcome.speedup:.2f}x"
    beyond = f"{verdict.beyond:.2%}" if verdict.beyond else "none"
    numbers = (f"{verdict.max_difference:.1e}", beyond, mean(outcome.reference_times), mean(outcome.times), ratio)
    return (outcome.number, word, *numbers)
