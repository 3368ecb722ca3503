"""The depthwise gradients of CUDA, their own functions run thread by thread on the host, against float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_direct_kernels import DEPTHWISE
from torch import Tensor

from convt import _C
from convt.problem import Problem
from direct import DTYPES, INPUTS, exact_gradient, laid_out, problem, problems

GRADIENTS = ("grad_input", "grad_weight")
quiet = settings(deadline=None, derandomize=True)


def run(op: str, p: Problem, dtype=torch.float32, layouts=("contiguous",) * 3, seed=0, **options):
    """Runs the kernel with layouts of (input, weight, grad_output) and compares; returns what its plan says."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [p.input_size, p.weight_size, p.output_size]
    made = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    result = 0 if op == "grad_input" else 1
    made[result].fill_(float("nan"))
    tensors = [laid_out(tensor, layout) for tensor, layout in zip(made, layouts, strict=True)]
    input, weight, gradient = tensors
    told = _C.run_direct("depthwise", input, weight, None, gradient, *p.geometry, operator=op, **options)
    truth = exact_gradient(op, p, *tensors)
    scale = exact_gradient(op, p, *(tensor.abs() for tensor in tensors))
    eps = 2.0**-52 if dtype is torch.float64 else 2.0**-23
    terms = p.out_channels // p.groups * p.taps if op == "grad_input" else p.batch * torch.Size(p.input).numel()
    bound = (4 + terms**0.5) * eps * scale + torch.finfo(dtype).eps / 2 * 1.01 * truth.abs() + torch.finfo(dtype).tiny
    assert not tensors[result].isnan().any(), told
    assert ((tensors[result].double() - truth).abs() <= bound).all(), told
    return told


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", GRADIENTS)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_gradient(name, op, dtype):
    p = DEPTHWISE[name]
    for layout in ("contiguous", "channels_last"):
        run(op, p, dtype, (layout, "contiguous", layout))
        run(op, p, dtype, (layout, "channels_last", layout), unaligned=True, backwards=True)
    run(op, p, dtype, ("channels_last", "channels_last", "contiguous"), backwards=True)
    run(op, p, dtype, ("contiguous", "contiguous", "channels_last"))
    run(op, p, dtype, ("sliced", "sliced", "sliced"))


layouts = st.tuples(st.sampled_from(INPUTS), st.sampled_from(INPUTS[:3]), st.sampled_from(INPUTS))


def written(layout: str) -> str:
    return "sliced" if layout == "expanded" else layout


@settings(quiet, max_examples=150)
@given(problems(tiny=True), st.sampled_from(DTYPES), layouts, st.booleans(), st.booleans())
def test_random_grad_input(p, dtype, layouts, unaligned, backwards):
    run("grad_input", p, dtype, (written(layouts[0]), *layouts[1:]), unaligned=unaligned, backwards=backwards)


@settings(quiet, max_examples=200)
@given(problems(tiny=True), st.sampled_from(DTYPES), layouts, st.booleans(), st.booleans())
def test_random_grad_weight(p, dtype, layouts, unaligned, backwards):
    run("grad_weight", p, dtype, layouts, unaligned=unaligned, backwards=backwards)


def untouched(p: Problem, dtype: torch.dtype, layout: str = "contiguous") -> list[Tensor]:
    """Memory that is planned for and never read."""
    sizes = p.input_size, p.weight_size, p.output_size
    strides = [laid_out(torch.empty(size, device="meta"), layout).stride() for size in sizes]
    strides[1] = torch.empty(sizes[1], device="meta").stride()
    return [torch.empty_strided(*both, dtype=dtype) for both in zip(sizes, strides, strict=True)]


def plan(op: str, p: Problem, dtype: torch.dtype, layout: str = "contiguous", **options):
    input, weight, output = untouched(p, dtype, layout)
    return _C.run_direct("depthwise", input, weight, None, output, *p.geometry, operator=op, dry=True, **options)


