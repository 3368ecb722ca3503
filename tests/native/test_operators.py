"""The native CPU operators against the definition in float64, scratch and results poisoned with NaN."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convt import _C
from convt.problem import Problem
from strategies import Trial, trials

pytestmark = pytest.mark.usefixtures("native", "best_isa")
relaxed = settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def best_isa():
    yield
    _C.set_isa(_C.isas()[0])


def exact(problem: Problem, input: Tensor, weight: Tensor, grad_output: Tensor, bias: Tensor | None):
    """Output, grad_input, grad_weight and grad_bias in float64, from the products that exist and no other."""
    groups = problem.groups
    x, y = input.double().unflatten(1, (groups, -1)), grad_output.double().unflatten(1, (groups, -1))
    w = weight.double().unflatten(0, (groups, -1))
    output, grad_input, grad_weight = torch.zeros_like(y), torch.zeros_like(x), torch.zeros_like(w)
    for tap in itertools.product(*map(range, problem.filter)):
        reads, writes = [], []
        for k, i, o, s, p, d in zip(
            tap, problem.input, problem.output, problem.stride, problem.padding, problem.dilation, strict=True
        ):
            reached = [n for n in range(i) if 0 <= s * n + d * k - p < o]
            first, last = (reached[0], reached[-1]) if reached else (0, -1)
            reads.append(slice(first, last + 1))
            writes.append(slice(s * first + d * k - p, s * last + d * k - p + 1, s) if reached else slice(0, 0))
        here, there = (..., *reads), (..., *writes)
        output[there] += torch.einsum("ngi...,gio->ngo...", x[here], w[(..., *tap)])
        grad_input[here] += torch.einsum("ngo...,gio->ngi...", y[there], w[(..., *tap)])
        grad_weight[(..., *tap)] = torch.einsum("ngi...,ngo...->gio", x[here], y[there])
    output = output.flatten(1, 2)
    if bias is not None:
        output += bias.double().reshape(-1, *(1,) * problem.rank)
    return output, grad_input.flatten(1, 2), grad_weight.flatten(0, 1), y.flatten(1, 2).sum((0, *range(2, y.dim() - 1)))


def run(problem: Problem, tensors, results) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    input, weight, grad_output, bias = tensors
    output, grad_input, grad_weight = results
    grad_bias = torch.full((problem.out_channels,), float("nan"), dtype=input.dtype)
    _C.forward(input, weight, bias, output, *problem.geometry)
    _C.grad_input(grad_output, weight, grad_input, *problem.geometry)
    _C.grad_weight(grad_output, input, grad_weight, *problem.geometry)
    _C.grad_bias(grad_output, grad_bias)
    return output, grad_input, grad_weight, grad_bias


def assert_near(actual: Tensor, expected: Tensor, terms: int, label: str) -> None:
    """One rounding of the result, and a random walk of the accumulator's roundings over the terms of the sum."""
    storage = torch.finfo(actual.dtype).eps
    accumulator = torch.finfo(torch.float64 if actual.dtype == torch.float64 else torch.float32).eps
    scale = max(expected.abs().max().item(), 1.0)
    bound = (storage + accumulator * (8 + terms**0.5)) * scale
    error = (actual.double() - expected).abs().max().item()
    assert error <= bound, f"{label}: error {error:.3g} exceeds {bound:.3g}"


@relaxed
@given(trials())
def test_operators_are_the_definition(trial: Trial):
    _C.set_isa(trial.isa)
    tensors, problem = trial.tensors(), trial.problem
    expected = exact(problem, *tensors)
    pixels = problem.output_size[0] * torch.Size(problem.output).numel()
    terms = (
        problem.taps * problem.in_channels // problem.groups,
        problem.taps * problem.out_channels // problem.groups,
        pixels,
        pixels**2,  # plain sums: partial ones grow with the root of the terms, and may cancel in the end
    )
    labels = "output", "grad_input", "grad_weight", "grad_bias"
    results = run(problem, tensors, trial.results())
    for actual, wanted, count, label in zip(results, expected, terms, labels, strict=True):
        assert_near(actual, wanted, count, label)


@settings(relaxed, max_examples=60)
@given(trials())
def test_results_do_not_depend_on_the_run_or_on_the_number_of_threads(trial: Trial):
    _C.set_isa(trial.isa)
    tensors = trial.tensors()
    first = run(trial.problem, tensors, trial.results())
    threads = torch.get_num_threads()
    try:
        for count in (threads, 1, 3):
            torch.set_num_threads(count)
            assert _C.num_threads() == count
            for a, b in zip(first, run(trial.problem, tensors, trial.results()), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@settings(relaxed, max_examples=120)
@given(trials(dtypes=(torch.float32, torch.float64)), st.data())
def test_infinities_and_nans_go_where_the_definition_sends_them(trial: Trial, data):
    """A product with a pixel outside the input does not exist, so Inf times it is not NaN."""
    _C.set_isa(trial.isa)
    tensors = [tensor.clone() if tensor is not None else None for tensor in trial.tensors()]
    which = data.draw(st.integers(0, 2))
    chosen = tensors[which]
    for _ in range(data.draw(st.integers(1, 3))):
        place = tuple(data.draw(st.integers(0, size - 1)) for size in chosen.shape)
        chosen[place] = data.draw(st.sampled_from((float("inf"), float("-inf"), float("nan"))))
    expected = exact(trial.problem, *tensors)
    results = run(trial.problem, tensors, trial.results())
    for actual, wanted, label in zip(results[:3], expected, ("output", "grad_input", "grad_weight"), strict=False):
        assert torch.equal(actual.isnan(), wanted.isnan()), label
        assert torch.equal(actual.isposinf(), wanted.isposinf()), label
        assert torch.equal(actual.isneginf(), wanted.isneginf()), label
