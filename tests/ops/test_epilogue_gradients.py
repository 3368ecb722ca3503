"""Epilogues of eager calls: derivatives of all kinds, transforms, autocast and graphs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

import convt
from convt import epilogue
from epilogues import OPERATIONS, Counted, arguments, everything, leaves, theirs_of_everything
from reference import CASES, assert_accurate, results, torch_results


@pytest.fixture(autouse=True)
def quick(one_thread):
    """All of these are small."""


# ---- derivatives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_differentiate(backend, name):
    """Both orders, forward mode, and batches of cotangents and tangents."""
    step = OPERATIONS[name][0]

    def function(*tensors):
        return convt.conv_transpose2d(*tensors, stride=2, epilogue=[step])

    tensors = leaves()
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("name", epilogue.ARITHMETIC)
@pytest.mark.parametrize("kind", ("channel", "full", "batch"))
def test_operands_differentiate(backend, name, kind):
    input, weight, bias = leaves()
    shape = {"channel": (3, 1, 1), "full": (2, 3, 6, 4), "batch": (2, 1, 1, 1)}[kind]
    operand = (torch.rand(shape).double() + 0.5).requires_grad_()

    def function(input, operand):
        return convt.conv_transpose2d(input, weight, bias, stride=2, epilogue=["sigmoid", (name, operand), "mish"])

    assert gradcheck(function, (input, operand), check_forward_ad=True)
    assert gradgradcheck(function, (input, operand))


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_every_rank_differentiates(backend, rank):
    function = getattr(convt, f"conv_transpose{rank}d")
    tensors = leaves(rank)
    residual = torch.randn_like(function(*tensors)).requires_grad_()

    def with_residual(input, weight, bias, residual):
        return function(input, weight, bias, epilogue=["gelu", ("add", residual), ("leaky_relu", 0.3)])

    assert gradcheck(with_residual, (*tensors, residual))


@pytest.mark.parametrize("wanted", range(5))
@pytest.mark.parametrize(
    "last", ("mish", "relu", ("leaky_relu", 0.2), ("leaky_relu", -0.2), "tanh", ("mul", 2)), ids=str
)
def test_only_what_is_asked_for(wanted, last):
    """One recomputed convolution where the derivative looks at values, none where it does not or the output will do."""
    tensors = [tensor.detach().float() for tensor in leaves()]
    tensors += [torch.rand(3, 1, 1), torch.randn(2, 3, 6, 4)]
    tensors[wanted].requires_grad_()
    *arguments, channel, residual = tensors
    steps = [("mul", channel), ("add", residual), last]
    value = last in ("mish", ("leaky_relu", -0.2))
    output = convt.conv_transpose2d(*arguments, stride=2, epilogue=steps)
    with Counted() as counted:
        torch.autograd.grad(output.sum(), tensors[wanted])
    of = ["grad_input", "grad_weight", "grad_bias"][wanted : wanted + 1]
    assert counted.ours == sorted([*of, *(["forward"] if value or wanted == 3 else [])])


def test_gradients_that_follow_from_the_output(backend):
    """Sums and frozen factors, then one activation: the same gradients as PyTorch's, from the output."""
    input, weight, bias, channel, residual = arguments()
    wanted = [tensor.requires_grad_() for tensor in (input, weight, residual)]
    for last, theirs in (
        ("relu", F.relu),
        ("sigmoid", torch.sigmoid),
        ("tanh", torch.tanh),
        (("leaky_relu", 0.0), F.relu),
        (("leaky_relu", 0.3), lambda y: F.leaky_relu(y, 0.3)),
        (("leaky_relu", -0.3), lambda y: F.leaky_relu(y, -0.3)),
    ):
        steps = [("div", channel), ("sub", residual), ("mul", -2), last]
        ours = convt.conv_transpose2d(input, weight, bias, stride=2, epilogue=steps)
        plain = theirs((F.conv_transpose2d(input, weight, bias, stride=2) / channel - residual) * -2)
        pairs = (torch.autograd.grad(y.pow(3).sum(), wanted, create_graph=True) for y in (ours, plain))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b)
            seconds = (torch.autograd.grad(g.square().sum(), wanted, retain_graph=True) for g in (a, b))
            torch.testing.assert_close(*seconds)


