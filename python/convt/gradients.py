"""The gradients of input and weight together: by ATen in one call, from one turned grad_output, or one by one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _C, operators
from .operators import Call, Switches
from .plan import cuda_traits
from .problem import Geometry, Ints, OperandKey, operand

# Microseconds that Python takes to lead a third launch.
LEAD = 10.0
# What is left of the predicted time where only one of the two would turn: the other's kernel is another then.
SURE = 0.95


def both(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """grad_input and grad_weight."""
    asked = ask(grad_output, input, weight, geometry, channels_last)
    calls = _calls(asked)
    if is_joint(*calls, input):
        return by_aten(*calls, grad_output, input, weight, geometry)
    turned = turned_once(asked)
    if turned is not None:
        return by_turned(turned, grad_output, input, weight, geometry)
    return _one_by_one(*calls, grad_output, input, weight, geometry)


class Asked(NamedTuple):
    """What the plans of both gradients depend on."""

    grad_output: OperandKey
    input: OperandKey
    weight: OperandKey
    geometry: Geometry
    channels_last: bool
    to_input: Switches
    to_weight: Switches


def ask(grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, channels_last: bool) -> Asked:
    keys = operand(grad_output), operand(input), operand(weight)
    switches = (operators._switches(name, grad_output) for name in ("grad_input", "grad_weight"))
    return Asked(*keys, geometry, channels_last, *switches)


def _calls(asked: Asked) -> tuple[Call, Call]:
    grad_output, input, weight, geometry, channels_last, to_input, to_weight = asked
    return (
        operators._grad_input_call(grad_output, weight, geometry, channels_last, *to_input),
        operators._grad_weight_call(grad_output, input, weight[0][2:], geometry, channels_last, *to_weight),
    )


def _one_by_one(
    to_input: Call, to_weight: Call, grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    if is_weight_first(to_input, to_weight, grad_output.stride()):
        weights = operators._grad_weight(to_weight, grad_output, input, geometry)
        return operators._grad_input(to_input, grad_output, weight, geometry), weights
    inputs = operators._grad_input(to_input, grad_output, weight, geometry)
    return inputs, operators._grad_weight(to_weight, grad_output, input, geometry)


def is_weight_first(to_input: Call, to_weight: Call, strides: Ints) -> bool:
    """Whether grad_weight comes before grad_input: the one with more workspace, which then meets one result less.

    ATen's is not known. cuDNN copies tensors whose channels are whole vectors so that they are innermost, unless they
    are, the filter as well (H200): more than any workspace of ours. Of others it took none in half of the layers.
    """
    if to_input.native == to_weight.native:
        return _workspace_of(to_weight) > _workspace_of(to_input)
    return to_input.native if _copies(to_input, strides) else to_weight.native


def is_bias_first(to_input: Call | None, to_weight: Call | None, strides: Ints) -> bool:
    """Whether the bias' gradient comes before both: its partial sums, some kilobytes, then meet no result of theirs.

    Where cuDNN's workspace is more than they take it comes last.
    """
    atens = [call for call in (to_input, to_weight) if call is not None and not call.native]
    return not atens or not _copies(atens[0], strides)


def _copies(call: Call, strides: Ints) -> bool:
    """Whether cuDNN would copy a gradient's operands; strides are grad_output's."""
    problem = call.problem
    return strides[1] != 1 and problem.in_channels % 8 == 0 and problem.out_channels % 8 == 0


def _workspace_of(call: Call) -> int:
    return 0 if call.cuda is None else int(call.cuda.workspace_bytes)


# ---- where both are ATen's, one call shares what each would prepare ----------------------------------------------


def is_joint(to_input: Call, to_weight: Call, input: Tensor) -> bool:
    """Whether ATen computes both gradients, and in one call."""
    widened = operators._needs_float32(to_weight.problem, input)
    return not (to_input.native or to_weight.native or to_input.empty or widened)


def by_aten(
    to_input: Call, to_weight: Call, grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Both from one call, laid out by our rule."""
    stride, padding, output_padding, groups, dilation = geometry
    shared = stride, padding, dilation, True, output_padding, groups, (True, True, False)
    results = operators._aten(operators._convolution_backward, grad_output, input, weight, None, *shared)
    return operators._conform(results[0], to_input), operators._conform(results[1], to_weight)


# ---- where both would turn grad_output, once is enough -----------------------------------------------------------


class Turned(NamedTuple):
    """A copy of grad_output whose channels are innermost, and how both gradients are computed from it."""

    turning: _C.Turning
    to_input: Call
    to_weight: Call


@lru_cache(maxsize=4096)
def turned_once(asked: Asked) -> Turned | None:
    """One copy for both gradients; None where the cost model says it does not pay, or somebody chose the kernels.

    Of 16-bit elements, without groups: such a copy is an ordinary tensor, which either kernel takes as it lies.
    """
    sizes, strides, dtype, device, layout = asked.grad_output
    is_forced = asked.to_input[2:] != (None,) or asked.to_weight[2:] != (None,)
    if is_forced or dtype.itemsize != 2 or asked.geometry.groups > 1:
        return None
    apart = _calls(asked)
    plans = [call.cuda for call in apart]
    if None in plans or any(call.choice.kernel for call in apart):
        return None
    would_turn = _turn_grad_output(*plans)
    if not any(would_turn):
        return None
    traits = cuda_traits(device)
    turning = _C.cuda_turning(
        tuple(sizes), tuple(strides), str(dtype).removeprefix("torch."), None if traits is None else dict(traits)
    )
    if turning is None:
        return None
    together = _calls(asked._replace(grad_output=(sizes, tuple(turning.strides), dtype, device, layout)))
    once = turning.predicted_us + _predicted(together) + LEAD
    pays = once < _predicted(apart) * (1 if all(would_turn) else SURE)
    return Turned(turning, *together) if pays else None


def _turn_grad_output(to_input: Any, to_weight: Any) -> tuple[bool, bool]:
    """Whether the two plans turn grad_output before they read it."""
    return to_input.explain().get("way_in") == "turned", "grad_output" in to_weight.explain().get("turned", ())


def _predicted(calls: tuple[Call, Call]) -> float:
    """Microseconds; endless where native code does not compute them."""
    return sum(float("inf") if call.cuda is None else float(call.cuda.predicted_us) for call in calls)


def by_turned(
    turned: Turned, grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Both from one copy, which lasts until the second one is computed."""
    turning, device = turned.turning, grad_output.device
    copy = torch.empty_strided(grad_output.shape, turning.strides, dtype=grad_output.dtype, device=device)
    stream = operators._raw_stream(device.index)
    _C.cuda_turn(turning, grad_output.data_ptr(), copy.data_ptr(), device.index, stream)
    return _one_by_one(turned.to_input, turned.to_weight, copy, input, weight, geometry)
