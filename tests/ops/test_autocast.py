"""torch.autocast: the same dtypes as PyTorch's conv_transpose, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import convt
from convt import _C, functional
from reference import torch_results
from versions import answers_in_c

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


# ---- the eager entry ---------------------------------------------------------------------------------------------


@pytest.fixture
def python(monkeypatch):
    """The calls that reach the Python functions behind the entry."""
    seen = []
    real = functional.PUBLIC[2]
    monkeypatch.setitem(functional.PUBLIC, 2, lambda *args: (seen.append(args), real(*args))[1])
    _C.forget_plans()
    return seen


@answers_in_c
@pytest.mark.parametrize("name", ("native", "aten", "auto"))
@pytest.mark.parametrize("dtypes", list(itertools.product((torch.float32, torch.bfloat16), repeat=3)), ids=str)
def test_calls_after_the_first_are_answered_in_c(python, name, dtypes):
    shapes = (2, 3, 4, 4), (3, 2, 3, 3), (2,)
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape, dtype in zip(shapes, dtypes, strict=True)]
    with convt.backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
        for turn in range(4):
            with torch.set_grad_enabled(turn % 2 == 0):
                output = convt.conv_transpose2d(*leaves, stride=2)
                assert output.dtype is torch.bfloat16 and output.requires_grad == (turn % 2 == 0)
            if turn % 2 == 0:
                grads = torch.autograd.grad(output.float().square().sum(), leaves)
                expected = F.conv_transpose2d(*leaves, stride=2)
                values = torch.autograd.grad(expected.float().square().sum(), leaves)
                torch.testing.assert_close(output, expected, rtol=0.02, atol=0.1)
                for grad, value, leaf in zip(grads, values, leaves, strict=True):
                    assert grad.dtype is leaf.dtype
                    assert (grad - value).float().norm() <= 0.05 * value.float().norm()
    assert len(python) == 1, "which has planned the call as it is given and as it is cast"


def test_a_change_of_autocast_is_seen(python):
    input, weight = torch.randn(2, 3, 4, 4), torch.randn(3, 2, 3, 3)
    with convt.backend("native"):
        for _ in range(3):
            for dtype in (torch.bfloat16, torch.float16):
                with torch.autocast("cpu", dtype=dtype):
                    assert convt.conv_transpose2d(input, weight).dtype is dtype
                    with torch.autocast("cpu", enabled=False):
                        assert convt.conv_transpose2d(input, weight).dtype is torch.float32
            assert convt.conv_transpose2d(input, weight).dtype is torch.float32
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert convt.conv_transpose2d(input.double(), weight.double()).dtype is torch.float64


def test_strides_under_autocast_are_those_of_the_full_function():
    """A copy to another dtype may lie otherwise in memory than its tensor."""
    weight = torch.randn(3, 2, 3, 3)
    base = torch.randn(2, 3, 6, 6)
    inputs = (
        base,
        base.to(memory_format=torch.channels_last),
        base.transpose(2, 3),
        base[:, :, ::2],
        base[:1].expand(2, 3, 6, 6),
    )
    for name in ("native", "aten"):
        with convt.backend(name), torch.autocast("cpu", dtype=torch.bfloat16):
            for input in inputs:
                expected = functional._conv_transpose2d(input, weight)
                for _ in range(3):
                    output = convt.conv_transpose2d(input, weight)
                    assert output.stride() == expected.stride()
                    torch.testing.assert_close(output, expected)
