"""The inner operators: what a call means, and who computes it. Real implementations and fakes share every rule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import profiler

from . import _C, settings
from .epilogue import Program, compose, pointers
from .plan import Plan, Strides, channel_sum, plan, plan_of_call
from .problem import (
    RANKS,
    Geometry,
    Ints,
    Operand,
    OperandKey,
    Problem,
    check_tensors,
    forward_problem,
    grad_input_problem,
    grad_weight_problem,
    operand,
)
from .ranges import within

_any_autocast = torch._C._is_any_autocast_enabled
_convolution_backward: Any = torch.ops.aten.convolution_backward.default


def _current_stream(index: int) -> int:
    return torch.cuda.current_stream(index).cuda_stream


# The same without building a Stream object; builds of PyTorch without CUDA have neither.
_raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)


# ---- the layout of a result --------------------------------------------------------------------------------------


def _truth(condition: bool | torch.SymBool) -> bool:
    """A branch on sizes; False when a data-dependent size leaves it open."""
    if isinstance(condition, torch.SymBool):
        from torch.fx.experimental import symbolic_shapes

        if hasattr(symbolic_shapes, "guard_or_false"):
            return bool(symbolic_shapes.guard_or_false(condition))
    return bool(condition)


def like_channels_last(sizes: Ints, strides: Ints) -> bool:
    """Whether strides say channels_last(_3d), as c10's is_channels_last_strides_2d and _3d; ambiguous ones do not."""
    if _truth(strides[1] == 0):
        return False
    smallest: int = 0
    for axis in (1, *range(len(sizes) - 1, 1, -1), 0):
        if _truth(sizes[axis] == 0) or _truth(strides[axis] < smallest):
            return False
        if axis == 0 and _truth(smallest == strides[1]):
            return False
        smallest = strides[axis] * sizes[axis] if _truth(sizes[axis] > 1) else strides[axis]
    return True


def is_channels_last(dtype: torch.dtype, *tensors: tuple[Ints, Ints]) -> bool:
    """Whether a result computed from tensors of these (sizes, strides) is channels_last(_3d): ATen's rule.

    One of the tensors is channels_last, the rank is 2 or 3 and the dtype is not float64. Otherwise it is contiguous.
    """
    if dtype is torch.float64:
        return False
    return any(len(sizes) in (4, 5) and like_channels_last(sizes, strides) for sizes, strides in tensors)


def memory_format(rank: int, channels_last: bool) -> torch.memory_format:
    """The torch.memory_format of a result of the given rank; there is no channels_last for rank 1."""
    if not channels_last or rank == 1:
        return torch.contiguous_format
    return torch.channels_last if rank == 2 else torch.channels_last_3d


# ---- what a call means -------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """An operator's result and backend: everything that is known before looking at the data."""

    problem: Problem
    size: Ints
    strides: Ints
    native: bool
    empty: bool  # no batch: there is nothing to compute
    choice: Plan
    cuda: _C.CudaPlan | None = None  # how native code computes it on a GPU


# What a call obeys: convt.backend, and on a GPU, where they choose a CudaPlan, precision of float32 and forced kernel.
Switches = tuple[str] | tuple[str, str, str | None]


def _switches(operator: str, tensor: Tensor) -> Switches:
    """As they are now: a backward pass obeys those of its own time."""
    if not tensor.is_cuda:
        return (settings._backend,)
    precision = settings.current_precision() if tensor.dtype is torch.float32 else "ieee"
    return settings._backend, precision, settings._kernels[operator]


def _call(
    operator: str,
    problem: Problem,
    size: Ints,
    head: Operand,
    channels_last: bool,
    switches: tuple[str, str, str | None],
    strides: Callable[[Ints], Strides],
) -> Call:
    """strides: those of the tensors in their places, from the result's."""
    result = torch.empty(size, device="meta", memory_format=memory_format(problem.rank, channels_last)).stride()
    backend, precision, kernel = switches
    empty, cuda = problem.batch == 0, None
    if empty or head.device.type != "cuda":
        choice = plan(problem, operator, head.dtype, head.device, channels_last, backend)
    else:
        choice, cuda = plan_of_call(
            operator, problem, head.dtype, head.device, channels_last, backend, strides(result), precision, kernel
        )
    return Call(problem, size, result, choice.backend == "native" and not empty, empty, choice, cuda)


