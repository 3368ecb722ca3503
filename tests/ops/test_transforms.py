"""torch.func: grad, jvp, vjp, jacobians, Hessians and vmap in any combination, each against PyTorch's own function."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves

import convt
from reference import CASES, case

OPS = torch.ops.convt
GROUPED = case("grouped", (2, 4, 3, 2), (4, 3, 2, 3), stride=(2, 1), padding=(1, 0), output_padding=(1, 0), groups=2)
SMALL = case("small", (1, 2, 2), (2, 1, 3), stride=2, padding=1)


def pair(problem):
    """convt's and PyTorch's function of (input, weight, bias), and the public op."""
    name = f"conv_transpose{problem.rank}d"
    return [
        lambda *tensors: getattr(convt, name)(*tensors, **problem.keywords),
        lambda *tensors: getattr(OPS, name)(*tensors, *(() if len(tensors) == 3 else (None,)), *problem.geometry),
        lambda *tensors: getattr(F, name)(*tensors, **problem.keywords),
    ]


def agree(make, problem, *args):
    """make(function)(*args), for the function and the op, equals what PyTorch's function gives."""
    *ours, theirs = [tree_leaves(make(function)(*args)) for function in pair(problem)]
    for result in ours:
        for actual, expected in zip(result, theirs, strict=True):
            torch.testing.assert_close(actual, expected)


def cubed(function):
    return lambda *tensors: function(*tensors).pow(3).sum()


@pytest.mark.parametrize("problem", CASES[::2], ids=lambda p: p.name)
def test_grad_and_value(backend, problem):
    agree(lambda f: grad(cubed(f), argnums=(0, 1, 2)), problem, *problem.tensors())


@pytest.mark.parametrize("problem", CASES[::2], ids=lambda p: p.name)
def test_vjp_and_jvp(backend, problem):
    primals, tangents = tuple(problem.tensors()), tuple(problem.tensors(seed=1))
    agree(lambda f: lambda: jvp(f, primals, tangents), problem)
    agree(lambda f: lambda: jvp(lambda x: f(x, *primals[1:]), primals[:1], tangents[:1]), problem)
    agree(lambda f: lambda: vjp(f, *primals)[1](torch.ones_like(f(*primals))), problem)
    agree(lambda f: lambda: linearize(f, *primals)[1](*tangents), problem)


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product((jacfwd, jacrev), repeat=2)))
def test_jacobians_of_jacobians(backend, outer, inner):
    """Second derivatives through all four nestings: none of them silently zero."""
    tensors = SMALL.tensors()
    for argnums in (0, 1):
        agree(lambda f, n=argnums: outer(inner(cubed(f), argnums=n), argnums=1 - n), SMALL, *tensors)
    mixed = outer(inner(cubed(pair(SMALL)[0]), argnums=0), argnums=1)(*tensors)
    assert mixed.abs().max() > 0


def test_hessian(backend):
    agree(lambda f: hessian(cubed(f), argnums=(0, 1, 2)), SMALL, *SMALL.tensors())


def test_triply_nested_grad(backend):
    def make(function):
        scalar = cubed(function)
        once = lambda *t: grad(scalar)(*t).pow(2).sum()  # noqa: E731
        twice = lambda *t: grad(once, argnums=1)(*t).pow(2).sum()  # noqa: E731
        return grad(twice)

    agree(make, SMALL, *SMALL.tensors())


DIMS = [dims for dims in itertools.product((None, 0, -1), repeat=3) if any(d is not None for d in dims)]


def batched(tensors, dims, size=3):
    result = []
    for tensor, dim in zip(tensors, dims, strict=True):
        many = torch.stack([tensor + 0.1 * n for n in range(size)])
        result.append(tensor if dim is None else many.movedim(0, dim))
    return result


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("problem", (GROUPED, SMALL), ids=lambda p: p.name)
def test_vmap_over_any_of_the_operands(backend, problem, dims):
    agree(lambda f: vmap(f, in_dims=dims), problem, *batched(problem.tensors(), dims))


