"""What PyTorch's compilers have to be told about this package: what an op's strides mean, and which file is no graph.

Nothing here imports a compiler: each is told when it is imported, if ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, ModuleType
from typing import Any

import torch
import wrapt
from torch.compiler import is_compiling, is_dynamo_compiling

# An op's result has the strides that its fake predicts from the operands' strides: a compiler must not change those.
# Older versions of PyTorch know the order of strides only, which is the same for the dense tensors that they make.
_STRIDES: Any = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
TAGS = (torch.Tag.pt2_compliant_tag, _STRIDES)


def call_as_they_are(*ops: Any) -> None:
    """Tell inductor that it calls these ops, before it meets them.

    Left to itself it learns that when it lowers the first call, after the operands: a gradient that grad_input,
    grad_weight and grad_bias share would be computed once for each of them in the first graph of a process.
    """

    @wrapt.when_imported("torch._inductor.lowering")
    def register(lowering: ModuleType) -> None:
        for op in ops:
            lowering.make_fallback(op, lowering.constrain_to_fx_strides, warn=False)


def run_as_they_are(*modules: ModuleType) -> None:
    """Tell Dynamo to start no graph in these modules' functions, which a graph may still call.

    Choosing who computes is no part of a graph, but where a graph break leaves a call to Python, Dynamo would compile
    the functions that choose, one by one.
    """

    @wrapt.when_imported("torch._dynamo")
    def register(dynamo: ModuleType) -> None:
        for module in modules:
            for code in _codes(vars(module).values(), module.__name__):
                dynamo.decorators.skip_code(code)


def _codes(values: Iterable[Any], module: str) -> Iterator[CodeType]:
    """The code of a module's own functions, of its classes' methods, and of what is defined inside of them."""
    for value in values:
        if isinstance(value, CodeType):
            yield value
            yield from _codes(value.co_consts, module)
        elif getattr(value, "__module__", None) == module:
            if isinstance(value, type):
                yield from _codes(vars(value).values(), module)
            else:
                yield from _codes((getattr(inspect.unwrap(value), "__code__", None),), module)


def refuse_in_a_graph(context: str) -> None:
    """A context manager of this package is being entered: RuntimeError where a graph is being recorded.

    Under torch.compile the block runs eagerly instead, unless fullgraph=True makes a graph break an error.
    """
    message = (
        f"{context} cannot be entered inside a compiled or exported function, whose graph would not keep it: enter it "
        f"around the call"
    )
    if is_dynamo_compiling():
        torch._dynamo.graph_break(msg=message)
    elif is_compiling():
        raise RuntimeError(message)
