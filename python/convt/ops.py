"""Every torch.library registration of convt: schema, implementation, fake, autograd, forward-mode AD, vmap, autocast.

Public ops, composite, with ATen's own schema; unbatched input and autocast are dealt with here:

    convt::conv_transpose{1,2,3}d

Inner ops, on batched tensors. The three operators are the partial derivatives of one trilinear form

    T(input, weight, grad_output) = sum of grad_output[n, o, O] * weight[i, o, K] * input[n, i, I]

over all O + padding == stride * I + dilation * K: leave one of the three tensors out and the operator computes what
stands in its place. So the derivative of an operator is again one of the three, and one autograd function serves all.

    convt::forward        (grad_output's place)     convt::grad_input      convt::grad_weight      convt::grad_bias
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function, _SingleLevelFunction
from torch.compiler import is_dynamo_compiling

from . import _C, gradients, operators, tracing
from .problem import Geometry, Ints, forward_problem

_functorch = torch._C._functorch
_functorch_active = torch._C._are_functorch_transforms_active
_any_autocast = torch._C._is_any_autocast_enabled
_below_autograd = torch._C._AutoDispatchBelowAutograd
_dispatch_keys = torch._C._dispatch_keys
_raw: Callable[[Any], int | str] = getattr(torch._C.DispatchKeySet, "raw_repr", repr)  # older PyTorch has none
_dispatch_modes = torch._C._len_torch_dispatch_stack
_profiler_enabled = torch._C._autograd._profiler_enabled


def _plain_keys() -> frozenset[int | str]:
    """The dispatch keys of an ordinary tensor on a CPU, and on a GPU: what every tensor has besides its device.

    As integers: comparing two sets of keys costs as much as a look-up of a plan. Where PyTorch does not give them out,
    a tensor on a GPU takes the dispatcher's way.
    """
    keys, of = torch._C.DispatchKey, torch._C.DispatchKeySet
    cpu = raw = _raw(_dispatch_keys(torch.empty(0)))
    if not isinstance(raw, int):
        return frozenset((cpu,))
    for here, there in ((keys.CPU, keys.CUDA), (keys.AutocastCPU, keys.AutocastCUDA)):
        raw ^= of(here).raw_repr() ^ of(there).raw_repr()
    return frozenset((cpu, raw))


_PLAIN = _plain_keys()
_unpack_dual: Any = torch._VF._unpack_dual
_Modes = tuple[bool, bool] | tuple[()]  # gradients and forward mode, on or off

INPUT, WEIGHT, OUTPUT = range(3)
# The tensors that the operator with the given result takes, in the order of its schema.
_OPERANDS = {OUTPUT: (INPUT, WEIGHT), INPUT: (OUTPUT, WEIGHT), WEIGHT: (OUTPUT, INPUT)}

_library: Any = torch.library.Library("convt", "DEF")  # type: ignore[no-untyped-call]
_SHARED = "SymInt[] stride, SymInt[] padding, SymInt[] output_padding, SymInt groups, SymInt[] dilation"
for _schema in (
    f"forward(Tensor input, Tensor weight, Tensor? bias, {_SHARED}) -> Tensor",
    f"grad_input(Tensor grad_output, Tensor weight, {_SHARED}, bool channels_last) -> Tensor",
    f"grad_weight(Tensor grad_output, Tensor input, SymInt[] kernel_size, {_SHARED}, bool channels_last) -> Tensor",
    "grad_bias(Tensor grad_output) -> Tensor",
    *(
        f"conv_transpose{n}d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[{n}] stride=1, "
        f"SymInt[{n}] padding=0, SymInt[{n}] output_padding=0, SymInt groups=1, SymInt[{n}] dilation=1) -> Tensor"
        for n in (1, 2, 3)
    ),
):
    _library.define(_schema, tags=tracing.TAGS)

_forward_op = torch.ops.convt.forward.default
_grad_input_op = torch.ops.convt.grad_input.default
_grad_weight_op = torch.ops.convt.grad_weight.default
_grad_bias_op = torch.ops.convt.grad_bias.default
tracing.call_as_they_are(_forward_op, _grad_input_op, _grad_weight_op, _grad_bias_op)
OVERLOADS = _forward_op, _grad_input_op, _grad_weight_op
PUBLIC: dict[int, Callable[..., Tensor]] = {n: getattr(torch.ops.convt, f"conv_transpose{n}d") for n in (1, 2, 3)}


# ---- derivatives -------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """The part of a call that is no tensor. kernel_size and channels_last describe the result of a gradient."""

    geometry: Geometry
    kernel_size: Ints = ()
    channels_last: bool = False


def _contract(result: int, tensors: dict[int, Tensor], bias: Tensor | None, form: Form) -> Tensor:
    """The op that computes `result` from the other two tensors of the trilinear form."""
    output: Tensor
    if result == OUTPUT:
        output = _forward_op(tensors[INPUT], tensors[WEIGHT], bias, *form.geometry)
    elif result == INPUT:
        output = _grad_input_op(tensors[OUTPUT], tensors[WEIGHT], *form.geometry, form.channels_last)
    else:
        shared = *form.geometry, form.channels_last
        output = _grad_weight_op(tensors[OUTPUT], tensors[INPUT], form.kernel_size, *shared)
    return output


def _contract_below(result: int, a: Tensor, b: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """The same on operands in schema order, recording nothing here; plain tensors skip the dispatcher."""
    if not _skips_dispatch(a, b, bias):
        slots = _OPERANDS[result]
        with _below_autograd():
            return _contract(result, {slots[0]: a, slots[1]: b}, bias, form)
    if result == OUTPUT:
        return operators.forward(a, b, bias, form.geometry)
    if result == INPUT:
        return operators.grad_input(a, b, form.geometry, form.channels_last)
    return operators.grad_weight(a, b, form.kernel_size, form.geometry, form.channels_last)


def _skips_dispatch(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher would do nothing but call the operator."""
    for tensor in tensors:  # each a dense one, with no wrapper, subclass or lazy negation that it would have to resolve
        if tensor is not None and _raw(_dispatch_keys(tensor)) not in _PLAIN:
            return False
    return not _is_watched()


