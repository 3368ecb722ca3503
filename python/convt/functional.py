"""torch.nn.functional's transposed convolutions, signature for signature.

The ordinary call (plain tensors, batched, no mode or transform active) goes straight to the operator; everything else,
tensor subclasses and torch.compile among it, goes through torch.ops.convt and PyTorch's dispatcher.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from . import delegation, fused, inductor
from .eager import entry
from .epilogue import flatten, parse
from .ops import KERNELS, OUTPUT, OVERLOADS, PUBLIC, Form, _skips_dispatch, differentiable
from .problem import LARGEST, Geometry, Ints
from .recorded import record

Epilogue = Sequence[str | tuple[Any, ...]]

_is_tensor_like: Callable[[object], bool] = torch.overrides.is_tensor_like
_PLAIN = frozenset((Tensor, Parameter))
_function_modes = torch._C._len_torch_function_stack
_any_autocast = torch._C._is_any_autocast_enabled
_ATEN: dict[int, Callable[..., Tensor]] = {
    1: torch.conv_transpose1d,
    2: torch.conv_transpose2d,
    3: torch.conv_transpose3d,
}
_tracing = torch._C._get_tracing_state
_functorch_active = torch._C._are_functorch_transforms_active


def _ints(name: str, rank: int, value: Any) -> Ints:
    """One integer per axis, from one integer or a sequence of one or `rank` integers."""
    if type(value) is int:
        if -LARGEST <= value <= LARGEST:
            return (value,) * rank
    elif type(value) is tuple and len(value) == rank:
        for entry in value:
            if type(entry) is not int or not -LARGEST <= entry <= LARGEST:
                break
        else:
            return value
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    entries = tuple(_int(name, rank, entry) for entry in entries)
    if len(entries) not in (1, rank):
        raise RuntimeError(f"conv_transpose{rank}d: {name} must be one integer or {rank} integers, got {value}")
    return entries if len(entries) == rank else entries * rank


def _int(name: str, rank: int, value: Any) -> int:
    # Dynamo's symbols have the type int; operator.index would make each a constant, and a graph of every value.
    if isinstance(value, torch.SymInt) or (is_dynamo_compiling() and type(value) is int):
        return value  # type: ignore[return-value]
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        message = f"conv_transpose{rank}d: {name} must be an integer or a tuple of integers, got {value!r} ({kind})"
        raise TypeError(message) from None
    if not -LARGEST <= number <= LARGEST:
        raise ValueError(f"conv_transpose{rank}d: {name} must fit in 64 bits, got {number}")
    return number


def _conv_transpose(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
    epilogue: Epilogue | None,
) -> Tensor:
    geometry = Geometry(
        _ints("stride", rank, stride),
        _ints("padding", rank, padding),
        _ints("output_padding", rank, output_padding),
        groups if type(groups) is int and -LARGEST <= groups <= LARGEST else _int("groups", rank, groups),
        _ints("dilation", rank, dilation),
    )
    if epilogue:
        return _with_epilogue(rank, input, weight, bias, geometry, epilogue)
    if (
        not is_dynamo_compiling()
        and type(input) is Tensor
        and type(weight) in _PLAIN
        and (bias is None or type(bias) in _PLAIN)
        and input.dim() == rank + 2 == weight.dim()
        and not (_functorch_active() or _function_modes() or _any_autocast() or _tracing())
    ):
        if input.is_cuda and delegation.is_atens(input, weight, bias, geometry):
            return _ATEN[rank](input, weight, bias, *geometry)
        return differentiable(OUTPUT, input, weight, bias, Form(geometry))
    _check_types(rank, input, weight, bias)
    return PUBLIC[rank](input, weight, bias, *geometry)


def _check_types(rank: int, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not (_is_tensor_like(value) or (value is None and name == "bias")):
            raise TypeError(f"conv_transpose{rank}d: {name} must be a Tensor, got {type(value).__name__}")


def _with_epilogue(
    rank: int, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, steps: Epilogue
) -> Tensor:
    _check_types(rank, input, weight, bias)
    program = parse(f"conv_transpose{rank}d", steps)
    tensors = (input, weight, bias, *(step.operand for step in program))
    if (
        not is_dynamo_compiling()
        and all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)
        and input.dim() == rank + 2 == weight.dim()
        and _skips_dispatch(*tensors)
        and not (_function_modes() or _any_autocast() or forward_ad._current_level >= 0)
    ):
        return fused.ordinary(input, weight, bias, geometry, program)
    return fused.PUBLIC(input, weight, bias, *geometry, *flatten(program))  # type: ignore[no-any-return]


def _conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """1-D transposed convolution: torch.nn.functional.conv_transpose1d, argument for argument.

    input is (batch, in_channels, length) or unbatched,
    weight (in_channels, out_channels // groups, kernel_size), bias (out_channels,). Returns
    (batch, out_channels, length), each axis of size
    (input - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1 elements.
    stride, padding, output_padding (smaller than stride or dilation) and dilation are integers or one per axis.
    float32, float64, bfloat16 or float16. Differentiable any number of times.

    epilogue is a list of pointwise steps that the result goes through before it is rounded, each a name or a tuple of a
    name and arguments: "relu", ("leaky_relu", 0.1), ("clamp", 0, 6), ("mul", number_or_tensor), ...; tensors broadcast
    to the output, whose shape and dtype stay. docs/epilogue.md has the list.

    Raises RuntimeError for shapes, dtypes and values that are not legal, TypeError for arguments of another type,
    ValueError for steps that are not legal.
    """
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation, epilogue)


def _conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """2-D transposed convolution: torch.nn.functional.conv_transpose2d, argument for argument.

    input is (batch, in_channels, height, width) or unbatched,
    weight (in_channels, out_channels // groups, *kernel_size), bias (out_channels,). Returns
    (batch, out_channels, height, width), each axis of size
    (input - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1 elements.
    stride, padding, output_padding (smaller than stride or dilation) and dilation are integers or one per axis.
    float32, float64, bfloat16 or float16. Differentiable any number of times.

    epilogue is a list of pointwise steps that the result goes through before it is rounded, each a name or a tuple of a
    name and arguments: "relu", ("leaky_relu", 0.1), ("clamp", 0, 6), ("mul", number_or_tensor), ...; tensors broadcast
    to the output, whose shape and dtype stay. docs/epilogue.md has the list.

    Raises RuntimeError for shapes, dtypes and values that are not legal, TypeError for arguments of another type,
    ValueError for steps that are not legal.
    """
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation, epilogue)


def _conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """3-D transposed convolution: torch.nn.functional.conv_transpose3d, argument for argument.

    input is (batch, in_channels, depth, height, width) or unbatched,
    weight (in_channels, out_channels // groups, *kernel_size), bias (out_channels,). Returns
    (batch, out_channels, depth, height, width), each axis of size
    (input - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1 elements.
    stride, padding, output_padding (smaller than stride or dilation) and dilation are integers or one per axis.
    float32, float64, bfloat16 or float16. Differentiable any number of times.

    epilogue is a list of pointwise steps that the result goes through before it is rounded, each a name or a tuple of a
    name and arguments: "relu", ("leaky_relu", 0.1), ("clamp", 0, 6), ("mul", number_or_tensor), ...; tensors broadcast
    to the output, whose shape and dtype stay. docs/epilogue.md has the list.

    Raises RuntimeError for shapes, dtypes and values that are not legal, TypeError for arguments of another type,
    ValueError for steps that are not legal.
    """
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation, epilogue)


def _traced(rank: int) -> Callable[..., Tensor]:
    """What torch.compile traces in place of a C function: the op at once, which checks for itself.

    Every function and global on the way to it would be a guard, asked on every call of the compiled code.
    """
    op = PUBLIC[rank]

    def conv_transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
        *,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        if epilogue:
            shared = stride, padding, output_padding, groups, dilation
            return _conv_transpose(rank, input, weight, bias, *shared, epilogue)
        lists = [(value,) if type(value) is int else value for value in (stride, padding, output_padding, dilation)]
        return op(input, weight, bias, lists[0], lists[1], lists[2], groups, lists[3])

    return conv_transpose


conv_transpose1d, conv_transpose2d, conv_transpose3d = entry(
    (_conv_transpose1d, _conv_transpose2d, _conv_transpose3d),
    (_traced(1), _traced(2), _traced(3)),
    KERNELS,
    OVERLOADS,
    record,
    Form,
)
inductor.lower()
