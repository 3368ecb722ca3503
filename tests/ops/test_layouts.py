"""Memory formats: the result's strides are PyTorch's, and the fake's to the number."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import convt
from convt.operators import is_channels_last
from reference import CASES

FORMATS = ("contiguous", "channels_last")
OURS = {1: convt.conv_transpose1d, 2: convt.conv_transpose2d, 3: convt.conv_transpose3d}


def laid_out(tensor, layout):
    if layout == "contiguous" or tensor.dim() < 4:
        return tensor.contiguous()
    return tensor.to(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


@pytest.mark.parametrize("shape", list(itertools.product((0, 1, 2), (1, 3), (1, 4), (1, 5))), ids=str)
def test_rule_is_suggest_memory_format(shape):
    """Against PyTorch's, over contiguous, channels_last, sliced, expanded and permuted tensors with extents of one."""
    dense = torch.empty(shape)
    variants = [dense, dense.to(memory_format=torch.channels_last), torch.empty(shape[0], *[n + 1 for n in shape[1:]])]
    variants[2] = variants[2][:, : shape[1], : shape[2], : shape[3]]
    variants += [dense[:, :1].expand(shape), dense[..., :1].expand(shape), dense.transpose(2, 3), dense.transpose(1, 3)]
    variants += [torch.empty(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2), dense.transpose(0, 1)]
    for tensor in variants:
        expected = torch._prims_common.suggest_memory_format(tensor) is torch.channels_last
        assert is_channels_last(torch.float32, (tensor.shape, tensor.stride())) == expected, tensor.stride()


@pytest.mark.parametrize("problem", [c for c in CASES if c.rank > 1], ids=lambda p: p.name)
@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, FORMATS)), ids="-".join)
def test_strides_are_torchs(backend, problem, formats):
    """In bfloat16, where ATen's CPU code for every problem follows its own rule."""
    input, weight, bias = problem.tensors(torch.bfloat16)
    input, weight = laid_out(input, formats[0]), laid_out(weight, formats[1])
    ours = OURS[problem.rank](input, weight, bias, **problem.keywords)
    theirs = getattr(F, f"conv_transpose{problem.rank}d")(input, weight, bias, **problem.keywords)
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_strides_are_torchs_in_other_dtypes(backend, dtype):
    """Where ATen leaves its rule (its fallback code: contiguous in 3-D, channels_last in 2-D float64), we do not."""
    for rank, layout in ((2, torch.channels_last), (3, torch.channels_last_3d)):
        input = torch.randn(4, 16, *(8,) * rank, dtype=dtype).to(memory_format=layout)
        weight = torch.randn(16, 16, *(3,) * rank, dtype=dtype)
        ours = OURS[rank](input, weight)
        assert ours.is_contiguous(memory_format=layout)
        if dtype is torch.float32:
            assert ours.stride() == getattr(F, f"conv_transpose{rank}d")(input, weight).stride()
        assert OURS[rank](input.double(), weight.double()).is_contiguous()


@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, FORMATS, FORMATS)), ids="-".join)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_fake_strides_are_real_strides(backend, problem, formats, dtype):
    tensors = [laid_out(tensor, layout) for tensor, layout in zip(problem.tensors(dtype), formats, strict=False)]
    shared = problem.geometry
    ops = torch.ops.convt

    def run(input, weight, bias):
        output = ops.forward(input, weight, bias, *shared)
        grad = laid_out(torch.empty_like(output), formats[2])
        return [
            output,
            getattr(ops, f"conv_transpose{problem.rank}d")(input, weight, bias, *shared),
            *(ops.grad_input(grad, weight, *shared, channels_last) for channels_last in (False, True)),
            *(
                ops.grad_weight(grad, input, weight.shape[2:], *shared, channels_last)
                for channels_last in (False, True)
            ),
            ops.grad_bias(grad),
        ]

    real = run(*tensors)
    with FakeTensorMode() as mode:
        fake = run(*(mode.from_tensor(tensor) for tensor in tensors))
    meta = run(*(tensor.to("meta") for tensor in tensors))
    for a, b, c in zip(real, fake, meta, strict=True):
        assert a.shape == b.shape == c.shape
        assert a.stride() == b.stride() == c.stride()
        assert a.dtype == b.dtype == c.dtype
        assert b.device == a.device


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_gradients_keep_the_layout(backend, dtype):
    """channels_last gradients for channels_last tensors, except in float64, which PyTorch keeps contiguous too."""
    input = torch.randn(2, 4, 5, 6, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, dtype=dtype).requires_grad_()
    output = convt.conv_transpose2d(input, weight)
    for grad in torch.autograd.grad(output, (input, weight), torch.randn_like(output)):
        assert grad.is_contiguous(memory_format=torch.channels_last) == (dtype is torch.float32)
