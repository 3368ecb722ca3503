"""The node of an ordinary call that records gradients, with a plan looked up on either way, both times in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import _C, ops


class Contraction(ops.Contraction):
    """The node of the forward operator on plain tensors, where no mode and no transform is active.

    Its backward steps aside for everything that is one: a graph of the backward, forward-mode AD, functorch, modes,
    profilers and subclasses meet the other Contraction's.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, run: _C.PreparedOperator, form: ops.Form, a: Tensor, b: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.form = form
        return run(a, b, bias)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, Tensor] = ctx.saved_tensors
        _, _, input, weight, bias = ctx.needs_input_grad
        if not is_dynamo_compiling():
            grads = _C.gradients(cotangent, *saved, ctx.form.geometry, input | weight << 1 | bias << 2)
            if grads is not None:
                return None, None, *grads
        return None, *ops.Contraction.transpose(_Place(ctx), cotangent, saved)[:4]


class _Place:
    """A context as Contraction's own: the operator's result first, then its tensors."""

    result = ops.OUTPUT

    def __init__(self, ctx: Any) -> None:
        self.form = ctx.form
        self.needs_input_grad = ctx.needs_input_grad[1:]


record: Callable[..., Tensor] = Contraction.apply  # type: ignore[attr-defined]
