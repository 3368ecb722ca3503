"""torch.func: grad, jvp, vjp, jacobians, Hessians and vmap in any combination, each against PyTorch's own function."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
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


# Ranks 1 to 3, grouped and dilated.
VARIED = [case_ for case_ in CASES if case_.name in ("1d-gcd", "2d-groups", "2d-multiplier", "3d-groups-dilated")]
by_name = pytest.mark.parametrize("problem", VARIED, ids=lambda p: p.name)


@by_name
def test_jacobians(backend, problem):
    """Of every argument, by rows, by columns, and by chunks of them; into batched outputs too."""
    tensors = problem.tensors()
    for number in range(3):
        agree(lambda f, n=number: jacrev(f, argnums=n), problem, *tensors)
    agree(lambda f: jacfwd(f, argnums=(1, 2)), problem, *tensors)
    agree(lambda f: jacrev(f, argnums=1, chunk_size=7), problem, *tensors)
    inputs = torch.stack([tensors[0], tensors[0] - 1])
    agree(lambda f: vmap(jacrev(f, argnums=2), (0, None, None)), problem, inputs, *tensors[1:])


@by_name
def test_hessian_vector_products(backend, problem):
    """Forward over reverse, reverse over reverse and reverse over forward: one product, and PyTorch's."""
    tensors, directions = tuple(problem.tensors()), tuple(problem.tensors(seed=2))
    every = (0, 1, 2)

    def forward_over_reverse(function):
        return lambda: jvp(grad(cubed(function), every), tensors, directions)[1]

    def reverse_over_reverse(function):
        return lambda: vjp(grad(cubed(function), every), *tensors)[1](directions)

    def reverse_over_forward(function):
        return grad(lambda *t: jvp(cubed(function), t, directions)[1], every)

    agree(forward_over_reverse, problem)
    agree(reverse_over_reverse, problem)
    agree(reverse_over_forward, problem, *tensors)
    ours = pair(problem)[0]
    results = forward_over_reverse(ours)(), reverse_over_reverse(ours)(), reverse_over_forward(ours)(*tensors)
    for one, two, three in zip(*results, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


@pytest.mark.parametrize("vectorize", (False, True))
def test_older_interface_of_second_derivatives(backend, vectorize):
    """torch.autograd.functional; vectorize is vmap over a backward graph."""
    tensors, directions = tuple(SMALL.tensors()), tuple(SMALL.tensors(seed=2))
    functional = torch.autograd.functional
    agree(lambda f: lambda: functional.hessian(cubed(f), tensors, vectorize=vectorize), SMALL)
    agree(lambda f: lambda: functional.jacobian(f, tensors, vectorize=vectorize, strategy="reverse-mode"), SMALL)
    agree(lambda f: lambda: functional.vhp(cubed(f), tensors, directions)[1], SMALL)
    agree(lambda f: lambda: functional.hvp(cubed(f), tensors, directions)[1], SMALL)


@pytest.mark.parametrize("out_dim", (0, 1, -1))
@by_name
def test_vmap_over_any_axis(backend, problem, out_dim):
    """Every place of the batch in input and weight, groups and dilation among the problems."""
    tensors = problem.tensors()
    places = range(problem.rank + 3)
    for place in places:
        for dims in ((place, None, None), (None, place, 0), (place, places[-1] - place, None)):
            agree(lambda f, d=dims: vmap(f, d, out_dim), problem, *batched(tensors, dims, size=2))


@by_name
def test_vmap_in_chunks_and_under_other_transforms(backend, problem):
    tensors = problem.tensors()
    for dims in ((0, None, None), (None, 0, None), (0, 0, 0)):
        many = batched(tensors, dims, size=5)
        agree(lambda f, d=dims: vmap(f, d, chunk_size=2), problem, *many)
        other = [tensor * 0.5 + 1 for tensor in many]
        agree(lambda f, d=dims, t=many, o=other: lambda: jvp(vmap(f, d), tuple(t), tuple(o)), problem)
        agree(
            lambda f, d=dims: vmap(lambda *t: jvp(f, t, tuple(2 * entry for entry in t)), d),
            problem, *many,
        )  # fmt: skip


@by_name
def test_per_sample_gradients(backend, problem):
    """vmap of grad, against one sample after the other: the definition; nested for two axes of samples."""
    input, weight, bias = problem.tensors()
    samples = torch.stack([torch.stack([input * (a + 1) + b for a in range(2)]) for b in range(3)])

    def loss(input, weight, bias):
        return pair(problem)[0](input, weight, bias).pow(2).sum()

    each = grad(loss, (1, 2))
    actual = vmap(vmap(each, (0, None, None)), (0, None, None))(samples, weight, bias)
    for b, a in itertools.product(range(3), range(2)):
        for one, many in zip(each(samples[b, a], weight, bias), actual, strict=True):
            torch.testing.assert_close(many[b, a], one)


@pytest.mark.parametrize("kind", ("convt", "accelerated"))
def test_ensembles(backend, kind):
    """stack_module_state and functional_call: several models at once, on one input or on one each."""
    models = []
    for _ in range(3):
        nn = convt.nn if kind == "convt" else torch.nn
        layers = nn.ConvTranspose1d(2, 4, 3, stride=2, groups=2), torch.nn.ReLU(), nn.ConvTranspose1d(4, 2, 2)
        models.append(convt.accelerate(torch.nn.Sequential(*layers)).double())
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def call(parameters, buffers, input):
        return functional_call(skeleton, (parameters, buffers), (input,))

    inputs = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    shared = vmap(call, (0, 0, None))(parameters, buffers, inputs[0])
    torch.testing.assert_close(shared, torch.stack([model(inputs[0]) for model in models]))
    own = vmap(call)(parameters, buffers, inputs)
    torch.testing.assert_close(own, torch.stack([model(input) for model, input in zip(models, inputs, strict=True)]))
    vmap(call)(parameters, buffers, inputs).square().sum().backward()
    for number, (model, input) in enumerate(zip(models, inputs, strict=True)):
        model(input).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[name].grad[number], parameter.grad)


