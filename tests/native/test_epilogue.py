"""Epilogues of the native CPU forward: exact programs exactly, smooth ones as accurately as PyTorch."""

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convt import _C
from convt.problem import Problem
from programs import SMOOTH, composed, exact_programs, operand
from reference import conv_transpose
from strategies import Trial, laid_out, trials

pytestmark = pytest.mark.usefixtures("native", "best_isa")
relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NONE, INF, NAN = None, float("inf"), float("nan")


@pytest.fixture
def best_isa():
    yield
    _C.set_isa(_C.isas()[0])


def forward(input, weight, bias, geometry, steps, layout="contiguous"):
    """The operator alone, into NaN."""
    size = Problem(
        *input.shape[:2],
        weight.shape[1] * geometry[3],
        geometry[3],
        input.shape[2:],
        weight.shape[2:],
        *geometry[:3],
        geometry[4],
    ).output_size
    output = laid_out(torch.full(size, NAN, dtype=input.dtype), layout)
    _C.forward(input, weight, bias, output, *geometry, epilogue=steps)
    return output


@relaxed
@given(trials(), st.data())
def test_exact_programs_are_exact(trial: Trial, data):
    """Every layout, rank and instruction set; outputs that no tap reaches go through the program as well."""
    _C.set_isa(trial.isa)
    input, weight, _, bias = trial.tensors(eighths=True)
    output = trial.results()[0]
    steps = data.draw(exact_programs(tuple(output.shape), trial.dtype))
    _C.forward(input, weight, bias, output, *trial.problem.geometry, epilogue=steps)
    expected = composed(steps, conv_transpose(input, weight, bias, *trial.problem.geometry))
    assert torch.equal(output, expected.to(trial.dtype))


@lru_cache(maxsize=1)
def layer(dtype: torch.dtype):
    """Input, weight, bias, geometry, and the output by the definition."""
    generator = torch.Generator().manual_seed(0)
    sizes = (2, 8, 30, 31), (8, 12, 4, 4), (12,)
    input, weight, bias = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    weight /= 4
    geometry = (2, 2), (1, 1), (0, 0), 1, (1, 1)
    return input, weight, bias, geometry, conv_transpose(input, weight, bias, *geometry)


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_smooth_operations_are_as_accurate_as_pytorch(name, dtype, isa):
    _C.set_isa(isa)
    *arguments, definition = layer(dtype)
    size = tuple(definition.shape)
    scale = operand("channel", size, torch.float32, torch.linspace(0.5, 2, 12))
    residual = operand("channels_last", size, dtype, torch.randn(7919))
    steps = [("mul", 0.0, 0.0, scale), ("add", 0.0, 0.0, residual), (name, 0.0, 0.0, NONE)]
    exact = composed(steps, definition)
    # The same convolution, so that the difference is the program's.
    rival = composed(steps, forward(*arguments, NONE))
    for layout in ("contiguous", "channels_last"):
        actual = forward(*arguments, steps, layout)
        error, rivals = ((result.double() - exact).square().mean().sqrt() for result in (actual, rival))
        # The definition itself is float64.
        assert error <= 1.1 * rivals + (2e-16 if dtype == torch.float64 else 0) * exact.abs().max()


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_operations_to_a_few_last_places(name, dtype, isa):
    """On a value that arrives unchanged, from one product with 1."""
    _C.set_isa(isa)
    powers = torch.logspace(-18, 1.4, 3001, dtype=torch.float64)
    x = torch.cat([powers, -powers, torch.tensor([0.0, 88.8, -88.8, 104.0, -104.0, 1e30, -1e30])]).to(dtype)
    actual = forward(
        x[None, None], torch.ones(1, 1, 1, dtype=dtype), NONE, ((1,), (0,), (0,), 1, (1,)), [(name, 0.0, 0.0, NONE)]
    )
    wide = x.double()
    places = torch.full_like(wide, 4)
    # Negative tails in a form that keeps its digits; an argument that is rounded costs them x**2 of these.
    if name == "gelu":
        exact = 0.5 * wide * torch.erfc(-wide * 0.5**0.5)
        places *= 1 if dtype == torch.float32 else 1 + wide.square()
    elif name == "gelu_tanh":
        exact = wide * torch.sigmoid((8 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3))
        places *= 1 + wide.square()
    else:
        exact = SMOOTH[name](wide)
    underflow = torch.finfo(dtype).tiny * wide.abs().clamp_min(1)
    error = (actual.double().flatten() - exact).abs() - underflow
    bound = places * torch.finfo(dtype).eps * exact.abs()
    assert (error <= bound).all(), x[(error - bound).argmax()]


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_inf_and_nan_as_pytorch(layout, dtype, isa):
    _C.set_isa(isa)
    x = torch.tensor([INF, -INF, NAN, -0.0, 0.0, 1.0, -2.0, 600.0] * 9).reshape(1, 1, 6, 12).to(dtype)
    x = x.repeat(1, 3, 1, 1)
    weight = torch.ones(3, 1, 1, 1, dtype=dtype)
    programs = [[("relu", 0.0, 0.0, NONE)], [("leaky_relu", 0.25, 0.0, NONE)], [("div", 0.0, 0.0, NONE)]]
    programs += [[("clamp", *bounds, NONE)] for bounds in ((-1.0, 1.0), (-INF, 0.5), (0.5, INF), (2.0, -2.0))]
    programs += [[(name, 0.0, 0.0, NONE)] for name in SMOOTH]
    for steps in programs:
        actual = forward(x, weight, NONE, ((1, 1), (0, 0), (0, 0), 3, (1, 1)), steps, layout)
        # float64: ATen's vectorized float32 gelu has no value for infinity on some CPUs.
        expected = composed(steps, x.double())
        assert torch.equal(actual.isnan(), expected.isnan()), steps
        assert torch.equal(actual.isposinf(), expected.to(dtype).isposinf()), steps
        assert torch.equal(actual.isneginf(), expected.to(dtype).isneginf()), steps


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_large_results_stream_past_the_caches(layout, dtype):
    """Results of more than 8 MB have stores of their own, and rows of more than one piece."""
    input = torch.randint(-8, 9, (1, 2, 24, 1031), generator=torch.Generator().manual_seed(1)).to(dtype) / 8
    weight = torch.tensor([0.5, 1.0, -1.0, 2.0] * 48).reshape(2, 24, 2, 2).to(dtype)
    geometry, size = ((2, 2), (0, 0), (0, 0), 1, (1, 1)), (1, 24, 48, 2062)
    eighths = torch.randint(-16, 17, (4099,), generator=torch.Generator().manual_seed(2)) / 8
    assert 24 * 48 * 2062 * dtype.itemsize > (8 << 20) or dtype == torch.bfloat16
    plain = forward(input, weight, NONE, geometry, NONE).double()
    for kind in ("channel", "contiguous", "channels_last"):
        steps = [("add", 0.0, 0.0, operand(kind, size, dtype, eighths)), ("relu", 0.0, 0.0, NONE)]
        actual = forward(input, weight, NONE, geometry, steps, layout)
        assert torch.equal(actual, composed(steps, plain).to(dtype)), kind


