"""Timing: rivals take turns, so that whatever the machine does meanwhile happens to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch

Call = Callable[[], object]
_T = TypeVar("_T")

_FLUSH_BYTES = 256 << 20  # more than any L2 cache of a GPU
_SHORTEST = 2e-4  # seconds; on a CPU, shorter calls are repeated within one turn


@dataclass(frozen=True)
class Apart:
    """A call with switches that hold for it alone: set outside of what is timed, and taken back after each turn."""

    call: Call
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    thread: Executor | None = None  # runs and times it: what a library remembers per thread stays apart

    def __call__(self) -> object:
        return self.run(lambda call: call())

    def run(self, what: Callable[[Call], _T]) -> _T:
        """what(call) between the switches, in the thread."""

        def inside() -> _T:
            with self.around():
                return what(self.call)

        return inside() if self.thread is None else self.thread.submit(inside).result()


@dataclass(frozen=True)
class Timing:
    """Seconds per call over all turns."""

    median: float
    low: float  # 20th percentile
    high: float  # 80th percentile
    turns: int


def interleaved(
    calls: Sequence[Call],
    *,
    seconds: float = 1.0,
    device: str = "cpu",
    least_turns: int = 5,
    after_turn: Callable[[float], None] | None = None,
) -> list[Timing]:
    """Time `calls` in turns A B A B ... after a warm-up of each.

    Args:
        seconds: how long all calls together may take; at least `least_turns` turns are taken whatever they cost.
        device: "cuda" measures the current GPU with CUDA events and a cold L2 cache.
        after_turn: told the fraction done, in (0, 1], after every turn.
    """
    on_gpu = torch.device(device).type == "cuda"

    def once(call: Call, repeat: int) -> float:
        if isinstance(call, Apart):
            return call.run(lambda inner: once(inner, repeat))
        return _once_cuda(call) if on_gpu else _once_cpu(call, repeat)

    cost = [once(call, 1) for call in calls]
    if max(cost) < seconds:  # the first call pays for what later ones find ready
        cost = [once(call, 1) for call in calls]
    repeats = [max(1, round(_SHORTEST / c)) for c in cost]
    taken: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    turns, elapsed = 0, 0.0
    while turns < least_turns or elapsed < seconds:
        for times, call, repeat in zip(taken, calls, repeats, strict=True):
            times.append(once(call, repeat))
        turns += 1
        elapsed = time.perf_counter() - start
        if after_turn is not None:
            after_turn(min(1.0, max(elapsed / seconds, 1e-9), turns / least_turns))
    return [_timing(times) for times in taken]


def _timing(times: list[float]) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1)
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), fifths[0], fifths[-1], len(times))


def _once_cpu(call: Call, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def _once_cuda(call: Call) -> float:
    # While the GPU writes the buffer, the CPU gets ahead of it: what is timed is the call, not its launch.
    _flush_buffer(torch.cuda.current_device()).zero_()
    begin, end = (_event() for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


@lru_cache(maxsize=8)
def _flush_buffer(index: int) -> torch.Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=f"cuda:{index}")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