def _is_watched() -> bool:
    """Whether a transform, a mode, a tracer or a profiler wants to see every op pass the dispatcher."""
    return bool(
        _functorch_active() or _dispatch_modes() or _profiler_enabled() or torch._C._get_tracing_state() is not None
    )


class _Node(_SingleLevelFunction):
    """A node of autograd that compiled autograd can trace: what torch.autograd.Function has for it."""

    if hasattr(Function, "_compiled_autograd_key"):
        _compiled_autograd_key = staticmethod(Function._compiled_autograd_key)


class Contraction(_Node):
    """Any of the three operators, differentiable in every tensor.

    It runs inside a dispatcher kernel (or where no functorch level is active), so each functorch level meets it on its
    own and the single-level form is the right one; one class then serves eager, forward-mode and functorch.
    """

    @staticmethod
    def forward(
        ctx: Any, result: int, a: Tensor, b: Tensor, bias: Tensor | None, form: Form, modes: _Modes | None
    ) -> Tensor:
        ctx.save_for_backward(a, b)
        if modes is not None or forward_ad._current_level >= 0:
            ctx.save_for_forward(a, b)
        ctx.result = result
        ctx.form = form
        if not modes:
            return _contract_below(result, a, b, bias, form)
        with torch.set_grad_enabled(modes[0]), forward_ad._set_fwd_grad_enabled(modes[1]):
            return _contract_below(result, a, b, bias, form)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return Contraction.transpose(ctx, cotangent, ctx.saved_tensors)

    @staticmethod
    def transpose(ctx: Any, cotangent: Tensor, saved: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        """backward, with the saved tensors unpacked: hooks may count how often they are."""
        nested = (  # compiled autograd traces this
            is_dynamo_compiling() or torch.is_grad_enabled() or forward_ad._current_level >= 0 or _functorch_active()
        )
        bias = _grad_bias_op(cotangent) if ctx.needs_input_grad[3] else None
        both = not nested and ctx.result == OUTPUT and all(ctx.needs_input_grad[1:3])
        both = both and _skips_dispatch(cotangent, *saved)
        slots = _OPERANDS[ctx.result]
        tensors = {slots[0]: saved[0], slots[1]: saved[1], ctx.result: cotangent}
        kernel_size = tensors[WEIGHT].shape[2:] if WEIGHT in slots else ()
        form = Form(ctx.form.geometry, kernel_size, _like_its_operands(*saved))
        if both:
            grads_of_both = gradients.both(cotangent, saved[0], saved[1], form.geometry, form.channels_last)
            return None, *grads_of_both, bias, None, None
        grads: list[Tensor | None] = [None, None]
        for place, slot in enumerate(slots):
            if ctx.needs_input_grad[place + 1]:
                a, b = _OPERANDS[slot]
                grads[place] = (
                    _contract(slot, tensors, None, form)
                    if nested
                    else _contract_below(slot, tensors[a], tensors[b], None, form)
                )
        return None, grads[0], grads[1], bias, None, None

    @staticmethod
    def jvp(ctx: Any, _r: None, a: Tensor | None, b: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        slots = _OPERANDS[ctx.result]
        tangent: Tensor | None = None
        # autograd turns forward mode off here, which would cut the tangents of the levels around this one.
        with forward_ad._set_fwd_grad_enabled(True):
            primals = [_unpack_dual(tensor, level=0)[0] for tensor in ctx.saved_tensors]
            for slot, dual in zip(slots, (a, b), strict=True):
                if dual is not None:
                    tensors = {**dict(zip(slots, primals, strict=True)), slot: dual}
                    term = _contract(ctx.result, tensors, bias, ctx.form)
                    tangent, bias = (term if tangent is None else tangent + term), None
            if tangent is None:
                assert bias is not None
                size = forward_problem(primals[0].shape, primals[1].shape, None, ctx.form.geometry).output_size
                tangent = _over_output(bias, size)
        return tangent


class BiasGradient(_Node):
    """grad_bias, differentiable: the sum over batch and space, whose transpose spreads a value over both."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, modes: _Modes) -> Tensor:
        ctx.size = grad_output.shape
        grad, forward_grad = modes or (False, False)
        with torch.set_grad_enabled(grad), forward_ad._set_fwd_grad_enabled(forward_grad), _below_autograd():
            return _grad_bias_op(grad_output)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return _over_output(cotangent, ctx.size), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):
            return _grad_bias_op(tangent)  # type: ignore[no-any-return]


def _over_output(bias: Tensor, size: Ints) -> Tensor:
    return bias.reshape(1, -1, *(1,) * (len(size) - 2)).expand(size)


_cached_is_channels_last = lru_cache(maxsize=4096)(operators.is_channels_last)


def _like_its_operands(a: Tensor, b: Tensor) -> bool:
    arguments = a.dtype, (a.shape, a.stride()), (b.shape, b.stride())
    if is_dynamo_compiling():  # it would warn of the cache
        return operators.is_channels_last(*arguments)
    try:
        return _cached_is_channels_last(*arguments)
    except TypeError:  # symbolic sizes have no hash
        return operators.is_channels_last(*arguments)


def _apply(function: Any, *args: Any) -> Tensor:
    """function.apply in the Autograd kernel of an op, with the modes that lower levels shall see.

    Also where nothing seems to be differentiated: a graph of Dynamo's enters forward mode without telling forward_ad.
    """
    if not _functorch_active():
        return function.apply(*args, ())  # type: ignore[no-any-return]
    modes = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
    allowed = _functorch.get_single_level_autograd_function_allowed()
    _functorch.set_single_level_autograd_function_allowed(True)
    try:
        return function.apply(*args, modes)  # type: ignore[no-any-return]
    finally:
        _functorch.set_single_level_autograd_function_allowed(allowed)


def differentiable(result: int, a: Tensor, b: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """The operator on plain tensors with derivatives where they are wanted; no functorch level is active."""
    recorded = torch.is_grad_enabled() and (
        a.requires_grad or b.requires_grad or (bias is not None and bias.requires_grad)
    )
    if recorded or forward_ad._current_level >= 0:
        output: Tensor = Contraction.apply(result, a, b, bias, form, None)  # type: ignore[attr-defined]
        return output
    return _contract_below(result, a, b, bias, form)


def _autograd_forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    return _apply(Contraction, OUTPUT, input, weight, bias, Form(geometry))


def _autograd_grad_input(grad_output: Tensor, weight: Tensor, geometry: Geometry, channels_last: bool) -> Tensor:
    return _apply(Contraction, INPUT, grad_output, weight, None, Form(geometry, (), channels_last))


def _autograd_grad_weight(
    grad_output: Tensor, input: Tensor, kernel_size: Ints, geometry: Geometry, channels_last: bool
) -> Tensor:
    return _apply(Contraction, WEIGHT, grad_output, input, None, Form(geometry, kernel_size, channels_last))


def _autograd_grad_bias(grad_output: Tensor) -> Tensor:
    return _apply(BiasGradient, grad_output)


# ---- vmap: a new index joins the one that the same tensors have --------------------------------------------------

# The indices of the trilinear form: batch n, group g, input channel i of a group, output channel o of a group.
# input is (n, g*i, ...), weight (g*i, o, ...), output (n, g*o, ...). Axis of an index; is it inside the groups?
_PLACE = {
    (INPUT, "n"): (0, False),
    (INPUT, "g"): (1, False),
    (INPUT, "i"): (1, True),
    (WEIGHT, "g"): (0, False),
    (WEIGHT, "i"): (0, True),
    (WEIGHT, "o"): (1, False),
    (OUTPUT, "n"): (0, False),
    (OUTPUT, "g"): (1, False),
    (OUTPUT, "o"): (1, True),
}
_SHARED_INDEX = {
    frozenset((INPUT, OUTPUT)): "n",
    frozenset((INPUT, WEIGHT)): "i",
    frozenset((WEIGHT, OUTPUT)): "o",
    frozenset((INPUT, WEIGHT, OUTPUT)): "g",
}


def _unflatten(tensor: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    return tensor.reshape(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


def _fold(tensor: Tensor, slot: int, index: str, groups: int) -> Tensor:
    """Merge the leading axis of a tensor into one of its indices, as the slower part."""
    axis, grouped = _PLACE[slot, index]
    if grouped:
        tensor = _unflatten(tensor, axis + 1, (groups, tensor.shape[axis + 1] // groups))
    return tensor.movedim(0, axis + grouped).flatten(axis, axis + 1 + grouped)


def _unfold(tensor: Tensor, slot: int, index: str, groups: int, count: int) -> Tensor:
    """Split what _fold merged, and bring it to the front."""
    axis, grouped = _PLACE[slot, index]
    outer = groups if grouped else 1
    tensor = _unflatten(tensor, axis, (outer, count, tensor.shape[axis] // (outer * count)))
    return tensor.movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def _vmap_contract(
    result: int, count: int, dims: Sequence[int | None], a: Tensor, b: Tensor, bias: Tensor | None, form: Form
) -> tuple[Tensor, int | None]:
    slots = _OPERANDS[result]
    batched = frozenset(slot for slot, dim in zip(slots, dims, strict=False) if dim is not None)
    tensors = dict(zip(slots, (a, b), strict=True))
    if not batched:
        return _contract(result, tensors, bias, form), None
    index = _SHARED_INDEX[batched | {result}]
    groups = form.geometry.groups
    for slot, dim in zip(slots, dims, strict=False):
        if dim is not None:
            tensors[slot] = _fold(tensors[slot].movedim(dim, 0), slot, index, groups)
    if index == "g":
        form = form._replace(geometry=form.geometry._replace(groups=groups * count))
    if bias is not None and index != "n":
        bias = _fold(bias.expand(count, 1, -1), OUTPUT, index, groups)[0]
    return _unfold(_contract(result, tensors, bias, form), result, index, groups, count), 0


def _vmap_forward(
    info: Any, dims: Sequence[Any], input: Tensor, weight: Tensor, bias: Tensor | None, *shared: Any
) -> tuple[Tensor, int | None]:
    form = Form(Geometry(*shared))
    if bias is None or dims[2] is None:
        return _vmap_contract(OUTPUT, info.batch_size, dims, input, weight, bias, form)
    output, dim = _vmap_contract(OUTPUT, info.batch_size, dims, input, weight, None, form)
    bias = bias.movedim(dims[2], 0)
    bias = bias.reshape(info.batch_size, 1, -1, *(1,) * len(form.geometry.stride))
    return (output if dim == 0 else output.unsqueeze(0)) + bias, 0


def _vmap_grad_input(
    info: Any, dims: Sequence[Any], grad_output: Tensor, weight: Tensor, *shared: Any
) -> tuple[Tensor, int | None]:
    form = Form(Geometry(*shared[:-1]), (), shared[-1])
    return _vmap_contract(INPUT, info.batch_size, dims[:2], grad_output, weight, None, form)


def _vmap_grad_weight(
    info: Any, dims: Sequence[Any], grad_output: Tensor, input: Tensor, kernel_size: Ints, *shared: Any
) -> tuple[Tensor, int | None]:
    form = Form(Geometry(*shared[:-1]), tuple(kernel_size), shared[-1])
    return _vmap_contract(WEIGHT, info.batch_size, dims[:2], grad_output, input, None, form)


def _vmap_grad_bias(info: Any, dims: Sequence[Any], grad_output: Tensor) -> tuple[Tensor, int | None]:
    if dims[0] is None:
        return _grad_bias_op(grad_output), None
    folded = _fold(grad_output.movedim(dims[0], 0), OUTPUT, "g", 1)
    return _grad_bias_op(folded).reshape(info.batch_size, -1), 0


# ---- the public ops ----------------------------------------------------------------------------------------------


def _autocast(device_type: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """ATen's rule for convolutions: floating-point tensors of the device, except float64, take the autocast dtype."""
    dtype = torch.get_autocast_dtype(device_type)
    return [
        tensor.to(dtype)
        if tensor is not None
        and tensor.is_floating_point()
        and tensor.dtype is not torch.float64
        and tensor.device.type == device_type
        else tensor
        for tensor in tensors
    ]


def _public(rank: int) -> Callable[..., Tensor]:
    name = f"conv_transpose{rank}d"

    def spread(label: str, values: Sequence[int]) -> Ints:
        if len(values) not in (1, rank):
            raise RuntimeError(f"{name}: {label} must be one integer or {rank} integers, got {tuple(values)}")
        return tuple(values) if len(values) == rank else tuple(values) * rank

    def conv_transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        output_padding: Sequence[int] = (0,),
        groups: int = 1,
        dilation: Sequence[int] = (1,),
    ) -> Tensor:
        if input is None or weight is None:
            raise TypeError(f"{name}: input and weight must be Tensors, got None")
        if weight.dim() != rank + 2:
            raise RuntimeError(
                f"{name}: weight must be {rank + 2}-dimensional, (in_channels, out_channels // groups, *kernel_size), "
                f"got shape {tuple(weight.shape)}"
            )
        if input.dim() not in (rank + 1, rank + 2):
            raise RuntimeError(
                f"{name}: input must be {rank + 1}-dimensional (unbatched) or {rank + 2}-dimensional (batched), "
                f"got shape {tuple(input.shape)}"
            )
        geometry = Geometry(
            spread("stride", stride), spread("padding", padding), spread("output_padding", output_padding), groups,
            spread("dilation", dilation),
        )  # fmt: skip
        if _any_autocast() and torch.is_autocast_enabled(input.device.type):
            input, weight, bias = _autocast(input.device.type, input, weight, bias)  # type: ignore[assignment]
        if input.dim() == rank + 2:
            return _forward_op(input, weight, bias, *geometry)  # type: ignore[no-any-return]
        return _forward_op(input.unsqueeze(0), weight, bias, *geometry).squeeze(0)  # type: ignore[no-any-return]

    conv_transpose.__name__ = name
    return conv_transpose


def _gathered(function: Callable[..., Any], head: int) -> Callable[..., Any]:
    """A kernel in the ops' flat schema from one that takes a Geometry after its first `head` arguments."""

    def kernel(*args: Any) -> Any:
        first = (tuple(value) if isinstance(value, list) else value for value in args[:head])
        stride, padding, output_padding, groups, dilation = args[head : head + 5]
        geometry = Geometry(tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation))
        return function(*first, geometry, *args[head + 5 :])

    return kernel