@pytest.mark.parametrize("isa", _C.isas())
def test_a_program_that_changes_nothing_changes_nothing(isa):
    _C.set_isa(isa)
    generator = torch.Generator().manual_seed(3)
    input, weight = torch.randn(2, 6, 9, 11, generator=generator), torch.randn(6, 5, 3, 3, generator=generator)
    geometry = (2, 2), (1, 1), (1, 1), 1, (1, 1)
    expected = forward(input, weight, NONE, geometry, NONE)
    for steps in ([], [("mul", 1.0, 0.0, NONE)], [("clamp", -INF, INF, NONE)] * 8):
        assert torch.equal(forward(input, weight, NONE, geometry, steps), expected)


def test_operations_are_listed_once():
    names = _C.epilogue_operations()
    assert len(names) == len(set(names))
    assert {*names} == {"add", "sub", "mul", "div", "relu", "leaky_relu", "clamp", *SMOOTH}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("reluu", 0.0, 0.0, None)], r"epilogue\[0\] \(reluu\): unknown operation; legal are add, sub"),
        ([("relu", 0.0, 0.0, None)] * 9, r"epilogue\[8\]: at most 8 steps"),
        ([("relu", 0.0, 0.0)], r"epilogue\[0\]: not a tuple \(name, a, b, operand\)"),
        ([("add", "1", 0.0, None)], r"epilogue\[0\]: name must be a string, a and b numbers"),
        ([("relu", 0.0, 0.0, torch.ones(5))], r"epilogue\[0\] \(relu\): has an operand; only add, sub, mul and div"),
        ([("add", 0.0, 0.0, torch.ones(5))] * 5, r"epilogue\[4\] \(add\): is operand number 5; at most 4"),
        ([("add", 0.0, 0.0, torch.ones(4))], r"epilogue\[0\] \(add\): operand has sizes \(4,\); legal are \(5,\)"),
        ([("mul", 0.0, 0.0, torch.ones(2, 5, 3, 1))], r"sizes \(2, 5, 3, 1\).* the output's, \(2, 5, 3, 3\)"),
        ([("mul", 0.0, 0.0, torch.ones(5).double())], r"\(mul\): operand has dtype float64; legal are the output's"),
        ([("clamp", NAN, 1.0, None)], r"epilogue\[0\] \(clamp\): a bound is NaN"),
    ],
    ids=itertools.count(),
)
def test_refusals_name_the_step(steps, message):
    with pytest.raises(ValueError, match=message):
        forward(torch.ones(2, 4, 3, 3), torch.ones(4, 5, 1, 1), NONE, ((1, 1), (0, 0), (0, 0), 1, (1, 1)), steps)
