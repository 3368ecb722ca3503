"""Epilogues for tests: random programs, what they compute in float64, and operands of every kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from strategies import laid_out

Step = tuple[str, float, float, Tensor | None]

BINARY = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
SMOOTH = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "mish": F.mish,
}
# One value per channel, or one per output: dense in two orders, among gaps, with expanded axes.
OPERANDS = ("channel", "contiguous", "channels_last", "sliced", "expanded", "constant")


def composed(steps: list[Step], x: Tensor) -> Tensor:
    """The program as PyTorch's own pointwise operations, each rounded to x's dtype."""
    for name, a, b, operand in steps:
        if name in BINARY:
            other: float | Tensor = a
            if operand is not None:
                shaped = operand.reshape(-1, *(1,) * (x.dim() - 2)) if operand.dim() == 1 else operand
                other = shaped.to(x.device, torch.promote_types(x.dtype, operand.dtype))
            x = BINARY[name](x, other).to(x.dtype)
        elif name == "relu":
            x = torch.relu(x)
        elif name == "leaky_relu":
            x = F.leaky_relu(x, a)
        elif name == "clamp":
            x = torch.clamp(x, a, b)
        else:
            x = SMOOTH[name](x)
    return x


def operand(kind: str, size: tuple[int, ...], dtype: torch.dtype, values: Tensor) -> Tensor:
    """An operand for an output of this size, out of `values`, any number of them."""

    def filled(shape: tuple[int, ...]) -> Tensor:
        count = torch.Size(shape).numel()
        return values[torch.arange(count) % values.numel()].reshape(shape).to(dtype)

    if kind == "channel":
        return filled((size[1],))
    if kind == "expanded":  # one image, one row
        return filled((1, *size[1:-1], 1)).expand(size)
    if kind == "constant":
        return filled((1,) * len(size)).expand(size)
    return laid_out(filled(size), kind)


def pointers(steps: list[Step]) -> list[tuple[str, float, float, tuple | None]]:
    """The program as a GPU takes it, and the simulator."""

    def told(tensor: Tensor) -> tuple[int, str, tuple[int, ...]]:
        batch, channel, *pixels = (0, tensor.stride(0)) if tensor.dim() == 1 else tensor.stride()
        strides = (batch, channel, *(0,) * (3 - len(pixels)), *pixels)
        return tensor.data_ptr(), str(tensor.dtype).removeprefix("torch."), strides

    return [(name, a, b, None if tensor is None else told(tensor)) for name, a, b, tensor in steps]


@st.composite
def exact_programs(draw, size: tuple[int, ...], dtype: torch.dtype) -> list[Step]:
    """Eighths stay sums of eighths, halved at most a few times: exact in float32 whatever the order of roundings."""
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    steps: list[Step] = []
    tensors = 0
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(("add", "sub", "mul", "div", "relu", "leaky_relu", "clamp")))
        a, b, other = draw(st.sampled_from((0.5, -1.0, 2.0))), 0.0, None
        if name == "clamp":
            a, b = draw(st.sampled_from(((-3.0, 4.5), (float("-inf"), 2.0), (-1.0, float("inf")))))
        elif name == "leaky_relu":
            a = 0.5
        elif name in BINARY and tensors < 4 and draw(st.booleans()):
            tensors += 1
            kind, stored = draw(st.sampled_from(OPERANDS)), draw(st.sampled_from((dtype, torch.float32)))
            powers = torch.tensor([0.5, 1.0, -1.0])
            eighths = torch.randint(-16, 17, (61,), generator=seed) / 8
            other = operand(kind, size, stored, powers if name in ("mul", "div") else eighths)
        steps.append((name, a, b, other))
    return steps
