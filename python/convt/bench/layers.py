"""`convt bench cpu` and `sweep`: every layer of a suite, forward and backward, convt against PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import convt
from convt import _C
from convt.bench import machine
from convt.bench.measure import Call, Timing, interleaved
from convt.plan import plan
from convt.terminal import plain_table, print_whole, progress_bar
from convt.testing import SUITES, Layer, dtype_name, sample, torch_function

# What a direction computes: backward is what training asks for, the single operators are what the plan decides on.
DIRECTIONS = {
    "forward": ("forward",),
    "backward": ("grad_input", "grad_weight"),
    "grad_input": ("grad_input",),
    "grad_weight": ("grad_weight",),
}
BOTH = ("forward", "backward")
OPERATORS = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Line:
    """One measurement: what ran, where, how long (medians in microseconds), and whether it was right."""

    suite: str
    problem: str
    direction: str  # backward: gradients of input and weight together; or one of them
    dtype: str
    precision: str
    layout: str
    device: str
    torch: str
    commit: str | None
    isa: str
    threads: int
    backend: str  # asked for
    plan: str  # chosen; for backward that of grad_input and grad_weight
    us: float
    us_p20: float
    us_p80: float
    torch_us: float
    torch_us_p20: float
    torch_us_p80: float
    ratio: float  # torch_us / us: above 1 convt is faster
    turns: int
    gflops: float
    gbs: float
    max_error: float  # against the definition in float64, at sampled positions
    torch_max_error: float
    ok: bool


def select(suite: str, words: Sequence[str]) -> list[Layer]:
    """The layers of a suite whose name contains every word.

    Raises:
        ValueError: unknown suite, or nothing left.
    """
    if suite not in SUITES:
        raise ValueError(f"suite: {suite!r}; legal are {tuple(SUITES)}")
    layers = [layer for layer in SUITES[suite] if all(word in layer.name for word in words)]
    if not layers:
        names = "\n  ".join(layer.name for layer in SUITES[suite])
        raise ValueError(f"filter: {' '.join(words)!r} matches no layer of {suite!r}:\n  {names}")
    return layers


def measure(
    suite: str,
    layer: Layer,
    direction: str,
    *,
    backend: str = "auto",
    device: str = "cpu",
    seconds: float = 1.0,
    after_turn: Callable[[float], None] | None = None,
) -> Line:
    """Check one layer in one direction against the definition, then time it against PyTorch."""
    problem = layer.problem
    input, weight, grad_output = layer.tensors(device)
    theirs, ours = torch_function(problem.rank), getattr(convt, f"conv_transpose{problem.rank}d")
    operators = DIRECTIONS[direction]

    with convt.backend(backend), torch.set_grad_enabled(direction != "forward"):
        calls: list[Call]
        if direction == "forward":
            calls = [partial(f, input, weight, None, *problem.geometry) for f in (theirs, ours)]
        else:
            wanted = {"grad_input": input, "grad_weight": weight}
            leaves = tuple(wanted[operator].requires_grad_() for operator in operators)
            outputs = [f(input, weight, None, *problem.geometry) for f in (theirs, ours)]
            calls = [partial(torch.autograd.grad, y, leaves, grad_output, retain_graph=True) for y in outputs]
        their_error, our_error, ok = _judge(layer, operators, (input, weight, grad_output), *(call() for call in calls))
        plans = [planned(layer, operator, device) for operator in operators]
        torch_time, time = interleaved(calls, seconds=seconds, device=device, after_turn=after_turn)

    flops = 2 * problem.macs * len(operators)
    count = machine.backward_bytes if direction == "backward" else machine.operator_bytes
    bytes = count(problem, layer.dtype.itemsize)
    return Line(
        suite=suite,
        problem=layer.name,
        direction=direction,
        dtype=dtype_name(layer.dtype),
        precision="ieee" if device == "cpu" else convt.current_precision(),
        layout=layer.layout,
        device=torch.cuda.get_device_name() if device == "cuda" else machine.cpu_name(),
        torch=torch.__version__,
        commit=machine.commit(),
        isa=_C.isa(),
        threads=_C.num_threads(),
        backend=backend,
        plan="+".join(dict.fromkeys(plans)),
        **_microseconds("us", time),
        **_microseconds("torch_us", torch_time),
        ratio=torch_time.median / time.median,
        turns=time.turns,
        gflops=flops / time.median * 1e-9,
        gbs=bytes / time.median * 1e-9,
        max_error=our_error,
        torch_max_error=their_error,
        ok=ok,
    )


def _judge(
    layer: Layer,
    operators: Sequence[str],
    tensors: tuple[Tensor, Tensor, Tensor],
    theirs: Any,
    ours: Any,
) -> tuple[float, float, bool]:
    input, weight, grad_output = tensors
    operands = {
        "forward": (input, weight),
        "grad_input": (grad_output, weight),
        "grad_weight": (grad_output, input),
    }
    if operators == ("forward",):
        theirs, ours = (theirs,), (ours,)
    their_worst, our_worst, ok = 0.0, 0.0, True
    for operator, their_result, our_result in zip(operators, theirs, ours, strict=True):
        truth = sample(operator, layer.problem, *operands[operator])
        their_error, our_error = truth.error(their_result), truth.error(our_result)
        ok = ok and truth.matches(our_result, other_error=their_error)
        their_worst, our_worst = _worse(their_worst, their_error), _worse(our_worst, our_error)
    return their_worst, our_worst, ok


def _worse(a: float, b: float) -> float:
    # max() may drop a NaN.
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def planned(layer: Layer, operator: str, device: str) -> str:
    """The backend that the plan picks under the current setting: "native" or "aten"."""
    channels_last = layer.layout == "channels_last"
    return plan(layer.problem, operator, layer.dtype, device, channels_last, convt.current_backend()).backend


def _microseconds(name: str, timing: Timing) -> dict[str, float]:
    return {name: timing.median * 1e6, f"{name}_p20": timing.low * 1e6, f"{name}_p80": timing.high * 1e6}


def run(
    suite: str,
    *,
    words: Sequence[str] = (),
    directions: Sequence[str] = BOTH,
    backend: str = "auto",
    seconds: float = 1.0,
    out: Path | None = None,
    console: Console | None = None,
) -> int:
    """Measure, show a table, append JSON lines to `out`; Ctrl-C keeps what is done.

    Returns:
        0 when every line is right, 1 when one is wrong, 130 when interrupted.
    """
    console = console or Console()
    work = [(layer, direction) for layer in select(suite, words) for direction in directions]
    lines: list[Line] = []
    interrupted = False
    if warning := machine.busy():
        console.print(warning, style="yellow", highlight=False)
    try:
        with progress_bar(console) as progress:
            for line in _measured(progress, suite, work, backend, seconds):
                lines.append(line)
                if out is not None:
                    with out.open("a") as file:
                        file.write(json.dumps(asdict(line)) + "\n")
    except KeyboardInterrupt:
        interrupted = True
    if lines:
        show(lines, console)
    if interrupted:
        console.print(f"Interrupted after {len(lines)} of {len(work)} lines.")
        return 130
    return 0 if all(line.ok for line in lines) else 1


def _measured(
    progress: Progress, suite: str, work: Sequence[tuple[Layer, str]], backend: str, seconds: float
) -> Iterator[Line]:
    task = progress.add_task("", total=len(work))
    for done, (layer, direction) in enumerate(work):
        progress.update(task, description=f"{layer.name} {direction}", completed=done)
        yield measure(suite, layer, direction, backend=backend, seconds=seconds)
    progress.update(task, completed=len(work))


def show(lines: Sequence[Line], console: Console) -> None:
    """The table: medians with their 20th and 80th percentile, ratio above 1 where convt is faster."""
    first = lines[0]
    console.print(
        f"{first.device}, {first.isa}, {first.threads} threads, torch {first.torch}, "
        f"commit {first.commit or 'unknown'}, backend {first.backend}",
        highlight=False,
        soft_wrap=True,
    )
    table = plain_table()
    for column in ("problem", "direction", "plan"):
        table.add_column(column, no_wrap=True)
    for column in ("torch µs", "p20-p80", "convt µs", "p20-p80", "ratio", "GFLOP/s", "GB/s", "max error", "torch's"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        style = "green" if line.ratio >= 1.05 else "red" if line.ratio < 0.95 else "default"
        table.add_row(
            line.problem,
            line.direction,
            line.plan,
            f"{line.torch_us:.0f}",
            f"{line.torch_us_p20:.0f}-{line.torch_us_p80:.0f}",
            f"{line.us:.0f}",
            f"{line.us_p20:.0f}-{line.us_p80:.0f}",
            f"[{style}]{line.ratio:.2f}[/]",
            f"{line.gflops:.1f}",
            f"{line.gbs:.1f}",
            f"{line.max_error:.1e}",
            f"{line.torch_max_error:.1e}",
            "[green]ok[/]" if line.ok else "[bold red]WRONG[/]",
        )
    print_whole(console, table)
    mean = math.exp(sum(math.log(line.ratio) for line in lines) / len(lines))
    lowest = min(line.ratio for line in lines)
    console.print(f"{len(lines)} lines, ratio {mean:.2f} in the geometric mean, lowest {lowest:.2f}", highlight=False)
