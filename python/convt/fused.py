"""A transposed convolution with an epilogue: one op, its derivatives, autocast and vmap.

    convt::conv_transpose_epilogue    composite: ATen's signature and a program; unbatched input, autocast, operands
                                      of any shape that broadcasts
    convt::forward_epilogue           the inner op, on batched tensors

A program is flat in both schemas, in types that every tracer knows: names with commas between them, "mul(operand)"
where a tensor stands for the scalar; two scalars per step; the tensors.

Derivatives: the op saves what it was given, and the backward pass recomputes the convolution once, takes the program's
derivative in float32 or wider, and then is the backward of a convolution. Where the derivative follows from the output
alone (one relu, leaky_relu, sigmoid or tanh, at the end of sums and constant factors) that is saved instead. Under
functorch's transforms, forward-mode AD and tensor subclasses, and where a graph with gradients is traced (AOTAutograd
then decides what to save), the op is convt::forward followed by PyTorch's pointwise operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from . import gradients, operators, ops, tracing
from .epilogue import Program, backward_of, compose, differentiate, fit, flatten, unflatten
from .problem import Geometry, Ints, forward_problem

_PLAIN_TYPES = frozenset((Tensor, Parameter))

_PROGRAM = "str names, float[] scalars, Tensor[] operands"
for _name in ("forward_epilogue", "conv_transpose_epilogue"):
    _schema = f"{_name}(Tensor input, Tensor weight, Tensor? bias, {ops._SHARED}, {_PROGRAM}) -> Tensor"
    ops._library.define(_schema, tags=tracing.TAGS)
_forward_epilogue_op = torch.ops.convt.forward_epilogue.default
PUBLIC = torch.ops.convt.conv_transpose_epilogue.default
tracing.call_as_they_are(_forward_epilogue_op)


def _plain(tensors: Sequence[Tensor | None]) -> bool:
    return all(tensor is None or type(tensor) in _PLAIN_TYPES for tensor in tensors)


def _traced(tensor: Tensor | None) -> bool:
    """Whether a tensor is one of PyTorch's own stand-ins while a graph is traced: no subclass with rules of its own."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return tensor is None or type(tensor) in _PLAIN_TYPES or isinstance(tensor, (FakeTensor, FunctionalTensor))


def _decomposed(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program) -> Tensor:
    """convt::forward, then the program in PyTorch's operations: right wherever those are."""
    return compose(ops._forward_op(input, weight, bias, *geometry), program)


def _must_decompose(tensors: Sequence[Tensor | None]) -> bool:
    if ops._functorch_active() or forward_ad._current_level >= 0:
        return True
    return not (_plain(tensors) or all(_traced(tensor) for tensor in tensors))


class FusedContraction(torch.autograd.Function):
    """forward_epilogue with derivatives: arguments are saved, the convolution is recomputed if its values matter."""

    @staticmethod
    def forward(ctx: Any, geometry: Geometry, program: Program, *tensors: Tensor | None) -> Tensor:
        input, weight, bias = tensors[:3]
        assert input is not None and weight is not None
        ctx.geometry = geometry
        ctx.channels_last = ops._like_its_operands(input, weight)
        ctx.steps = tuple(step._replace(operand=None) for step in program)
        wanted = ctx.needs_input_grad[2:]
        ctx.plan = backward_of(program, any(wanted[:3]), wanted[3:])
        if ops._skips_dispatch(*tensors):
            output = operators.forward(input, weight, bias, geometry, program)
        else:
            with ops._below_autograd():
                output = _forward_epilogue_op(input, weight, bias, *geometry, *flatten(program))
        ctx.save_for_backward(*tensors, output if ctx.plan.looks_at == "output" else None)
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, *operands, value = ctx.saved_tensors
        program = tuple(step._replace(operand=tensor) for step, tensor in zip(ctx.steps, operands, strict=True))
        wanted = ctx.needs_input_grad[2:]
        if ctx.plan.looks_at == "argument":
            value = ops._forward_op(input, weight, bias, *ctx.geometry)
        inner, operand_grads = differentiate(cotangent, value, program, ctx.plan, wanted[3:])
        del value
        return (
            None,
            None,
            *_cotangents(inner, input, weight, wanted[:3], ctx.geometry, ctx.channels_last),
            *operand_grads,
        )