@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
@pytest.mark.parametrize("transform", ("vmap", "grad", "vmap of grad", "jvp", "hessian-vector product"))
def test_transforms_leave_a_graph_of_inner_ops(native, transform, mode):
    """make_fx through transforms: what is left are convt's ops on ordinary tensors, and computes the same."""
    input, weight, bias = GROUPED.tensors()
    scalar = cubed(pair(GROUPED)[0])
    inputs = torch.stack([input, input + 1])
    functions = {
        "vmap": (lambda x, w, b: vmap(pair(GROUPED)[0], (0, None, None))(x, w, b), inputs),
        "grad": (lambda x, w, b: grad(scalar, (0, 1, 2))(x, w, b), input),
        "vmap of grad": (lambda x, w, b: vmap(grad(scalar, (1, 2)), (0, None, None))(x, w, b), inputs),
        "jvp": (lambda x, w, b: jvp(pair(GROUPED)[0], (x, w, b), (x, w, b)), input),
        "hessian-vector product": (lambda x, w, b: jvp(grad(scalar, (0, 1)), (x, w, b), (x, w, b))[1], input),
    }
    function, first = functions[transform]
    graph = make_fx(function, tracing_mode=mode)(first, weight, bias)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert any(name.startswith("convt.") for name in names)
    assert not any("convolution" in name for name in names)
    if transform.startswith("vmap"):  # one call for all samples
        assert names.count("convt.forward.default") == 1
        assert names.count("convt.grad_weight.default") == ("grad" in transform)
    for arguments in ((first, weight, bias), (first * 2, weight - 1, bias)):
        for actual, expected in zip(tree_leaves(graph(*arguments)), tree_leaves(function(*arguments)), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_vmap_keeps_the_dtype_and_obeys_autocast(native, dtype):
    input, weight, bias = (tensor.float() for tensor in GROUPED.tensors())
    function = pair(GROUPED)[0]
    inputs = torch.stack([input, input * 2])
    exact = torch.stack([function(entry, weight, bias) for entry in inputs])
    low = vmap(function, (0, None, None))(inputs.to(dtype), weight.to(dtype), bias.to(dtype))
    assert low.dtype is dtype
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.1)
    if dtype is not torch.float32:
        with torch.autocast("cpu", dtype=dtype):
            automatic = vmap(function, (0, None, None))(inputs, weight, bias)
        torch.testing.assert_close(automatic, low)


def test_transforms_of_channels_last_tensors(backend):
    input, weight, _ = (tensor.float() for tensor in GROUPED.tensors())
    input, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (input, weight))
    theirs, ours = F.conv_transpose2d, convt.conv_transpose2d
    for function in (ours, theirs):
        scalar = lambda x, w, f=function: f(x, w, None, **GROUPED.keywords).pow(3).sum()  # noqa: E731
        results = grad(scalar, (0, 1))(input, weight), vmap(grad(scalar, (0, 1)), (0, None))(input[:, None], weight)
        if function is ours:
            actual = tree_leaves(results)
    for one, other in zip(actual, tree_leaves(results), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_functionalize(backend):
    tensors = GROUPED.tensors()
    agree(lambda f: torch.func.functionalize(f), GROUPED, *tensors)
    agree(lambda f: torch.func.functionalize(grad(cubed(f))), GROUPED, *tensors)


@pytest.mark.cuda
@by_name
def test_on_a_gpu(problem):
    """The same kernels under transforms: values of PyTorch's function on a CPU."""
    tensors = problem.tensors()
    ours, _, theirs = pair(problem)
    dims = (0, None, 0)

    def each(function):
        scalar = cubed(function)
        return (
            lambda *t: vmap(grad(scalar, (0, 1, 2)), dims)(*batched(t, dims)),
            lambda *t: vmap(function, (None, 0, None))(*batched(t, (None, 0, None))),
            lambda *t: jvp(grad(scalar, (0, 1)), t, tuple(entry * 2 for entry in t)),
            lambda *t: jacrev(function, 1)(*t),
        )

    with convt.backend("native"):
        for actual, expected in zip(each(ours), each(theirs), strict=True):
            results = tree_leaves(actual(*(tensor.cuda() for tensor in tensors)))
            for one, other in zip(results, tree_leaves(expected(*tensors)), strict=True):
                assert one.is_cuda
                torch.testing.assert_close(one.cpu(), other)
