"""First and second derivatives, reverse and forward mode, of the public functions and of the inner ops themselves."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import convt
from reference import CASES

OPS = torch.ops.convt
OURS = {1: convt.conv_transpose1d, 2: convt.conv_transpose2d, 3: convt.conv_transpose3d}


@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_gradcheck(backend, problem):
    def function(*tensors):
        return OURS[problem.rank](*tensors, **problem.keywords)

    tensors = tuple(problem.tensors(grad=True))
    gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_gradgradcheck(backend, problem):
    def function(*tensors):
        return OURS[problem.rank](*tensors, **problem.keywords)

    fast = problem.rank == 3
    tensors = tuple(problem.tensors(grad=True))
    gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=not fast, fast_mode=fast)


def inner_calls(problem):
    """(name, function of two float64 tensors, the tensors) for each inner op of a problem."""
    input, weight, _ = problem.tensors(grad=True)
    shared = problem.geometry
    output = OPS.forward(input, weight, None, *shared)
    grad = torch.randn_like(output).requires_grad_()
    kernel_size = weight.shape[2:]
    return (
        (lambda a, b: OPS.forward(a, b, None, *shared), (input, weight)),
        (lambda a, b: OPS.grad_input(a, b, *shared, False), (grad, weight)),
        (lambda a, b: OPS.grad_weight(a, b, kernel_size, *shared, False), (grad, input)),
        (lambda a: OPS.grad_bias(a), (grad,)),
    )


@pytest.mark.parametrize("which", range(4), ids=("forward", "grad_input", "grad_weight", "grad_bias"))
@pytest.mark.parametrize("problem", CASES[::3], ids=lambda p: p.name)
def test_inner_ops(backend, problem, which):
    function, tensors = inner_calls(problem)[which]
    fast = problem.rank == 3
    gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True, fast_mode=fast)
    if which < 3:
        gradgradcheck(function, tensors, check_fwd_over_rev=True, fast_mode=fast)


@pytest.mark.parametrize("problem", CASES[::4], ids=lambda p: p.name)
def test_public_op_called_directly(backend, problem):
    op = getattr(OPS, f"conv_transpose{problem.rank}d")
    tensors = tuple(problem.tensors(grad=True))
    gradcheck(lambda *t: op(*t, *problem.geometry), tensors, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("wanted", ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)))
def test_any_subset_of_gradients(backend, wanted):
    """The ones that are asked for are right, the others are None."""
    problem = CASES[6]
    tensors = problem.tensors()
    full = [tensor.clone().requires_grad_() for tensor in tensors]
    expected = torch.autograd.grad(OURS[2](*full, **problem.keywords).square().sum(), full)
    for place in wanted:
        tensors[place].requires_grad_()
    OURS[2](*tensors, **problem.keywords).square().sum().backward()
    for place, tensor in enumerate(tensors):
        if place in wanted:
            torch.testing.assert_close(tensor.grad, expected[place])
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("dual", ((0,), (1,), (2,), (0, 2), (0, 1, 2)))
def test_forward_mode_with_any_subset_of_tangents(backend, dual):
    problem = CASES[6]
    primals, tangents = problem.tensors(), problem.tensors(seed=1)
    with forward_ad.dual_level():
        arguments = [
            forward_ad.make_dual(primal, tangent) if place in dual else primal
            for place, (primal, tangent) in enumerate(zip(primals, tangents, strict=True))
        ]
        output, tangent = forward_ad.unpack_dual(OURS[2](*arguments, **problem.keywords))
    zeroed = [t if place in dual else torch.zeros_like(t) for place, t in enumerate(tangents)]
    torch.testing.assert_close(output, OURS[2](*primals, **problem.keywords))
    expected = OURS[2](zeroed[0], primals[1], zeroed[2], **problem.keywords) + OURS[2](
        primals[0], zeroed[1], None, **problem.keywords
    )
    torch.testing.assert_close(tangent, expected)


def test_forward_over_reverse_without_functorch(backend):
    """A Hessian-vector product from a dual level around backward, gradients not recorded again."""
    problem = CASES[6]
    input, weight, _ = problem.tensors()
    direction = torch.randn_like(weight)

    def gradient(weight):
        return torch.autograd.grad(OURS[2](input, weight, **problem.keywords).pow(3).sum(), weight)[0]

    with forward_ad.dual_level():
        leaf = forward_ad.make_dual(weight.clone().requires_grad_(), direction)
        product = forward_ad.unpack_dual(gradient(leaf)).tangent
    plain = weight.clone().requires_grad_()
    first = torch.autograd.grad(OURS[2](input, plain, **problem.keywords).pow(3).sum(), plain, create_graph=True)[0]
    expected = torch.autograd.grad(first, plain, direction)[0]
    torch.testing.assert_close(product, expected)


def test_three_times(backend):
    """A third derivative, against the same taken by PyTorch (which fails where there is output padding)."""
    problem = CASES[4]

    def third(function):
        input, weight, _ = problem.tensors(grad=True)
        value = function(input, weight, **problem.keywords).pow(3).sum()
        for _ in range(3):
            first, second = torch.autograd.grad(value, (input, weight), create_graph=True)
            value = first.square().sum() * 1e-3 + second.square().sum() * 1e-3
        return torch.autograd.grad(value, (input, weight))

    for ours, theirs in zip(third(convt.conv_transpose2d), third(torch.nn.functional.conv_transpose2d), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item())


def test_saved_tensor_hooks_and_checkpointing(backend):
    problem = CASES[4]
    tensors = problem.tensors(grad=True)
    expected = torch.autograd.grad(OURS[2](*tensors, **problem.keywords).square().sum(), tensors)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        output = OURS[2](*tensors, **problem.keywords)
    assert packed == [tensors[0].shape, tensors[1].shape]
    for ours, other in zip(torch.autograd.grad(output.square().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(ours, other)
    output = torch.utils.checkpoint.checkpoint(
        lambda *t: OURS[2](*t, **problem.keywords), *tensors, use_reentrant=False
    )
    for ours, other in zip(torch.autograd.grad(output.square().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(ours, other)


def test_in_place_change_of_a_saved_tensor_is_noticed(backend):
    input, weight, _ = CASES[4].tensors(grad=True)
    scaled = input * 1
    output = convt.conv_transpose2d(scaled, weight)
    scaled.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("by_op", (False, True), ids=("function", "op"))
def test_backward_frees_what_was_saved(backend, by_op):
    """Also while the output, and with it the node, is still there."""
    input, weight, _ = CASES[4].tensors(grad=True)
    scaled = input * 1
    function = (lambda *t: OPS.conv_transpose2d(*t)) if by_op else convt.conv_transpose2d
    output = function(scaled, weight)
    watched = weakref.ref(scaled)
    del scaled
    assert watched() is not None
    output.sum().backward()
    assert watched() is None
    assert output.grad_fn is not None


@pytest.mark.parametrize("compiler", ("eager", "aot_eager"))
@pytest.mark.parametrize("dual", ((0,), (1,), (2,), (0, 1, 2)))
def test_forward_mode_inside_a_graph(backend, compiler, dual):
    """A compiled graph enters forward mode without telling torch.autograd.forward_ad."""
    torch._dynamo.reset()
    problem = CASES[6]
    primals, tangents = problem.tensors(), problem.tensors(seed=1)

    def directional(*arguments):
        with forward_ad.dual_level():
            pairs = zip(arguments[:3], arguments[3:], strict=True)
            duals = [forward_ad.make_dual(p, t) if n in dual else p for n, (p, t) in enumerate(pairs)]
            return forward_ad.unpack_dual(OURS[2](*duals, **problem.keywords)).tangent

    compiled = torch.compile(directional, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(*primals, *tangents), directional(*primals, *tangents))


TRANSFORMED = {
    "vmap": lambda f: lambda x, w, b: torch.vmap(lambda bias: f(x, w, bias))(torch.stack([b, b + 1])),
    "per-sample gradients": lambda f: (
        lambda x, w, b: torch.vmap(torch.func.grad(lambda bias: f(x, w, bias).pow(3).sum()))(torch.stack([b, b + 1]))
    ),
    "jvp": lambda f: lambda *t: torch.func.jvp(f, t, t)[1],
    "hessian-vector product": lambda f: (
        lambda *t: torch.func.jvp(torch.func.grad(lambda *s: f(*s).pow(3).sum(), (0, 1, 2)), t, t)[1]
    ),
    "jacfwd": lambda f: torch.func.jacfwd(f, 2),
    "jacrev": lambda f: torch.func.jacrev(f, 2),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_inside_a_graph(native, name):
    torch._dynamo.reset()
    problem = CASES[6]
    tensors = problem.tensors()
    theirs = getattr(torch.nn.functional, f"conv_transpose{problem.rank}d")
    results = []
    for function in (OURS[problem.rank], theirs):
        transformed = TRANSFORMED[name](lambda *t, f=function: f(*t, **problem.keywords))
        if function is not theirs:
            transformed = torch.compile(transformed, fullgraph=True, backend="aot_eager")
        results.append(torch.utils._pytree.tree_leaves(transformed(*tensors)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
