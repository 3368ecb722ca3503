"""Named layers, and the suites that tests and benches run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convt.problem import Problem


@dataclass(frozen=True)
class Layer:
    """A problem with a dtype and a memory layout; `name` says all of it."""

    problem: Problem
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"  # or channels_last, of input and gradient

    @property
    def name(self) -> str:
        return describe(self.problem, self.dtype, self.layout)

    @property
    def memory_format(self) -> torch.memory_format:
        if self.layout == "contiguous":
            return torch.contiguous_format
        return torch.channels_last if self.problem.rank == 2 else torch.channels_last_3d

    def tensors(self, device: torch.device | str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """(input, weight, grad_output), normally distributed; the weight is scaled so that outputs are of order 1.

        Shapes: (batch, in_channels, *input), (in_channels, out_channels / groups, *filter) and
        (batch, out_channels, *output).
        """
        p = self.problem
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        input = normal(*p.input_size)
        weight = normal(*p.weight_size) / math.sqrt(p.in_channels // p.groups)
        grad_output = normal(*p.output_size)
        return (
            input.to(device, self.dtype).contiguous(memory_format=self.memory_format),
            weight.to(device, self.dtype),
            grad_output.to(device, self.dtype).contiguous(memory_format=self.memory_format),
        )


@dataclass(frozen=True)
class Entry:
    """A layer of a suite for GPUs, which runs it in several precisions and layouts."""

    problem: Problem
    bias: bool = False
    mode: str = "train"  # of the model that it is in: train | infer | train/infer
    model: str = ""  # in words


def torch_function(rank: int) -> Callable[..., Tensor]:
    """torch.nn.functional.conv_transpose{rank}d."""
    functions: dict[int, Callable[..., Tensor]] = {
        1: F.conv_transpose1d,
        2: F.conv_transpose2d,
        3: F.conv_transpose3d,
    }
    return functions[rank]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe(problem: Problem, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> str:
    """One line such as `2d k4 s2 p1 64->64 32x32 b4 bfloat16`: defaults are left out."""

    def joined(values: Sequence[int]) -> str:
        return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

    p = problem
    words = [f"{p.rank}d", f"k{joined(p.filter)}", f"s{joined(p.stride)}"]
    words += [f"p{joined(p.padding)}"] if any(p.padding) else []
    words += [f"op{joined(p.output_padding)}"] if any(p.output_padding) else []
    words += [f"d{joined(p.dilation)}"] if any(d != 1 for d in p.dilation) else []
    if p.groups == p.in_channels == p.out_channels and p.groups > 1:
        words.append(f"depthwise {p.groups}")
    else:
        words += [f"g{p.groups}"] if p.groups > 1 else []
        words.append(f"{p.in_channels}->{p.out_channels}")
    words += ["x".join(map(str, p.input)), f"b{p.batch}"]
    words += [dtype_name(dtype)] if dtype != torch.float32 else []
    words += [layout] if layout != "contiguous" else []
    return " ".join(words)


def problem_of(module: torch.nn.modules.conv._ConvTransposeNd, input_shape: Sequence[int]) -> Problem:
    """The problem that a torch.nn.ConvTransposeNd solves for an input of shape (batch, in_channels, *spatial)."""
    return Problem(
        batch=input_shape[0],
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        groups=module.groups,
        input=tuple(input_shape[2:]),
        filter=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=tuple(int(p) for p in module.padding),
        output_padding=tuple(module.output_padding),
        dilation=tuple(module.dilation),
    )


def layer(
    input: tuple[int, ...],
    filter: int,
    channels: tuple[int, int],
    *,
    batch: int = 1,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
) -> Layer:
    """A layer that is the same on every spatial axis; `input` is its spatial size and gives the rank."""
    rank = len(input)
    problem = Problem(
        batch=batch,
        in_channels=channels[0],
        out_channels=channels[1],
        groups=groups,
        input=input,
        filter=(filter,) * rank,
        stride=(stride,) * rank,
        padding=(padding,) * rank,
        output_padding=(output_padding,) * rank,
        dilation=(dilation,) * rank,
    )
    return Layer(problem, dtype, layout)


def _cpu_layers() -> Iterator[Layer]:
    half, brain, double, last = torch.float16, torch.bfloat16, torch.float64, "channels_last"
    # Dense: PyTorch is strong here.
    yield layer((32, 32), 4, (64, 64), batch=4, stride=2, padding=1)
    yield layer((16, 16), 4, (256, 128), batch=4, stride=2, padding=1)
    yield layer((64, 64), 3, (64, 64), batch=4, padding=1)
    yield layer((64, 64), 2, (128, 64), batch=4, stride=2)
    yield layer((32, 32), 3, (64, 64), batch=4, stride=2, padding=1, output_padding=1)
    yield layer((16, 16, 16), 2, (64, 32), batch=2, stride=2)
    yield layer((16, 16, 16), 3, (32, 32), batch=2, padding=1)
    yield layer((16, 16, 16), 3, (32, 32), batch=2, stride=2, padding=1, output_padding=1)
    yield layer((2048,), 16, (128, 64), batch=2, stride=8, padding=4)
    yield layer((32, 32), 4, (64, 64), batch=4, stride=2, padding=1, layout=last)
    yield layer((32, 32), 4, (64, 64), batch=4, stride=2, padding=1, dtype=brain)
    yield layer((32, 32), 4, (64, 64), batch=4, stride=2, padding=1, dtype=half)
    # Dilated, or with more stride than filter.
    yield layer((16384,), 3, (32, 64), batch=2, stride=2, padding=1, dilation=2)
    yield layer((64, 128), 3, (32, 64), batch=2, stride=5, padding=1, dilation=2)
    # Few output channels; one input pixel.
    yield layer((64, 64), 9, (64, 3), batch=2, stride=4, padding=4, output_padding=3)
    yield layer((1, 1), 4, (100, 512), batch=16)
    # Depthwise and grouped.
    for dtype, layout in ((torch.float32, "contiguous"), (brain, "contiguous"), (torch.float32, last)):
        yield layer((32, 32), 4, (256, 256), batch=4, stride=2, padding=1, groups=256, dtype=dtype, layout=layout)
    yield layer((32, 32), 4, (256, 256), batch=4, stride=2, padding=1, groups=8)
    yield layer((32, 32), 4, (256, 256), batch=4, stride=2, padding=1, groups=8, layout=last)
    # float64.
    yield layer((32, 32), 4, (64, 64), batch=4, stride=2, padding=1, dtype=double)
    yield layer((8192,), 5, (32, 64), batch=2, dilation=3, dtype=double)
    yield layer((8192,), 3, (32, 64), batch=2, stride=2, padding=1, dilation=2, dtype=double)


CPU_LAYERS = tuple(_cpu_layers())
