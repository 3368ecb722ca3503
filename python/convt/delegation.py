"""Which calls on a GPU are PyTorch's altogether: its call, its autograd node, not a line of Python in a backward."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import heuristics, settings
from .operators import check_forward, like_channels_last
from .plan import OPERATORS, plan
from .problem import Geometry, Operand, OperandKey, Problem, operand


def is_atens(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, recorded: bool | None = None
) -> bool:
    """Whether a call on a GPU, with the derivatives that it records, is best left to ATen altogether.

    Its own autograd node then runs the backward, without a line of Python between autograd and cuDNN.
    """
    if settings._backend != "auto" or forward_ad._current_level >= 0:
        return False
    if recorded is None:
        recorded = torch.is_grad_enabled() and (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        )
    keys = operand(input), operand(weight), None if bias is None else operand(bias)
    return leaves_to_aten(*keys, geometry, recorded)


def leaves_to_aten(
    input: OperandKey, weight: OperandKey, bias: OperandKey | None, geometry: Geometry, recorded: bool
) -> bool:
    """The same of tensors like these on a GPU, under the switches of this moment."""
    counts = input[2] is torch.float32
    if settings._backend != "auto" or (counts and settings.precision_differs()) or any(settings._kernels.values()):
        return False
    precision = settings.current_precision() if counts else "ieee"
    return _is_atens(input, weight, bias, geometry, precision, recorded)


@lru_cache(maxsize=4096)
def _is_atens(
    input: OperandKey, weight: OperandKey, bias: OperandKey | None, geometry: Geometry, precision: str, recorded: bool
) -> bool:
    problem, channels_last = check_forward(input, weight, bias, geometry)
    head = Operand(*input)
    if problem.batch == 0 or (channels_last and not _is_plainly_channels_last(problem, head)):
        return False
    names = OPERATORS if recorded else OPERATORS[:1]
    shared = head.dtype, head.device, channels_last, "auto", precision
    plans = [plan(problem, name, *shared, name == "forward" and bias is not None).backend for name in names]
    native = plans.count("native")
    if native == len(plans) or (native == 0 and not (recorded and bias is not None)):
        return native == 0
    return heuristics.is_better_whole(problem, head.dtype, native)


def _is_plainly_channels_last(problem: Problem, input: Operand) -> bool:
    """Whether cuDNN's output and gradients have the strides that are promised: no tensor leaves its layout open."""
    extents = math.prod(problem.input), math.prod(problem.output), problem.in_channels, problem.out_channels
    return like_channels_last(input.sizes, input.strides) and min(*extents, problem.taps) > 1
