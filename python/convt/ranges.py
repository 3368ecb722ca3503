"""Ranges for profilers: which operator runs, and who computes it, inside PyTorch's own event of the op.

    convt::forward native                                      on a CPU
    convt::grad_input aten                                     left to PyTorch
    convt::forward implicit_gemm 64x256p4w1x4 tf32             a CUDA kernel, its configuration, how float32 multiplies

torch.profiler shows them, and nvtx (torch.autograd.profiler.emit_nvtx) as well. Without a profiler nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar

from torch.autograd import profiler

from . import settings


class _Call(Protocol):
    @property
    def native(self) -> bool: ...
    @property
    def empty(self) -> bool: ...
    @property
    def cuda(self) -> Any: ...


_Result = TypeVar("_Result")


def in_range(operator: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Decorates what runs an operator, given its call and then its arguments."""

    def decorate(run: Callable[..., _Result]) -> Callable[..., _Result]:
        @wraps(run)
        def ranged(call: _Call, *args: Any) -> _Result:
            if not profiler._is_profiler_enabled:
                return run(call, *args)
            return within(operator, _who(call, args[0]), run, call, *args)

        return ranged

    return decorate


def within(name: str, who: str, function: Callable[..., _Result], *args: Any) -> _Result:
    """function(*args) in the range of an op and of who computes it; nothing but the call without a profiler."""
    if not profiler._is_profiler_enabled:
        return function(*args)
    with profiler.record_function(f"convt::{name} {who}"):
        return function(*args)


def _who(call: _Call, head: Any) -> str:
    if call.empty:
        return "empty"
    if call.cuda is None:
        return "native" if call.native else "aten"
    dtype = str(head.dtype).removeprefix("torch.")
    precision = settings.current_precision() if dtype == "float32" else dtype
    return " ".join(filter(None, (call.cuda.kernel, call.cuda.config, precision)))
