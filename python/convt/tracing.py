"""What PyTorch's compilers have to be told about this package: what an op's strides mean, and which file is no graph.

Nothing here imports a compiler: each is told when it is imported, if ever.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import wrapt
from torch.compiler import is_compiling, is_dynamo_compiling

# An op's result has the strides that its fake predicts from the operands' strides: a compiler must not change those.
# Older versions of PyTorch know the order of strides only, which is the same for the dense tensors that they make.
_STRIDES: Any = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
TAGS = (torch.Tag.pt2_compliant_tag, _STRIDES)

# Choosing who computes is no part of a graph. Dynamo would trace these where a graph break leaves a call to Python.
_RUN_AS_THEY_ARE = ("eager", "heuristics", "operators", "ops", "plan", "problem")


def call_as_they_are(*ops: Any) -> None:
    """Tell inductor that it calls these ops, before it meets them.

    Left to itself it learns that when it lowers the first call, after the operands: a gradient that grad_input,
    grad_weight and grad_bias share would be computed once for each of them in the first graph of a process.
    """

    @wrapt.when_imported("torch._inductor.lowering")
    def register(lowering: ModuleType) -> None:
        for op in ops:
            lowering.make_fallback(op, lowering.constrain_to_fx_strides, warn=False)


@wrapt.when_imported("torch._dynamo.trace_rules")
def _skip(trace_rules: ModuleType) -> None:
    for name in _RUN_AS_THEY_ARE:
        trace_rules.add(f"{__package__}.{name}")


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
