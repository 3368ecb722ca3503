"""Problems, layouts and the float64 definition for the tests of the CUDA-core kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from convt.problem import Problem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INPUTS = ("contiguous", "channels_last", "sliced", "expanded")


def problem(
    batch, in_channels, out_channels, input, filter, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    def spread(value):
        return value if isinstance(value, tuple) else (value,) * len(input)

    shared = (spread(value) for value in (filter, stride, padding, output_padding, dilation))
    return Problem(batch, in_channels, out_channels, groups, input, *shared)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides, NaN in between."""
    if layout == "channels_last":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        wide = torch.full([2 * size + 1 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
        return wide[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor)
    if layout == "expanded":
        return tensor[:, :1].expand(tensor.shape)
    return tensor.contiguous()


def meetings(p: Problem) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Every tap with the input pixels and the output pixels that it connects, one to one."""
    for tap in itertools.product(*map(range, p.filter)):
        reads, writes = [], []
        for k, i, o, s, pad, d in zip(tap, p.input, p.output, p.stride, p.padding, p.dilation, strict=True):
            low = max(0, -((d * k - pad) // s))
            high = min(i, (o - 1 + pad - d * k) // s + 1)
            start = s * low + d * k - pad
            reads.append(slice(low, max(low, high)))
            writes.append(slice(start, start + s * (high - low - 1) + 1, s) if high > low else slice(0, 0))
        yield tap, tuple(reads), tuple(writes)


def exact(p: Problem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float64, from the products that exist and no other."""
    x, w = input.double().unflatten(1, (p.groups, -1)), weight.double().unflatten(0, (p.groups, -1))
    output = torch.zeros(p.batch, p.groups, p.out_channels // p.groups, *p.output, dtype=torch.float64)
    for tap, reads, writes in meetings(p):
        output[(..., *writes)] += torch.einsum("ngi...,gio->ngo...", x[(..., *reads)], w[(..., *tap)])
    output = output.flatten(1, 2)
    return output if bias is None else output + bias.double().reshape(-1, *(1,) * p.rank)


def exact_gradient(operator: str, p: Problem, input: Tensor, weight: Tensor, output: Tensor) -> Tensor:
    """The same of grad_input or grad_weight; the tensor in the result's place is not read."""
    x, w = input.double().unflatten(1, (p.groups, -1)), weight.double().unflatten(0, (p.groups, -1))
    y = output.double().unflatten(1, (p.groups, -1))
    gradient = torch.zeros((x if operator == "grad_input" else w).shape, dtype=torch.float64)
    for tap, reads, writes in meetings(p):
        met = y[(..., *writes)]
        if operator == "grad_input":
            gradient[(..., *reads)] += torch.einsum("ngo...,gio->ngi...", met, w[(..., *tap)])
        else:
            gradient[(..., *tap)] = torch.einsum("ngip,ngop->gio", x[(..., *reads)].flatten(3), met.flatten(3))
    return gradient.flatten(*((1, 2) if operator == "grad_input" else (0, 1)))


ADVERSARIAL = {
    "pixel": problem(3, 4, 3, (1, 1), (3, 4)),
    "gan-first-layer": problem(9, 20, 8, (1, 1), 4),
    "one-output": problem(2, 70, 5, (3, 3), 3, padding=2),
    "stride-over-filter": problem(2, 3, 5, (3, 4), 2, 5, 1, 4),
    "stride-over-filter-dilated": problem(1, 2, 2, (4, 5), (2, 3), (5, 7), 0, (4, 6), dilation=(1, 3)),
    "gcd": problem(2, 2, 4, (5,), 3, 4, 3, 5, dilation=6),
    "gcd-2d": problem(1, 2, 4, (3, 5), 4, (6, 4), 2, 3, dilation=(4, 6)),
    "output-padding-over-stride": problem(1, 2, 3, (3, 2), (2, 3), (1, 2), 0, (2, 3), dilation=(3, 4)),
    "crop": problem(1, 2, 2, (4, 4), 3, 2, 4),
    "halo-over-image": problem(2, 3, 2, (2, 3), 9, 1, 2),
    "dilated-over-image": problem(1, 3, 2, (5, 6), 3, 2, 3, 1, dilation=9),
    "odd": problem(2, 67, 35, (5, 3), 3, 2, 1, 1),
    "one-channel": problem(1, 1, 1, (40,), 25, 4, 11, 1),
    "k16s8": problem(1, 6, 1, (30,), 16, 8, 4),
    "k-is-s": problem(2, 5, 9, (3, 4), 2, 2),
    "groups": problem(2, 12, 6, (4, 5), 4, 2, 1, groups=3),
    "groups-odd": problem(2, 10, 15, (5, 4), 3, (1, 2), 1, 0, 5),
    "3d": problem(1, 3, 5, (3, 2, 4), (2, 3, 1), (2, 1, 3), (1, 0, 0), (1, 0, 2)),
    "3d-depthwise": problem(2, 6, 6, (2, 3, 4), 4, 2, 1, groups=6),
    "3d-dilated": problem(1, 2, 4, (3, 3, 3), 2, (2, 1, 3), 0, 0, 2, dilation=(3, 2, 3)),
    "short-output": problem(1, 3, 2, (1, 1), (3, 4), 7, (1, 1), 0),
    "deep": problem(1, 300, 4, (2, 2), 3, 2, 1),
    "wide": problem(1, 2, 3, (3, 150), (3, 4), 2, 1),
    "long": problem(1, 2, 3, (700,), 12, 2, 5),
    "multiplier": problem(2, 5, 15, (6, 7), 3, 2, 1, 1, groups=5),
    "many-images": problem(70, 3, 5, (3, 2), (2, 3), 2),
}


@st.composite
def problems(draw, tiny: bool) -> Problem:
    rank = draw(st.sampled_from((1, 2, 3)))
    groups = draw(st.sampled_from((1, 2, 3, 8, 17) if tiny else (1, 1, 1, 2, 3)))
    channels = st.sampled_from((1, 1, 1, 2, 3, 4) if tiny else (1, 2, 3, 5, 8, 9, 33))
    per_group = draw(channels), draw(channels)
    stride, dilation, filter = ([draw(st.integers(1, n)) for _ in range(rank)] for n in (5, 4, 5))
    longest = {1: 90, 2: 14, 3: 5}[rank]
    input = [draw(st.one_of(st.integers(1, 3), st.integers(1, longest))) for _ in range(rank)]
    output_padding = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    padding = [
        draw(st.integers(0, min(6, ((i - 1) * s + d * (k - 1) + op) // 2)))
        for i, k, s, d, op in zip(input, filter, stride, dilation, output_padding, strict=True)
    ]
    return Problem(
        draw(st.sampled_from((1, 2, 9))), groups * per_group[0], groups * per_group[1], groups,
        tuple(input), tuple(filter), tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation),
    )  # fmt: skip
