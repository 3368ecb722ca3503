"""`convt demo`: the five problems that convt came from, solved, judged and timed on this machine."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

import convt
from convt import _C, problems
from convt.bench import machine
from convt.choices import cpu_name
from convt.plan import plan
from convt.problem import Problem
from convt.terminal import plain_table, print_whole, progress_bar
from convt.testing import problem_of, sample
from convt.timing import Timing, interleaved

_SEED = 42  # KernelBench's


@dataclass(frozen=True)
class Result:
    """One problem, solved by both."""

    number: int
    problem: Problem
    reduced: str  # what was made smaller, empty for the real size
    plan: str
    error: float  # against the definition in float64, at sampled positions
    torch_error: float
    matches: bool
    time: Timing
    torch_time: Timing
    roofline: float  # seconds

    @property
    def ratio(self) -> float:
        """Above 1 convt is faster."""
        return self.torch_time.median / self.time.median


def run(
    *,
    full: bool = False,
    device: str | None = None,
    backend: str = "auto",
    seconds: float = 3.0,
    console: Console | None = None,
) -> int:
    """Solve the five problems and print what came out; the last line is `k of 5 problems match`.

    Args:
        full: KernelBench's own sizes, also on a CPU. Where memory is short, the batch is cut and the table says so.
        device: "cpu" or "cuda"; by default a GPU when PyTorch sees one.
        backend: "auto", "native" or "aten", as in `convt.backend`.
        seconds: time to measure each problem for.

    Returns:
        0 when all five match, 1 when one does not, 130 when interrupted.

    Raises:
        ValueError: `device` is "cuda" and PyTorch sees no GPU.
    """
    console = console or Console()
    gpu = torch.cuda.is_available()
    device = device or ("cuda" if gpu else "cpu")
    if device == "cuda" and not gpu:
        raise ValueError("device: 'cuda', but PyTorch sees no GPU; legal here is 'cpu'")
    full = full or device == "cuda"

    console.print(_where(device, backend), highlight=False)
    results: list[Result] = []
    interrupted = False
    try:
        with progress_bar(console) as progress, convt.backend(backend), torch.no_grad():
            task = progress.add_task("how fast is this machine?", total=len(problems.NUMBERS))
            roofline = machine.measure_roofline(device)
            for done, number in enumerate(problems.NUMBERS):

                def step(what: str, fraction: float, done: int = done, number: int = number) -> None:
                    progress.update(task, description=f"{number}: {what}", completed=done + fraction)

                results.append(_solve(number, full, device, seconds, roofline, step))
            progress.update(task, completed=len(problems.NUMBERS))
    except KeyboardInterrupt:
        interrupted = True
    if results:
        _show(results, roofline, console)
    matching = sum(result.matches for result in results)
    if interrupted:
        console.print(f"Interrupted after {len(results)} of {len(problems.NUMBERS)}.")
    print(f"{matching} of {len(problems.NUMBERS)} problems match", flush=True)
    if interrupted:
        return 130
    return 0 if matching == len(problems.NUMBERS) else 1


def _where(device: str, backend: str) -> str:
    how = {
        "auto": "the plan picks native code or ATen per problem",
        "native": "native code for all",
        "aten": "ATen for all",
    }[backend]
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}. convt on the GPU: {how}."
    return f"{cpu_name()}, {_C.num_threads()} threads, torch {torch.__version__}. convt on the CPU ({_C.isa()}): {how}."


def _solve(
    number: int,
    full: bool,
    device: str,
    seconds: float,
    roofline: machine.Roofline,
    step: Callable[[str, float], None],
) -> Result:
    step("making the input", 0.0)
    source = problems.load(number)
    torch.manual_seed(_SEED)
    theirs, ours = source.Model(*source.get_init_inputs()), source.ModelNew(*source.get_init_inputs())
    ours.load_state_dict(theirs.state_dict())
    theirs, ours = theirs.to(device), ours.to(device)
    (layer,) = theirs.children()
    sizes, reduced = _sizes(source, layer, full, device)
    (input,) = (tensor.to(device) for tensor in source.get_inputs(**sizes))
    problem = problem_of(layer, input.shape)

    step("torch against convt", 0.1)
    their_output, our_output = theirs(input), ours(input)
    step("both against the definition in float64", 0.3)
    truth = sample("forward", problem, input, layer.weight)
    error, torch_error = truth.error(our_output), truth.error(their_output)
    matches = truth.matches(our_output, other_error=torch_error) and truth.agree(our_output, their_output)
    del their_output, our_output
    gc.collect()

    timing = interleaved(
        [lambda: theirs(input), lambda: ours(input)],
        seconds=seconds,
        device=device,
        least_turns=3,
        after_turn=lambda fraction: step("timing torch and convt in turns", 0.4 + 0.6 * fraction),
    )
    flops, bytes = 2 * problem.macs, machine.operator_bytes(problem, input.itemsize)
    return Result(
        number=number,
        problem=problem,
        reduced=reduced,
        plan=plan(problem, "forward", input.dtype, device, requested=convt.current_backend()).backend,
        error=error,
        torch_error=torch_error,
        matches=matches,
        torch_time=timing[0],
        time=timing[1],
        roofline=roofline.seconds(flops, bytes),
    )


def _sizes(source: ModuleType, layer: Any, full: bool, device: str) -> tuple[dict[str, Any], str]:
    """Arguments for the problem's get_inputs, and what they make smaller than the real problem."""
    real = _problem(source, layer, {})
    if not full:
        return source.reduced, _difference(real, _problem(source, layer, source.reduced))
    elements = math.prod(real.input_size) + 2 * math.prod(real.output_size)
    needed = int(4 * 1.25 * elements)  # float32, and room for what ATen allocates on the way
    free = machine.free_bytes(device)
    if free is None or needed <= free:
        return {}, ""
    sizes = {"batch_size": max(1, real.batch * free // needed)}
    why = f" ({needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free)"
    return sizes, _difference(real, _problem(source, layer, sizes)) + why


def _problem(source: ModuleType, layer: Any, sizes: dict[str, Any]) -> Problem:
    with torch.device("meta"):
        (input,) = source.get_inputs(**sizes)
    return problem_of(layer, input.shape)


def _difference(real: Problem, small: Problem) -> str:
    changes = [f"batch {real.batch} to {small.batch}"] if real.batch != small.batch else []
    changes += [f"{_times(real.input)} to {_times(small.input)} pixels"] if real.input != small.input else []
    return ", ".join(changes)


def _times(extents: Sequence[int]) -> str:
    return "x".join(map(str, extents))


def _show(results: Sequence[Result], roofline: machine.Roofline, console: Console) -> None:
    table = plain_table()
    table.add_column("problem", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in ("error", "roofline", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        for row in _rows(result):
            table.add_row(*row)
    print_whole(console, table)

    smaller = [f"{result.number}: {result.reduced}" for result in results if result.reduced]
    if smaller:
        console.print(f"[dim]Made smaller for this machine: {'; '.join(smaller)}.[/]", highlight=False)
    console.print(
        f"[dim]error: largest difference from the definition in float64; roofline: {roofline.multiply * 1e-9:.0f} "
        f"GFLOP/s and {roofline.copy * 1e-9:.0f} GB/s as measured here, percentages are of that.[/]",
        highlight=False,
    )
    done = sum(result.problem.macs for result in results)
    inserted = sum(_macs_with_zeros(result.problem) for result in results)
    console.print(
        f"[dim]Multiply-adds: {done * 1e-9:.1f} G. Inserting zeros between the pixels would take "
        f"{inserted * 1e-9:.1f} G; nobody misses them.[/]",
        highlight=False,
    )
    console.print(f"\n{_headline(results)}", style="bold", highlight=False)


def _rows(result: Result) -> tuple[list[str], list[str]]:
    p = result.problem
    name = f"{result.number} {p.rank}-D k{_times(p.filter if len(set(p.filter)) > 1 else p.filter[:1])} s{p.stride[0]}"
    name += f" d{p.dilation[0]}" if p.dilation[0] > 1 else ""
    slowest = max(result.time.median, result.torch_time.median)

    def cells(who: str, timing: Timing, error: float, color: str) -> list[str]:
        bar = "█" * max(1, round(12 * timing.median / slowest))
        share = f"{result.roofline / timing.median:.0%}"
        return [who, f"{timing.median * 1e3:.1f}", f"[{color}]{bar}[/]", f"{error:.1e}", share]

    color = "green" if result.ratio >= 1.05 else "yellow" if result.ratio >= 0.95 else "red"
    verdict = "[green]match[/]" if result.matches else "[bold red]DIFFERS[/]"
    return (
        [f"[bold]{name}[/]", *cells("convt", result.time, result.error, color), f"{result.ratio:.2f}x", result.plan],
        [_times(p.input_size), *cells("torch", result.torch_time, result.torch_error, "dim"), "", verdict],
    )


def _macs_with_zeros(problem: Problem) -> int:
    """Multiply-adds of the textbook: insert zeros into the input, then an ordinary convolution."""
    per_output = problem.in_channels // problem.groups * problem.taps
    return math.prod(problem.output_size) * per_output


def _headline(results: Sequence[Result]) -> str:
    mean = math.exp(sum(math.log(result.ratio) for result in results) / len(results))
    over = f"geometric mean of {len(results)}"
    if mean >= 1.03:
        best = max(results, key=lambda result: result.ratio)
        return f"convt is {mean:.2f}x as fast as PyTorch here ({over}), and {best.ratio:.1f}x on number {best.number}."
    if mean >= 0.97:
        return f"convt and PyTorch are equally fast here ({mean:.2f}x, {over})."
    return f"PyTorch is {1 / mean:.2f}x as fast as convt here ({over})."
