"""The rule that prefers native code or ATen on a CPU. Pure: the same problem, the same answer.

It was read off a sweep of more than 300 layers by three operators (docs/tuning.md: the machine, the protocol, what the
rule wins). It names native code only where that won with a margin, because ATen's speed depends on the machine as well:
on dense float32 and bfloat16 layers ATen runs close to the machine's peak.
"""

from __future__ import annotations

import math

import torch

from .problem import Problem

# Products below which a call costs more than its arithmetic: ATen's own autograd node is then the cheapest to record.
_SMALL_MACS = 4096


def is_small(problem: Problem, dtype: torch.dtype) -> bool:
    """Whether a call that records gradients is cheapest through ATen's small-problem operator."""
    results = problem.out_channels * math.prod(problem.output)
    return (
        problem.groups == 1
        and problem.batch * results <= _SMALL_MACS
        and problem.macs <= _SMALL_MACS
        and dtype in (torch.float32, torch.float64)
    )


def choose(problem: Problem, operator: str, dtype: torch.dtype, channels_last: bool) -> str:
    """The backend expected to be faster on a CPU, "native" or "aten".

    operator is "forward", "grad_input" or "grad_weight"; channels_last tells the layout of the result.
    """
    rule = {"forward": _forward, "grad_input": _grad_input, "grad_weight": _grad_weight}[operator]
    return "native" if dtype is torch.float16 or rule(problem, dtype, channels_last) else "aten"


def _pixels(problem: Problem) -> int:
    """Input pixels per image: the length that vectors run along."""
    return math.prod(problem.input)


def _pairs(problem: Problem) -> int:
    """Input by output channels of a group."""
    return problem.in_channels // problem.groups * (problem.out_channels // problem.groups)


def _is_strided(problem: Problem) -> bool:
    return max(problem.stride) > 1


def _forward(problem: Problem, dtype: torch.dtype, channels_last: bool) -> bool:
    pixels, pairs = _pixels(problem), _pairs(problem)
    if dtype is torch.float64:
        return pixels >= 256
    if problem.groups > 1 and pairs == 1:  # depthwise
        if channels_last:
            return False
        if dtype is torch.bfloat16:
            return pixels >= 256
        wide = problem.rank != 2 or (_is_strided(problem) and max(problem.filter) <= 4)
        return wide and pixels >= 1024
    if dtype is torch.bfloat16 or pixels < 256:
        return False
    outputs = problem.out_channels // problem.groups
    if problem.groups > 1:
        if problem.rank == 3:
            return False
        if channels_last:
            return pixels >= 1024 and max(problem.dilation) == 1
        return pixels >= 1024 and (_is_strided(problem) or max(problem.filter) <= 3)
    if outputs <= 4:
        return max(problem.dilation) == 1 or _is_strided(problem)
    if channels_last:
        return False
    if problem.rank == 1:
        return pairs <= 4096 if _is_strided(problem) else pairs <= 2048 and max(problem.dilation) == 1
    if problem.rank == 3:
        return _is_strided(problem) and pixels >= 4096 and max(problem.filter) <= 3
    if _is_strided(problem):
        return pixels >= 1024 or pairs <= 1024
    return pairs <= 256 and max(problem.dilation) == 1


def _grad_input(problem: Problem, dtype: torch.dtype, channels_last: bool) -> bool:
    pixels, pairs = _pixels(problem), _pairs(problem)
    if dtype is torch.float64:
        return pixels >= 256
    if dtype is torch.bfloat16 or channels_last or pixels < 256:
        return False
    if problem.groups > 1:
        if problem.rank == 1:
            return pixels >= 1024 and problem.taps <= 8
        dilated = max(problem.dilation) > 1 and pairs > 1
        return problem.rank == 2 and pixels >= 1024 and dilated
    if problem.rank == 1:
        return pairs <= 2048 and problem.taps <= 5
    if problem.rank == 2 and max(problem.stride) >= 4 and max(problem.dilation) > 1:
        return pixels >= 4096
    return problem.rank == 2 and pairs <= 256 and problem.taps <= 9


def _grad_weight(problem: Problem, dtype: torch.dtype, channels_last: bool) -> bool:
    pixels, pairs = _pixels(problem), _pairs(problem)
    if problem.groups > 1 and pairs == 1:  # depthwise: ATen leaves its fast code beyond 3x3
        if dtype is torch.bfloat16 or problem.taps >= 10:
            return pixels * problem.taps >= 512
        return dtype is torch.float64 or (problem.rank == 1 and pixels >= 1024)
    if dtype is torch.float64:
        return pixels >= 256 and (pairs <= 4096 or problem.groups > 1)
    if pixels < 256:
        return False
    if problem.groups > 1:
        if problem.rank == 1:
            return pixels >= 1024 and problem.taps <= 8
        return max(problem.dilation) > 1 and not channels_last
    if problem.rank == 1:
        return pairs <= 2048 and problem.taps <= 4
    if problem.rank == 2 and not channels_last:
        if max(problem.dilation) > 1 and _is_strided(problem):
            return pixels >= 1024 and pairs <= 2048
        return pairs <= 256 and problem.taps <= 4
    return False
