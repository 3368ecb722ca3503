"""Graphs that call modules, as Dynamo of PyTorch 2.4 and torch.fx.symbolic_trace make them: the calls spelled out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_CONVOLUTION = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_BATCH_NORM = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")

# The function that a module calls, and the fields that it hands over after the input.
MODULES: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    nn.ConvTranspose1d: (F.conv_transpose1d, _CONVOLUTION),
    nn.ConvTranspose2d: (F.conv_transpose2d, _CONVOLUTION),
    nn.ConvTranspose3d: (F.conv_transpose3d, _CONVOLUTION),
    nn.ReLU: (F.relu, ("inplace",)),
    nn.ReLU6: (F.relu6, ("inplace",)),
    nn.LeakyReLU: (F.leaky_relu, ("negative_slope", "inplace")),
    nn.Hardtanh: (F.hardtanh, ("min_val", "max_val", "inplace")),
    nn.GELU: (F.gelu, ()),
    nn.SiLU: (F.silu, ("inplace",)),
    nn.Sigmoid: (torch.sigmoid, ()),
    nn.Tanh: (torch.tanh, ()),
    nn.Hardswish: (F.hardswish, ("inplace",)),
    nn.Mish: (F.mish, ("inplace",)),
    nn.BatchNorm1d: (F.batch_norm, _BATCH_NORM),
    nn.BatchNorm2d: (F.batch_norm, _BATCH_NORM),
    nn.BatchNorm3d: (F.batch_norm, _BATCH_NORM),
    nn.Dropout: (F.dropout, ("p", "training", "inplace")),
    nn.Dropout1d: (F.dropout1d, ("p", "training", "inplace")),
    nn.Dropout2d: (F.dropout2d, ("p", "training", "inplace")),
    nn.Dropout3d: (F.dropout3d, ("p", "training", "inplace")),
}


def spell_out(graph: fx.Graph, module: fx.GraphModule) -> None:
    """Replace calls of torch.nn's own modules by the functions that they call, where that is all they do."""
    for node in list(graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        called = module.get_submodule(str(node.target))
        if type(called) not in MODULES or _has_more_to_say(called):
            continue
        function, names = MODULES[type(called)]
        with graph.inserting_before(node):
            fields = [_field(graph, called, str(node.target), name) for name in names]
            kwargs: dict[str, Any] = {"approximate": called.approximate} if isinstance(called, nn.GELU) else {}
            new = graph.call_function(function, (node.args[0], *fields), kwargs)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _has_more_to_say(called: nn.Module) -> bool:
    """Hooks, and statistics that a call would update."""
    if called._forward_hooks or called._forward_pre_hooks or called._backward_hooks or called._backward_pre_hooks:
        return True
    return isinstance(called, nn.modules.batchnorm._BatchNorm) and (called.training or called.running_mean is None)


def _field(graph: fx.Graph, called: nn.Module, path: str, name: str) -> Any:
    value = getattr(called, name)
    if not isinstance(value, Tensor):
        return value
    node = graph.get_attr(f"{path}.{name}")
    node.meta["example_value"] = value
    return node
