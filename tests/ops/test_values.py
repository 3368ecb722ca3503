"""Results and gradients against the float64 definition: dtypes, strides of the operands, edge sizes, NaN and Inf."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import convt
from reference import CASES, assert_accurate, case, conv_transpose, results, torch_results

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OURS = {1: convt.conv_transpose1d, 2: convt.conv_transpose2d, 3: convt.conv_transpose3d}
THEIRS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def compare(problem, tensors, grad_output):
    keywords = problem.keywords
    exact = results(conv_transpose, [tensor.double() for tensor in tensors], grad_output, **keywords)
    theirs = torch_results(THEIRS[problem.rank], tensors, grad_output, **keywords)
    for call in ("first", "second"):  # the eager entry answers from the second call on
        ours = results(OURS[problem.rank], tensors, grad_output, **keywords)
        labels = "output", "input", "weight", "bias"
        for label, actual, expected, rival in zip(labels, ours, exact, theirs, strict=True):
            assert_accurate(actual, expected, rival, f"{problem.name} {label}, {call} call")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_output_and_gradients(backend, problem, dtype):
    tensors = problem.tensors(dtype)
    shape = conv_transpose(*tensors, **problem.keywords).shape
    compare(problem, tensors, torch.randn(shape).to(dtype))


@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_without_bias_and_without_gradients(backend, problem):
    input, weight, _ = problem.tensors(torch.float32)
    exact = conv_transpose(input, weight, **problem.keywords)
    actual = OURS[problem.rank](input, weight, **problem.keywords)
    assert not actual.requires_grad
    assert_accurate(actual, exact, THEIRS[problem.rank](input, weight, **problem.keywords))


def every_other(tensor):
    """The same values with a stride of 2 elements along the last axis, between NaN."""
    wide = tensor.new_full((*tensor.shape, 2), float("nan"))
    wide[..., 0] = tensor
    return wide[..., 0]


def reversed_axes(tensor):
    return tensor.permute(*range(tensor.dim() - 1, -1, -1)).contiguous().permute(*range(tensor.dim() - 1, -1, -1))


def offset(tensor):
    """Contiguous, but starting one element into its storage."""
    return torch.cat([tensor.new_full((1,), float("nan")), tensor.flatten()])[1:].view(tensor.shape)


def channels_last(tensor):
    return torch.movedim(torch.movedim(tensor, 1, -1).contiguous(), -1, 1) if tensor.dim() > 2 else tensor


@pytest.mark.parametrize("layout", (every_other, reversed_axes, offset, channels_last))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_any_strides(backend, problem, dtype, layout):
    tensors = [layout(tensor) for tensor in problem.tensors(dtype)]
    exact = conv_transpose(*tensors, **problem.keywords)
    grad_output = layout(torch.randn(exact.shape).to(dtype))
    compare(problem, tensors, grad_output)


@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_expanded_operands_and_gradient(backend, problem):
    """Stride 0 everywhere: what .sum().backward() hands to the backward pass."""
    input, weight, bias = problem.tensors(torch.float32)
    tensors = [input[:1, :1].expand(input.shape), weight[:, :1].expand(weight.shape), bias[:1].expand(bias.shape)]
    shape = conv_transpose(*tensors, **problem.keywords).shape
    compare(problem, tensors, torch.tensor(0.5).expand(shape))


@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_unbatched(backend, problem):
    input, weight, bias = problem.tensors(torch.float32, grad=True)
    function = OURS[problem.rank]
    single = function(input[0], weight, bias, **problem.keywords)
    batched = function(input[:1], weight, bias, **problem.keywords)[0]
    assert torch.equal(single, batched)
    grad = torch.randn_like(single)
    for one, other in zip(
        torch.autograd.grad(single, (input, weight, bias), grad),
        torch.autograd.grad(batched, (input, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_empty_batch(backend, problem, dtype):
    input, weight, bias = (tensor.requires_grad_() for tensor in problem.tensors(dtype))
    empty = input.detach()[:0].requires_grad_()
    output = OURS[problem.rank](empty, weight, bias, **problem.keywords)
    assert output.shape == (0, *conv_transpose(input, weight, **problem.keywords).shape[1:])
    grads = torch.autograd.grad(output, (empty, weight, bias), torch.empty_like(output))
    assert [grad.shape for grad in grads] == [empty.shape, weight.shape, bias.shape]
    assert not grads[1].any() and not grads[2].any()


def test_empty_batch_of_empty_pixels(backend):
    """Legal in PyTorch, so here: the output size is what the formula gives."""
    input, weight = torch.empty(0, 4, 0, 5, requires_grad=True), torch.randn(4, 6, 3, 3, requires_grad=True)
    output = convt.conv_transpose2d(input, weight)
    assert output.shape == F.conv_transpose2d(input, weight).shape
    grads = torch.autograd.grad(output.sum(), (input, weight))
    assert grads[0].shape == input.shape and not grads[1].any()


@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", range(4), ids=("input", "weight", "bias", "grad_output"))
def test_nan_and_inf_propagate(backend, where, dtype, value):
    """One bad element reaches every result that the definition says, as the right NaN or Inf, and none that it spares.

    Beyond the definition ATen's gradients also multiply the bad element by cropped outputs, zeros that are not there:
    such results may be NaN here as there.
    """
    problem = case("", (2, 4, 4, 4), (4, 2, 3, 3), stride=2, padding=1, groups=2)
    operands = problem.tensors(dtype)
    operands.append(torch.randn(conv_transpose(*operands, **problem.keywords).shape).to(dtype))
    marked = [torch.ones(tensor.shape, dtype=torch.float64) for tensor in operands]
    marked[where].zero_().view(-1)[operands[where].numel() // 2] = 1
    plain = [torch.ones(tensor.shape, dtype=torch.float64) for tensor in operands]
    plain[where].zero_()
    operands[where].view(-1)[operands[where].numel() // 2] = value

    reached = results(conv_transpose, marked[:3], marked[3], **problem.keywords)
    baseline = results(conv_transpose, plain[:3], plain[3], **problem.keywords)
    exact = results(conv_transpose, [tensor.double() for tensor in operands[:3]], operands[3], **problem.keywords)
    theirs = torch_results(F.conv_transpose2d, operands[:3], operands[3], **problem.keywords)
    actual = results(OURS[2], operands[:3], operands[3], **problem.keywords)
    for ours, rival, expected, with_it, without in zip(actual, theirs, exact, reached, baseline, strict=True):
        must = with_it != without
        assert torch.equal(ours[must].double(), expected[must]) or ours[must].isnan().equal(expected[must].isnan())
        assert not ours[must].isfinite().any()
        assert ours[rival.isfinite()].isfinite().all()


def test_frozen_tensors_cost_nothing(backend, monkeypatch):
    """Only the gradients that are asked for are computed."""
    from convt import operators

    ran = []
    for name in ("grad_input", "grad_weight", "grad_bias"):
        original = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *a, f=original, n=name: (ran.append(n), f(*a))[1])
    input, weight, bias = CASES[4].tensors()
    for wanted, expected in ((input, ["grad_input"]), (weight, ["grad_weight"])):
        ran.clear()
        wanted.requires_grad_()
        torch.ops.convt.conv_transpose2d(input, weight, bias, *CASES[4].geometry).sum().backward()
        wanted.requires_grad_(False)
        assert ran == expected


@pytest.mark.parametrize("layout", (torch.Tensor.contiguous, channels_last), ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("extent", (1, 9))
def test_atens_weight_gradient_is_told_of_a_weight_without_its_memory(monkeypatch, layout, extent):
    """Of the weight ATen reads sizes and strides: memory of its size would count in the peak of a training step."""
    from convt import operators

    told = []

    def spy(grad_output, input, weight, *rest):
        operands = {tensor.untyped_storage().data_ptr() for tensor in (grad_output, input)}
        told.append((weight.shape, weight.stride(), weight.untyped_storage().data_ptr() in operands))
        return real(grad_output, input, weight, *rest)

    real = operators._convolution_backward
    monkeypatch.setattr(operators, "_convolution_backward", spy)
    problem = case("", (2, 6, extent, extent), (6, 4, 3, 3), stride=2)
    input, weight, bias = problem.tensors(torch.float32)
    leaf = layout(weight).requires_grad_()
    with convt.backend("aten"):
        output = convt.conv_transpose2d(layout(input), leaf, bias, **problem.keywords)
        grad_output = torch.randn_like(output)
        (actual,) = torch.autograd.grad(output, leaf, grad_output)
    doubles = weight.double().requires_grad_()
    wide = conv_transpose(input.double(), doubles, bias.double(), **problem.keywords)
    (expected,) = torch.autograd.grad(wide, doubles, grad_output.double())
    assert told == [(weight.shape, leaf.stride(), extent == 9)]  # operands of one pixel are smaller than the weight
    torch.testing.assert_close(actual, expected.float())


@pytest.mark.parametrize("name", ("aten", "auto", "native"))
@pytest.mark.parametrize(
    "problem",
    (
        case("3d", (2, 3, 1, 32, 1), (3, 16, 3, 3, 3), stride=2, padding=1),
        case("3d-uneven", (1, 2, 3, 1, 4), (2, 3, 2, 3, 3), stride=(3, 2, 1), padding=(0, 1, 0)),
        case("2d", (2, 5, 16, 1), (5, 2, 2, 3), stride=(3, 2), padding=1),
        case("1d", (2, 2, 1), (2, 16, 4), stride=3, padding=1),
        case("2d-wide", (1, 64, 3, 31), (64, 2, 3, 3), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=4),
        case("3d-ordinary", (4, 5, 2, 5, 7), (5, 16, 4, 1, 3), stride=(1, 3, 1), padding=(1, 0, 1)),
        case("2d-sound", (2, 3, 8, 9), (3, 16, 4, 4), stride=2, padding=1),
    ),
    ids=lambda p: p.name,
)
def test_bfloat16_weight_gradient_is_defined(name, problem):
    """ATen's is not: it touches memory beyond its own (torch 2.13). Even a forced "aten" must not bring it back."""
    for seed in range(8):
        input, weight, _ = problem.tensors(torch.bfloat16, seed)
        for layout in (torch.Tensor.contiguous, channels_last):
            operand = layout(input)
            doubles = weight.double().requires_grad_()
            output = conv_transpose(operand, doubles, **problem.keywords)
            grad_output = layout(torch.randn(output.shape).bfloat16())
            (expected,) = torch.autograd.grad(output, doubles, grad_output.double())
            with convt.backend(name):
                leaf = weight.clone().requires_grad_()
                for _ in range(3):  # the eager entry answers from the second call on
                    output = OURS[problem.rank](operand, leaf, **problem.keywords)
                    (actual,) = torch.autograd.grad(output, leaf, grad_output)
                    assert_accurate(actual, expected, expected.bfloat16(), f"{name}, seed {seed}")


