"""Timing: rivals take turns, so that whatever the machine does meanwhile happens to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

_FLUSH_BYTES = 256 << 20  # more than any L2 cache of a GPU
_SHORTEST = 2e-4  # seconds; shorter calls are repeated within one turn


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
        device: "cuda" measures with CUDA events and a cold L2 cache.
        after_turn: told the fraction done, in (0, 1], after every turn.
    """
    once = _once_cuda if torch.device(device).type == "cuda" else _once_cpu
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


def _once_cuda(call: Call, repeat: int) -> float:
    # Every repetition sees a cold cache, so they are timed one by one.
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    total = 0.0
    for _ in range(repeat):
        flush.zero_()
        begin, end = (_event() for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        total += begin.elapsed_time(end) * 1e-3
    return total / repeat


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
