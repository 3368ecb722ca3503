"""The eager entry: conv_transpose{1,2,3}d as C functions that answer ordinary calls before Python starts to work.

The C side (cuda/binding/eager.cpp, gradients.cpp) looks a call up by its shapes, strides, dtype, device and arguments,
and by the switches that hold. It asks `_resolve` once per problem. Everything it does not know, or that a mode, a
transform or a tensor subclass wants to see, runs through the Python functions of convt.functional, argument for
argument. torch.compile traces those instead of the C functions.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch import Tensor
from torch.autograd import forward_ad

from . import _C, delegation, gradients, heuristics, operators, settings
from .plan import OPERATORS, channel_sum, dense_strides, plan
from .problem import Geometry, Ints, OperandKey, operand


class Route(IntEnum):
    """Who answers a call; the numbers are those of the C side."""

    PYTHON = 0
    PREPARED = 1  # an operator with its plan looked up, and a node over it where gradients are recorded
    ATEN = 2  # torch.conv_transposeNd with its own autograd
    ATEN_SMALL = 3  # torch._C._nn.slow_conv_transposeNd: the same numbers without oneDNN's setup
    CAST = 4  # tensors of autocast's dtype first, and then once more


# An operator for the C side: native?, size and strides (None when contiguous) of the result, how a GPU's kernels
# compute it, and what computes it when it is not native.
Described = tuple[bool, Ints, Ints | None, Any, Callable[..., Any] | None]


def _described(call: operators.Call, compute: Callable[..., Tensor], geometry: Geometry) -> Described:
    strides = None if call.strides == dense_strides(call.size, False) else call.strides
    return call.native, tuple(call.size), strides, call.cuda, None if call.native else partial(compute, call, geometry)


def _forward(call: operators.Call, geometry: Geometry, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return operators._forward(call, input, weight, bias, geometry, ())


def _grad_input(call: operators.Call, geometry: Geometry, grad_output: Tensor, weight: Tensor) -> Tensor:
    return operators._grad_input(call, grad_output, weight, geometry)


def _grad_weight(call: operators.Call, geometry: Geometry, grad_output: Tensor, input: Tensor) -> Tensor:
    return operators._grad_weight(call, grad_output, input, geometry)


def _cast(key: OperandKey, dtype: torch.dtype) -> OperandKey:
    """What autocast makes of a tensor: the dtype, and the strides that a copy has."""
    if key[2] is torch.float64 or key[2] is dtype:
        return key
    copy = torch.empty_strided(key[0], key[1], dtype=key[2], device="meta").to(dtype)
    return key[0], copy.stride(), dtype, *key[3:]


def _routes(input: OperandKey, weight: OperandKey, bias: OperandKey | None, geometry: Geometry) -> tuple[Route, Route]:
    """Who answers a legal call without gradients, and who with them."""
    problem, channels_last = operators.check_forward(input, weight, bias, geometry)
    _, _, dtype, device, _ = input
    if device.type == "cuda":
        left = (delegation.leaves_to_aten(input, weight, bias, geometry, recorded) for recorded in (False, True))
        plain, recorded = (Route.ATEN if atens else Route.PREPARED for atens in left)
        return plain, recorded
    backend = settings.current_backend()
    plans = [plan(problem, name, dtype, device, channels_last, backend).backend for name in OPERATORS]
    # Of tensors that are channels_last ATen's results are laid out as documented only in float32 2-D.
    like = operators.is_channels_last(torch.float32, input[:2], weight[:2])
    laid_out = not like or (problem.rank == 2 and dtype is torch.float32)
    plain = Route.ATEN if plans[0] == "aten" and laid_out else Route.PREPARED
    if not like and backend == "auto" and heuristics.is_small(problem, dtype):
        return plain, Route.ATEN_SMALL if problem.rank > 1 else Route.ATEN
    trusted = dtype in (torch.float32, torch.float64)  # see operators.grad_weight
    return plain, Route.ATEN if set(plans) == {"aten"} and laid_out and trusted else Route.PREPARED


def _resolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numbers: tuple[Any, ...],
    autocast: torch.dtype | None,
    form: Callable[[Geometry], Any],
) -> tuple[Route, Route, Described | None, Any]:
    """The routes of a legal call, the operator, and the form that a node keeps."""
    geometry = Geometry(*numbers)
    keys = operand(input), operand(weight), None if bias is None else operand(bias)
    if autocast is not None:
        cast = _cast(keys[0], autocast), _cast(keys[1], autocast), None if keys[2] is None else _cast(keys[2], autocast)
        if cast != keys:
            plain, recorded = (route if route is Route.ATEN else Route.CAST for route in _routes(*cast, geometry))
            return plain, recorded, None, None
    plain, recorded = _routes(*keys, geometry)
    call = operators._forward_call(*keys, geometry, *operators._switches("forward", input))
    return plain, recorded, _described(call, _forward, geometry), form(geometry)


def _calls(
    grad_output: Tensor, input: Tensor | None, weight: Tensor | None, kernel_size: Ints, geometry: Geometry, last: bool
) -> tuple[operators.Call | None, operators.Call | None]:
    """Of the gradients of input and weight, each where the other one is given."""
    key = operand(grad_output)
    to_input = to_weight = None
    if weight is not None:
        switches = operators._switches("grad_input", grad_output)
        to_input = operators._grad_input_call(key, operand(weight), geometry, last, *switches)
    if input is not None:
        switches = operators._switches("grad_weight", grad_output)
        to_weight = operators._grad_weight_call(key, operand(input), kernel_size, geometry, last, *switches)
    return to_input, to_weight


def _resolve_gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, numbers: tuple[Any, ...], wanted: int
) -> tuple[
    Described | None, Described | None, bool, Callable[..., Any] | None, Ints | None, Ints, _C.ChannelSum | None, bool
]:
    """The operators that compute the gradients of a call, and whether the second one comes first, or what computes
    both; then size and axes of the bias', how a GPU sums it, and whether that comes first."""
    geometry = Geometry(*numbers)
    last = operators.is_channels_last(input.dtype, operand(input)[:2], operand(weight)[:2])
    to_input, to_weight = _calls(
        grad_output, input if wanted & 2 else None, weight if wanted & 1 else None, weight.shape[2:], geometry, last
    )
    key, backend = operand(grad_output), settings.current_backend()
    summed = channel_sum(key, backend) if key[3].type == "cuda" else None
    native_bias = summed is not None or (key[3].type == "cpu" and backend != "aten")
    bias_first = gradients.is_bias_first(to_input, to_weight, grad_output.stride())
    bias = (grad_output.shape[1],) if native_bias else None, (0, *range(2, grad_output.dim())), summed, bias_first
    weight_first = False
    if to_input is not None and to_weight is not None:
        weight_first = gradients.is_weight_first(to_input, to_weight, grad_output.stride())
        joint = _joint(to_input, to_weight, grad_output, input, weight, geometry, last)
        if joint is not None:
            return None, None, False, joint, *bias
    described_input = None if to_input is None else _described(to_input, _grad_input, geometry)
    described_weight = None if to_weight is None else _described(to_weight, _grad_weight, geometry)
    return described_input, described_weight, weight_first, None, *bias


