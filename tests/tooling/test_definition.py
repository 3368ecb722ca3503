"""The judge itself: sampled definitions against PyTorch in float64, and what it refuses."""

import pytest
import torch

from convt.problem import Problem
from convt.testing import OPERATORS, Layer, describe, layer, problem_of, sample, torch_function

PROBLEMS = [
    layer((7,), 3, (4, 6), batch=2, stride=2, padding=1, dilation=2, groups=2, dtype=torch.float64),
    layer((3,), 2, (2, 2), stride=5, padding=4, output_padding=3, dtype=torch.float64),
    layer((5, 4), 4, (3, 5), batch=2, stride=2, padding=1, dtype=torch.float64),
    layer((4, 3), 3, (4, 4), batch=2, stride=3, output_padding=2, groups=4, dtype=torch.float64),
    Layer(
        Problem(
            batch=2,
            in_channels=4,
            out_channels=2,
            groups=2,
            input=(2, 3, 4),
            filter=(3, 1, 2),
            stride=(2, 3, 1),
            padding=(0, 0, 1),
            output_padding=(1, 2, 0),
            dilation=(1, 2, 3),
        ),
        torch.float64,
    ),
]


def results(case):
    """(operator, first operand, second operand, PyTorch's result)."""
    input, weight, grad_output = case.tensors()
    input.requires_grad_()
    weight.requires_grad_()
    output = torch_function(case.problem.rank)(input, weight, None, *case.problem.geometry)
    grad_input, grad_weight = torch.autograd.grad(output, (input, weight), grad_output)
    return zip(
        OPERATORS,
        (input, grad_output, grad_output),
        (weight, weight, input),
        (output, grad_input, grad_weight),
        strict=True,
    )


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: case.name)
def test_definition_is_pytorchs(case):
    for operator, first, second, result in results(case):
        truth = sample(operator, case.problem, first, second, points=300)
        assert truth.matches(result), (operator, truth.error(result))
        assert truth.error(result) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_missing_product_is_refused(operator, dtype):
    """Drop one input channel of eight or one image of eight: the result is near, but wrong."""
    case = layer((6, 6), 3, (8, 8), batch=8, stride=2, padding=1, dtype=dtype)
    (found,) = (found for found in results(case) if found[0] == operator)
    _, first, second, result = found
    truth = sample(operator, case.problem, first, second)
    rounded = truth.at(result)
    assert truth.matches(result)
    lacking = first.detach().clone()
    lacking[:, 0] = 0 if operator != "grad_weight" else lacking[:, 0]
    lacking[0] = lacking[0] if operator != "grad_weight" else 0
    wrong = sample(operator, case.problem, lacking, second).value
    damaged = result.detach().clone()
    damaged[tuple(truth.index.unbind(1))] = (rounded + (wrong - truth.value)).to(dtype)
    assert not truth.matches(damaged)


def test_nan_and_disagreement_are_refused():
    case = layer((9,), 3, (2, 2))
    operator, first, second, result = next(iter(results(case)))
    truth = sample(operator, case.problem, first, second)
    assert truth.agree(result, result)
    assert not truth.matches(torch.full_like(result, torch.nan))
    assert not truth.agree(torch.full_like(result, torch.nan), result)
    other = result.detach().clone()
    other[0, 0, 3] += 0.01
    assert not truth.matches(other)


def test_an_unknown_operator_is_named():
    case = PROBLEMS[0]
    input, weight, _ = case.tensors()
    with pytest.raises(ValueError, match="'backward'"):
        sample("backward", case.problem, input, weight)


def test_problem_of_a_module_and_its_name():
    module = torch.nn.ConvTranspose2d(6, 4, (3, 5), stride=(2, 1), padding=1, output_padding=(1, 0), groups=2)
    problem = problem_of(module, (2, 6, 7, 8))
    assert problem.output_size == module(torch.rand(2, 6, 7, 8)).shape
    assert describe(problem) == "2d k3x5 s2x1 p1 op1x0 g2 6->4 7x8 b2"
    depthwise = layer((8,), 4, (3, 3), stride=2, groups=3, dtype=torch.bfloat16)
    assert depthwise.name == "1d k4 s2 depthwise 3 8 b1 bfloat16"
