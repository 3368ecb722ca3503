"""The frozen description of one transposed convolution, and the rules that make it legal.

Everything here works on plain integers and on torch.SymInt alike: sizes are compared, never converted, so the fake
implementations and the real ones share every rule and every message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

Ints = tuple[int, ...]

RANKS = (1, 2, 3)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST = 2**63 - 1


def check(condition: bool | torch.SymBool, message: Callable[[], str]) -> None:
    """RuntimeError(message()) unless condition holds; a symbolic condition becomes a guard or a run-time assertion."""
    if condition is True:
        return
    if isinstance(condition, torch.SymBool):
        torch._check(condition, message)  # type: ignore[no-untyped-call]
    elif not condition:
        raise RuntimeError(message())


class Geometry(NamedTuple):
    """The arguments that all operators share; tuples have one entry per spatial axis."""

    stride: Ints
    padding: Ints
    output_padding: Ints
    groups: int
    dilation: Ints


@dataclass(frozen=True, slots=True)
class Problem:
    """One transposed convolution.

    The input is (batch, in_channels, *input), the weight (in_channels, out_channels // groups, *filter).
    Spatial tuples have `rank` entries (1 to 3). Per axis, input index i meets output index o through tap k when
    o + padding == stride * i + dilation * k.
    """

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    input: Ints
    filter: Ints
    stride: Ints
    padding: Ints
    output_padding: Ints
    dilation: Ints

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.input)

    @property
    def output(self) -> Ints:
        """Spatial size of the output."""
        return tuple(
            (i - 1) * s - 2 * p + d * (k - 1) + op + 1
            for i, k, s, p, op, d in zip(
                self.input, self.filter, self.stride, self.padding, self.output_padding, self.dilation, strict=True
            )
        )

    @property
    def taps(self) -> int:
        """Number of filter positions."""
        return math.prod(self.filter)

    @property
    def macs(self) -> int:
        """Multiply-adds of any one of the three operators, products with padding counted as done."""
        pixels = self.batch * math.prod(self.input)
        return pixels * self.taps * self.in_channels * (self.out_channels // self.groups)

    @property
    def input_size(self) -> Ints:
        """Shape of the input and of its gradient."""
        return (self.batch, self.in_channels, *self.input)

    @property
    def weight_size(self) -> Ints:
        """Shape of the weight and of its gradient."""
        return (self.in_channels, self.out_channels // self.groups, *self.filter)

    @property
    def output_size(self) -> Ints:
        """Shape of the output and of its gradient."""
        return (self.batch, self.out_channels, *self.output)

    @property
    def geometry(self) -> Geometry:
        """The arguments shared by all operators."""
        return Geometry(self.stride, self.padding, self.output_padding, self.groups, self.dilation)


class Operand(NamedTuple):
    """What the rules need to know about a tensor."""

    sizes: Ints
    strides: Ints
    dtype: torch.dtype
    device: torch.device
    layout: torch.layout


# An Operand as a plain tuple: what a cache is asked with, on every call.
OperandKey = tuple[Ints, Ints, torch.dtype, torch.device, torch.layout]


def operand(tensor: torch.Tensor) -> OperandKey:
    """The metadata of a tensor, hashable when its sizes are plain integers."""
    try:
        return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout
    except RuntimeError:  # compressed sparse tensors have no strides; check_tensors refuses them by their layout
        return tensor.shape, (), tensor.dtype, tensor.device, tensor.layout


def _name(rank: int) -> str:
    return f"conv_transpose{rank}d" if rank in RANKS else "conv_transpose"


def _show(sizes: Sequence[int]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "") + ")"


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "this floating-point format"
    return "bool" if dtype is torch.bool else "integer"


def check_tensors(rank: int, **operands: OperandKey | None) -> None:
    """Layout, dtype and device of the tensors of one call; the first one sets the dtype and the device."""
    name = _name(rank)
    present = [(label, Operand(*tensor)) for label, tensor in operands.items() if tensor is not None]
    head, first = present[0]
    for label, tensor in present:
        if tensor.layout is not torch.strided:
            raise RuntimeError(f"{name}: {label} has layout {tensor.layout}; only dense (torch.strided) is supported")
        if tensor.dtype not in DTYPES:
            legal = ", ".join(str(dtype) for dtype in DTYPES)
            raise NotImplementedError(
                f"{name}: {label} has dtype {tensor.dtype}; {_kind(tensor.dtype)} is not supported, legal: {legal}"
            )
        if tensor.dtype is not first.dtype:
            raise RuntimeError(
                f"{name}: {label} has dtype {tensor.dtype} but {head} has {first.dtype}; they must be the same"
            )
        if tensor.device != first.device:
            raise RuntimeError(
                f"{name}: {label} is on {tensor.device} but {head} is on {first.device}; they must be on one device"
            )


def _check_geometry(rank: int, geometry: Geometry) -> None:
    name = _name(rank)
    if rank not in RANKS:
        raise RuntimeError(f"{name}: 1, 2 or 3 spatial axes are legal, got {rank}")
    for label in ("stride", "padding", "output_padding", "dilation"):
        values: Ints = getattr(geometry, label)
        if len(values) != rank:
            raise RuntimeError(f"{name}: {label} must be one integer or {rank} integers, got {_show(values)}")
        smallest = 1 if label in ("stride", "dilation") else 0
        for value in values:
            check(value >= smallest, lambda n=label, v=values, low=smallest: _too_small(name, n, v, low))  # type: ignore[misc]
    check(geometry.groups >= 1, lambda: f"{name}: groups must be positive, got {geometry.groups}")
    for s, op, d in zip(geometry.stride, geometry.output_padding, geometry.dilation, strict=True):
        check(
            torch.sym_max(s, d) > op,  # type: ignore[no-untyped-call]
            lambda: (
                f"{name}: output_padding must be smaller than stride or dilation on every axis, got output_padding "
                f"{_show(geometry.output_padding)} with stride {_show(geometry.stride)} and dilation "
                f"{_show(geometry.dilation)}"
            ),
        )


def _too_small(name: str, label: str, values: Ints, low: int) -> str:
    kind = "non-positive" if low else "negative"
    return f"{name}: {kind} {label} is not supported, got {_show(values)}; every entry must be at least {low}"


def _check_sizes(problem: Problem) -> None:
    """Positive extents, and sizes that 64-bit indices can hold."""
    name = _name(problem.rank)
    for size in problem.input:
        # An empty batch may have empty pixels too, as in PyTorch.
        check(
            size >= 1 or (type(problem.batch) is int and problem.batch == size == 0),
            lambda: f"{name}: input has spatial size {_show(problem.input)}; only the batch may be empty",
        )
    for size in problem.filter:
        check(
            size >= 1, lambda: f"{name}: weight has kernel size {_show(problem.filter)}; 1 is the least on every axis"
        )
    for size in problem.output:
        check(
            size >= 1,
            lambda: (
                f"{name}: output size {_show(problem.output)} must be positive; it is (input - 1) * stride - 2 * "
                f"padding + dilation * (kernel_size - 1) + output_padding + 1 with input {_show(problem.input)}, "
                f"stride {_show(problem.stride)}, padding {_show(problem.padding)}, "
                f"dilation {_show(problem.dilation)}, kernel_size {_show(problem.filter)}, "
                f"output_padding {_show(problem.output_padding)}"
            ),
        )
    # Symbolic sizes are left to the call that has numbers: to compare one here would guard on it, and recompile.
    extents = [o + 2 * p for o, p in zip(problem.output, problem.padding, strict=True)]
    extent = max((extent for extent in extents if type(extent) is int), default=0)
    for label in ("input_size", "weight_size", "output_size"):
        sizes: Ints = getattr(problem, label)
        if all(type(size) is int for size in sizes):
            elements = math.prod(max(size, 1) for size in sizes)
            if max(elements * 8, extent) > LARGEST:
                raise RuntimeError(
                    f"{name}: {label.removesuffix('_size')} of shape {_show(sizes)} overflows 64-bit sizes "
                    f"(with stride {_show(problem.stride)}, padding {_show(problem.padding)}, "
                    f"dilation {_show(problem.dilation)})"
                )


def _check_channels(name: str, label: str, sizes: Ints, expected: int, weight: Ints, groups: int) -> None:
    """Channel agreement of a tensor with the weight; a weight given the convolution way round gets its own hint."""
    in_channels, per_group = weight[0], weight[1]
    check(
        in_channels >= 1 and per_group >= 1,
        lambda: f"{name}: weight of shape {_show(weight)} has no channels; at least one in and one out is needed",
    )
    check(
        in_channels % groups == 0,
        lambda: f"{name}: groups {groups} does not divide in_channels {in_channels} of weight of shape {_show(weight)}",
    )

    def message() -> str:
        text = (
            f"{name}: {label} of shape {_show(sizes)} has {sizes[1]} channels, but weight of shape {_show(weight)} "
            f"with groups {groups} expects {expected}; weight is (in_channels, out_channels // groups, *kernel_size)"
        )
        swapped = label == "input" and groups == 1 and per_group == sizes[1]
        return text + (": pass weight.transpose(0, 1)" if swapped else "")

    check(sizes[1] == expected, message)


def forward_problem(input: Ints, weight: Ints, bias: Ints | None, geometry: Geometry) -> Problem:
    """The problem of output = conv_transpose(input, weight, bias), from shapes; RuntimeError when it is not legal."""
    rank = len(weight) - 2
    name = _name(rank)
    if rank not in RANKS:
        raise RuntimeError(
            f"{name}: weight must be (in_channels, out_channels // groups, *kernel_size) with 1 to 3 spatial axes, "
            f"got shape {_show(weight)}"
        )
    if len(input) != rank + 2:
        raise RuntimeError(
            f"{name}: input must have {rank + 1} (unbatched) or {rank + 2} (batched) axes to match weight of shape "
            f"{_show(weight)}, got shape {_show(input)}"
        )
    _check_geometry(rank, geometry)
    _check_channels(name, "input", input, weight[0], weight, geometry.groups)
    out_channels = weight[1] * geometry.groups
    if bias is not None:
        legal = len(bias) == 1
        check(
            legal and bias[0] == out_channels,
            lambda: f"{name}: bias must have shape ({out_channels},), one entry per output channel, got {_show(bias)}",
        )
    problem = Problem(
        input[0], weight[0], out_channels, geometry.groups, tuple(input[2:]), tuple(weight[2:]), geometry.stride,
        geometry.padding, geometry.output_padding, geometry.dilation,
    )  # fmt: skip
    _check_sizes(problem)
    return problem


def grad_input_problem(grad_output: Ints, weight: Ints, geometry: Geometry) -> Problem:
    """The problem whose output has the shape of grad_output; the input size follows from the geometry."""
    rank = len(weight) - 2
    name = _name(rank)
    if rank not in RANKS or len(grad_output) != rank + 2:
        raise RuntimeError(
            f"{name}: grad_output of shape {_show(grad_output)} and weight of shape {_show(weight)} must have the same "
            f"number of axes, 3 to 5"
        )
    _check_geometry(rank, geometry)
    out_channels = weight[1] * geometry.groups
    _check_channels(name, "grad_output", grad_output, out_channels, weight, geometry.groups)
    input = []
    for o, k, s, p, op, d in zip(
        grad_output[2:], weight[2:], geometry.stride, geometry.padding, geometry.output_padding, geometry.dilation,
        strict=True,
    ):  # fmt: skip
        reach = o - 1 + 2 * p - op - d * (k - 1)
        check(
            reach % s == 0,
            lambda: (
                f"{name}: grad_output of spatial size {_show(grad_output[2:])} belongs to no input size "
                f"with kernel_size {_show(weight[2:])} and {geometry}"
            ),
        )
        input.append(reach // s + 1)
    problem = Problem(
        grad_output[0], weight[0], out_channels, geometry.groups, tuple(input), tuple(weight[2:]), geometry.stride,
        geometry.padding, geometry.output_padding, geometry.dilation,
    )  # fmt: skip
    _check_sizes(problem)
    return problem


def grad_weight_problem(grad_output: Ints, input: Ints, kernel_size: Ints, geometry: Geometry) -> Problem:
    """The problem between an input and a grad_output, for a weight of the given spatial size."""
    rank = len(kernel_size)
    name = _name(rank)
    if rank not in RANKS or len(grad_output) != rank + 2 or len(input) != rank + 2:
        raise RuntimeError(
            f"{name}: grad_output of shape {_show(grad_output)} and input of shape {_show(input)} must both have "
            f"2 axes more than kernel_size {_show(kernel_size)}, which has 1 to 3"
        )
    _check_geometry(rank, geometry)
    for label, channels in (("input", input[1]), ("grad_output", grad_output[1])):
        check(
            channels % geometry.groups == 0 and channels >= 1,
            lambda label=label, channels=channels: (  # type: ignore[misc]
                f"{name}: {label} has {channels} channels; it must be a positive multiple of groups {geometry.groups}"
            ),
        )
    problem = Problem(
        input[0], input[1], grad_output[1], geometry.groups, tuple(input[2:]), tuple(kernel_size), geometry.stride,
        geometry.padding, geometry.output_padding, geometry.dilation,
    )  # fmt: skip
    _check_sizes(problem)
    for actual, expected in zip(grad_output, problem.output_size, strict=True):
        check(
            actual == expected,
            lambda: f"{name}: grad_output must have shape {_show(problem.output_size)}, got {_show(grad_output)}",
        )
    return problem
