"""More than 2**31 elements, in the input and in the output: offsets beyond 32 bits in every kernel and operator."""

from __future__ import annotations

import pytest
import torch

from adversarial import FUNCTIONS
from convt.ops import Geometry
from convt.problem import forward_problem
from convt.testing import sample
from reference import case

pytestmark = pytest.mark.cuda

MEMORY = 40e9
# In bfloat16; input or output has more than 2**31 elements (4 GiB), 2**32 in two of them.
LAYERS = (
    case("1d-output", (1, 16, 2**22 + 5), (16, 16, 4), stride=32),
    case("2d-output", (1, 32, 1449, 1451), (32, 64, 4, 4), stride=6, padding=1),
    case("2d-images-in", (33, 64, 1009, 1013), (64, 2, 3, 3), padding=1),
    case("1d-input", (1, 64, 2**26 + 3), (64, 8, 3), padding=1),
    case("3d-both", (2, 16, 257, 509, 521), (16, 16, 2, 2, 2), padding=0),
    case("2d-depthwise-output", (1, 48, 1700, 1700), (48, 1, 4, 4), stride=4, groups=48),
    case("1d-one-channel", (1, 1, 2**21 + 3), (1, 1, 2), stride=1024, dilation=512),
)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_more_than_2_to_the_31_elements(gpu, layer):
    free = torch.cuda.mem_get_info()[0]
    if free < MEMORY:
        pytest.skip(f"{free / 1e9:.0f} GB of GPU memory are free, {MEMORY / 1e9:.0f} are needed")
    problem = forward_problem(layer.input, layer.weight, None, Geometry(*layer.geometry))
    largest = max(torch.Size(size).numel() for size in (problem.input_size, problem.output_size))
    assert largest > 2**31
    torch.manual_seed(0)
    input = torch.empty(layer.input, dtype=torch.bfloat16, device=gpu).normal_()
    weight = torch.randn(layer.weight, device=gpu).to(torch.bfloat16)
    bias = torch.randn(problem.out_channels, device=gpu).to(torch.bfloat16)
    output = FUNCTIONS[layer.rank](input, weight, bias, **layer.keywords)
    assert output.shape == problem.output_size
    truth = sample("forward", problem, input, weight, points=4096)
    value = truth.value + bias.double()[truth.index[:, 1]]
    difference = (truth.at(output) - value).abs()
    bound = torch.finfo(torch.bfloat16).eps * value.abs() + 1e-5 * (truth.magnitude + 1)
    wrong = difference > bound
    assert not wrong.any(), f"{int(wrong.sum())} of {len(wrong)} sampled outputs are wrong: {truth.index[wrong][:4]}"
    assert not difference.isnan().any()
    assert is_written(output)


def is_written(result):
    """Every element: piece by piece, for isfinite() of the whole would need half of its memory again."""
    return all(bool(piece.isfinite().all()) for piece in result.view(-1).split(2**29))


@pytest.mark.parametrize("operator", ("grad_input", "grad_weight"))
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_gradients_of_more_than_2_to_the_31_elements(gpu, layer, operator):
    free = torch.cuda.mem_get_info()[0]
    if free < MEMORY:
        pytest.skip(f"{free / 1e9:.0f} GB of GPU memory are free, {MEMORY / 1e9:.0f} are needed")
    problem = forward_problem(layer.input, layer.weight, None, Geometry(*layer.geometry))
    torch.manual_seed(0)
    grad_output = torch.empty(problem.output_size, dtype=torch.bfloat16, device=gpu).normal_()
    if operator == "grad_input":
        other = torch.randn(layer.weight, device=gpu).to(torch.bfloat16)
        result = torch.ops.convt.grad_input(grad_output, other, *layer.geometry, False)
        walk = 1e-5
    else:
        other = torch.empty(layer.input, dtype=torch.bfloat16, device=gpu).normal_()
        result = torch.ops.convt.grad_weight(grad_output, other, layer.weight[2:], *layer.geometry, False)
        walk = 1e-6  # of millions of products whose sum is near their root
    truth = sample(operator, problem, grad_output, other, points=1024)
    bound = torch.finfo(torch.bfloat16).eps * truth.value.abs() + walk * (truth.magnitude + 1)
    wrong = ~((truth.at(result) - truth.value).abs() <= bound)
    assert not wrong.any(), f"{int(wrong.sum())} of {len(wrong)} sampled elements are wrong: {truth.index[wrong][:4]}"
    assert is_written(result)
