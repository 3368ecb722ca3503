"""Layers of real sizes and extreme shapes: many boxes, many phases, large halos, more than 2**31 elements."""

from __future__ import annotations

import pytest
import torch

from convt import _C
from convt.problem import Problem
from convt.testing import Layer, sample

pytestmark = pytest.mark.usefixtures("native")

CL, FLAT = "channels_last", "contiguous"


def problem(
    batch, in_channels, out_channels, input, filter, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    rank = len(input)

    def spread(value):
        return value if isinstance(value, tuple) else (value,) * rank

    shared = (spread(value) for value in (filter, stride, padding, output_padding, dilation))
    return Problem(batch, in_channels, out_channels, groups, input, *shared)


LAYERS = [
    # Boxes along every axis, and a box height that divides nothing.
    Layer(problem(2, 64, 64, (61, 67), 3, padding=1)),
    Layer(problem(1, 24, 40, (23, 29, 31), (3, 2, 3), (1, 2, 2), (1, 0, 1))),
    Layer(problem(1, 48, 9, (5000,), 7, 3, 2, 1)),
    # Phases: 16 planes in the gradients, 64 and 320 phases in the forward, most of them empty or not.
    Layer(problem(4, 64, 64, (32, 32), 8, 4, 2), layout=CL),
    Layer(problem(2, 8, 12, (9, 11), 3, 8, 1, 7)),
    Layer(problem(1, 16, 1, (100,), 640, 320, 160)),
    # Halos larger than the input, and than any box.
    Layer(problem(1, 32, 16, (40, 40), 3, dilation=40, padding=40)),
    Layer(problem(1, 8, 8, (700,), 3, dilation=512, padding=512)),
    Layer(problem(1, 6, 5, (9, 9, 9), 5, dilation=3), layout=CL),
    # One pixel, many channels; many images.
    Layer(problem(16, 100, 96, (1, 1), 4)),
    Layer(problem(3, 1100, 40, (2, 3), (2, 3), 2)),
    Layer(problem(500, 5, 7, (3,), 3, 2, 1)),
    # Groups: depthwise, with a multiplier, few channels each; both layouts.
    *(
        Layer(problem(2, *channels, (33, 30), 4, 2, 1, groups=groups), dtype, layout)
        for channels, groups in (((70, 70), 70), ((24, 72), 24), ((60, 45), 15))
        for dtype, layout in ((torch.float32, FLAT), (torch.float32, CL), (torch.bfloat16, CL), (torch.float64, FLAT))
    ),
    # Results beyond the size from which stores pass the caches by; odd rows.
    Layer(problem(1, 16, 24, (301, 299), 3, 1, 1)),
    Layer(problem(1, 4, 8, (411, 413), 2, 2)),
    Layer(problem(1, 3, 16, (200, 190), 2, 5, dilation=2), torch.float64),
]


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layer(layer, isa):
    _C.set_isa(isa)
    try:
        p = layer.problem
        input, weight, grad_output = layer.tensors()
        output, grad_input = torch.full_like(grad_output, torch.nan), torch.full_like(input, torch.nan)
        grad_weight = torch.full_like(weight, torch.nan)
        _C.forward(input, weight, None, output, *p.geometry)
        _C.grad_input(grad_output, weight, grad_input, *p.geometry)
        _C.grad_weight(grad_output, input, grad_weight, *p.geometry)
    finally:
        _C.set_isa(_C.isas()[0])
    for operator, operands, result in (
        ("forward", (input, weight), output),
        ("grad_input", (grad_output, weight), grad_input),
        ("grad_weight", (grad_output, input), grad_weight),
    ):
        truth = sample(operator, p, *operands)
        assert not result.isnan().any(), operator
        assert truth.matches(result), f"{operator}: error {truth.error(result)}"


def test_more_than_2_to_the_31_elements():
    """Positions, offsets and products beyond 32 bits; 4 GiB of bfloat16."""
    length, stride = 2**21 + 3, 1024
    p = problem(1, 1, 1, (length,), 2, stride, dilation=512)
    assert p.output[0] > 2**31
    input = torch.arange(1, length + 1).remainder(200).to(torch.bfloat16).reshape(1, 1, -1)
    weight = torch.tensor([1.0, -2.0], dtype=torch.bfloat16).reshape(1, 1, 2)
    output = torch.empty(p.output_size, dtype=torch.bfloat16)
    _C.forward(input, weight, None, output, *p.geometry)
    row = output.reshape(-1)
    assert torch.equal(row[::stride], input.reshape(-1))
    assert torch.equal(row[512::stride], -2 * input.reshape(-1))
    assert row[-2048:].count_nonzero() <= 4 and row[1:512].count_nonzero() == 0
    grad_input = torch.empty_like(input)
    _C.grad_input(output, weight, grad_input, *p.geometry)
    assert torch.equal(grad_input, 5 * input)
    # The same storage read through strides whose products pass 2**31.
    columns = row[: 2**31].reshape(2**10, 2**21).t()[None, :2, :]
    total = torch.empty(2, dtype=torch.bfloat16)
    _C.grad_bias(columns, total)
    assert total[0] == columns[0, 0].float().sum().to(torch.bfloat16) and total[1] == 0
