"""Epilogues of eager calls: every operation, operand, layout and backend against float64, and errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import convt
from convt import _C, epilogue, functional
from epilogues import OPERATIONS, leaves
from reference import CASES, assert_accurate, conv_transpose

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def quick(one_thread):
    """All of these are small."""


def call(problem, tensors, steps):
    function = getattr(convt, f"conv_transpose{problem.rank}d")
    return function(*tensors, **problem.keywords, epilogue=steps)


def test_the_operations_are_the_kernels():
    assert list(epilogue.OPERATIONS) == list(OPERATIONS)
    assert sorted(epilogue.OPERATIONS) == sorted(_C.epilogue_operations())


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(backend, name, dtype):
    step, theirs = OPERATIONS[name]
    problem = CASES[5]
    tensors = problem.tensors(dtype)
    actual = call(problem, tensors, [step])
    plain = getattr(F, f"conv_transpose{problem.rank}d")(*tensors, **problem.keywords)
    assert_accurate(actual, theirs(conv_transpose(*tensors, **problem.keywords)), theirs(plain))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_programs_on_every_problem(backend, problem, dtype):
    tensors = problem.tensors(dtype)
    double = conv_transpose(*tensors, **problem.keywords)
    channel = torch.rand(problem.out_channels, *(1,) * problem.rank).to(dtype) + 0.5
    residual = torch.randn(double.shape).to(dtype)

    def theirs(y, channel, residual):
        return F.leaky_relu(F.silu(y * channel) + residual, 0.1).clamp(max=2)

    steps = [("mul", channel), "silu", ("add", residual), ("leaky_relu", 0.1), ("clamp", None, 2)]
    actual = call(problem, tensors, steps)
    plain = getattr(F, f"conv_transpose{problem.rank}d")(*tensors, **problem.keywords)
    exact = theirs(double, channel.double(), residual.double())
    assert_accurate(actual, exact, theirs(plain, channel, residual))
    assert actual.stride() == getattr(convt, f"conv_transpose{problem.rank}d")(*tensors, **problem.keywords).stride()


def test_rounded_once(native):
    """In bfloat16 steps work on the accumulator: what PyTorch rounds away in between is kept."""
    input, weight = torch.full((1, 1, 4, 4), 1.0).bfloat16(), torch.ones(1, 1, 1, 1).bfloat16()
    steps = [("add", 1 / 512), ("sub", 1), ("mul", 512)]
    assert (convt.conv_transpose2d(input, weight, epilogue=steps) == 1).all()
    assert (((F.conv_transpose2d(input, weight) + 1 / 512) - 1) * 512 == 0).all()


SHAPES = [(), (1,), (4, 1, 1), (1, 4, 1, 1), (2, 4, 7, 9), (2, 4, 1, 1), (7, 9), (9,), (1, 1, 7, 1), (2, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", epilogue.ARITHMETIC)
def test_operands_broadcast(backend, name, shape):
    input, weight, operand = torch.randn(2, 3, 3, 4), torch.randn(3, 4, 3, 3), torch.rand(shape) + 0.5
    operand.requires_grad_()
    ours = convt.conv_transpose2d(input, weight, stride=2, epilogue=[(name, operand), "tanh"])
    theirs = getattr(torch, name)(F.conv_transpose2d(input, weight, stride=2), operand).tanh()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), operand)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
    if len(shape) < 4:
        single = convt.conv_transpose2d(input[0], weight, stride=2, epilogue=[(name, operand.detach()), "tanh"])
        plain = F.conv_transpose2d(input[0], weight, stride=2)
        if torch.broadcast_shapes(plain.shape, shape) == plain.shape:
            expected = getattr(torch, name)(plain, operand.detach()).tanh()
            torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-5)


def test_operands_of_other_dtypes(backend):
    """float32 operands of a 16-bit result are used as they are; tensors without axes may be anything but complex."""
    input, weight = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(3, 4, 3, 3).bfloat16()
    scale = torch.rand(4, 1, 1) + 0.5
    ours = convt.conv_transpose2d(input, weight, epilogue=[("mul", scale), ("add", torch.tensor(2, dtype=torch.int64))])
    theirs = F.conv_transpose2d(input, weight)
    exact = conv_transpose(input, weight) * scale.double() + 2
    assert_accurate(ours, exact, theirs * scale.bfloat16() + 2)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_layouts(backend, layout):
    input, weight = torch.randn(2, 8, 5, 6).to(memory_format=layout), torch.randn(8, 4, 3, 3)
    residual = torch.randn(2, 4, 11, 13).transpose(2, 3).contiguous().transpose(2, 3)
    ours = convt.conv_transpose2d(input, weight, stride=2, epilogue=[("add", residual), "relu"])
    plain = convt.conv_transpose2d(input, weight, stride=2)
    assert ours.stride() == plain.stride()
    torch.testing.assert_close(ours, (plain + residual).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ("relu", "clamp", "leaky_relu", "hardswish", "mul"))
def test_not_a_number_and_infinity(backend, name):
    """As in PyTorch: NaN stays NaN, also through relu and clamp."""
    step, theirs = OPERATIONS[name]
    input = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0]).reshape(1, 1, 6)
    weight = torch.ones(1, 1, 1)
    torch.testing.assert_close(
        convt.conv_transpose1d(input, weight, epilogue=[step]), theirs(input), equal_nan=True, rtol=0, atol=0
    )


def test_empty_batch_and_no_steps(backend):
    weight = torch.randn(3, 4, 3, 3)
    empty = convt.conv_transpose2d(torch.randn(0, 3, 4, 4), weight, epilogue=["relu", ("add", torch.ones(4, 1, 1))])
    assert empty.shape == (0, 4, 6, 6)
    input = torch.randn(1, 3, 4, 4)
    assert torch.equal(
        convt.conv_transpose2d(input, weight, epilogue=[]), convt.conv_transpose2d(input, weight, epilogue=None)
    )


# ---- errors ------------------------------------------------------------------------------------------------------

WRONG = [
    ("relu", TypeError, r"epilogue must be a list of steps such as 'relu' or .*got 'relu' \(str\)"),
    ([1], TypeError, r"epilogue step 0 must be a name or a tuple that starts with one, got 1"),
    (["relu", "swish"], ValueError, r"epilogue step 1 is 'swish'; legal: add, sub, mul"),
    ([("relu", 1)], ValueError, r"step 0 \('relu'\) got 1 arguments \(1,\); it takes none"),
    ([("leaky_relu", 1, 2)], ValueError, r"step 0 \('leaky_relu'\) got 2 .* at most one, negative_slope"),
    (["add"], ValueError, r"step 0 \('add'\) got 0 arguments \(\); it takes one, a number or a Tensor"),
    ([("clamp", 0, "6")], TypeError, r"step 0 \('clamp'\): expected a number, got '6' \(str\)"),
    ([("mul", True)], TypeError, r"step 0 \('mul'\): expected a number, got True"),
    ([("gelu", "erf")], ValueError, r"step 0 \('gelu'\): approximate must be 'none' or 'tanh', got \['erf'\]"),
    (["relu"] * 9, ValueError, r"epilogue has 9 steps; at most 8 are legal"),
    ([("add", torch.ones(()))] * 5, ValueError, r"epilogue has 5 tensor operands; at most 4 are legal"),
    ([("add", torch.ones(4))], RuntimeError, r"operand of shape \(4,\) does not broadcast .*reshape\(-1, 1, 1\)"),
    ([("add", torch.ones(1, 2, 4, 9, 9))], RuntimeError, r"\(1, 2, 4, 9, 9\) does not broadcast to .*\(2, 4, 9, 9\)"),
    ([("add", torch.ones(3, 1, 1))], RuntimeError, r"step 0 \('add'\): operand of shape \(3, 1, 1\) does not"),
    ([("add", torch.ones(4, 1, 1).double())], RuntimeError, r"dtype torch.float64; legal: torch.float32, or a tensor"),
    ([("add", torch.ones(4, 1, 1).int())], RuntimeError, r"operand has dtype torch.int32"),
    ([("add", torch.ones(4, 1, 1, device="meta"))], RuntimeError, r"operand is on meta but the output is on cpu"),
]


@pytest.mark.parametrize(("steps", "kind", "message"), WRONG, ids=lambda v: str(v)[:40] if isinstance(v, list) else "")
def test_errors_name_step_and_what_is_legal(steps, kind, message):
    input, weight = torch.randn(2, 3, 4, 4), torch.randn(3, 4, 3, 3)
    with pytest.raises(kind, match="conv_transpose2d: .*" + message):
        convt.conv_transpose2d(input, weight, stride=2, epilogue=steps)


def test_errors_of_the_convolution_are_those_without_an_epilogue():
    for tensors in (
        (torch.randn(2, 3, 4), torch.randn(3, 4, 3)),
        (torch.randn(2, 2, 4, 4), torch.randn(3, 4, 3, 3)),
        (torch.randn(2, 3, 4, 4), torch.randn(3, 4, 3, 3), torch.randn(3)),
        (torch.randn(2, 3, 4, 4), torch.randn(3, 4, 3, 3).double()),
        (None, torch.randn(3, 4, 3, 3)),
    ):
        with pytest.raises((RuntimeError, TypeError)) as expected:
            convt.conv_transpose2d(*tensors)
        with pytest.raises(type(expected.value)) as actual:
            convt.conv_transpose2d(*tensors, epilogue=["relu"])
        assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (("relu,relu", [0.0, 0.0], []), r"needs 4 scalars and 0 operands, got 2 and 0"),
        (("add(operand)", [0.0, 0.0], []), r"needs 2 scalars and 1 operands, got 2 and 0"),
        (("relu(operand)", [0.0, 0.0], [torch.ones(4)]), r"step 0 is 'relu\(operand\)'; legal: add, sub, mul, div"),
        (("swish", [0.0, 0.0], []), r"step 0 is 'swish'; legal: add"),
        (("add(operand)", [0.0, 0.0], [torch.ones(3)]), r"step 0 \('add'\): operand must have shape \(4,\) or \(2, 4"),
    ],
)
def test_the_inner_op_checks_programs(program, message):
    input, weight = torch.randn(2, 3, 4, 4), torch.randn(3, 4, 3, 3)
    geometry = (1, 1), (0, 0), (0, 0), 1, (1, 1)
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.convt.forward_epilogue(input, weight, None, *geometry, *program)


# ---- on a GPU that is not there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
def test_launches_have_the_operands_pointers_and_strides(player, problem, dtype):
    """One launch for the whole program, over operands where they are: per channel, full in any layout, expanded."""
    tensors = problem.tensors(dtype)
    exact = conv_transpose(*tensors, **problem.keywords)
    size, axes = exact.shape, exact.dim()
    channel = torch.rand(problem.out_channels, *(1,) * problem.rank).to(dtype) + 0.5
    residual = torch.randn(*size[:2], *size[:1:-1]).to(dtype).permute(0, 1, *range(axes - 1, 1, -1))
    row = torch.randn(size[0], 1, *size[2:-1], 1).float()[..., :1]
    steps = [("mul", channel), ("add", residual), "silu", ("sub", row.to(dtype)), ("div", 2), ("clamp", -1, 1)]
    with convt.backend("native"):
        function = getattr(functional, f"_conv_transpose{problem.rank}d")
        output = function(*tensors, **problem.keywords, epilogue=steps)
    (launch,) = player.ran
    assert launch.operator == "forward"
    exact = ((F.silu(exact * channel.double() + residual.double()) - row.to(dtype).double()) / 2).clamp(-1, 1)
    torch.testing.assert_close(output, exact.to(dtype))


def test_derivatives_on_a_gpu_come_from_its_kernels(player):
    tensors = [tensor.requires_grad_() for tensor in leaves()]
    with convt.backend("native"):
        output = functional._conv_transpose2d(*tensors, stride=2, epilogue=["mish", ("mul", 2)])
        grads = torch.autograd.grad(output.square().sum(), tensors)
    assert [launch.operator for launch in player.ran] == ["forward", "forward", "grad_input", "grad_weight"]
    expected = (2 * F.mish(F.conv_transpose2d(*tensors, stride=2))).square().sum()
    torch.testing.assert_close(grads, torch.autograd.grad(expected, tensors))


# ---- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_on_a_gpu(backend, problem, dtype):
    tensors = [tensor.cuda().requires_grad_() for tensor in problem.tensors(dtype)]
    plain = [tensor.detach().requires_grad_() for tensor in tensors]
    channel = (torch.rand(problem.out_channels, *(1,) * problem.rank).to(dtype) + 0.5).cuda()
    name = f"conv_transpose{problem.rank}d"
    with convt.precision("ieee"), convt.settings.cudnn_precision("ieee"):
        y = getattr(F, name)(*plain, **problem.keywords)
        residual = torch.randn_like(y)
        steps = [("mul", channel), "gelu", ("add", residual), ("leaky_relu", 0.1), ("add", torch.tensor(0.5))]
        ours = call(problem, tensors, steps)
        theirs = F.leaky_relu(F.gelu(y * channel) + residual, 0.1) + 0.5
        cotangent = torch.randn_like(theirs)
        grads = torch.autograd.grad(ours, tensors, cotangent), torch.autograd.grad(theirs, plain, cotangent)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype is torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    torch.testing.assert_close(ours, theirs, **tolerance)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance["rtol"], atol=tolerance["atol"] * max(1, b.abs().max().item()))