def _joint(
    to_input: operators.Call,
    to_weight: operators.Call,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    last: bool,
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What computes both gradients of (grad_output, input, weight) at once, where they share something."""
    if gradients.is_joint(to_input, to_weight, input):
        return partial(gradients.by_aten, to_input, to_weight, geometry=geometry)
    turned = gradients.turned_once(gradients.ask(grad_output, input, weight, geometry, last))
    return None if turned is None else partial(gradients.by_turned, turned, geometry=geometry)


def _resolve_grad_input(
    grad_output: Tensor, weight: Tensor, _: None, numbers: tuple[Any, ...], channels_last: bool
) -> Described:
    geometry = Geometry(*numbers)
    call, _ = _calls(grad_output, None, weight, (), geometry, channels_last)  # type: ignore[assignment]
    assert call is not None
    return _described(call, _grad_input, geometry)


def _resolve_grad_weight(
    grad_output: Tensor, input: Tensor, kernel_size: Sequence[int], numbers: tuple[Any, ...], channels_last: bool
) -> Described:
    geometry = Geometry(*numbers)
    _, call = _calls(grad_output, input, None, tuple(kernel_size), geometry, channels_last)
    assert call is not None
    return _described(call, _grad_weight, geometry)


# ---- settings: every combination of switches has a number, which is part of what a plan is looked up by -----------

_numbers: dict[tuple[str | None, ...], int] = {}
_numbering = threading.Lock()


def _obey() -> None:
    with _numbering:  # whoever comes last sees what was set last
        _C.obey(_numbers.setdefault(settings.in_force(), len(_numbers)))


def entry(
    full: Sequence[Callable[..., Tensor]],
    traced: Sequence[Callable[..., Tensor]],
    inner: Sequence[Callable[..., Tensor]],
    overloads: Sequence[Callable[..., Tensor]],
    record: Callable[..., Tensor],
    form: Callable[[Geometry], Any],
) -> list[Callable[..., Tensor]]:
    """The C functions for ranks 1, 2 and 3, given the Python functions that they stand in for.

    torch.compile traces those in `traced`; inner are the Autograd kernels behind those of the inner ops in C, overloads
    the ops themselves; record applies the node of an ordinary call, which keeps form(geometry).
    """
    nn: Any = torch._C._nn
    functions = _C.connect(
        {
            "tensor_type": Tensor,
            "parameter_type": torch.nn.Parameter,
            "full": tuple(full),
            "inner": tuple(inner),
            "overloads": tuple(overloads),
            "aten": (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
            "aten_small": (None, nn.slow_conv_transpose2d, nn.slow_conv_transpose3d),
            "resolve": partial(_resolve, form=form),
            "resolve_gradients": _resolve_gradients,
            "resolve_operator": (None, _resolve_grad_input, _resolve_grad_weight),
            "record": record,
            "grad_enabled": torch.is_grad_enabled,
            "any_autocast": torch._C._is_any_autocast_enabled,
            "autocast_enabled": torch.is_autocast_enabled,
            "autocast_dtype": torch.get_autocast_dtype,
            "precision": settings.torch_precision(),
            "raw_stream": operators._raw_stream,
            "dtypes": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
            "uint8": torch.uint8,
            "device_types": ("cpu", "cuda"),
            # Profilers, tracers and function modes see ATen's op when that is the answer, and convt's otherwise; the
            # rest decide what the answer is.
            "watchers": (
                torch._C._autograd._profiler_enabled,
                torch._C._get_tracing_state,
                torch._C._len_torch_function_stack,
                torch._C._are_functorch_transforms_active,
                torch._C._len_torch_dispatch_stack,
            ),
            "op_watchers": 3,
            "requires_grad": torch._C.TensorBase.__dict__["requires_grad"],
            "forward_ad": vars(forward_ad),
            "unpack_dual": torch._VF._unpack_dual,
        }
    )
    settings.observers.append(_obey)
    _obey()
    atexit.register(_C.forget_plans)  # plans hold Python objects, and the cache itself is never destroyed
    if not hasattr(torch.compiler, "substitute_in_graph"):  # torch 2.4: Dynamo cannot trace a C function
        return list(full)

    # Registering imports Dynamo, which doubles the time that `import torch` takes: not before somebody compiles.
    @wrapt.when_imported("torch._dynamo")
    def register(_: ModuleType) -> None:
        for function, traceable in zip(functions, traced, strict=True):
            torch.compiler.substitute_in_graph(function)(traceable)

    return list(functions)
