"""Around the kernels: autograd, transforms, autocast, compilation, modules."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

import convt
from adversarial import FUNCTIONS
from convt import settings
from convt.plan import OPERATORS, plan
from convt.problem import Geometry, forward_problem
from reference import CASES, conv_transpose

THEIRS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
BY_NAME = pytest.mark.parametrize("problem", CASES, ids=lambda problem: problem.name)


def leaves(problem, device, dtype=torch.float32):
    return [tensor.to(device).requires_grad_() for tensor in problem.tensors(dtype)]


@BY_NAME
def test_gradients(device, problem):
    tensors = leaves(problem, device)
    output = FUNCTIONS[problem.rank](*tensors, **problem.keywords)
    assert type(output.grad_fn).__name__ == "ContractionBackward"
    grads = torch.autograd.grad(output.square().sum(), tensors)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact = torch.autograd.grad(conv_transpose(*doubles, **problem.keywords).square().sum(), doubles)
    for ours, theirs in zip(grads, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item() + 1e-6)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_gradients_of_other_dtypes(device, dtype):
    problem = CASES[4]
    tensors = leaves(problem, device, dtype)
    grads = torch.autograd.grad(FUNCTIONS[2](*tensors, **problem.keywords).sum(), tensors)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact = torch.autograd.grad(conv_transpose(*doubles, **problem.keywords).sum(), doubles)
    for ours, theirs in zip(grads, exact, strict=True):
        assert ours.dtype is dtype and ours.device == tensors[0].device
        tolerance = 8 * torch.finfo(dtype).eps * theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance)


def test_frozen_weight_and_frozen_input(device):
    input, weight, bias = (tensor.detach() for tensor in leaves(CASES[4], device))
    for wanted in (input, weight):
        wanted.requires_grad_()
        convt.conv_transpose2d(input, weight, bias, **CASES[4].keywords).sum().backward()
        assert wanted.grad.isfinite().all() and wanted.grad.any()
        wanted.requires_grad_(False)
        wanted.grad = None


def test_channels_last_gradients_keep_the_layout(device):
    input, weight, _ = (tensor.detach() for tensor in leaves(CASES[4], device))
    input = input.contiguous(memory_format=torch.channels_last).requires_grad_()
    output = convt.conv_transpose2d(input, weight, **CASES[4].keywords)
    (grad,) = torch.autograd.grad(output.square().sum(), input)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert grad.stride() == input.stride()


@BY_NAME
def test_derivatives_of_every_order(device, problem):
    tensors = leaves(problem, device, torch.float64)

    def function(*operands):
        return FUNCTIONS[problem.rank](*operands, **problem.keywords)

    checks = {"fast_mode": True, "nondet_tol": 0.0}
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(function, tensors, **checks)


def test_the_plan_of_a_gradient_says_whose_it_is(device):
    problem = forward_problem((1, 2, 5), (2, 3, 3), None, Geometry((1,), (0,), (0,), 1, (1,)))
    for name in OPERATORS:
        choice = plan(problem, name, torch.float32, device, False, "native")
        assert str(choice) == "native (forced by convt.backend('native'))"


def test_transforms(device):
    input, weight, bias = (tensor.detach() for tensor in leaves(CASES[4], device))

    def function(input, weight, bias=bias):
        return convt.conv_transpose2d(input, weight, bias, **CASES[4].keywords)

    expected = function(input, weight)
    images = torch.func.vmap(lambda image: function(image[None], weight)[0])(input)
    torch.testing.assert_close(images, expected)
    filters = torch.stack([weight, 2 * weight])
    many = torch.func.vmap(function, in_dims=(None, 0))(input, filters)
    for one, filter in zip(many, filters, strict=True):
        torch.testing.assert_close(one, function(input, filter), rtol=1e-4, atol=1e-4)
    tangent = torch.randn_like(input)
    primal, out = torch.func.jvp(lambda x: function(x, weight), (input,), (tangent,))
    torch.testing.assert_close(primal, expected)
    torch.testing.assert_close(out, function(tangent, weight, None), rtol=1e-4, atol=1e-4)
    grad = torch.func.grad(lambda w: function(input, w).square().sum())(weight)
    leaf = weight.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(function(input, leaf).square().sum(), leaf)
    torch.testing.assert_close(grad, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(device, dtype):
    if device == "cpu" and dtype is torch.float16:
        pytest.skip("autocast on a CPU to float16 came with a later PyTorch than the oldest supported")
    input, weight, bias = leaves(CASES[4], device)
    with torch.autocast(device, dtype=dtype):
        output = convt.conv_transpose2d(input, weight, bias, **CASES[4].keywords)
    low = [tensor.detach().to(dtype) for tensor in (input, weight, bias)]
    assert output.dtype is dtype
    assert torch.equal(output, convt.conv_transpose2d(*low, **CASES[4].keywords))
    grads = torch.autograd.grad(output.float().sum(), (input, weight, bias))
    assert all(grad.dtype is torch.float32 and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("problem", (CASES[0], CASES[6], CASES[12]), ids=lambda problem: problem.name)
def test_opcheck(device, problem):
    pytest.importorskip("expecttest", reason="torch.library.opcheck needs it")
    tensors = leaves(problem, device)
    geometry = [list(value) if isinstance(value, tuple) else value for value in problem.geometry]
    torch.library.opcheck(getattr(torch.ops.convt, f"conv_transpose{problem.rank}d").default, (*tensors, *geometry))
    torch.library.opcheck(torch.ops.convt.forward.default, (*tensors, *geometry))


@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
def test_compiles_whole(device, compiler):
    if compiler == "inductor" and (device == "cpu" or importlib.util.find_spec("triton") is None):
        pytest.skip("tests/compile runs inductor on a CPU; on a GPU it needs triton")
    torch._dynamo.reset()

    def function(input, weight, bias):
        return convt.conv_transpose2d(input.relu(), weight, bias, stride=2, padding=1, output_padding=1).tanh()

    shapes = (2, 4, 5, 6), (4, 6, 3, 3), (6,)
    tensors = [torch.randn(shape).to(device).requires_grad_() for shape in shapes]
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for layout in (torch.contiguous_format, torch.channels_last):
        operands = tensors[0].detach().contiguous(memory_format=layout).requires_grad_(), *tensors[1:]
        results = []
        for run in (compiled, function):
            output = run(*operands)
            results.append((output, *torch.autograd.grad(output.square().sum(), operands)))
        for ours, theirs in zip(*results, strict=True):
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_the_module_trains(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        convt.nn.ConvTranspose2d(8, 16, 4, stride=2, padding=1), torch.nn.ReLU(), convt.nn.ConvTranspose2d(16, 3, 2, 2)
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    input, target = torch.randn(4, 8, 7, 9).to(device), torch.randn(4, 3, 28, 36).to(device)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (model(input) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


@pytest.mark.cuda
def test_precision_reaches_the_gradients(gpu):
    """Whoever computes them: "ieee" is float32 whatever PyTorch's own switch says meanwhile."""
    torch.manual_seed(0)
    input, weight = torch.randn(2, 64, 24, 24, device=gpu), torch.randn(64, 64, 4, 4, device=gpu).requires_grad_()
    grad_output = torch.randn(2, 64, 48, 48, device=gpu)
    doubles = weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(conv_transpose(input, doubles, stride=2, padding=1), doubles, grad_output.double())
    output = convt.conv_transpose2d(input, weight, stride=2, padding=1)
    for backend in ("native", "aten"):
        errors = {}
        for ours, pytorchs in (("ieee", "tf32"), ("tf32", "ieee")):
            with convt.backend(backend), settings.cudnn_precision(pytorchs), convt.precision(ours):
                (grad,) = torch.autograd.grad(output, weight, grad_output, retain_graph=True)
            errors[ours] = float((grad - exact).abs().max() / exact.abs().max())
        assert errors["ieee"] < 1e-5 and errors["tf32"] < 1e-3, f"{backend}: {errors}"
