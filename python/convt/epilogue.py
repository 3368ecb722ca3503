"""Epilogues: pointwise steps that follow a transposed convolution, as a small program that is checked once.

A program is a sequence of Steps. Kernels run it on their accumulators and round once, to the output's dtype; the
functions here are the same program on whole tensors (`compose`), and its derivative (`differentiate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_STEPS = 8
MOST_OPERANDS = 4

_aten: Any = torch.ops.aten


class Step(NamedTuple):
    """One operation of a program. a and b are its scalars, operand its tensor, which stands for a where there is one.

    Inside a program an operand is (out_channels,) or has the output's size; its dtype is the output's or float32.
    """

    name: str
    a: float = 0.0
    b: float = 0.0
    operand: Tensor | None = None

    @property
    def value(self) -> float | Tensor:
        """The second argument of an arithmetic step."""
        return self.a if self.operand is None else self.operand


Program = tuple[Step, ...]


# ---- the operations ----------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """What a step's name means.

    apply(x, step, in_place) computes it, in x's own memory if that is asked for. derivative(g, x, y, step) is the
    cotangent of its argument x from that of its result y, made of operations that have derivatives themselves;
    `needs` says which of x and y it looks at. parse reads the arguments that a user gives after the name.
    """

    apply: Callable[[Tensor, Step, bool], Tensor]
    derivative: Callable[[Tensor, Tensor, Tensor, Step], Tensor]
    needs: str = "x"
    parse: Callable[..., tuple[Any, ...]] = lambda: ()

    def follows_from_output(self, step: Step) -> bool:
        """Whether the derivative's `x` may be None."""
        return self.needs == "y" or (step.name == "leaky_relu" and step.a >= 0)


