"""The CUDA-core kernels, their own functions run thread by thread on the host, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convt import _C
from convt.problem import Problem
from direct import ADVERSARIAL, DTYPES, INPUTS, exact, laid_out, problem, problems

FAMILIES = ("simt", "depthwise")
quiet = settings(deadline=None, derandomize=True)


def run(family: str, p: Problem, dtype=torch.float32, layouts=("contiguous",) * 3, bias=True, seed=0, **options):
    """Runs the kernel and compares; returns what its plan says."""
    generator = torch.Generator().manual_seed(seed)
    shapes = p.input_size, p.weight_size, (p.out_channels,)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    input, weight = laid_out(made[0], layouts[0]), laid_out(made[1], layouts[1])
    constant = made[2] if bias else None
    output = laid_out(torch.full(p.output_size, float("nan"), dtype=dtype), layouts[2])
    told = _C.run_direct(family, input, weight, constant, output, *p.geometry, **options)
    truth = exact(p, input, weight, constant)
    # Every sum is at most this large; 16-bit results round once more.
    scale = exact(p, input.abs(), weight.abs(), None if constant is None else constant.abs())
    eps = 2.0**-52 if dtype is torch.float64 else 2.0**-23
    terms = 4 + (p.in_channels // p.groups * p.taps) ** 0.5
    bound = terms * eps * scale + torch.finfo(dtype).eps / 2 * 1.01 * truth.abs() + torch.finfo(dtype).tiny
    assert not output.isnan().any(), told
    assert ((output.double() - truth).abs() <= bound).all(), told
    return told


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_simt(name, layout):
    run("simt", ADVERSARIAL[name], torch.float64, (layout, "contiguous", layout))
    run("simt", ADVERSARIAL[name], torch.float32, (layout, "channels_last", layout), bias=False, backwards=True)


DEPTHWISE = {
    "bilinear": problem(2, 21, 21, (9, 11), 4, 2, 1, groups=21),
    "bilinear-wide": problem(1, 3, 3, (7, 130), 4, 2, 1, groups=3),
    "bilinear-vectors": problem(2, 48, 48, (9, 5), 4, 2, 1, groups=48),
    "k16s8": problem(1, 5, 5, (6, 5), 16, 8, 4, groups=5),
    "k64s32": problem(1, 2, 2, (2, 1), 64, 32, 16, groups=2),
    "k3s1": problem(2, 16, 16, (12, 13), 3, 1, 1, groups=16),
    "k5s1-tall": problem(1, 8, 8, (70, 3), 5, 1, 2, groups=8),
    "k3s2": problem(2, 10, 10, (7, 7), 3, 2, 1, 1, groups=10),
    "k9s1": problem(1, 4, 4, (10, 11), 9, 1, 4, groups=4),
    "one-pixel": problem(3, 40, 40, (1, 1), 4, groups=40),
    "one-output": problem(2, 40, 40, (3, 3), 3, padding=2, groups=40),
    "antialias-k12s2": problem(2, 9, 9, (260,), 12, 2, 15, groups=9),
    "antialias-k24s4": problem(1, 4, 4, (600,), 24, 4, 10, groups=4),
    "1d-long": problem(1, 1, 1, (3000,), 5, 3, 2, 2),
    "1d-dilated": problem(1, 4, 4, (100,), 3, 2, 4, 1, 4, 5),
    "stride-over-filter": problem(2, 6, 6, (4, 5), 2, 5, 1, 3, groups=6),
    "gcd": problem(1, 4, 4, (6, 7), 3, (4, 6), 3, 2, 4, (6, 4)),
    "output-padding-over-stride": problem(1, 4, 4, (3, 9), (2, 3), (1, 2), 0, (2, 3), 4, (3, 4)),
    "dilated": problem(1, 8, 8, (9, 10), 3, 1, 3, groups=8, dilation=3),
    "multiplier": problem(2, 5, 15, (6, 7), 4, 2, 1, groups=5),
    "tiny-groups": problem(2, 12, 9, (6, 5), 3, 2, 1, 1, groups=3),
    "tiny-groups-4x4": problem(1, 32, 32, (5, 9), 4, 2, 1, groups=8),
    "merging": problem(1, 12, 4, (5, 6), 3, 1, 1, groups=4),
    "3d": problem(2, 6, 6, (3, 5, 7), 4, 2, 1, groups=6),
    "3d-k3": problem(1, 8, 8, (5, 4, 3), 3, (1, 2, 2), 1, (0, 1, 1), groups=8),
    "3d-gcd": problem(1, 3, 3, (3, 2, 4), (2, 3, 2), (2, 4, 3), 1, 1, 3, (2, 2, 3)),
    "crop": problem(1, 2, 2, (6, 6), 3, 2, 4, groups=2),
    "tall-1": problem(1, 2, 2, (40, 1), (4, 1), (2, 1), (1, 0), groups=2),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name, dtype):
    for layout in ("contiguous", "channels_last"):
        run("depthwise", DEPTHWISE[name], dtype, (layout, "contiguous", layout))
    run("depthwise", DEPTHWISE[name], dtype, ("channels_last", "channels_last", "contiguous"), backwards=True)
    run("depthwise", DEPTHWISE[name], dtype, ("sliced", "sliced", "channels_last"), bias=False, unaligned=True)


def test_channel_vectors_are_used_where_they_fit():
    p, last = DEPTHWISE["bilinear-vectors"], ("channels_last", "contiguous", "channels_last")
    for dtype in DTYPES:
        assert run("depthwise", p, dtype, last)["config"].startswith("vectors")
        assert run("depthwise", p, dtype, ("contiguous", "contiguous", "channels_last"))["config"].startswith(
            "channels"
        )
        assert run("depthwise", p, dtype)["config"].startswith("rows")
        run("depthwise", p, dtype, last, unaligned=True)


layouts = st.tuples(st.sampled_from(INPUTS), st.sampled_from(INPUTS[:3]), st.sampled_from(INPUTS[:2]))


@settings(quiet, max_examples=120)
@given(problems(tiny=False), st.sampled_from(DTYPES), layouts, st.booleans(), st.booleans())
def test_random_simt(p, dtype, layouts, bias, backwards):
    run("simt", p, dtype, layouts, bias, backwards=backwards)


@settings(quiet, max_examples=200)
@given(problems(tiny=True), st.sampled_from(DTYPES), layouts, st.booleans(), st.booleans())
def test_random_depthwise(p, dtype, layouts, bias, backwards):
    run("depthwise", p, dtype, layouts, bias, backwards=backwards)


@pytest.mark.parametrize("family", FAMILIES)
def test_strides_whose_products_pass_2_to_the_31(family):
    """Images and channels far apart in memory that is never touched in between."""
    p = problem(3, 2, 2, (3, 4), 3, 2, 1, groups=2)
    image = 2**30 + 7

    def far(size, channel):
        storage = torch.empty(2 * image + channel + 64, dtype=torch.bfloat16)
        return storage.as_strided(size, (image, channel, size[3], 1))

    input, output = far(p.input_size, 2**28 + 1), far(p.output_size, 2**29 + 3)
    assert output.stride(0) * 2 > 2**31
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(p.input_size, generator=generator).bfloat16()
    input.copy_(values)
    weight = torch.randn(p.weight_size, generator=generator).bfloat16()
    _C.run_direct(family, input, weight, None, output, *p.geometry)
    truth = exact(p, values, weight, None)
    assert torch.allclose(output.double(), truth, rtol=2**-7, atol=1e-5)


def test_an_output_axis_beyond_2_to_the_31_pixels_is_planned():
    length, stride = 2**21 + 3, 1024
    p = problem(1, 1, 1, (length,), 2, stride, dilation=512)
    input, weight = torch.empty(p.input_size), torch.empty(p.weight_size)
    output = torch.empty(1).expand(p.output_size)
    with pytest.raises(ValueError, match="depthwise: an axis is longer than 2\\*\\*30 pixels"):
        _C.run_direct("depthwise", input, weight, None, output, *p.geometry, dry=True)
    assert _C.run_direct("simt", input, weight, None, output, *p.geometry, dry=True)["grid"] > 0


def test_reasons():
    def refuse(p, match):
        input, weight = torch.empty(1).expand(p.input_size), torch.empty(p.weight_size)
        output = torch.empty(1).expand(p.output_size)
        with pytest.raises(ValueError, match=match):
            _C.run_direct("depthwise", input, weight, None, output, *p.geometry, dry=True)

    refuse(problem(1, 8, 8, (4, 4), 3), "a group has 8 input and 8 output channels; depthwise takes at most 4")
    refuse(problem(1, 2, 2, (4,), 3, 1100, groups=2), "the strides add up to 1102, over 1024")


def plan(family: str, p: Problem, dtype: torch.dtype, layout: str = "contiguous"):
    def untouched(size):
        strides = laid_out(torch.empty(size, device="meta"), layout).stride()
        return torch.empty_strided(size, strides, dtype=dtype)

    tensors = untouched(p.input_size), untouched(p.weight_size), None, untouched(p.output_size)
    return _C.run_direct(family, *tensors, *p.geometry, dry=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_predictions_of_depthwise_upsampling(dtype, layout):
    """Near the copy bandwidth of the H200 that plans are made for; 16-bit rows are bound by instructions."""
    told = plan("depthwise", problem(16, 256, 256, (64, 64), 4, 2, 1, groups=256), dtype, layout)
    assert told["grid"] >= 512 and told["threads"] >= 128
    slowest = 2.5 if dtype.itemsize == 2 else 1.5
    assert 1 < told["predicted_us"] / (told["bytes_predicted"] / 4.3e6) < slowest, told


def test_predictions_of_simt():
    for p in (problem(16, 64, 64, (32, 32), 4, 2, 1), problem(4, 256, 256, (64, 64), 3, 2, 1, 1)):
        told = plan("simt", p, torch.float64)
        assert 1 < told["predicted_us"] / (2 * p.macs / 34e6) < 2.8, told
    # One output pixel of many channels: many thread blocks that read the filter, each with a sum in slices.
    told = plan("simt", problem(1, 1024, 1024, (4, 4), 4, 1, 3), torch.float64)
    assert told["grid"] >= 100 and told["threads"] >= 64
    # One folded row per block of rows: no tile is computed twice.
    told = plan("depthwise", problem(4, 256, 256, (8192,), 12, 2, 15, groups=256), torch.float32)
    assert told["predicted_us"] < 2.5 * told["bytes_predicted"] / 4.3e6, told
