"""Timing: rivals take turns, so that whatever the machine does meanwhile happens to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch

Call = Callable[[], object]
_T = TypeVar("_T")
_R = TypeVar("_R")
_Seconds = tuple[float, float]  # of a call, and of its first part (0 where it has none)

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


class Parts(Generic[_T, _R]):
    """A call of two parts, the second of which takes what the first returns; each is timed as well."""

    def __init__(self, first: Callable[[], _T], second: Callable[[_T], _R]) -> None:
        self.first, self.second = first, second

    def __call__(self) -> _R:
        return self.second(self.first())


@dataclass(frozen=True)
class Timing:
    """Seconds per call over all turns."""

    median: float
    low: float  # 20th percentile
    high: float  # 80th percentile
    turns: int
    first: float | None = None  # medians of the first and of the second part of a call that has Parts
    second: float | None = None


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

    def once(call: Call, repeat: int) -> _Seconds:
        if isinstance(call, Apart):
            return call.run(lambda inner: once(inner, repeat))
        return _once_cuda(call) if on_gpu else _once_cpu(call, repeat)

    cost = [once(call, 1)[0] for call in calls]
    if max(cost) < seconds:  # the first call pays for what later ones find ready
        cost = [once(call, 1)[0] for call in calls]
    repeats = [max(1, round(_SHORTEST / c)) for c in cost]
    taken: list[list[_Seconds]] = [[] for _ in calls]
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


def _timing(times: Sequence[_Seconds]) -> Timing:
    whole = [seconds for seconds, _ in times]
    parts: dict[str, float] = {}
    if any(first for _, first in times):
        parts["first"] = statistics.median(first for _, first in times)
        parts["second"] = statistics.median(seconds - first for seconds, first in times)
    if len(whole) == 1:
        return Timing(whole[0], whole[0], whole[0], 1, **parts)
    fifths = statistics.quantiles(whole, n=5, method="inclusive")
    return Timing(statistics.median(whole), fifths[0], fifths[-1], len(whole), **parts)


def _run(call: Call, between: Callable[[], object]) -> None:
    if isinstance(call, Parts):
        value: Any = call.first()
        between()
        call.second(value)
    else:
        call()


def _once_cpu(call: Call, repeat: int) -> _Seconds:
    middles: list[float] = []
    start, spent = time.perf_counter(), 0.0
    for _ in range(repeat):
        begin = time.perf_counter() if isinstance(call, Parts) else 0.0
        _run(call, lambda: middles.append(time.perf_counter()))
        if middles:
            spent += middles.pop() - begin
    return (time.perf_counter() - start) / repeat, spent / repeat


def _once_cuda(call: Call) -> _Seconds:
    # While the GPU writes the buffer, the CPU gets ahead of it: what is timed is the call, not its launch.
    _flush_buffer(torch.cuda.current_device()).zero_()
    begin, middle, end = (_event() for _ in range(3))
    begin.record()
    _run(call, middle.record)
    end.record()
    end.synchronize()
    first = float(begin.elapsed_time(middle)) * 1e-3 if isinstance(call, Parts) else 0.0
    return float(begin.elapsed_time(end)) * 1e-3, first


@lru_cache(maxsize=8)
def _flush_buffer(index: int) -> torch.Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=f"cuda:{index}")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
