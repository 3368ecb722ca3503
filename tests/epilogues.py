"""Epilogues of eager calls, for tests: every operation, a call with all kinds of steps, the ops that run meanwhile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import convt

# A friendly form of every operation, and PyTorch's own function.
OPERATIONS = {
    "add": (("add", 1.5), lambda y: y + 1.5),
    "sub": (("sub", 0.5), lambda y: y - 0.5),
    "mul": (("mul", -2), lambda y: y * -2),
    "div": (("div", 3.0), lambda y: y / 3.0),
    "relu": ("relu", F.relu),
    "leaky_relu": (("leaky_relu", 0.2), lambda y: F.leaky_relu(y, 0.2)),
    "clamp": (("clamp", -0.5, 1), lambda y: y.clamp(-0.5, 1)),
    "gelu": ("gelu", F.gelu),
    "gelu_tanh": (("gelu", "tanh"), lambda y: F.gelu(y, approximate="tanh")),
    "silu": ("silu", F.silu),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "tanh": ("tanh", torch.tanh),
    "hardswish": ("hardswish", F.hardswish),
    "mish": (("mish",), F.mish),
}


def leaves(rank=2):
    size = {1: (5,), 2: (3, 2), 3: (2, 1, 2)}[rank]
    made = torch.randn(2, 2, *size), torch.randn(2, 3, *(2,) * rank), torch.randn(3)
    return [tensor.double().requires_grad_() for tensor in made]


def everything(input, weight, bias, channel, residual):
    steps = ["silu", ("mul", channel), ("add", residual), ("clamp", -1, 2)]
    return convt.conv_transpose2d(input, weight, bias, stride=2, epilogue=steps)


def theirs_of_everything(input, weight, bias, channel, residual):
    return (F.silu(F.conv_transpose2d(input, weight, bias, stride=2)) * channel + residual).clamp(-1, 2)


def arguments():
    return [*(t.detach() for t in leaves()), torch.rand(3, 1, 1).double(), torch.randn(2, 3, 6, 4).double()]


class Counted(TorchDispatchMode):
    def __init__(self):
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    @property
    def ours(self):
        return sorted(name.split(".")[1] for name in self.names if name.startswith("convt."))
