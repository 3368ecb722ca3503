"""Forward values against the float64 definition: dtypes, strides, edge sizes, NaN and Inf, random problems."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adversarial
import convt
from adversarial import FORCED, FUNCTIONS
from convt import operators
from convt.plan import forced_kernel
from convt.problem import operand
from reference import CASES, assert_accurate, case, conv_transpose, poisoned
from strategies import DTYPES, trials

BY_NAME = pytest.mark.parametrize("problem", CASES, ids=lambda problem: problem.name)


def on(device, problem, dtype):
    return [tensor.to(device) for tensor in problem.tensors(dtype)]


def compare(problem, operands, label=""):
    """The result, judged, of a call in poisoned memory; the second call must repeat it bit for bit."""
    exact = conv_transpose(*operands, **problem.keywords)
    with poisoned():
        first, second = (FUNCTIONS[problem.rank](*operands, **problem.keywords) for _ in range(2))
    assert first.device == operands[0].device
    assert torch.equal(first, second), f"{problem.name} {label}: not the same twice"
    assert_accurate(first, exact, exact.to(first.dtype), f"{problem.name} {label}")
    return first


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@BY_NAME
def test_values(device, problem, dtype):
    operands = on(device, problem, dtype)
    compare(problem, operands)
    compare(problem, [*operands[:2], None], "without bias")


@pytest.mark.parametrize("layout", (adversarial.sliced, adversarial.transposed, adversarial.offset))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@BY_NAME
def test_any_strides(device, problem, dtype, layout):
    """No copies: the operands are read where they are, with NaN between their elements."""
    compare(problem, [layout(tensor) for tensor in on(device, problem, dtype)])


@BY_NAME
def test_expanded_operands(device, problem):
    input, weight, bias = on(device, problem, torch.float32)
    compare(
        problem, [input[:1, :1].expand(input.shape), weight[:, :1].expand(weight.shape), bias[:1].expand(bias.shape)]
    )


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@BY_NAME
def test_channels_last_in_and_out(device, problem, dtype):
    if problem.rank == 1:
        pytest.skip("there is no channels_last for one spatial axis")
    layout = torch.channels_last if problem.rank == 2 else torch.channels_last_3d
    input, weight, bias = on(device, problem, dtype)
    input = input.contiguous(memory_format=layout)
    output = compare(problem, [input, weight, bias])
    promised = operators.is_channels_last(dtype, operand(input)[:2], operand(weight)[:2])
    assert output.is_contiguous(memory_format=layout if promised else torch.contiguous_format)


@BY_NAME
def test_unbatched(device, problem):
    input, weight, bias = on(device, problem, torch.float32)
    function = FUNCTIONS[problem.rank]
    single = function(input[0], weight, bias, **problem.keywords)
    assert torch.equal(single, function(input[:1], weight, bias, **problem.keywords)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(device, dtype):
    for problem in CASES:
        input, weight, bias = on(device, problem, dtype)
        output = FUNCTIONS[problem.rank](input[:0], weight, bias, **problem.keywords)
        shape = conv_transpose(input, weight, **problem.keywords).shape
        assert output.shape == (0, *shape[1:]) and output.device == input.device


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", range(3), ids=("input", "weight", "bias"))
def test_nan_and_inf_propagate(device, where, dtype, value):
    """One bad element reaches every result that the definition says, and no other image, group or, in a filter or a
    bias, output channel."""
    problem = case("", (2, 32, 6, 6), (32, 16, 3, 3), stride=2, padding=1, groups=2)
    operands = on(device, problem, dtype)
    marked = [torch.zeros(tensor.shape, dtype=torch.float64, device=device) for tensor in operands]
    place = operands[where].numel() // 2 + 3
    for slot in {0: (1,), 1: (0,), 2: ()}[where]:
        marked[slot].fill_(1)
    marked[where].view(-1)[place] = 1
    operands[where].view(-1)[place] = value
    reached = conv_transpose(*marked, **problem.keywords) != 0
    actual = FUNCTIONS[2](*operands, **problem.keywords)
    assert not actual[reached].isfinite().any()
    touched = reached.any(-1).any(-1)
    spared = ~touched
    if where == 0:
        # Channels of the group share tiles with those that are reached.
        assert touched[1, :16].all() and not touched[0].any()
        spared = torch.ones_like(touched)
        spared[1, :16] = False
    assert spared.any() and actual[spared].isfinite().all()


def test_negated_views(device):
    z = torch.randn(2, 3, 4, 4, dtype=torch.complex64).to(device)
    input, weight = z.conj().imag, torch.randn(3, 2, 3, 3).to(device)
    assert input.is_neg()
    plain = convt.conv_transpose2d(z.imag.contiguous(), weight)
    torch.testing.assert_close(convt.conv_transpose2d(input, weight), -plain)


def test_inference_mode(device):
    input, weight, bias = on(device, CASES[4], torch.float32)
    expected = convt.conv_transpose2d(input, weight, bias, **CASES[4].keywords)
    with torch.inference_mode():
        actual = convt.conv_transpose2d(input.clone(), weight, bias, **CASES[4].keywords)
        assert actual.is_inference()
    assert torch.equal(actual, expected)


@settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(trials(), st.sampled_from((None, None, *FORCED["forward"])), st.sampled_from(("ieee", "tf32")))
def test_random_problems(device, trial, kernel, precision):
    """Exact values, so that one wrong tap of one output shows."""
    problem = trial.problem
    input, weight, _, bias = trial.tensors(device, eighths=True)
    shared = problem.geometry._asdict()
    expected = conv_transpose(input, weight, bias, **shared).to(trial.dtype)
    for name in dict.fromkeys((kernel, None)):
        with convt.precision(precision), poisoned(), forced_kernel(name):
            try:
                actual = FUNCTIONS[problem.rank](input, weight, bias, **shared)
                break
            except ValueError:
                assert name is not None, "the cost model always finds a kernel"
    wrong = int(actual.ne(expected).sum())
    assert wrong == 0, f"{name}: {wrong} of {actual.numel()} outputs are wrong, {int(actual.isnan().sum())} are NaN"
