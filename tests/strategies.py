"""Random problems for native code: every rank, dtype, layout, instruction set, and the corners of the geometry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from convt import _C
from convt.problem import Problem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")
# Below, at and above a register tile's rows and a vector's lanes.
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)
LENGTHS = {1: 150, 2: 21, 3: 7}


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels_last" and tensor.dim() in (4, 5):
        return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    if layout == "sliced":
        # Odd offsets and pitches, NaN all around.
        wide = tensor.new_full([2 * size + 1 for size in tensor.shape], float("nan"))
        inner = wide[tuple(slice(1, 1 + size) for size in tensor.shape)]
        return inner.copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    return tensor.contiguous()


@dataclass(frozen=True)
class Trial:
    """A problem and how its tensors look."""

    problem: Problem
    dtype: torch.dtype
    layouts: tuple[str, str, str]  # input, weight, grad_output
    result_layouts: tuple[str, str, str]  # output, grad_input, grad_weight
    bias: bool
    isa: str
    seed: int

    def tensors(self, device: str = "cpu", eighths: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Input, weight, grad_output and bias. Eighths are exact in every dtype, and so are their sums in float32."""
        generator = torch.Generator().manual_seed(self.seed)
        p = self.problem

        def normal(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (values.mul(4).round().clamp(-8, 8) / 8 if eighths else values).to(device, self.dtype)

        shapes = p.input_size, p.weight_size, p.output_size
        made = [laid_out(normal(*shape), layout) for shape, layout in zip(shapes, self.layouts, strict=True)]
        bias = normal(p.out_channels)
        return made[0], made[1], made[2], bias if self.bias else None

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output, grad_input and grad_weight before they are computed: NaN."""
        p = self.problem
        shapes = p.output_size, p.input_size, p.weight_size
        empty = [torch.full(shape, float("nan"), dtype=self.dtype) for shape in shapes]
        made = [laid_out(tensor, layout) for tensor, layout in zip(empty, self.result_layouts, strict=True)]
        return made[0], made[1], made[2]


@st.composite
def problems(draw, max_macs: int = 400_000) -> Problem:
    rank = draw(st.sampled_from((1, 2, 3)))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 8, 17)))
    channels = CHANNELS if groups < 8 else CHANNELS[:3]
    per_group = draw(st.sampled_from(channels)), draw(st.sampled_from(channels))

    def spread(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(rank)]

    stride, dilation, filter = spread(1, 5), spread(1, 4), spread(1, 5)
    input = [draw(st.one_of(st.integers(1, 3), st.integers(1, LENGTHS[rank]))) for _ in range(rank)]
    output_padding = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    padding = []
    for i, k, s, d, op in zip(input, filter, stride, dilation, output_padding, strict=True):
        padding.append(draw(st.integers(0, min(6, ((i - 1) * s + d * (k - 1) + op) // 2))))
    problem = Problem(
        draw(st.sampled_from((1, 2, 3))), groups * per_group[0], groups * per_group[1], groups,
        tuple(input), tuple(filter), tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation),
    )  # fmt: skip
    # Keep a trial short by halving the longest axis.
    while problem.macs > max_macs and max(input) > 1:
        longest = input.index(max(input))
        input[longest] //= 2
        largest = ((input[longest] - 1) * stride[longest] + dilation[longest] * (filter[longest] - 1)) // 2
        padding[longest] = min(padding[longest], largest)
        problem = Problem(
            problem.batch, problem.in_channels, problem.out_channels, groups,
            tuple(input), tuple(filter), tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation),
        )  # fmt: skip
    return problem


@st.composite
def trials(draw, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Trial:
    results = st.sampled_from(("contiguous", "channels_last"))
    return Trial(
        problem=draw(problems()),
        dtype=draw(st.sampled_from(dtypes)),
        layouts=(draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS[:3])), draw(st.sampled_from(LAYOUTS))),
        result_layouts=(draw(results), draw(results), draw(results)),
        bias=draw(st.booleans()),
        isa=draw(st.sampled_from(_C.isas())),
        seed=draw(st.integers(0, 2**31)),
    )
