"""What a compiler makes of a function: graphs to read, in ATen's and convt's ops."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

HAS_COMPILER = shutil.which("g++") or shutil.which("clang++")  # inductor's, on a CPU


def needs_inductor(device="cpu"):
    """Skips where inductor cannot compile for a device."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        pytest.skip("inductor needs triton on a GPU")
    if device != "cuda" and not HAS_COMPILER:
        pytest.skip("inductor needs a C++ compiler on a CPU")


class Traced:
    """A backend that runs graphs as they are, and keeps them: forward and backward."""

    def __init__(self):
        self.forward, self.backward = [], []

    def __call__(self, module, inputs):
        return aot_autograd(fw_compiler=self._keep(self.forward), bw_compiler=self._keep(self.backward))(module, inputs)

    def _keep(self, graphs):
        def keep(module, _):
            graphs.append(module.graph)
            return make_boxed_func(module.forward)

        return keep


def targets(graph):
    """The ops that a graph calls, in order."""
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def ours(graph):
    """Those that are convt's, without their overload."""
    return [name.removesuffix(".default") for name in targets(graph) if name.startswith("convt.")]
