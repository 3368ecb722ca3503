"""The eager entry: conv_transpose{1,2,3}d as C functions that answer ordinary CPU calls before Python starts to work.

The C side (cuda/binding/eager.cpp) looks a call up by its shapes, strides, dtype and arguments. It asks `_resolve` once
per problem. Everything it does not know, or that a mode, a transform or a tensor subclass wants to see, runs through
the Python functions of convt.functional, argument for argument. torch.compile traces those instead of the C functions.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch import Tensor
from torch.autograd import forward_ad

from . import _C, heuristics, operators, settings
from .plan import OPERATORS, plan
from .problem import Geometry, Ints, operand


class Route(IntEnum):
    """Who answers a call; the numbers are those of the C side."""

    PYTHON = 0
    NATIVE = 1  # the native forward, with nothing to record
    ATEN = 2  # torch.conv_transposeNd with its own autograd
    ATEN_SMALL = 3  # torch._C._nn.slow_conv_transposeNd: the same numbers without oneDNN's setup


def _resolve(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
) -> tuple[Route, Route]:
    """The routes of a legal problem: without gradients, and with them."""
    geometry = Geometry(stride[:rank], padding[:rank], output_padding[:rank], groups, dilation[:rank])
    problem, channels_last = operators.check_forward(
        operand(input), operand(weight), None if bias is None else operand(bias), geometry
    )
    backend = settings.current_backend()
    plans = [plan(problem, name, input.dtype, input.device, channels_last, backend).backend for name in OPERATORS]
    all_aten = set(plans) == {"aten"}
    if channels_last:
        # The C side makes contiguous results, and ATen's layout is always the documented one only in float32 2-D.
        alike = rank == 2 and input.dtype is torch.float32
        plain = Route.ATEN if alike and plans[0] == "aten" else Route.PYTHON
        return plain, Route.ATEN if alike and all_aten else Route.PYTHON
    plain = Route.NATIVE if plans[0] == "native" else Route.ATEN
    if backend == "auto" and heuristics.is_small(problem, input.dtype):
        return plain, Route.ATEN_SMALL if rank > 1 else Route.ATEN
    trusted = input.dtype in (torch.float32, torch.float64)  # see operators.grad_weight
    return plain, Route.ATEN if all_aten and trusted else Route.PYTHON


def entry(*full: Callable[..., Tensor]) -> list[Callable[..., Tensor]]:
    """The C functions for ranks 1, 2 and 3, given the Python functions that they stand in for."""
    nn: Any = torch._C._nn
    functions = _C.connect(
        {
            "tensor_type": Tensor,
            "parameter_type": torch.nn.Parameter,
            "full": full,
            "aten": (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
            "aten_small": (None, nn.slow_conv_transpose2d, nn.slow_conv_transpose3d),
            "resolve": _resolve,
            "grad_enabled": torch.is_grad_enabled,
            # Profilers, tracers and function modes see ATen's op when that is the answer, and convt's otherwise; the
            # rest decide what the answer is.
            "watchers": (
                torch._C._autograd._profiler_enabled,
                torch._C._get_tracing_state,
                torch._C._len_torch_function_stack,
                torch._C._are_functorch_transforms_active,
                torch._C._len_torch_dispatch_stack,
                torch._C._is_any_autocast_enabled,
            ),
            "op_watchers": 3,
            "requires_grad": torch._C.TensorBase.__dict__["requires_grad"],
            "forward_ad": vars(forward_ad),
        }
    )
    if not hasattr(torch.compiler, "substitute_in_graph"):  # torch 2.4: Dynamo cannot trace a C function
        return list(full)

    # Registering imports Dynamo, which doubles the time that `import torch` takes: not before somebody compiles.
    @wrapt.when_imported("torch._dynamo")
    def register(_: ModuleType) -> None:
        for function, traceable in zip(functions, full, strict=True):
            torch.compiler.substitute_in_graph(function)(traceable)

    return list(functions)