def _silu_derivative(g: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.silu_backward(g, x)  # type: ignore[no-any-return]
    sigmoid = torch.sigmoid(x)
    return g * sigmoid * (1 + x * (1 - sigmoid))


def _mish_derivative(g: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.mish_backward(g, x)  # type: ignore[no-any-return]
    tanh = torch.tanh(F.softplus(x))
    return g * (tanh + x * torch.sigmoid(x) * (1 - tanh * tanh))


def _arithmetic(name: str, derivative: Callable[[Tensor, Step], Tensor]) -> Operation:
    return Operation(
        lambda x, step, in_place: getattr(x, name + "_" * in_place)(step.value),
        lambda g, x, y, step: derivative(g, step),
        "",
        lambda value: (value,),
    )


def _gelu(approximate: str) -> Operation:
    return Operation(
        lambda x, step, in_place: (_aten.gelu_ if in_place else _aten.gelu)(x, approximate=approximate),
        lambda g, x, y, step: _aten.gelu_backward(g, x, approximate=approximate),
    )


OPERATIONS: dict[str, Operation] = {
    "add": _arithmetic("add", lambda g, step: g),
    "sub": _arithmetic("sub", lambda g, step: g),
    "mul": _arithmetic("mul", lambda g, step: g * step.value),
    "div": _arithmetic("div", lambda g, step: g / step.value),
    "relu": Operation(
        lambda x, step, in_place: x.relu_() if in_place else x.relu(),
        lambda g, x, y, step: _aten.threshold_backward(g, y, 0),
        "y",
    ),
    "leaky_relu": Operation(
        lambda x, step, in_place: F.leaky_relu(x, step.a, in_place),
        lambda g, x, y, step: _aten.leaky_relu_backward(g, y if x is None else x, step.a, x is None),
        parse=lambda negative_slope=0.01: (negative_slope,),
    ),
    "clamp": Operation(
        lambda x, step, in_place: x.clamp_(step.a, step.b) if in_place else x.clamp(step.a, step.b),
        lambda g, x, y, step: torch.where((x >= step.a) & (x <= step.b), g, torch.zeros_like(g)),
        parse=lambda min=None, max=None: (-math.inf if min is None else min, math.inf if max is None else max),
    ),
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
    "silu": Operation(lambda x, step, in_place: F.silu(x, in_place), lambda g, x, y, step: _silu_derivative(g, x)),
    "sigmoid": Operation(
        lambda x, step, in_place: x.sigmoid_() if in_place else x.sigmoid(),
        lambda g, x, y, step: _aten.sigmoid_backward(g, y),
        "y",
    ),
    "tanh": Operation(
        lambda x, step, in_place: x.tanh_() if in_place else x.tanh(),
        lambda g, x, y, step: _aten.tanh_backward(g, y),
        "y",
    ),
    "hardswish": Operation(
        lambda x, step, in_place: F.hardswish(x, in_place), lambda g, x, y, step: _aten.hardswish_backward(g, x)
    ),
    "mish": Operation(lambda x, step, in_place: F.mish(x, in_place), lambda g, x, y, step: _mish_derivative(g, x)),
}
ARITHMETIC = ("add", "sub", "mul", "div")


# ---- from what a user writes to a program ------------------------------------------------------------------------


def parse(name: str, epilogue: Any) -> Program:
    """Steps from ["relu", ("leaky_relu", 0.1), ("add", tensor), ...]; operands stay as they were given.

    name is the function's, for messages. Raises TypeError for what is no sequence of steps, ValueError for a step that
    is not legal, with its number.
    """
    if isinstance(epilogue, str) or not isinstance(epilogue, (list, tuple)):
        raise TypeError(
            f"{name}: epilogue must be a list of steps such as 'relu' or ('leaky_relu', 0.1), "
            f"got {epilogue!r} ({type(epilogue).__name__})"
        )
    program = tuple(_parse_step(f"{name}: epilogue step {place}", step) for place, step in enumerate(epilogue))
    check_limits(name, program)
    return program


def check_limits(name: str, program: Sequence[Step]) -> None:
    """ValueError for more steps or tensors than a kernel takes."""
    if len(program) > MOST_STEPS:
        raise ValueError(f"{name}: epilogue has {len(program)} steps; at most {MOST_STEPS} are legal")
    tensors = sum(1 for step in program if step.operand is not None)
    if tensors > MOST_OPERANDS:
        raise ValueError(f"{name}: epilogue has {tensors} tensor operands; at most {MOST_OPERANDS} are legal")


def _parse_step(place: str, step: Any) -> Step:
    if isinstance(step, str):
        step = (step,)
    if not isinstance(step, (list, tuple)) or not step or not isinstance(step[0], str):
        raise TypeError(f"{place} must be a name or a tuple that starts with one, got {step!r}")
    label, *arguments = step
    if label not in OPERATIONS:
        raise ValueError(f"{place} is {label!r}; legal: {', '.join(OPERATIONS)}")
    place = f"{place} ({label!r})"
    if label == "gelu" and arguments:
        if len(arguments) > 1 or arguments[0] not in ("none", "tanh"):
            raise ValueError(f"{place}: approximate must be 'none' or 'tanh', got {arguments}")
        label, arguments = ("gelu_tanh" if arguments[0] == "tanh" else "gelu"), []
    try:
        values = OPERATIONS[label].parse(*arguments)
    except TypeError:
        raise ValueError(f"{place} got {len(arguments)} arguments {tuple(arguments)}; {_usage(label)}") from None
    if label in ARITHMETIC and isinstance(values[0], Tensor):
        return Step(label, operand=values[0])
    a, b = [*(_number(place, value) for value in values), 0.0, 0.0][:2]
    return Step(label, a, b)


def _usage(label: str) -> str:
    if label in ARITHMETIC:
        return "it takes one, a number or a Tensor"
    return {
        "leaky_relu": "it takes at most one, negative_slope",
        "clamp": "it takes at most two, min and max, numbers or None",
    }.get(label, "it takes none")


def _number(place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{place}: expected a number, got {value!r} ({type(value).__name__})")
    return float(value)


# ---- flat, as an op's schema takes it ----------------------------------------------------------------------------


_OPERAND = "(operand)"


def flatten(program: Iterable[Step]) -> tuple[str, list[float], list[Tensor]]:
    """Names with commas between them, "mul(operand)" for one with a tensor; two scalars per step; the tensors."""
    program = tuple(program)
    names = [step.name if step.operand is None else step.name + _OPERAND for step in program]
    scalars = [scalar for step in program for scalar in (step.a, step.b)]
    return ",".join(names), scalars, [step.operand for step in program if step.operand is not None]


def unflatten(names: str, scalars: Sequence[float], operands: Sequence[Tensor]) -> Program:
    """The program that flatten took apart; ValueError when the lengths do not fit or a name is not one."""
    labels = names.split(",") if names else []
    tensors = sum(label.endswith(_OPERAND) for label in labels)
    if len(scalars) != 2 * len(labels) or len(operands) != tensors:
        raise ValueError(
            f"epilogue {names!r} needs {2 * len(labels)} scalars and {tensors} operands, "
            f"got {len(scalars)} and {len(operands)}"
        )
    program, remaining = [], iter(operands)
    for place, (label, a, b) in enumerate(zip(labels, scalars[::2], scalars[1::2], strict=True)):
        name = label.removesuffix(_OPERAND)
        legal = ARITHMETIC if name != label else OPERATIONS
        if name not in legal:
            raise ValueError(f"epilogue step {place} is {label!r}; legal: {', '.join(legal)}")
        program.append(Step(name, float(a), float(b), next(remaining) if name != label else None))
    check_limits("epilogue", program)
    return tuple(program)


def pointers(program: Program) -> list[tuple[str, float, float, tuple[int, str, tuple[int, ...]] | None]]:
    """The program as _C.cuda_run takes it: operands as pointer, dtype and strides over batch, channel, D, H and W."""
    return [(*step[:3], _pointer(step.operand)) for step in program]


def _pointer(operand: Tensor | None) -> tuple[int, str, tuple[int, ...]] | None:
    if operand is None:
        return None
    strides = (0, *operand.stride()) if operand.dim() == 1 else tuple(operand.stride())
    spatial = strides[2:] if operand.dim() > 1 else ()
    padded = (*strides[:2], *(0,) * (3 - len(spatial)), *spatial)
    return operand.data_ptr(), str(operand.dtype).removeprefix("torch."), padded


# ---- operands against the output ---------------------------------------------------------------------------------


def fit(name: str, program: Program, size: Sequence[int], like: Tensor, unbatched: bool = False) -> Program:
    """Every operand as (out_channels,) or expanded to the output's size, from any shape that broadcasts to it.

    size is that of the batched output, like a tensor of its dtype and device. Raises RuntimeError for an operand that
    does not broadcast, or is of another dtype or device, with the step's number.
    """
    fitted = []
    for place, step in enumerate(program):
        if step.operand is not None:
            label = f"{name}: epilogue step {place} ({step.name!r})"
            step = step._replace(operand=_fit(label, step.operand, size, like, unbatched))
        fitted.append(step)
    return tuple(fitted)


def _fit(place: str, operand: Tensor, size: Sequence[int], like: Tensor, unbatched: bool) -> Tensor:
    if operand.dim() == 0 and not operand.is_complex():  # as in PyTorch, it has no say in dtype or device
        return operand.to(like.device, like.dtype).expand(size[1])
    if operand.dtype not in (like.dtype, torch.float32):
        legal = " or ".join(dict.fromkeys((str(like.dtype), "torch.float32")))
        raise RuntimeError(f"{place}: operand has dtype {operand.dtype}; legal: {legal}, or a tensor without axes")
    if like.dtype is torch.float64 and operand.dtype is not torch.float64:
        operand = operand.double()
    if operand.device != like.device:
        raise RuntimeError(f"{place}: operand is on {operand.device} but the output is on {like.device}")
    try:
        sizes = _cached_places(operand.shape, size, unbatched)
    except TypeError:  # symbolic sizes have no hash
        sizes = _places(operand.shape, size, unbatched)
    if sizes is None:
        hint = ""
        if tuple(operand.shape) == (size[1],):
            hint = f"; for one value per channel: operand.reshape({', '.join(map(str, (-1, *(1,) * (len(size) - 2))))})"
        raise RuntimeError(
            f"{place}: operand of shape {tuple(operand.shape)} does not broadcast to the output's "
            f"{tuple(size[1:] if unbatched else size)}{hint}"
        )
    return operand.reshape(sizes[0]).expand(sizes[1])


def _places(
    given: Sequence[int], size: Sequence[int], unbatched: bool
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The sizes to reshape an operand to and then to expand it to; None when it does not broadcast."""
    shape = size[1:] if unbatched else size
    if len(given) > len(shape):
        return None
    for have, want in zip(given[::-1], shape[::-1], strict=False):
        if have != 1 and have != want:
            return None
    padded = (*(1,) * (len(size) - len(given)), *given)
    if padded[0] == 1 and all(extent == 1 for extent in padded[2:]):
        return (padded[1],), (size[1],)
    return padded, tuple(size)


_cached_places = lru_cache(maxsize=4096)(_places)


def _over(operand: Tensor, output: Tensor) -> Tensor:
    """An operand as it broadcasts against the output."""
    return operand.reshape(-1, *(1,) * (output.dim() - 2)) if operand.dim() == 1 else operand


def _spread(step: Step, output: Tensor) -> Step:
    return step if step.operand is None else step._replace(operand=_over(step.operand, output))


# ---- the same program on whole tensors ---------------------------------------------------------------------------


def compose(x: Tensor, program: Program, in_place: bool = False) -> Tensor:
    """The program on x, step by step in x's dtype as PyTorch would; in x's memory if asked for.

    With a float32 operand on a 16-bit x all steps are computed in float32 and rounded once.
    """
    dtype = x.dtype
    if any(step.operand is not None and step.operand.dtype is not dtype for step in program):
        x = x.float()
    for step in program:
        x = OPERATIONS[step.name].apply(x, _spread(step, x), in_place)
    return x.to(dtype)


class Backward(NamedTuple):
    """How a program is differentiated: where the cotangent stops, and what the derivatives look at.

    Steps from `first` on pass the cotangent on; the one before it, if there is one, only takes its operand's gradient.
    looks_at is "argument" (all values follow from it), "output" or "nothing".
    """

    first: int
    looks_at: str


def backward_of(program: Program, argument_wanted: bool, operands_wanted: Sequence[bool]) -> Backward:
    """The least work that gives what is wanted: the cotangent of the argument, those of some steps' operands."""
    first = 0 if argument_wanted else operands_wanted.index(True) + 1
    looking = [
        place
        for place, (step, wanted) in enumerate(zip(program, operands_wanted, strict=True))
        if (wanted and step.name in ("mul", "div")) or (place >= first and OPERATIONS[step.name].needs)
    ]
    if not looking:
        return Backward(first, "nothing")
    last = program[-1]
    if looking == [len(program) - 1] and OPERATIONS[last.name].follows_from_output(last):
        return Backward(first, "output")
    return Backward(first, "argument")


def differentiate(
    cotangent: Tensor, value: Tensor | None, program: Program, backward: Backward, operands_wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The cotangent of the program's argument, in its own dtype, and those of the operands that are wanted.

    value is what the derivatives look at. 16-bit tensors are computed with in float32. Made of operations with
    derivatives, so it can be differentiated again. The first result means nothing when the cotangent stops on the way.
    """
    dtype = cotangent.dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    steps = [_spread(step, cotangent) for step in program]
    values: list[Any] = [None] * (len(steps) + 1)
    if backward.looks_at == "output":
        assert value is not None
        values[-1] = value.to(wide)
    elif backward.looks_at == "argument":
        assert value is not None
        values[0] = value.to(wide)
        for place, step in enumerate(steps):
            if place < len(steps) - 1 or OPERATIONS[step.name].needs == "y":
                values[place + 1] = OPERATIONS[step.name].apply(values[place], step, False)
    g = cotangent.to(wide)
    grads: list[Tensor | None] = [None] * len(steps)
    for place in reversed(range(len(steps))):
        step, operation = steps[place], OPERATIONS[steps[place].name]
        if operands_wanted[place]:
            grads[place] = _operand_gradient(g, values[place], step, program[place].operand)
        if place < backward.first:
            break
        g = operation.derivative(g, values[place], values[place + 1], step)
    return g.to(dtype), grads


def _operand_gradient(g: Tensor, x: Tensor, step: Step, operand: Tensor | None) -> Tensor:
    assert operand is not None
    if step.name == "sub":
        g = -g
    elif step.name == "mul":
        g = g * x
    elif step.name == "div":
        assert step.operand is not None
        g = -g * x / step.operand / step.operand
    if operand.dim() == 1:
        g = g.sum((0, *range(2, g.dim())))
    return g.to(operand.dtype)
