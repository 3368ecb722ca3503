"""How PyTorch's graphs spell what convt computes: one table of transposed convolutions, one of pointwise operations.

A key is a node's target: a function of torch, torch.nn.functional or operator, the name of a Tensor method or an ATen
overload. All spellings of an operation share one reader.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from ..epilogue import Step

_aten: Any = torch.ops.aten
_convt: Any = torch.ops.convt

Emit = Callable[..., fx.Node]
# The operand of a step here: a node, or what makes one by adding nodes to the graph.
Operand = fx.Node | Callable[[Emit], fx.Node]


class Unread(Exception):
    """Why a node cannot be folded, in words."""


class Convolution(NamedTuple):
    """A transposed convolution as a node calls it; geometry has one entry per spatial axis."""

    rank: int
    input: Any
    weight: Any
    bias: Any
    stride: tuple[Any, ...]
    padding: tuple[Any, ...]
    output_padding: tuple[Any, ...]
    groups: Any
    dilation: tuple[Any, ...]


def targets(name: str) -> Iterator[Any]:
    """Every function, method and overload of a name, in place or not."""
    for spelled in (name, name + "_"):
        for holder in (torch, F, torch._C._nn):
            if callable(function := getattr(holder, spelled, None)):
                yield function
        if hasattr(torch.Tensor, spelled):
            yield spelled
        packet = getattr(_aten, spelled, None)
        for overload in packet.overloads() if packet is not None else ():
            if "out" not in overload:
                yield getattr(packet, overload)


# ---- transposed convolutions -------------------------------------------------------------------------------------


def _spread(rank: int, value: Any) -> tuple[Any, ...]:
    entries = tuple(value) if isinstance(value, Sequence) else (value,)
    return entries * rank if len(entries) == 1 else entries


def _ranked(rank: int) -> Callable[..., Convolution]:
    def read(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        dilation: Any = 1,
    ) -> Convolution:
        return Convolution(
            rank, input, weight, bias, _spread(rank, stride), _spread(rank, padding), _spread(rank, output_padding),
            groups, _spread(rank, dilation),
        )  # fmt: skip

    return read


def _general(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any,
    output_padding: Any, groups: Any, *_flags: Any,
) -> Convolution:  # fmt: skip
    if transposed is not True:
        raise Unread("an ordinary convolution")
    rank = len(stride)
    return _ranked(rank)(input, weight, bias, stride, padding, output_padding, groups, dilation)


CONVOLUTIONS: dict[Any, Callable[..., Convolution]] = {
    torch.convolution: _general,
    _aten.convolution.default: _general,
    _aten._convolution.default: _general,
}
for _rank in (1, 2, 3):
    for _target in targets(f"conv_transpose{_rank}d"):
        CONVOLUTIONS[_target] = _ranked(_rank)
    _ours = getattr(_convt, f"conv_transpose{_rank}d")
    CONVOLUTIONS[_ours] = CONVOLUTIONS[_ours.default] = _ranked(_rank)


# ---- pointwise operations ----------------------------------------------------------------------------------------

# A reader takes the convolution's result and the node's other arguments, and gives the steps that do the same.
Reader = Callable[..., list[Step]]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unread("an argument that is not a constant number")
    if math.isnan(value):
        raise Unread("a constant that is not a number")
    return float(value)


def _unary(name: str) -> Reader:
    def read(x: Any, inplace: Any = False) -> list[Step]:
        return [Step(name)]

    return read


def _gelu(x: Any, approximate: Any = "none") -> list[Step]:
    return [Step("gelu_tanh" if approximate == "tanh" else "gelu")]


def _leaky_relu(x: Any, negative_slope: Any = 0.01, inplace: Any = False) -> list[Step]:
    return [Step("leaky_relu", _number(negative_slope))]


def _clamp(x: Any, min: Any = None, max: Any = None) -> list[Step]:
    low, high = (default if v is None else _number(v) for v, default in ((min, -math.inf), (max, math.inf)))
    return [Step("clamp", low, high)]


def _hardtanh(x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: Any = False) -> list[Step]:
    return _clamp(x, min_val, max_val)


def _arithmetic(name: str, x: Any, other: Any, factor: float = 1.0) -> list[Step]:
    if isinstance(other, fx.Node):
        if factor != 1.0:
            raise Unread("alpha of a tensor")
        return [Step(name, operand=other)]  # type: ignore[arg-type]
    return [Step(name, factor * _number(other))]


def _commutative(name: str) -> Reader:
    def read(x: Any, other: Any, *, alpha: Any = 1) -> list[Step]:
        if isinstance(x, Other):  # alpha belongs to the second argument, which is the convolution's result here
            if alpha != 1:
                raise Unread("alpha of the convolution's result")
            return _arithmetic(name, other, x.value)
        return _arithmetic(name, x, other, _number(alpha))

    return read


def _sub(x: Any, other: Any, alpha: Any = 1) -> list[Step]:
    if isinstance(x, Other):
        return [*_neg(other, _number(alpha)), *_arithmetic("add", other, x.value)]
    return _arithmetic("sub", x, other, _number(alpha))


def _rsub(x: Any, other: Any, alpha: Any = 1) -> list[Step]:
    if isinstance(x, Other):
        return _sub(other, x.value, alpha)
    return _sub(Other(other), x, alpha)


def _div(x: Any, other: Any, *, rounding_mode: Any = None) -> list[Step]:
    if rounding_mode is not None:
        raise Unread("a division with rounding_mode")
    if isinstance(x, Other):
        raise Unread("a division by the convolution's result")
    return _arithmetic("div", x, other)


def _neg(x: Any, factor: float = 1.0) -> list[Step]:
    return [Step("mul", -factor)]


class Other(NamedTuple):
    """Marks a first argument that is not the convolution's result: that is the second one then."""

    value: Any