def test_negated_views(backend):
    """A lazily negated tensor (the imaginary part of a conjugate) is resolved before native code reads memory."""
    z = torch.randn(2, 3, 4, 4, dtype=torch.complex64)
    input, weight = z.conj().imag, torch.randn(3, 2, 3, 3)
    assert input.is_neg()
    torch.testing.assert_close(
        convt.conv_transpose2d(input, weight), -convt.conv_transpose2d(z.imag.contiguous(), weight)
    )
    grad = torch.autograd.grad(
        convt.conv_transpose2d(z.imag, weight.requires_grad_()), weight, input.new_ones(2, 2, 6, 6)
    )
    back = torch.autograd.grad(convt.conv_transpose2d(input, weight), weight, input.new_ones(2, 2, 6, 6))
    torch.testing.assert_close(grad[0], -back[0])


def test_inference_mode(backend):
    input, weight, bias = CASES[4].tensors(torch.float32)
    expected = convt.conv_transpose2d(input, weight, bias, **CASES[4].keywords)
    with torch.inference_mode():
        actual = convt.conv_transpose2d(input, weight, bias, **CASES[4].keywords)
        assert actual.is_inference()
        again = convt.conv_transpose2d(actual, weight.transpose(0, 1).contiguous())
    assert torch.equal(actual, expected)
    assert torch.equal(again, convt.conv_transpose2d(expected, weight.transpose(0, 1).contiguous()))


def test_backward_sees_the_backend_of_its_own_time(monkeypatch):
    """The setting is the process's: it holds in autograd's threads, whatever held in the forward pass."""
    from convt import _C

    calls = []
    for name in ("forward", "grad_weight"):
        original = getattr(_C, name)
        monkeypatch.setattr(_C, name, lambda *a, f=original, n=name: (calls.append(n), f(*a))[1])
    input, weight, _ = CASES[4].tensors(grad=True)
    with convt.backend("aten"):
        output = torch.ops.convt.conv_transpose2d(input.detach(), weight)
    with convt.backend("native"):
        output.sum().backward()
    assert calls == ["grad_weight"]
