"""Timing: rivals take turns, so that whatever the machine does meanwhile happens to all of them."""

from __future__ import annotations

import math
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
_FURTHEST = (
    5e-3  # seconds that a CPU is ahead of its GPU at most; a call that takes longer to launch is not waiting to run
)
_MARGIN = 1.5  # of the time that a launch took
_TRIES = 3  # of a turn whose launch took longer than was waited for


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
        device: "cuda" measures the current GPU with CUDA events and a cold L2 cache, without what launching takes.
        after_turn: told the fraction done, in (0, 1], after every turn.
    """
    racing = [(_Gpu if torch.device(device).type == "cuda" else _Cpu)(call) for call in calls]
    cost = [rival.turn() for rival in racing]
    if max(seconds_of for seconds_of, _ in cost) < seconds:  # the first call pays for what later ones find ready
        cost = [rival.turn() for rival in racing]
    for rival, (seconds_of, _) in zip(racing, cost, strict=True):
        rival.repeat = max(1, round(_SHORTEST / seconds_of))
    taken: list[list[_Seconds]] = [[] for _ in racing]
    start = time.perf_counter()
    turns, elapsed = 0, 0.0
    while turns < least_turns or elapsed < seconds:
        for times, rival in zip(taken, racing, strict=True):
            times.append(rival.turn())
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


class _Cpu:
    """A call and how often it runs in a turn."""

    def __init__(self, call: Call) -> None:
        self.call, self.repeat = call, 1

    def turn(self) -> _Seconds:
        return self.call.run(self._once) if isinstance(self.call, Apart) else self._once(self.call)

    def _once(self, call: Call) -> _Seconds:
        middles: list[float] = []
        start, spent = time.perf_counter(), 0.0
        for _ in range(self.repeat):
            begin = time.perf_counter() if isinstance(call, Parts) else 0.0
            _run(call, lambda: middles.append(time.perf_counter()))
            if middles:
                spent += middles.pop() - begin
        return (time.perf_counter() - start) / self.repeat, spent / self.repeat


class _Gpu(_Cpu):
    """A call, which runs once in a turn, and how long launching all of it takes, lately."""

    launch = _FURTHEST

    def _once(self, call: Call) -> _Seconds:
        for _ in range(_TRIES):
            seconds, launch, ahead = self._launched(call)
            # Sooner more than less: a processor that was busy once may be so again.
            self.launch = launch if launch > self.launch else (launch + self.launch) / 2
            if launch < ahead:
                break
        return seconds

    def _launched(self, call: Call) -> tuple[_Seconds, float, float]:
        """Of a call, of its launch, and what the GPU was kept busy for before it."""
        # While the GPU writes the buffer, the CPU gets ahead of it: what is timed is the call, not its launch.
        index = torch.cuda.current_device()
        writes = 1 + math.ceil(_MARGIN * min(self.launch, _FURTHEST) / _flush_seconds(index))
        for _ in range(writes):
            _flush_buffer(index).zero_()
        begin, middle, end = (_event() for _ in range(3))
        start = time.perf_counter()
        begin.record()
        _run(call, middle.record)
        end.record()
        launch = time.perf_counter() - start
        end.synchronize()
        first = float(begin.elapsed_time(middle)) * 1e-3 if isinstance(call, Parts) else 0.0
        return (float(begin.elapsed_time(end)) * 1e-3, first), launch, writes * _flush_seconds(index)


@lru_cache(maxsize=8)
def _flush_seconds(index: int) -> float:
    """How long writing the buffer takes."""
    buffer, begin, end = _flush_buffer(index), _event(), _event()
    buffer.zero_()
    begin.record()
    for _ in range(10):
        buffer.zero_()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-4


@lru_cache(maxsize=8)
def _flush_buffer(index: int) -> torch.Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=f"cuda:{index}")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