def test_inputs_are_all_that_is_saved():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        input, weight, bias = leaves()
        residual = torch.randn(2, 3, 6, 4).double()
        convt.conv_transpose2d(input, weight, bias, stride=2, epilogue=["mish", ("add", residual), "silu", "tanh"])
    assert {t.data_ptr() for t in saved} <= {t.data_ptr() for t in (input, weight, bias, residual)}


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_gradients_of_low_precision(backend, dtype):
    """Smooth functions: the recomputed values are rounded to 16 bits, as PyTorch's are, and may pass a kink by that."""
    problem = CASES[4]
    scale = torch.rand(2, 1, 1).to(dtype) + 0.5
    function = getattr(convt, f"conv_transpose{problem.rank}d")
    steps = ["silu", ("mul", scale), "mish"]

    def theirs(*tensors, **keywords):
        wide = scale.to(tensors[0].dtype)
        return F.mish(F.silu(F.conv_transpose2d(*tensors, **keywords)) * wide)

    tensors = problem.tensors(dtype)
    doubles = [tensor.double() for tensor in tensors]
    cotangent = torch.randn(theirs(*doubles, **problem.keywords).shape).to(dtype)
    exact = results(theirs, doubles, cotangent, **problem.keywords)
    rivals = torch_results(theirs, tensors, cotangent, **problem.keywords)
    ours = results(function, tensors, cotangent, **problem.keywords, epilogue=steps)
    for actual, right, rival in zip(ours, exact, rivals, strict=True):
        assert_accurate(actual, right, rival)


# ---- transforms, modes, graphs -----------------------------------------------------------------------------------


def test_functorch(backend):
    tensors = arguments()
    tangents = tuple(torch.randn_like(tensor) for tensor in tensors)
    for ours, theirs in (
        (f(everything), f(theirs_of_everything))
        for f in (
            lambda g: torch.func.jvp(g, tuple(tensors), tangents),
            lambda g: torch.func.grad(lambda *t: g(*t).square().sum(), argnums=(0, 1, 2, 3, 4))(*tensors),
            lambda g: torch.func.jacfwd(torch.func.grad(lambda w: g(tensors[0], w, *tensors[2:]).pow(3).sum()))(
                tensors[1]
            ),
        )
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("place", range(5))
def test_vmap(backend, place):
    tensors = arguments()
    tensors[place] = torch.stack([tensors[place], 2 * tensors[place], -tensors[place]])
    dims = tuple(0 if n == place else None for n in range(5))
    ours, theirs = (torch.vmap(f, in_dims=dims)(*tensors) for f in (everything, theirs_of_everything))
    torch.testing.assert_close(ours, theirs)


def test_the_inner_op_under_vmap_and_grad():
    op = torch.ops.convt.forward_epilogue
    shared = (2, 2), (0, 0), (0, 0), 1, (1, 1), "mul(operand),tanh", [0.0] * 4
    input, weight, _, channel, _ = arguments()
    many = torch.stack([channel.flatten(), 2 * channel.flatten()])
    ours = torch.vmap(lambda c: op(input, weight, None, *shared, [c]))(many)
    torch.testing.assert_close(ours[1], (F.conv_transpose2d(input, weight, stride=2) * 2 * channel).tanh())
    actual = torch.func.grad(lambda c: op(input, weight, None, *shared, [c]).sum())(channel.flatten())
    expected = torch.func.grad(lambda c: (F.conv_transpose2d(input, weight, stride=2) * c).tanh().sum())(channel)
    torch.testing.assert_close(actual, expected.flatten())


@pytest.mark.parametrize("to", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(backend, to):
    tensors = [tensor.float() for tensor in arguments()]
    with torch.autocast("cpu", dtype=to):
        ours = everything(*(tensor.requires_grad_() for tensor in tensors))
        plain = F.conv_transpose2d(*tensors[:3], stride=2)
    assert ours.dtype is plain.dtype is to
    expected = theirs_of_everything(*(tensor.to(to) for tensor in tensors))
    torch.testing.assert_close(ours, expected, rtol=3e-2, atol=3e-2)
    for grad, tensor in zip(torch.autograd.grad(ours.sum(), tensors), tensors, strict=True):
        assert grad.dtype is tensor.dtype and grad.isfinite().all()


@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize("grad", (False, True))
def test_compiles_whole(dynamic, grad):
    torch._dynamo.reset()
    seen = []

    def keep(gm, _):
        seen.append([node.target.name() for node in gm.graph.nodes if "convt" in str(node.target)])
        return gm

    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    backend = aot_autograd(fw_compiler=lambda gm, x: make_boxed_func(keep(gm, x)))
    compiled = torch.compile(everything, backend=backend, fullgraph=True, dynamic=dynamic)
    for width in (5, 7):  # unlike every other extent: equal ones are one symbol
        tensors = arguments()
        tensors[0], tensors[4] = torch.randn(2, 2, 4, width).double(), torch.randn(2, 3, 8, 2 * width).double()
        tensors = [tensor.requires_grad_(grad) for tensor in tensors]
        torch.testing.assert_close(compiled(*tensors), everything(*tensors))
        if grad:
            results = [torch.autograd.grad(f(*tensors).square().sum(), tensors) for f in (compiled, everything)]
            torch.testing.assert_close(*results)
    if not grad:
        assert seen == [["convt::forward_epilogue"]] * (1 if dynamic else 2)
    else:
        assert seen[0] == ["convt::forward"], "with gradients the partitioner decides what to save"
    torch._dynamo.reset()


def test_compiled_autograd():
    """The backward pass is one graph: a recomputed convolution, pointwise derivatives, the operators."""
    from torch._dynamo import compiled_autograd

    torch._dynamo.reset()
    tensors = [tensor.requires_grad_() for tensor in arguments()]
    expected = torch.autograd.grad(everything(*tensors).square().sum(), tensors)
    enable = getattr(compiled_autograd, "_enable", None) or compiled_autograd.enable
    with enable(torch.compile(backend="aot_eager", fullgraph=True)):
        everything(*tensors).square().sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in tensors], list(expected))
    torch._dynamo.reset()