def _dropout(x: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> list[Step]:
    if training is False or p == 0:
        return []
    raise Unread("dropout in training")


def _batch_norm(
    x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: Any = False,
    momentum: Any = 0.1, eps: Any = 1e-5,
) -> list[Step]:  # fmt: skip
    if training is not False:
        raise Unread("batch_norm in training")
    if not (isinstance(running_mean, fx.Node) and isinstance(running_var, fx.Node)):
        raise Unread("batch_norm without running statistics")

    made: list[fx.Node] = []  # by whichever of the two is asked first

    def scale(emit: Emit) -> fx.Node:
        if not made:
            factor = emit(_aten.rsqrt.default, emit(_aten.add.Scalar, widened(emit, running_var), _number(eps)))
            made.append(factor if weight is None else emit(_aten.mul.Tensor, factor, widened(emit, weight)))
        return made[0]

    def shift(emit: Emit) -> fx.Node:
        mean = emit(_aten.mul.Tensor, widened(emit, running_mean), scale(emit))
        if bias is None:
            return emit(_aten.neg.default, mean)
        return emit(_aten.sub.Tensor, widened(emit, bias), mean)

    return [Step("mul", operand=scale), Step("add", operand=shift)]  # type: ignore[arg-type]


def widened(emit: Emit, node: fx.Node) -> fx.Node:
    """A 16-bit vector of statistics in float32: what is computed from it is rounded once, with the output."""
    value = value_of(node)
    if value is not None and value.dtype in (torch.float16, torch.bfloat16):
        return emit(_aten._to_copy.default, node, dtype=torch.float32)
    return node


def _torch_batch_norm(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any, eps: Any,
    cudnn_enabled: Any = True,
) -> list[Step]:  # fmt: skip
    return _batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


STEPS: dict[Any, Reader] = {}
for _name in ("relu", "silu", "sigmoid", "tanh", "hardswish", "mish"):
    STEPS |= dict.fromkeys(targets(_name), _unary(_name))
for _names, _reader in (
    (("gelu",), _gelu),
    (("leaky_relu",), _leaky_relu),
    (("clamp", "clip"), _clamp),
    (("clamp_min",), lambda x, min: _clamp(x, min)),
    (("clamp_max",), lambda x, max: _clamp(x, None, max)),
    (("hardtanh",), _hardtanh),
    (("relu6",), lambda x, inplace=False: _clamp(x, 0, 6)),
    (("add",), _commutative("add")),
    (("mul", "multiply"), _commutative("mul")),
    (("sub", "subtract"), _sub),
    (("rsub",), _rsub),
    (("div", "divide", "true_divide"), _div),
    (("neg", "negative"), _neg),
    (("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    (("dropout1d", "dropout2d", "dropout3d"), _dropout),
):
    for _name in _names:
        STEPS |= dict.fromkeys(targets(_name), _reader)
STEPS |= {
    torch.special.expit: _unary("sigmoid"),
    operator.add: _commutative("add"),
    operator.iadd: _commutative("add"),
    operator.mul: _commutative("mul"),
    operator.imul: _commutative("mul"),
    operator.sub: _sub,
    operator.isub: _sub,
    operator.truediv: _div,
    operator.itruediv: _div,
    operator.neg: _neg,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    _aten.batch_norm.default: _torch_batch_norm,
}


def value_of(node: fx.Node) -> Any:
    """The tensor, number or other value that stands for a node's result while graphs are made; None if unknown."""
    for key in ("val", "example_value"):
        if key in node.meta:
            return node.meta[key]
    return None