@pytest.mark.parametrize("dims", [d for d in DIMS if -1 not in d], ids=str)
def test_vmap_of_grad_and_grad_of_vmap(backend, dims):
    tensors = batched(GROUPED.tensors(), dims)
    agree(lambda f: vmap(grad(cubed(f), argnums=(0, 1, 2)), in_dims=dims), GROUPED, *tensors)
    agree(lambda f: grad(lambda *t: vmap(f, in_dims=dims)(*t).pow(3).sum(), argnums=(0, 1, 2)), GROUPED, *tensors)


def test_nested_vmap(backend):
    input, weight, bias = GROUPED.tensors()
    inputs = torch.stack([input, input * 2])
    weights = torch.stack([weight, weight - 1, weight + 1])
    agree(lambda f: vmap(vmap(f, (None, 0, None)), (0, None, None)), GROUPED, inputs, weights, bias)
    agree(lambda f: vmap(vmap(f, (0, None, None)), (None, 0, None)), GROUPED, inputs, weights, bias)
    squares = torch.stack([torch.stack([input * a + b for a in range(2)]) for b in range(3)])
    agree(lambda f: vmap(vmap(f, (0, None, None)), (0, 0, None)), GROUPED, squares, weights, bias)


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, 0)], ids=str)
@pytest.mark.parametrize("operator", ("forward", "grad_input", "grad_weight"))
def test_vmap_of_inner_ops(backend, operator, dims):
    """One by one is the definition."""
    input, weight, _ = GROUPED.tensors()
    shared = GROUPED.geometry
    grad_output = OPS.forward(input, weight, None, *shared)
    functions = {
        "forward": (lambda a, b: OPS.forward(a, b, None, *shared), input, weight),
        "grad_input": (lambda a, b: OPS.grad_input(a, b, *shared, False), grad_output, weight),
        "grad_weight": (lambda a, b: OPS.grad_weight(a, b, weight.shape[2:], *shared, False), grad_output, input),
    }
    function, a, b = functions[operator]
    a, b = (t if d is None else torch.stack([t, t * 2, t + 1], d) for t, d in zip((a, b), dims, strict=True))
    actual = vmap(function, dims)(a, b)
    for n in range(3):
        one = [t if d is None else t.select(d, n) for t, d in zip((a, b), dims, strict=True)]
        torch.testing.assert_close(actual[n], function(*one))


def test_vmap_of_grad_bias(backend):
    grads = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(vmap(OPS.grad_bias)(grads), grads.sum((1, 3)))


def test_vmap_over_unbatched_inputs(backend):
    input, weight, bias = GROUPED.tensors()
    agree(lambda f: vmap(f, (0, None, None)), GROUPED, input, weight, bias)


def test_per_sample_gradients_of_a_module(backend):
    """The usual recipe, functional_call under vmap of grad."""
    modules = [
        torch.nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1),
        convt.nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1),
    ]
    modules[1].load_state_dict(modules[0].state_dict())
    inputs = torch.randn(5, 3, 4, 4)

    def per_sample(module):
        def loss(parameters, input):
            return functional_call(module, parameters, (input[None],)).square().sum()

        return vmap(grad(loss), (None, 0))(dict(module.named_parameters()), inputs)

    theirs, ours = (per_sample(module) for module in modules)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_no_grad_inside_a_transform(backend):
    """no_grad inside one level silences it there, and only what PyTorch's function silences."""

    def make(function):
        def half(input, weight, bias):
            with torch.no_grad():
                constant = function(input, weight, bias)
            return (constant * function(input, weight, bias)).sum()

        return grad(half, argnums=(0, 1, 2))

    agree(make, GROUPED, *GROUPED.tensors())


def test_jvp_under_no_grad_under_grad(backend):
    def make(function):
        def inner(input, weight, bias):
            with torch.no_grad():
                _, tangent = jvp(lambda x: function(x, weight, bias), (input,), (torch.ones_like(input),))
            return (tangent * function(input, weight, bias)).sum()

        return grad(inner, argnums=(0, 1))

    agree(make, GROUPED, *GROUPED.tensors())