def test_make_fx_and_fake_tensors():
    tensors = arguments()
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(everything, tracing_mode=mode)(*tensors)
        assert sum("convt.forward_epilogue" in str(node.target) for node in graph.graph.nodes) == 1
        torch.testing.assert_close(graph(*tensors), everything(*tensors))
    channels_last = [t.float().to(memory_format=torch.channels_last) if t.dim() == 4 else t.float() for t in tensors]
    with torch._subclasses.FakeTensorMode() as fakes:
        fake = everything(*map(fakes.from_tensor, channels_last))
    real = everything(*channels_last)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_a_trace_records_the_op():
    tensors = arguments()
    traced = torch.jit.trace(everything, tensors)
    assert "convt::conv_transpose_epilogue" in str(traced.graph)
    again = [tensor + 1 for tensor in tensors]
    torch.testing.assert_close(traced(*again), everything(*again))


def test_opcheck():
    input, weight, bias, channel, residual = (tensor.float() for tensor in arguments())
    shared = [2, 2], [0, 0], [0, 0], 1, [1, 1], "mul(operand),add(operand),relu", [0.0] * 6
    leaves_ = [tensor.requires_grad_() for tensor in (input, weight, bias)]
    operands = [channel.flatten().requires_grad_(), residual.requires_grad_()]
    torch.library.opcheck(torch.ops.convt.forward_epilogue.default, (*leaves_, *shared, operands))


def test_wrapped_tensors_see_operations_they_know():
    """A subclass with rules of its own gets convt::forward and ATen's pointwise operations."""
    from torch.testing._internal.two_tensor import TwoTensor

    tensors = arguments()
    pairs = [TwoTensor(tensor, tensor.clone()) for tensor in tensors]
    with Counted() as counted:
        output = everything(*pairs)
    torch.testing.assert_close(output.a, everything(*tensors))
    torch.testing.assert_close(output.b, output.a)
    assert set(counted.ours) == {"forward"}


def test_checkpoint_and_modules_of_functions(backend):
    tensors = [tensor.requires_grad_() for tensor in arguments()]
    again = copy.deepcopy(tensors)
    output = torch.utils.checkpoint.checkpoint(everything, *tensors, use_reentrant=False)
    torch.testing.assert_close(
        torch.autograd.grad(output.sum(), tensors), torch.autograd.grad(theirs_of_everything(*again).sum(), again)
    )
