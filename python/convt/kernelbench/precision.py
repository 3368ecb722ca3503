"""What passes when: float32 multiplied in several ways, compared under KernelBench's tolerance, on a CPU.

Products of rounded operands are formed in float64, so that a difference between two ways is that of their roundings.
Operands are KernelBench's: inputs uniform in [0, 1), weights as torch.nn initialises them, of the seed that its check
sets; images are smaller (docs/precision.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from convt.bench import record
from convt.kernelbench import harness, sources
from convt.problem import Problem
from convt.testing import tf32_nearest, tf32_truncated, torch_function
from convt.testing.kernelbench import PROBLEMS

# The longest axis of an image here, by rank: enough pixels that borders do not decide.
_LONGEST = {1: 2048, 2: 48, 3: 16}

# What a reference computes, and what a submission computes.
PAIRS = (
    ("tf32", "tf32, other sums"),
    ("tf32", "fp32"),
    ("tf32", "tf32 truncated"),
    ("fp32", "3xtf32"),
    ("bf16", "bf16, other sums"),
)


@dataclass(frozen=True)
class Finding:
    """One pair on one problem."""

    problem: str
    input: tuple[int, ...]  # (batch, in_channels, *spatial)
    reference: str
    submission: str
    beyond: float  # share of elements that the check objects to
    max_difference: float
    passes: bool


def reduced(problem: Problem) -> Problem:
    """The same layer on one image of at most _LONGEST pixels per axis."""
    return replace(problem, batch=1, input=tuple(min(i, _LONGEST[problem.rank]) for i in problem.input))


def ways(problem: Problem, input: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The output of every way to multiply, by the names in PAIRS, in the dtype that it comes out in."""

    def product(first: Tensor, second: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        p = problem
        function = torch_function(p.rank)
        first, second = first.to(dtype), second.to(dtype)
        return function(first, second, None, p.stride, p.padding, p.output_padding, p.groups, p.dilation)

    rounded, cut = (tf32_nearest(input), tf32_nearest(weight)), (tf32_truncated(input), tf32_truncated(weight))
    # What is left after the first rounding; a tensor core looks at a TF32's bits of it.
    rest = tf32_truncated(input - rounded[0]), tf32_truncated(weight - rounded[1])
    brain = input.bfloat16(), weight.bfloat16()
    exact = product(*rounded)
    return {
        "fp32": product(input, weight).float(),
        "tf32": exact.float(),
        "tf32, other sums": product(*rounded, torch.float32),
        "tf32 truncated": product(*cut).float(),
        "3xtf32": (exact + product(rounded[0], rest[1]) + product(rest[0], rounded[1])).float(),
        "bf16": product(*brain).bfloat16(),
        "bf16, other sums": product(*brain, torch.float32).bfloat16(),
    }


def compare(number: str) -> list[Finding]:
    """Every pair of PAIRS on one problem.

    Raises:
        ValueError: there is no such problem.
    """
    if number not in PROBLEMS:
        raise ValueError(f"problem: {number!r}; legal are {', '.join(sources.NUMBERS)}")
    problem = reduced(PROBLEMS[number])
    loaded = harness.load(sources.reference(number, problem), sources.submission(number))
    model, _ = harness.build(loaded, "cpu")
    (weight,) = model.parameters()
    (input,) = harness.timing_inputs(loaded, "cpu")
    found = []
    with torch.no_grad():
        outputs = ways(problem, input, weight)
        for reference, submission in PAIRS:
            expected, got = outputs[reference], outputs[submission]
            bound = harness.tolerance(expected.dtype)
            beyond = harness.share_beyond(expected, got, bound)
            difference = float((expected - got).abs().max())
            found.append(Finding(number, tuple(input.shape), reference, submission, beyond, difference, beyond == 0.0))
    return found


def write(path: Path, numbers: Sequence[str] = ()) -> list[Finding]:
    """Compare all problems (or those named) and write a JSON line for each finding."""
    found = [finding for number in numbers or sources.NUMBERS for finding in compare(number)]
    path.write_text("".join(json.dumps(asdict(finding)) + "\n" for finding in found))
    return found


def read(path: Path) -> list[Finding]:
    """The findings in a file that `write` made."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Finding(**{**line, "input": tuple(line["input"])}) for line in lines]


# ---- tables of docs/precision.md ---------------------------------------------------------------------------------


def passing(path: Path) -> str:
    """A row per problem: of each pair the share of elements beyond the tolerance and the largest difference."""
    findings = read(path)
    head = ["problem", "image", *(f"{submission} for {reference}" for reference, submission in PAIRS)]
    rows = []
    for number in dict.fromkeys(finding.problem for finding in findings):
        of = {(f.reference, f.submission): f for f in findings if f.problem == number}
        image = "x".join(map(str, next(iter(of.values())).input[2:]))
        rows.append([number, image, *(_cell(of[pair]) for pair in PAIRS)])
    return _table(head, rows)


def _cell(finding: Finding) -> str:
    share = f"**{100 * finding.beyond:.2g} %**" if finding.beyond else "passes"
    return f"{share}, {finding.max_difference:.0e}"


def errors(path: Path) -> str:
    """A row per problem: PyTorch's rounding and the errors of both on a GPU, from `convt bench kernelbench --out`."""
    lines = {
        (line.problem, line.precision): line
        for line in record.read(path)
        if line.direction == "forward" and line.layout == "contiguous" and line.forced is None
    }
    head = ["problem", "eager multiplies", "eager's error", "convt tf32", "convt ieee", "submission"]
    rows = []
    for number in sources.NUMBERS:
        tf32, ieee = lines[number, "tf32"], lines[number, "ieee"]
        rounding = (tf32.eager_rounding or "").replace("_", " ")
        submitted = "ieee" if number in sources.IEEE else "PyTorch's switch"
        numbers = (
            f"{value:.1e}" for value in (tf32.eager_max_error, tf32.max_error, ieee.max_error) if value is not None
        )
        rows.append([number, rounding, *numbers, submitted])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
