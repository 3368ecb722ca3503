"""`convt bench overhead`: what a call costs on a problem of one element, where everything else is nothing.

On a GPU the time until a call returns is measured, not the kernel's; the queue is drained now and then, outside of the
clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import convt
from convt.bench import machine
from convt.terminal import plain_table
from convt.timing import Call

Layer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Line:
    """Nanoseconds per call, the least of all repeats."""

    suite: str
    call: str
    device: str  # "cpu", or the name of the GPU
    backend: str  # convt's; PyTorch has one
    torch: str
    commit: str | None
    ns: float
    torch_ns: float
    ratio: float  # torch_ns / ns


def least_nanoseconds(
    calls: Sequence[Call], *, number: int, repeats: int, settle: Callable[[], object] = lambda: None
) -> list[float]:
    """Least time per call of `number` calls in a row, the rivals taking turns; settle() runs between the turns."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats + 1):  # the first repeat warms up
        for which, call in enumerate(calls):
            settle()
            start = time.perf_counter_ns()
            for _ in range(number):
                call()
            best[which] = min(best[which], (time.perf_counter_ns() - start) / number)
    return best


@dataclass(frozen=True)
class Case:
    """A way to call: what of a layer is timed, and the mode around all of it."""

    name: str
    call: Callable[[Layer, str], Call]
    compiled: bool = False
    around: Callable[[str], AbstractContextManager[Any]] = lambda device: nullcontext()


def _tensors(device: str, requires_grad: bool) -> tuple[Tensor, Tensor]:
    input, weight = (torch.ones(1, 1, 1, 1, device=device, requires_grad=requires_grad) for _ in range(2))
    return input, weight


def _forward(layer: Layer, device: str) -> Call:
    input, weight = _tensors(device, False)
    return lambda: layer(input, weight)


def _recorded(layer: Layer, device: str) -> Call:
    input, weight = _tensors(device, True)
    return lambda: layer(input, weight)


def _training(layer: Layer, device: str) -> Call:
    leaves, gradient = _tensors(device, True), torch.ones(1, 1, 1, 1, device=device)
    return lambda: torch.autograd.grad(layer(*leaves), leaves, gradient)


def _autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, dtype=torch.bfloat16)


CASES = (
    Case("no grad", _forward),
    Case("grad needed", _recorded),
    Case("forward + backward", _training),
    Case("autocast", _forward, around=_autocast),
    Case("autocast, forward + backward", _training, around=_autocast),
    Case("compiled", _forward, compiled=True, around=lambda device: torch.no_grad()),
    Case("compiled, forward + backward", _training, compiled=True),
)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _layer(function: Callable[..., Tensor], compiled: bool) -> Layer:
    def layer(input: Tensor, weight: Tensor) -> Tensor:
        return function(input, weight)

    return torch.compile(layer, fullgraph=True) if compiled else layer


def measure(
    *, device: str = "cpu", backend: str = "auto", compiled: bool = True, number: int = 20, repeats: int = 400
) -> Iterator[Line]:
    """conv_transpose2d on one element in every way of CASES, with one thread.

    Many short turns, the more the cheaper a call: on a machine that has other work the least of them is the one that
    nothing interrupted.
    """
    from torch._inductor import config

    on_gpu = device == "cuda"
    place = torch.cuda.get_device_name() if on_gpu else "cpu"
    for case in CASES:
        if case.compiled and not compiled:
            continue
        # Code from an earlier version's compilation is not what is to be measured.
        caches = config.patch(force_disable_caches=True) if case.compiled else nullcontext()
        with convt.backend(backend), case.around(device), caches, _one_thread():
            layers = [_layer(function, case.compiled) for function in (F.conv_transpose2d, convt.conv_transpose2d)]
            calls = [case.call(layer, device) for layer in layers]
            settle = torch.cuda.synchronize if on_gpu else lambda: None
            rough = max(least_nanoseconds(calls, number=number, repeats=3, settle=settle))
            turns = max(repeats, min(25 * repeats, int(repeats * 0.005e9 / (number * rough))))
            torch_ns, ns = least_nanoseconds(calls, number=number, repeats=turns, settle=settle)
        commit = machine.commit()
        yield Line("overhead", case.name, place, backend, torch.__version__, commit, ns, torch_ns, torch_ns / ns)


def run(
    *,
    device: str = "cpu",
    backend: str = "auto",
    quick: bool = False,
    out: Path | None = None,
    console: Console | None = None,
) -> int:
    """Measure, show a table, append JSON lines to `out`. quick: rough numbers, and nothing that compiles."""
    console = console or Console()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("overhead: --device cuda: there is no GPU that PyTorch can use")
    effort = {"repeats": 20, "compiled": False} if quick else {}
    table = plain_table()
    table.add_column("conv_transpose2d on one element")
    for column in ("backend", "torch ns", "convt ns", "ratio"):
        table.add_column(column, justify="right")
    for line in measure(device=device, backend=backend, **effort):  # type: ignore[arg-type]
        table.add_row(line.call, backend, f"{line.torch_ns:.0f}", f"{line.ns:.0f}", f"{line.ratio:.2f}")
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(asdict(line)) + "\n")
    console.print(table)
    return 0


def read(paths: Sequence[Path], backends: Sequence[str] = ()) -> list[Line]:
    """Lines that were written, the last one of each way to call, device and backend; of some backends only.

    Raises:
        ValueError: a file is not there, or nothing is left.
    """
    found = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"overhead: there is no file {path}")
        for text in path.read_text().splitlines():
            line = Line(**json.loads(text))
            if not backends or line.backend in backends:
                found[line.device, line.backend, line.call] = line
    if not found:
        raise ValueError(f"overhead: nothing in {', '.join(map(str, paths))} matches {' '.join(backends) or 'that'}")
    return list(found.values())