@lru_cache(maxsize=4096)
def _forward_call(
    input: OperandKey,
    weight: OperandKey,
    bias: OperandKey | None,
    geometry: Geometry,
    backend: str,
    precision: str = "ieee",
    kernel: str | None = None,
) -> Call:
    problem, channels_last = check_forward(input, weight, bias, geometry)
    bias_stride = None if bias is None else bias[1][0]
    return _call(
        "forward", problem, problem.output_size, Operand(*input), channels_last, (backend, precision, kernel),
        lambda output: (input[1], weight[1], bias_stride, output),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _grad_input_call(
    grad_output: OperandKey,
    weight: OperandKey,
    geometry: Geometry,
    channels_last: bool,
    backend: str,
    precision: str = "ieee",
    kernel: str | None = None,
) -> Call:
    problem = _check_grad_input(grad_output, weight, geometry)
    return _call(
        "grad_input", problem, problem.input_size, Operand(*grad_output), channels_last, (backend, precision, kernel),
        lambda input: (input, weight[1], None, grad_output[1]),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _grad_weight_call(
    grad_output: OperandKey,
    input: OperandKey,
    kernel_size: Ints,
    geometry: Geometry,
    channels_last: bool,
    backend: str,
    precision: str = "ieee",
    kernel: str | None = None,
) -> Call:
    problem = _check_grad_weight(grad_output, input, kernel_size, geometry)
    return _call(
        "grad_weight", problem, problem.weight_size, Operand(*grad_output), channels_last, (backend, precision, kernel),
        lambda weight: (input[1], weight, None, grad_output[1]),
    )  # fmt: skip


def check_forward(
    input: OperandKey, weight: OperandKey, bias: OperandKey | None, geometry: Geometry
) -> tuple[Problem, bool]:
    """The problem of a legal call, and whether its output is channels_last; RuntimeError when it is not legal."""
    check_tensors(len(weight[0]) - 2, input=input, weight=weight, bias=bias)
    problem = forward_problem(input[0], weight[0], None if bias is None else bias[0], geometry)
    return problem, is_channels_last(input[2], input[:2], weight[:2])


def _check_grad_input(grad_output: OperandKey, weight: OperandKey, geometry: Geometry) -> Problem:
    check_tensors(len(weight[0]) - 2, grad_output=grad_output, weight=weight)
    return grad_input_problem(grad_output[0], weight[0], geometry)


def _check_grad_weight(grad_output: OperandKey, input: OperandKey, kernel_size: Ints, geometry: Geometry) -> Problem:
    check_tensors(len(kernel_size), grad_output=grad_output, input=input)
    return grad_weight_problem(grad_output[0], input[0], kernel_size, geometry)


@lru_cache(maxsize=4096)
def _check_grad_bias(grad_output: OperandKey) -> None:
    rank = len(grad_output[0]) - 2
    check_tensors(rank, grad_output=grad_output)
    if rank not in RANKS:
        raise RuntimeError(f"convt::grad_bias: grad_output must have 3 to 5 axes, got shape {tuple(grad_output[0])}")


# ---- implementations: native code, or ATen with the result laid out by our rule ----------------------------------


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program = ()) -> Tensor:
    """Output, (batch, out_channels, *spatial), with a program applied: by the kernel, or in place to ATen's result."""
    keys = operand(input), operand(weight), None if bias is None else operand(bias)
    call = _forward_call(*keys, geometry, *_switches("forward", input))
    if profiler._is_profiler_enabled:
        return within("forward", call, _forward, input, weight, bias, geometry, program)
    return _forward(call, input, weight, bias, geometry, program)


def _forward(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, program: Program
) -> Tensor:
    if call.native:
        output = _empty(call, input)
        if call.cuda is not None:
            _launch(call.cuda, input, weight, bias, output, program)
        elif program:
            _C.forward(input, weight, bias, output, *geometry, program)
        else:
            _C.forward(input, weight, bias, output, *geometry)
        return output
    if call.empty:
        return _empty(call, input)
    output = _conform(_convolution(True, input, weight, bias, geometry), call)
    return compose(output, program, in_place=True) if program else output


def _launch(
    cuda: _C.CudaPlan, input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, program: Program = ()
) -> None:
    """An operator on PyTorch's current stream of the tensors' GPU: asynchronous, and nothing here synchronises.

    The tensors are in the forward's places, whichever of them is the result.

    The workspace comes from PyTorch's allocator on the same stream, so it may be reused as soon as this returns, and a
    graph being captured keeps it.
    """
    device = input.device
    workspace = _workspace(cuda.workspace_bytes, device)
    _C.cuda_run(
        cuda,
        input.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        output.data_ptr(),
        0 if workspace is None else workspace.data_ptr(),
        device.index,
        _raw_stream(device.index),
        *([pointers(program)] if program else ()),
    )


def _workspace(size: int, device: torch.device) -> Tensor | None:
    return torch.empty(size, dtype=torch.uint8, device=device) if size else None


def grad_input(grad_output: Tensor, weight: Tensor, geometry: Geometry, channels_last: bool) -> Tensor:
    """Gradient of the input, (batch, in_channels, *spatial), contiguous or channels_last."""
    key = operand(grad_output), operand(weight)
    call = _grad_input_call(*key, geometry, channels_last, *_switches("grad_input", grad_output))
    if profiler._is_profiler_enabled:
        return within("grad_input", call, _grad_input, grad_output, weight, geometry)
    return _grad_input(call, grad_output, weight, geometry)


def _grad_input(call: Call, grad_output: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    if call.native:
        result = _empty(call, grad_output)
        if call.cuda is None:
            _C.grad_input(grad_output, weight, result, *geometry)
        else:
            _launch(call.cuda, result, weight, None, grad_output)
        return result
    if call.empty:
        return _empty(call, grad_output)
    result = _convolution(False, grad_output, weight, None, geometry)
    # Output padding of a stride or more leaves room for further inputs, which the problem does not have.
    for axis, extent in enumerate(call.problem.input, start=2):
        result = result.narrow(axis, 0, extent)
    return _conform(result, call)


def grad_weight(
    grad_output: Tensor, input: Tensor, kernel_size: Ints, geometry: Geometry, channels_last: bool
) -> Tensor:
    """Gradient of the weight, (in_channels, out_channels // groups, *kernel_size), contiguous or channels_last."""
    key = operand(grad_output), operand(input)
    call = _grad_weight_call(*key, kernel_size, geometry, channels_last, *_switches("grad_weight", input))
    if profiler._is_profiler_enabled:
        return within("grad_weight", call, _grad_weight, grad_output, input, geometry)
    return _grad_weight(call, grad_output, input, geometry)


def _grad_weight(call: Call, grad_output: Tensor, input: Tensor, geometry: Geometry) -> Tensor:
    if call.native:
        weight = _empty(call, input)
        if call.cuda is None:
            _C.grad_weight(grad_output, input, weight, *geometry)
        else:
            _launch(call.cuda, input, weight, None, grad_output)
        return weight
    if call.empty:
        return _empty(call, input).zero_()
    weight = _shaped(call, grad_output, input)
    stride, padding, output_padding, groups, dilation = geometry
    shared = stride, padding, dilation, True, output_padding, groups, (False, True, False)
    if _needs_float32(call.problem, input):
        wide = grad_output.float(), input.float(), weight.float()
        return _conform(_aten(_convolution_backward, *wide, None, *shared)[1].to(input.dtype), call)
    return _conform(_aten(_convolution_backward, grad_output, input, weight, None, *shared)[1], call)


def _shaped(call: Call, *lenders: Tensor) -> Tensor:
    """A tensor with the size and strides of a result whose elements nobody reads: in memory that is there anyhow."""
    reach = 1 + sum((extent - 1) * stride for extent, stride in zip(call.size, call.strides, strict=True))
    for lender in lenders:
        if reach <= lender.untyped_storage().nbytes() // lender.element_size():
            return lender.detach().as_strided(call.size, call.strides, 0)
    return _empty(call, lenders[0])


def _needs_float32(problem: Problem, input: Tensor) -> bool:
    """Where ATen's weight gradient cannot be used as it is: a 16-bit one on a CPU, outside the bounds below.

    In bfloat16 it reads and writes beyond its buffers where an input extent is small against filter, dilation and
    padding (torch 2.13 with AVX-512 BF16; every rank and layout): garbage in the result, and in the heap. Within these
    bounds 56 000 random problems were right on a poisoned heap. float16 is held to them for good measure.
    """
    if not input.is_cpu or input.dtype not in (torch.bfloat16, torch.float16):
        return False
    sound = max(problem.dilation) == 1 and max(problem.filter) <= 5 and max(problem.padding) <= 2
    return not (sound and min(problem.input) >= 8)


def grad_bias(grad_output: Tensor) -> Tensor:
    """Gradient of the bias, (out_channels,)."""
    key = operand(grad_output)
    _check_grad_bias(key)
    kind = key[3].type
    if kind == "cpu" and settings._backend != "aten" and grad_output.shape[0]:
        result = grad_output.new_empty(grad_output.shape[1])
        _C.grad_bias(grad_output, result)
        return result
    summed = channel_sum(key, settings._backend) if kind == "cuda" else None
    if summed is None:
        return grad_output.sum((0, *range(2, grad_output.dim())))
    result, device = grad_output.new_empty(grad_output.shape[1]), grad_output.device
    workspace = _workspace(summed.workspace_bytes, device)
    at = 0 if workspace is None else workspace.data_ptr()
    stream = _raw_stream(device.index)
    _C.cuda_sum_channels(summed, grad_output.data_ptr(), result.data_ptr(), at, device.index, stream)
    return result


def _convolution(transposed: bool, a: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """ATen's transposed convolution, or the convolution that is its transpose."""
    stride, padding, output_padding, groups, dilation = geometry
    extra = output_padding if transposed else (0,) * len(stride)
    result: Tensor = _aten(torch.convolution, a, weight, bias, stride, padding, dilation, transposed, extra, groups)
    return result


def _aten(function: Callable[..., Any], head: Tensor, *args: Any) -> Any:
    """ATen without a second opinion: no autocast below our own, and convt.precision handed on to cuDNN."""
    overridden = settings.precision_is_overridden() and head.is_cuda
    if not (overridden or _any_autocast()):
        return function(head, *args)
    with ExitStack() as stack:
        if torch.is_autocast_enabled(head.device.type):
            stack.enter_context(torch.autocast(head.device.type, enabled=False))
        if overridden:
            stack.enter_context(settings.cudnn_precision(settings.current_precision()))
        return function(head, *args)


def _empty(call: Call, like: Tensor) -> Tensor:
    return torch.empty_strided(call.size, call.strides, dtype=like.dtype, device=like.device)


def _conform(result: Tensor, call: Call) -> Tensor:
    """The same values, with exactly the strides that the fake promises."""
    return result if result.stride() == call.strides else _empty(call, result).copy_(result)


# ---- fakes: sizes and strides, symbolic ones too -----------------------------------------------------------------


def fake_forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Shape, strides and errors of forward."""
    key = None if bias is None else operand(bias)
    problem, channels_last = check_forward(operand(input), operand(weight), key, geometry)
    return _new(input, problem.output_size, channels_last)


def fake_grad_input(grad_output: Tensor, weight: Tensor, geometry: Geometry, channels_last: bool) -> Tensor:
    """Shape, strides and errors of grad_input."""
    problem = _check_grad_input(operand(grad_output), operand(weight), geometry)
    return _new(grad_output, problem.input_size, channels_last)


def fake_grad_weight(
    grad_output: Tensor, input: Tensor, kernel_size: Ints, geometry: Geometry, channels_last: bool
) -> Tensor:
    """Shape, strides and errors of grad_weight."""
    problem = _check_grad_weight(operand(grad_output), operand(input), kernel_size, geometry)
    return _new(input, problem.weight_size, channels_last)


def fake_grad_bias(grad_output: Tensor) -> Tensor:
    """Shape, strides and errors of grad_bias."""
    _check_grad_bias.__wrapped__(operand(grad_output))
    return grad_output.new_empty((grad_output.shape[1],))


def _new(like: Tensor, size: Ints, channels_last: bool) -> Tensor:
    layout = memory_format(len(size) - 2, channels_last)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)
