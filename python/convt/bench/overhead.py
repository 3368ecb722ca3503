"""`convt bench overhead`: what a call costs on a problem of one element, where everything else is nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import convt
from convt.bench import machine
from convt.terminal import plain_table
from convt.timing import Call


@dataclass(frozen=True)
class Line:
    """Nanoseconds per call, the least of all repeats."""

    suite: str
    call: str
    torch: str
    commit: str | None
    ns: float
    torch_ns: float
    ratio: float  # torch_ns / ns


def least_nanoseconds(calls: list[Call], *, number: int, repeats: int) -> list[float]:
    """Least time per call of `number` calls in a row, the rivals taking turns."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats + 1):  # the first repeat warms up
        for which, call in enumerate(calls):
            start = time.perf_counter_ns()
            for _ in range(number):
                call()
            best[which] = min(best[which], (time.perf_counter_ns() - start) / number)
    return best


def measure(*, number: int = 2000, repeats: int = 15) -> list[Line]:
    """conv_transpose2d on one element: without gradients, recording them, and forward with backward."""
    input, weight, gradient = (torch.ones(1, 1, 1, 1) for _ in range(3))
    learned = torch.ones(1, 1, 1, 1, requires_grad=True)

    def backward(function: Callable[..., Tensor]) -> Call:
        return lambda: torch.autograd.grad(function(input, learned), learned, gradient)

    rivals = (F.conv_transpose2d, convt.conv_transpose2d)
    cases: dict[str, list[Call]] = {
        "no grad": [partial(function, input, weight) for function in rivals],
        "grad needed": [partial(function, input, learned) for function in rivals],
        "forward + backward": [backward(function) for function in rivals],
    }
    lines = []
    for name, calls in cases.items():
        torch_ns, ns = least_nanoseconds(calls, number=number, repeats=repeats)
        lines.append(Line("overhead", name, torch.__version__, machine.commit(), ns, torch_ns, torch_ns / ns))
    return lines


def run(*, quick: bool = False, out: Path | None = None, console: Console | None = None) -> int:
    """Measure, show a table, append JSON lines to `out`."""
    console = console or Console()
    lines = measure(number=200, repeats=3) if quick else measure()
    table = plain_table()
    table.add_column("conv_transpose2d on one element")
    for column in ("torch ns", "convt ns", "ratio"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(line.call, f"{line.torch_ns:.0f}", f"{line.ns:.0f}", f"{line.ratio:.2f}")
    console.print(table)
    if out is not None:
        with out.open("a") as file:
            file.writelines(json.dumps(asdict(line)) + "\n" for line in lines)
    return 0
