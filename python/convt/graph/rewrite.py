"""The pass: transposed convolutions of a graph become convt's, with the pointwise operations that follow folded in."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx

from .. import plan
from ..epilogue import MOST_OPERANDS, MOST_STEPS, Step, flatten
from ..problem import DTYPES
from .modules import spell_out
from .purity import is_barrier, writes_to_first
from .spellings import CONVOLUTIONS, STEPS, Convolution, Other, Unread, value_of

_convt: Any = torch.ops.convt
_Graph = TypeVar("_Graph", fx.Graph, fx.GraphModule)


def rewrite(graph: _Graph) -> _Graph:
    """Let convt compute the transposed convolutions of a graph, in place; returns the graph.

    Takes what Dynamo gives to a backend and to inductor's pre_grad_custom_pass, and the modules that torch.export
    makes, with the values that those note at their nodes: a convolution without them is left alone. Every
    F.conv_transposeNd, however spelled, becomes one call of convt, and the longest chain of pointwise operations behind
    it becomes its epilogue, as long as each result has one use and keeps shape and dtype. Bodies of higher-order
    operations are rewritten as well.
    """
    if isinstance(graph, fx.GraphModule):
        for module in graph.modules():
            if isinstance(module, fx.GraphModule) and _rewrite_one(module.graph, module):
                module.recompile()
    else:
        _rewrite_one(graph, graph.owning_module)
    return graph


def _rewrite_one(graph: fx.Graph, module: fx.GraphModule | None) -> bool:
    """Whether there was something to rewrite."""
    if module is not None and any(node.op == "call_module" for node in graph.nodes):
        spell_out(graph, module)
    heads = [(node, convolution) for node in graph.nodes if (convolution := _convolution(node)) is not None]
    for node, _ in heads:
        # Read again: what was replaced before may be this one's argument.
        convolution = _convolution(node)
        assert convolution is not None
        _replace(graph, node, convolution, _chain(node))
    if heads:
        graph.lint()
    return bool(heads)


def _convolution(node: fx.Node) -> Convolution | None:
    """What a node computes, if that is a transposed convolution of a kind that convt has."""
    reader = CONVOLUTIONS.get(node.target) if node.op == "call_function" else None
    result = value_of(node)
    if reader is None or not isinstance(result, Tensor):
        return None
    if result.dtype not in DTYPES or result.layout is not torch.strided:
        return None
    try:
        convolution = reader(*node.args, **node.kwargs)
    except (TypeError, Unread):
        return None
    return convolution if result.dim() in (convolution.rank + 1, convolution.rank + 2) else None


# ---- the chain behind a convolution ------------------------------------------------------------------------------


class Chain(NamedTuple):
    """Nodes that a program stands for, and why it ends where it does."""

    nodes: list[fx.Node]
    steps: list[Step]
    end: str


def _chain(head: fx.Node) -> Chain:
    nodes: list[fx.Node] = []
    steps: list[Step] = []
    current = head
    like = value_of(head)
    while True:
        users = list(current.users)
        if len(users) != 1:
            return Chain(nodes, steps, f"{len(users)} uses")
        (user,) = users
        if user.op == "output":
            return Chain(nodes, steps, "the graph's output")
        try:
            more = steps + _steps(user, current, like)
            _check_room(more)
            _check_way(current, user)
        except Unread as reason:
            return Chain(nodes, steps, f"{user.name}: {reason}")
        nodes.append(user)
        steps, current = more, user


def _steps(node: fx.Node, result: fx.Node, like: Tensor) -> list[Step]:
    """The steps that a node takes on `result`; Unread with the reason when they are none of an epilogue."""
    reader = STEPS.get(node.target) if node.op in ("call_function", "call_method") else None
    if reader is None:
        raise Unread("no operation of an epilogue")
    args, kwargs = tuple(node.args), dict(node.kwargs)
    for name in ("input", "self"):
        if name in kwargs:
            args = (kwargs.pop(name), *args)
    uses: list[fx.Node] = []
    fx.map_arg((args, kwargs), lambda argument: uses.append(argument))
    if uses.count(result) != 1:
        raise Unread("the result stands in it twice")
    try:
        if args and args[0] is result:
            steps = reader(*args, **kwargs)
        elif len(args) > 1 and args[1] is result and not writes_to_first(node):
            steps = reader(Other(args[0]), *args[1:], **kwargs)
        else:
            raise Unread("the result is not its first argument")
    except TypeError:
        raise Unread("arguments that an epilogue does not have") from None
    value = value_of(node)
    if not isinstance(value, Tensor):
        raise Unread("no value is known")
    if value.dtype is not like.dtype:
        raise Unread(f"the dtype becomes {value.dtype}")
    if not _same_size(value, like):
        raise Unread(f"the shape becomes {tuple(value.shape)}")
    for step in steps:
        if isinstance(step.operand, fx.Node):
            _check_operand(value_of(step.operand), like)
    return steps


def _check_operand(operand: Any, like: Tensor) -> None:
    if not isinstance(operand, Tensor) or operand.layout is not torch.strided:
        raise Unread("an operand that is no dense tensor")
    if operand.dim() == 0 and not operand.is_complex():
        return
    if operand.dtype is not like.dtype:
        raise Unread(f"an operand of {operand.dtype}")
    if operand.device != like.device:
        raise Unread(f"an operand on {operand.device}")


def _check_room(steps: list[Step]) -> None:
    if len(steps) > MOST_STEPS:
        raise Unread(f"more than {MOST_STEPS} steps")
    if sum(step.operand is not None for step in steps) > MOST_OPERANDS:
        raise Unread(f"more than {MOST_OPERANDS} tensors")


def _check_way(current: fx.Node, user: fx.Node) -> None:
    """The convolution moves to where its chain ends: nothing on the way may change what it reads, or its mode."""
    node = current.next
    while node is not user:
        if is_barrier(node):
            raise Unread(f"{node.name} before it may change what the convolution reads")
        node = node.next


def _same_size(a: Tensor, b: Tensor) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return a.dim() == b.dim() and all(statically_known_true(x == y) for x, y in zip(a.shape, b.shape, strict=True))


# ---- writing -----------------------------------------------------------------------------------------------------


def _replace(graph: fx.Graph, head: fx.Node, convolution: Convolution, chain: Chain) -> None:
    rank, *tensors_and_geometry = convolution
    last = chain.nodes[-1] if chain.nodes else head
    geometry: list[Any] = [list(value) if isinstance(value, tuple) else value for value in tensors_and_geometry]
    with graph.inserting_before(last):
        if chain.steps:
            program = [_with_node(graph, step, rank, head) for step in chain.steps]
            target = _convt.conv_transpose_epilogue.default
            new = graph.call_function(target, (*geometry, *flatten(program)))
        else:
            new = graph.call_function(getattr(_convt, f"conv_transpose{rank}d").default, tuple(geometry))
    new.meta = dict(last.meta)
    _tell(head, new, rank, chain)
    last.replace_all_uses_with(new)
    for node in reversed([head, *chain.nodes]):
        graph.erase_node(node)


def _with_node(graph: fx.Graph, step: Step, rank: int, head: fx.Node) -> Step:
    operand: Any = step.operand
    if operand is None or isinstance(operand, fx.Node):
        return step
    key = "val" if "val" in head.meta else "example_value"

    def emit(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        values = [value_of(argument) if isinstance(argument, fx.Node) else argument for argument in args]
        with torch.no_grad():
            node.meta[key] = target(*values, **kwargs)
        return node

    per_channel: Any = emit(torch.ops.aten.reshape.default, operand(emit), [-1, *(1,) * rank])
    return step._replace(operand=per_channel)


def _tell(head: fx.Node, new: fx.Node, rank: int, chain: Chain) -> None:
    if plan._prints():
        names = [step.name if step.operand is None else f"{step.name} tensor" for step in chain.steps]
        folded = f" with epilogue {', '.join(names)}" if names else ""
        print(f"convt: {head.name} -> conv_transpose{rank}d{folded}; ends at {chain.end}", file=sys.stderr)
