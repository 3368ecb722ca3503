"""The inner ops in code that torch.compile's inductor writes: called in C, without the dispatcher between.

Inductor calls an op that it has no kernel for through the dispatcher, which boxes every argument: more than all else
that a small layer takes. The function called here instead steps aside for whoever wants to see the op pass the
dispatcher. Code for other wrappers than Python's (AOTInductor) calls the op.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import wrapt
from torch.utils import _pytree as pytree

from .ops import OVERLOADS


def _register(lowering: ModuleType) -> None:
    # Without it there is another rule for the strides of operands: the op is then called as any other.
    exact = getattr(lowering, "constrain_to_fake_tensors", None)
    if exact is None:
        return
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    class Direct(ir.FallbackKernel):
        """An inner op that is called by name of its C function."""

        def codegen(self, wrapper: Any) -> None:
            if not (V.graph.cpp_wrapper or getattr(V.graph, "fx_wrapper", False)):
                wrapper.add_import_once("from convt import _C as convt_C")
                assert self.op_overload is not None
                self.python_kernel_name = f"convt_C.{self.op_overload._opname}_in_graph"  # type: ignore[union-attr]
            super().codegen(wrapper)

    def wrapped(value: Any) -> Any:
        return ir.TensorBox.create(value) if isinstance(value, ir.IRNode) else value

    for overload in OVERLOADS:

        def call(*args: Any, overload: Any = overload, **kwargs: Any) -> Any:
            return pytree.tree_map(wrapped, Direct.create(overload, *args, **kwargs))

        call._is_fallback_handler = True  # type: ignore[attr-defined]
        lowering.fallbacks.add(overload)
        lowering.add_needs_realized_inputs(overload)
        lowering.add_layout_constraint(overload, exact)
        lowering.register_lowering(overload, type_promotion_kind=None)(call)


def lower() -> None:
    """Have inductor call them so, once it is imported; importing it takes longer than all of PyTorch."""
    wrapt.when_imported("torch._inductor.lowering")(_register)
