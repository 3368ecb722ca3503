"""Models compiled by convt's backend, with the graphs kept to look at."""

from __future__ import annotations

import functools

import torch

from convt.graph import compile_backend


class Watched:
    """A model compiled by the backend, and the convt calls of its graphs after the rewrite."""

    def __init__(self, model, **options):
        self.graphs = []
        backend = functools.partial(compile_backend, inner=self._keep)
        self.run = torch.compile(model, backend=backend, fullgraph=True, **options)

    def _keep(self, gm, example_inputs):
        self.graphs.append(gm)
        return gm

    def __call__(self, *args):
        return self.run(*args)

    @property
    def calls(self):
        return calls(*self.graphs)

    @property
    def programs(self):
        return [node.args[8] for node in self.calls if node.target is torch.ops.convt.conv_transpose_epilogue.default]

    @property
    def others(self):
        """Names of the functions and methods that are left."""
        left = [node for gm in self.graphs for node in gm.graph.nodes if node.op.startswith("call_")]
        return [getattr(node.target, "__name__", node.target) for node in left if node not in self.calls]


def calls(*graphs):
    return [
        node
        for outer in graphs
        for gm in outer.modules()
        if isinstance(gm, torch.fx.GraphModule)
        for node in gm.graph.nodes
        if "convt." in str(node.target)
    ]


def close(actual, expected, **tolerance):
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    if expected.dtype in (torch.bfloat16, torch.float16):
        tolerance = {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(actual, expected, **tolerance)