NAMED = {
    "bilinear": problem(16, 256, 256, (64, 64), 4, 2, 1, groups=256),
    "k3s1": problem(16, 256, 256, (64, 64), 3, 1, 1, groups=256),
    "k3s2": problem(16, 256, 256, (64, 64), 3, 2, 1, 1, groups=256),
    "antialias-k12s2": problem(4, 256, 256, (8192,), 12, 2, 5, groups=256),
    "antialias-k24s4": problem(4, 256, 256, (8192,), 24, 4, 10, groups=256),
    "3d": problem(2, 64, 64, (32, 32, 32), 4, 2, 1, groups=64),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", GRADIENTS)
@pytest.mark.parametrize("name", NAMED)
def test_predictions(name, op, dtype, layout):
    """Within twice the time of a copy on an H200; many taps and 16-bit types are bound by instructions."""
    told = plan(op, NAMED[name], dtype, layout)
    assert told["grid"] >= 128 and told["threads"] >= 32
    slowest = 2 if name in ("bilinear", "k3s1", "k3s2") else 4.5
    if dtype.itemsize == 2:
        slowest *= 2
    assert 1 < told["predicted_us"] / (told["bytes_predicted"] / 4.3e6) < slowest, told
    assert told["workspace_bytes"] <= told["bytes_predicted"] / 8


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_lanes_lie_the_way_that_memory_does(layout):
    lanes = "rows" if layout == "contiguous" else "channels"
    for op, p in itertools.product(GRADIENTS, NAMED.values()):
        assert plan(op, p, torch.float32, layout)["config"].startswith(lanes)


@pytest.mark.parametrize("op", GRADIENTS)
def test_what_no_tap_reaches_is_not_read_as_a_number(op):
    """Output padding leaves pixels beyond the last tap, and a stride over the filter some in between."""
    for p in (
        problem(2, 3, 3, (4, 5), 2, 3, 0, 2, groups=3),
        problem(1, 8, 8, (9, 3), 2, 3, 1, 2, groups=8),
        problem(1, 2, 2, (7,), 2, 2, 0, 1, groups=2, dilation=3),
        problem(1, 4, 4, (20,), 2, 1, 0, 4, groups=4, dilation=5),
    ):
        ones = torch.ones(p.input_size, dtype=torch.float64), torch.ones(p.weight_size, dtype=torch.float64)
        reached = torch.zeros(p.output_size, dtype=torch.float64)
        _C.run_direct("depthwise", *ones, None, reached, *p.geometry)
        assert (reached == 0).any()
        for layout in ("contiguous", "channels_last"):
            gradient = laid_out(torch.where(reached == 0, torch.nan, torch.randn(p.output_size).double()), layout)
            input, weight = laid_out(torch.randn(p.input_size).double(), layout), torch.randn(p.weight_size).double()
            truth = exact_gradient(op, p, input, weight, gradient.nan_to_num())
            result = input if op == "grad_input" else weight
            _C.run_direct("depthwise", input, weight, None, gradient, *p.geometry, operator=op)
            assert torch.allclose(result, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", GRADIENTS)
def test_strides_whose_products_pass_2_to_the_31(op):
    """Images and channels far apart in memory that is never touched in between."""
    p = problem(3, 2, 2, (3, 4), 3, 2, 1, groups=2)
    image = 2**30 + 7

    def far(size, channel, values):
        storage = torch.empty(2 * image + channel + 64, dtype=torch.bfloat16)
        return storage.as_strided(size, (image, channel, size[3], 1)).copy_(values)

    generator = torch.Generator().manual_seed(0)
    input = far(p.input_size, 2**28 + 1, torch.randn(p.input_size, generator=generator))
    gradient = far(p.output_size, 2**29 + 3, torch.randn(p.output_size, generator=generator))
    weight = torch.randn(p.weight_size, generator=generator).bfloat16()
    truth = exact_gradient(op, p, input, weight, gradient)
    _C.run_direct("depthwise", input, weight, None, gradient, *p.geometry, operator=op)
    result = input if op == "grad_input" else weight
    assert torch.allclose(result.double(), truth, rtol=2**-7, atol=1e-5)


def test_an_unaligned_call_has_room_for_its_splits():
    p = NAMED["k3s1"]
    for layout in ("contiguous", "channels_last"):
        aligned, unaligned = (plan("grad_weight", p, torch.float32, layout, unaligned=u) for u in (False, True))
        assert aligned["workspace_bytes"] == unaligned["workspace_bytes"] > 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", GRADIENTS)
def test_explanation(op, layout):
    p = NAMED["bilinear"]
    input, weight, output = untouched(p, torch.float32, layout)
    sizes = p.input_size, input.stride(), p.weight_size, weight.stride(), None, output.stride()
    made = _C.cuda_plan(op, *sizes, "float32", "ieee", *p.geometry, None, "depthwise")
    told, raw = made.explain(), plan(op, p, torch.float32, layout)
    assert made.kernel == "depthwise" and made.config == raw["config"]
    assert made.workspace_bytes == raw["workspace_bytes"] and (made.workspace_bytes > 0) == (told["split"] > 1)
    assert told["grid"] == raw["grid"] and told["predicted_us"] == pytest.approx(raw["predicted_us"])
    assert told["lanes"] == ("rows" if layout == "contiguous" else "channels")
    assert all(told["tile"][axis] >= 1 for axis in ("input_channels", "d", "h", "w"))
    assert told["predicted_us"] >= max(told["terms_us"]["issue"], told["terms_us"]["memory"])


@pytest.mark.parametrize("op", GRADIENTS)
def test_reasons(op):
    def refuse(p, match):
        input, weight, output = (torch.empty(1).expand(size) for size in (p.input_size, p.weight_size, p.output_size))
        with pytest.raises(ValueError, match=match):
            _C.run_direct("depthwise", input, weight, None, output, *p.geometry, operator=op, dry=True)

    refuse(problem(1, 8, 8, (4, 4), 3), "a group has 8 input and 8 output channels; depthwise takes at most 4")
    refuse(problem(1, 2, 2, (4,), 3, 1100, groups=2), "the strides add up to 1102, over 1024")
    refuse(problem(1, 1, 1, (2**21 + 3,), 2, 1022, dilation=512), "an axis is longer than 2\\*\\*30 pixels")
    refuse(problem(1, 2, 2, (900, 900), 600, groups=2), "no tile of it fits the shared memory of a thread block")
