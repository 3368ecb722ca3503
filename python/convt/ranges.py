"""Ranges for profilers: which operator runs, and who computes it, inside PyTorch's own event of the op.

    convt::forward native                                      on a CPU
    convt::grad_input aten                                     left to PyTorch
    convt::forward implicit_gemm 64x256p4w1x4 tf32             a CUDA kernel, its configuration, how float32 multiplies

torch.profiler shows them, and nvtx (torch.autograd.profiler.emit_nvtx) as well. Nobody enters one without a profiler.
"""

from __future__ import annotations

from collections.abc import Callable
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


def within(operator: str, call: _Call, run: Callable[..., _Result], *args: Any) -> _Result:
    """run(call, *args) in the range of an operator and of who computes it; the first argument has the dtype."""
    with profiler.record_function(f"convt::{operator} {_who(call, args[0])}"):
        return run(call, *args)


def _who(call: _Call, head: Any) -> str:
    if call.empty:
        return "empty"
    if call.cuda is None:
        return "native" if call.native else "aten"
    dtype = str(head.dtype).removeprefix("torch.")
    precision = settings.current_precision() if dtype == "float32" else dtype
    return " ".join(filter(None, (call.cuda.kernel, call.cuda.config, precision)))
