"""torch.library.opcheck on the public and the inner ops, schemas, and what the plan tells."""

from __future__ import annotations

import pytest
import torch

import convt
from convt.plan import plan
from convt.problem import forward_problem
from reference import CASES

OPS = torch.ops.convt


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_public_schema_is_atens(rank):
    """Argument for argument: names, types, defaults."""
    ours = getattr(OPS, f"conv_transpose{rank}d").default._schema
    name = {1: "default", 2: "input", 3: "input"}[rank]
    theirs = getattr(getattr(torch.ops.aten, f"conv_transpose{rank}d"), name)._schema
    assert str(ours).partition("(")[2] == str(theirs).partition("(")[2]


@pytest.mark.parametrize("problem", CASES[::2], ids=lambda p: p.name)
def test_opcheck_public(backend, problem):
    op = getattr(OPS, f"conv_transpose{problem.rank}d").default
    torch.library.opcheck(op, (*problem.tensors(torch.float32, grad=True), *map(as_list, problem.geometry)))


@pytest.mark.parametrize("problem", (CASES[1], CASES[6], CASES[12]), ids=lambda p: p.name)
def test_opcheck_unbatched(backend, problem):
    op = getattr(OPS, f"conv_transpose{problem.rank}d").default
    input, weight, bias = problem.tensors(torch.float32)
    torch.library.opcheck(op, (input[0].requires_grad_(), weight, bias, *map(as_list, problem.geometry)))


def as_list(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("problem", CASES[1::3], ids=lambda p: p.name)
def test_opcheck_inner(backend, problem):
    input, weight, bias = problem.tensors(torch.float32, grad=True)
    shared = tuple(map(as_list, problem.geometry))
    grad = OPS.forward(input, weight, None, *shared).detach().requires_grad_()
    kernel_size = list(weight.shape[2:])
    torch.library.opcheck(OPS.forward.default, (input, weight, bias, *shared))
    torch.library.opcheck(OPS.forward.default, (input, weight, None, *shared))
    for channels_last in (False, True):
        torch.library.opcheck(OPS.grad_input.default, (grad, weight, *shared, channels_last))
        torch.library.opcheck(OPS.grad_weight.default, (grad, input, kernel_size, *shared, channels_last))
    torch.library.opcheck(OPS.grad_bias.default, (grad,))


def test_mixed_layouts_opcheck(backend):
    input = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    torch.library.opcheck(OPS.conv_transpose2d.default, (input, weight, None, [2, 2]))


@pytest.mark.parametrize("operator", ("forward", "grad_input", "grad_weight"))
def test_plan_forced_and_explained(operator, capfd, monkeypatch):
    monkeypatch.setenv("CONVT_PRINT_PLAN", "1")
    plan.cache_clear()
    problem = forward_problem((1, 2, 5), (2, 3, 3), None, convt.ops.Geometry((7,), (0,), (0,), 1, (1,)))
    for requested in ("native", "aten"):
        choice = plan(problem, operator, torch.float32, "cpu", False, requested)
        assert choice.backend == requested
        assert requested in choice.reason
    assert plan(problem, operator, torch.float32, "cpu", False, "auto").backend in ("native", "aten")
    printed = capfd.readouterr().err.splitlines()
    assert len(printed) == 3
    assert all(f"convt: {operator} torch.float32 cpu contiguous Problem(" in line for line in printed)
    plan(problem, operator, torch.float32, "cpu", False, "auto")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stride", (2**21, 2**40, 2**62))
def test_more_phases_than_native_code_keeps(stride):
    """One input pixel under an absurd stride is a small, legal problem: refused with the reason, or left to ATen."""
    input, weight = torch.randn(1, 2, 1, 1), torch.randn(2, 3, 2, 2)
    problem = forward_problem(
        input.shape, weight.shape, None, convt.ops.Geometry((stride, 1), (0, 0), (0, 0), 1, (1, 1))
    )
    assert plan(problem, "forward", torch.float32).backend == "aten"
    with convt.backend("native"), pytest.raises(RuntimeError, match=r"stride .* has \d+ phases"):
        convt.conv_transpose2d(input, weight, stride=(stride, 1))


@pytest.mark.cuda
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_cuda_tensors_compute(problem):
    """On a GPU every backend works; gradients are PyTorch's where convt has no kernels yet."""
    tensors = [tensor.detach().cuda().requires_grad_() for tensor in problem.tensors(torch.float32)]
    function = getattr(convt, f"conv_transpose{problem.rank}d")
    with convt.settings.cudnn_precision("ieee"):
        expected = getattr(torch.nn.functional, f"conv_transpose{problem.rank}d")(*tensors, **problem.keywords)
        grads = torch.autograd.grad(expected.square().sum(), tensors)
    for name in ("auto", "native", "aten"):
        with convt.backend(name), convt.precision("ieee"):
            output = function(*tensors, **problem.keywords)
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)
            for ours, theirs in zip(torch.autograd.grad(output.square().sum(), tensors), grads, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_problem_describes_itself():
    problem = forward_problem((2, 6, 5, 7), (6, 4, 3, 2), (8,), convt.ops.Geometry((2, 3), (1, 0), (1, 2), 2, (1, 1)))
    assert (problem.rank, problem.taps, problem.output) == (2, 6, (10, 22))
    assert problem.output_size == (2, 8, 10, 22)
    assert problem.macs == 2 * 35 * 6 * 6 * 4
    assert hash(problem) == hash(problem.__class__(**{n: getattr(problem, n) for n in problem.__slots__}))