def _cotangents(
    cotangent: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool], geometry: Geometry, channels_last: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of input, weight and bias of a plain transposed convolution, as far as they are wanted."""
    bias = ops._grad_bias_op(cotangent) if wanted[2] else None
    both = all(wanted[:2]) and not (torch.is_grad_enabled() or is_dynamo_compiling())
    if both and ops._skips_dispatch(cotangent, input, weight):
        return *gradients.both(cotangent, input, weight, geometry, channels_last), bias
    shared = *geometry, channels_last
    to_input = ops._grad_input_op(cotangent, weight, *shared) if wanted[0] else None
    to_weight = ops._grad_weight_op(cotangent, input, weight.shape[2:], *shared) if wanted[1] else None
    return to_input, to_weight, bias


def _autograd(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program) -> Tensor:
    _check_operands(program, _output_size(input, weight, bias, geometry), input)
    tensors = (input, weight, bias, *(step.operand for step in program))
    recorded = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    if _must_decompose(tensors) or (recorded and not _plain(tensors)):
        return _decomposed(input, weight, bias, geometry, program)
    if recorded:
        return FusedContraction.apply(geometry, program, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    if ops._skips_dispatch(*tensors):
        return operators.forward(input, weight, bias, geometry, program)
    with ops._below_autograd():
        return _forward_epilogue_op(input, weight, bias, *geometry, *flatten(program))  # type: ignore[no-any-return]


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program) -> Tensor:
    output = operators.fake_forward(input, weight, bias, geometry)
    _check_operands(program, output.shape, input)
    return output


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program) -> Tensor:
    _check_operands(program, _output_size(input, weight, bias, geometry), input)
    return operators.forward(input, weight, bias, geometry, program)


def _check_operands(program: Program, size: Sequence[int], like: Tensor) -> None:
    """RuntimeError for operands that the inner op does not take: there they are fitted already."""
    size = tuple(size)
    for place, step in enumerate(program):
        operand = step.operand
        if operand is None:
            continue
        fits = tuple(operand.shape) in (size[1:2], size)
        if not fits or operand.dtype not in (like.dtype, torch.float32) or operand.device != like.device:
            raise RuntimeError(
                f"convt::forward_epilogue: epilogue step {place} ({step.name!r}): operand must have shape {size[1:2]} "
                f"or {size}, dtype {like.dtype} or torch.float32, and be on {like.device}; got {tuple(operand.shape)}, "
                f"{operand.dtype}, {operand.device}"
            )


def _read(args: Sequence[Any]) -> tuple[Any, ...]:
    """Input, weight, bias, geometry and program from the flat arguments of either op."""
    input, weight, bias, stride, padding, output_padding, groups, dilation, names, scalars, operands = args
    geometry = Geometry(tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation))
    return input, weight, bias, geometry, unflatten(names, scalars, operands)


def conv_transpose_epilogue(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program
) -> Tensor:
    """A transposed convolution with a program whose operands broadcast to the output; unbatched input and autocast too.

    Raises RuntimeError for operands that do not broadcast, and what convt::conv_transpose{1,2,3}d raise.
    """
    rank = len(geometry.stride)
    if weight.dim() != rank + 2 or input.dim() not in (rank + 1, rank + 2):  # the plain op explains it
        return ops.PUBLIC[rank](input, weight, bias, *geometry)
    if ops._any_autocast() and torch.is_autocast_enabled(input.device.type):
        input, weight, bias = ops._autocast(input.device.type, input, weight, bias)  # type: ignore[assignment]
    unbatched = input.dim() == rank + 1
    batched = input.unsqueeze(0) if unbatched else input
    program = _fitted(batched, weight, bias, geometry, program, unbatched)
    if _must_decompose((batched, weight, bias, *(step.operand for step in program))):
        output = _decomposed(batched, weight, bias, geometry, program)
    else:
        output = _forward_epilogue_op(batched, weight, bias, *geometry, *flatten(program))
    return output.squeeze(0) if unbatched else output


def ordinary(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program) -> Tensor:
    """The same for batched plain tensors that nothing but autograd wants to see: past the dispatcher."""
    program = _fitted(input, weight, bias, geometry, program, False)
    tensors = (input, weight, bias, *(step.operand for step in program))
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return FusedContraction.apply(geometry, program, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return operators.forward(input, weight, bias, geometry, program)


def _fitted(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program, unbatched: bool
) -> Program:
    if all(step.operand is None for step in program):
        return program
    size = _output_size(input, weight, bias, geometry)
    return fit(f"conv_transpose{len(geometry.stride)}d", program, size, input, unbatched)


def _size_of(input: Ints, weight: Ints, bias: Ints | None, geometry: Geometry) -> Ints:
    return forward_problem(input, weight, bias, geometry).output_size


_cached_size_of = lru_cache(maxsize=4096)(_size_of)


def _output_size(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Ints:
    arguments = input.shape, weight.shape, None if bias is None else bias.shape, geometry
    try:
        return _cached_size_of(*arguments)
    except TypeError:  # symbolic sizes have no hash
        return _size_of(*arguments)


def _flat(function: Any) -> Any:
    """A kernel in the inner op's flat schema."""

    def kernel(*args: Any) -> Tensor:
        return function(*_read(args))  # type: ignore[no-any-return]

    return kernel


for _key in ("CompositeImplicitAutograd", "FuncTorchBatched"):
    ops._library.impl("conv_transpose_epilogue", _flat(conv_transpose_epilogue), _key)
ops._library.impl("forward_epilogue", _flat(_forward), "CompositeExplicitAutograd")
ops._library.impl("forward_epilogue", _flat(_autograd), "Autograd")
ops._library.impl("forward_epilogue", _flat(_decomposed), "FuncTorchBatched")
torch.library.register_fake("convt::forward_epilogue", _flat(_fake), lib=ops._library)
