"""Which nodes of a graph may write to memory or change a mode, so that no computation may be moved past them."""

from __future__ import annotations

import builtins
import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

_IN_PLACE_OPERATORS = {name for name in vars(operator) if name.startswith("i") and hasattr(operator, name[1:])}
_IN_PLACE_OPERATORS |= {"iand", "ior", "setitem", "delitem"}


def writes_to_first(node: fx.Node) -> bool:
    """Whether a node writes its result to its first argument, judged by its name and arguments."""
    target: Any = node.target
    if isinstance(target, OpOverload):
        return bool(target._schema.is_mutable)
    if isinstance(target, OpOverloadPacket):
        return any(getattr(target, name)._schema.is_mutable for name in target.overloads())  # type: ignore[no-untyped-call]
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    if node.op == "call_method":
        return name in ("__setitem__", "__delitem__", "backward")
    if getattr(operator, name, None) is target:
        return name in _IN_PLACE_OPERATORS
    # The functions of torch.nn.functional may take inplace without its name.
    return getattr(F, name, None) is target and any(argument is True for argument in node.args)


def is_barrier(node: fx.Node) -> bool:
    """Whether no computation may be moved past a node: it writes to memory, sets a mode, or is unknown."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module" or writes_to_first(node):
        return True
    target: Any = node.target
    if node.op == "call_method" or isinstance(target, (OpOverload, OpOverloadPacket)):
        return False
    name = getattr(target, "__name__", "")
    if name.startswith(("_", "set_", "manual_seed", "seed")):
        return True
    return not any(
        getattr(holder, name, None) is target for holder in (torch, F, torch._C._nn, operator, math, builtins)
    )
