"""torch.autocast: the same dtypes as PyTorch's conv_transpose, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import convt
from reference import torch_results

X, W, B = torch.randn(2, 3, 4, 4), torch.randn(3, 5, 3, 3), torch.randn(5)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OURS = (convt.conv_transpose2d, lambda x, w, b=None: torch.ops.convt.conv_transpose2d(x, w, b))


@pytest.mark.parametrize("function", OURS, ids=("functional", "op"))
@pytest.mark.parametrize("to", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=2)), ids=str)
def test_dtypes_are_torchs(backend, function, to, dtypes):
    x, w = X.to(dtypes[0]).requires_grad_(), W.to(dtypes[1]).requires_grad_()
    with torch.autocast("cpu", dtype=to):
        ours, theirs = function(x, w, B), F.conv_transpose2d(x, w, B)
    assert ours.dtype == theirs.dtype == to
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    grad = torch.ones_like(ours)
    expected = torch_results(F.conv_transpose2d, [x.to(to), w.to(to)], grad)[1:]
    for leaf, gradient, rival in zip((x, w), torch.autograd.grad(ours, (x, w), grad), expected, strict=True):
        assert gradient.dtype is leaf.dtype
        torch.testing.assert_close(gradient, rival.to(leaf.dtype), rtol=3e-2, atol=3e-1)


@pytest.mark.parametrize("function", OURS, ids=("functional", "op"))
def test_float64_stays(backend, function):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(X.double(), W.double()).dtype is torch.float64
        with pytest.raises(RuntimeError, match=r"weight has dtype torch.float64 but input has torch.bfloat16"):
            function(X, W.double())


@pytest.mark.parametrize("function", OURS, ids=("functional", "op"))
def test_disabled_inside_and_for_another_device(backend, function):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert function(X, W).dtype is torch.float32
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=torch.cuda.is_available()):
        assert function(X, W).dtype is torch.float32


def test_inner_ops_are_not_cast(backend):
    """They mean what they are given, also inside autocast; so does a backward pass that runs there."""
    shared = ((1, 1), (0, 0), (0, 0), 1, (1, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = torch.ops.convt.forward(X, W, None, *shared)
        grad = torch.ops.convt.grad_input(output, W, *shared, False)
        weight = torch.ops.convt.grad_weight(output, X, (3, 3), *shared, False)
    assert {output.dtype, grad.dtype, weight.dtype} == {torch.float32}
    torch.testing.assert_close(output, F.conv_transpose2d(X, W), rtol=1e-4, atol=1e-4)
    leaf = W.clone().requires_grad_()
    y = convt.conv_transpose2d(X, leaf)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = torch.autograd.grad(y, leaf, torch.ones_like(y), retain_graph=True)
    (outside,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert inside.dtype is torch.float32
    torch.testing.assert_close(inside, outside)


def test_training_step_with_a_module(backend):
    module = convt.nn.ConvTranspose2d(3, 5, 3, stride=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(X).square().mean()
    loss.backward()
    assert module.weight.grad.dtype is torch.float32
    assert module.weight.grad.abs().sum() > 0


def test_gradients_under_torch_func(backend):
    def value(weight):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return convt.conv_transpose2d(X, weight).float().square().mean()

    leaf = W.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(value)(W), expected)