for _n in (1, 2, 3):
    # vmap does not look inside a composite op of ours: it gets the same function by name.
    for _key in ("CompositeImplicitAutograd", "FuncTorchBatched"):
        _library.impl(f"conv_transpose{_n}d", _public(_n), _key)

# The Autograd kernels in Python, which those in C call for everything but plain tensors of a known problem.
KERNELS = (
    _gathered(_autograd_forward, 3),
    _gathered(_autograd_grad_input, 2),
    _gathered(_autograd_grad_weight, 3),
)

for _operator, _head, _autograd, _vmap in (
    ("forward", 3, _C.forward_op, _vmap_forward),
    ("grad_input", 2, _C.grad_input_op, _vmap_grad_input),
    ("grad_weight", 3, _C.grad_weight_op, _vmap_grad_weight),
    ("grad_bias", None, _autograd_grad_bias, _vmap_grad_bias),
):
    _kernels: list[Any] = [getattr(operators, _operator), getattr(operators, f"fake_{_operator}")]
    if _head is not None:
        _kernels = [_gathered(_kernel, _head) for _kernel in _kernels]
    # Every backend, not only CPU and CUDA: the plan says what may run where, and ATen runs everywhere.
    _library.impl(_operator, _kernels[0], "CompositeExplicitAutograd")
    _library.impl(_operator, _autograd, "Autograd")
    torch.library.register_fake(f"convt::{_operator}", _kernels[1], lib=_library)
    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(f"convt::{_operator}", _vmap, lib=_library)
