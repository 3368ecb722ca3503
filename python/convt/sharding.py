"""convt's operators on DTensors: which shards of the operands give which shard of the result.

All rules are read off one trilinear form (see convt.ops). Its operators sum over the indices that their result lacks:

    input[n, i, ...]      weight[i, o, ...]      output[n, o, ...]

Split one of the three indices among ranks and each tensor that has it is sharded along that axis; a tensor that lacks
it is replicated when it is read, and a partial sum when it is the result. With groups, i and o count inside each group,
so that a slice of a tensor's channels is no slice of the index: only the batch n is split then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import prod
from types import ModuleType
from typing import Any

import torch
import wrapt

from .ops import INPUT, OUTPUT, WEIGHT

# The axis of a tensor that an index of the trilinear form runs along.
_AXES = {
    "n": {INPUT: 0, OUTPUT: 0},
    "i": {INPUT: 1, WEIGHT: 0},
    "o": {WEIGHT: 1, OUTPUT: 1},
}
_SLOTS = {"input": INPUT, "weight": WEIGHT, "grad_output": OUTPUT}
_RESULTS = {"forward": OUTPUT, "grad_input": INPUT, "grad_weight": WEIGHT}

_Rule = tuple[list[Any], list[Any]]  # placements of the result and of every argument, None for one that is no tensor


def splits_well(extent: int, sizes: Sequence[int]) -> bool:
    """Whether no rank is left without a channel, along any axes of a mesh of these sizes that can share out `extent`.

    DTensor cuts like torch.chunk, which gives five channels to four ranks as 2, 2, 1 and 0.
    """
    for count in range(1, len(sizes) + 1):
        for split in combinations(sizes, count):
            shards = {extent}
            for size in split:
                largest = {-(-shard // size) for shard in shards}
                shards = largest | {shard - (size - 1) * -(-shard // size) for shard in shards}
            if prod(split) <= extent and min(shards) < 1:
                return False
    return True


def _rules(name: str, tensors: ModuleType) -> Callable[..., list[_Rule]]:
    """The acceptable shardings of an operator along one axis of a mesh; arguments as in its schema."""
    result = _RESULTS[name]
    labels = [argument.name for argument in getattr(torch.ops.convt, name).default._schema.arguments]

    def place(index: str | None, slot: int, absent: Any) -> Any:
        axes = _AXES[index] if index else {}
        return tensors.Shard(axes[slot]) if slot in axes else absent

    def rule(index: str | None, arguments: dict[str, Any]) -> _Rule:
        whole, part = tensors.Replicate(), tensors.Partial()
        output = place(index, result, part if index else whole)
        inputs = []
        for label, value in arguments.items():
            if label in _SLOTS:
                inputs.append(place(index, _SLOTS[label], whole))
            elif label == "bias" and value is not None:  # added once: it is a part of the output
                inputs.append({"n": whole, "i": part, "o": tensors.Shard(0), None: whole}[index])
            else:
                inputs.append(None)
        return [output], inputs

    def acceptable(*values: Any, **keywords: Any) -> list[_Rule]:
        arguments = dict(zip(labels, values, strict=False)) | keywords
        operands = {_SLOTS[label]: value for label, value in arguments.items() if label in _SLOTS}
        rules = [rule(None, arguments), rule("n", arguments)]
        for index in ("i", "o") if arguments["groups"] == 1 else ():
            slot = next(slot for slot in operands if slot in _AXES[index])
            spec = operands[slot]
            if splits_well(spec.shape[_AXES[index][slot]], spec.mesh.shape):
                rules.append(rule(index, arguments))
        return rules

    return acceptable


def _bias_rules(tensors: ModuleType) -> Callable[..., list[_Rule]]:
    """A sum over everything but the channels: partial when one of those axes is split."""

    def acceptable(grad_output: Any) -> list[_Rule]:
        rules: list[_Rule] = [([tensors.Replicate()], [tensors.Replicate()]), ([tensors.Shard(0)], [tensors.Shard(1)])]
        summed = (axis for axis in range(grad_output.ndim) if axis != 1)
        return rules + [([tensors.Partial()], [tensors.Shard(axis)]) for axis in summed]

    return acceptable


def _register(tensors: ModuleType) -> None:
    try:
        from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
        from torch.distributed.tensor.experimental import register_sharding
    except ImportError:  # torch 2.4 has neither, and builds without distributed
        return
    propagator: Any = tensors.DTensor._op_dispatcher.sharding_propagator
    for name in (*_RESULTS, "grad_bias"):
        op = getattr(torch.ops.convt, name).default
        register_sharding(op)(_bias_rules(tensors) if name == "grad_bias" else _rules(name, tensors))
        # register_sharding lets what it remembers depend on arguments from the first single integer on, `groups`:
        # a call with another stride or padding would get the result's shape of the one before.
        first = next((i for i, argument in enumerate(op._schema.arguments) if "Tensor" not in str(argument.type)), 100)
        propagator.op_to_schema_info[op] = RuntimeSchemaInfo(first, needs_pytree=True)


# DTensor's import takes as long as PyTorch's own: not before somebody else has imported it.
wrapt.when_imported("torch.distributed.tensor")(_register)
