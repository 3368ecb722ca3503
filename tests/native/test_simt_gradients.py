"""The gradients on CUDA cores, the kernels' own functions run thread by thread on the host, against the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convt import _C
from convt.problem import Problem
from direct import ADVERSARIAL, DTYPES, INPUTS, exact_gradient, laid_out, problem, problems

GRADIENTS = ("grad_input", "grad_weight")
PLACES = {"grad_input": 0, "grad_weight": 1}  # of the result among input, weight and output
CONTIGUOUS = ("contiguous",) * 3
quiet = settings(deadline=None, derandomize=True)


def arguments(operator: str, p: Problem, dtype: torch.dtype, layouts: tuple[str, ...]) -> list[Tensor]:
    """Input, weight and output as they lie in memory; NaN where the result goes and between elements."""
    generator = torch.Generator().manual_seed(0)
    sizes = p.input_size, p.weight_size, p.output_size
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    tensors[PLACES[operator]].fill_(float("nan"))
    return [laid_out(tensor, layout) for tensor, layout in zip(tensors, layouts, strict=True)]


def compute(operator: str, p: Problem, tensors: list[Tensor], **options):
    input, weight, output = tensors
    return _C.run_direct("simt", input, weight, None, output, *p.geometry, operator=operator, **options)


def run(operator: str, p: Problem, dtype=torch.float32, layouts=CONTIGUOUS, **options):
    """Runs the kernel and compares; returns what its plan says."""
    tensors = arguments(operator, p, dtype, layouts)
    truth = exact_gradient(operator, p, *tensors)
    # Every sum is at most this large; 16-bit results round once more.
    scale = exact_gradient(operator, p, *(tensor.abs() for tensor in tensors))
    told = compute(operator, p, tensors, **options)
    result = tensors[PLACES[operator]]
    length = p.out_channels // p.groups * p.taps
    if operator == "grad_weight":
        length = p.batch * torch.Size(p.input).numel()
    eps = 2.0**-52 if dtype is torch.float64 else 2.0**-23
    bound = (4 + length**0.5) * eps * scale + torch.finfo(dtype).eps / 2 * 1.01 * truth.abs() + torch.finfo(dtype).tiny
    assert not result.isnan().any(), told
    assert ((result.double() - truth).abs() <= bound).all(), told
    return told


@pytest.mark.parametrize("operator", GRADIENTS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_problems(name, operator):
    p = ADVERSARIAL[name]
    for dtype in DTYPES:
        for layout in ("contiguous", "channels_last"):
            run(operator, p, dtype, (layout, "contiguous", layout))
            run(operator, p, dtype, (layout, "channels_last", layout), backwards=True)
    run(operator, p, torch.float64, ("channels_last", "contiguous", "contiguous"))
    run(operator, p, torch.float64, ("contiguous", "contiguous", "channels_last"), backwards=True)
    run(operator, p, torch.float32, ("sliced", "sliced", "sliced"))
    expanded = ["contiguous" if place == PLACES[operator] else "expanded" for place in range(3)]
    run(operator, p, torch.float32, tuple(expanded))


# Few sums of many products: ranges of pixels go to different thread blocks.
SPLIT = {
    "one-weight": problem(3, 1, 1, (3000,), 1),
    "images": problem(4100, 2, 3, (1, 1), (2, 1)),
    "upsampling": problem(6, 5, 3, (40, 31), 4, 2, 1),
    "groups": problem(9, 6, 4, (25, 30), 3, 2, 1, 1, groups=2),
    "1d-dilated": problem(2, 3, 2, (6001,), 3, 3, 4, 2, dilation=2),
    "3d": problem(2, 3, 5, (9, 21, 20), (2, 3, 1), (2, 1, 3), (1, 0, 0), (1, 0, 2)),
    "clipped": problem(5, 2, 40, (41, 40), 3, 1, 30, dilation=31),
    "output-padding-over-stride": problem(7, 2, 3, (40, 33), (2, 3), (1, 2), 0, (2, 3), dilation=(3, 4)),
}


@pytest.mark.parametrize("name", SPLIT)
def test_split_sums(name):
    p = SPLIT[name]
    for dtype in DTYPES:
        told = run("grad_weight", p, dtype)
        assert told["splits"] > 1, told
        wide = 8 if dtype is torch.float64 else 4
        assert told["workspace_bytes"] == told["splits"] * torch.Size(p.weight_size).numel() * wide
        assert told["grid"] % told["splits"] == 0 and told["config"].endswith(f"x{told['splits']}")
        run("grad_weight", p, dtype, ("channels_last", "channels_last", "channels_last"), backwards=True)
    run("grad_weight", p, torch.float32, ("expanded", "sliced", "sliced"))
    run("grad_weight", p, torch.float32, ("sliced", "channels_last", "expanded"), backwards=True)
    assert run("grad_input", p)["workspace_bytes"] == 0


layouts = st.tuples(*[st.sampled_from(INPUTS)] * 3)


@settings(quiet, max_examples=250)
@given(st.sampled_from(GRADIENTS), problems(tiny=False), st.sampled_from(DTYPES), layouts, st.booleans())
def test_random_problems(operator, p, dtype, layouts, backwards):
    layouts = list(layouts)
    if layouts[PLACES[operator]] == "expanded":
        layouts[PLACES[operator]] = "sliced"
    run(operator, p, dtype, tuple(layouts), backwards=backwards)


@settings(quiet, max_examples=60)
@given(problems(tiny=True), st.integers(40, 3000), st.sampled_from(DTYPES), layouts, st.booleans())
def test_random_problems_of_many_images(p, batch, dtype, layouts, backwards):
    """As many as a test can compute: then sums are split."""
    work = p.in_channels * p.out_channels // p.groups * p.taps * torch.Size(p.input).numel()
    batch = max(1, min(batch, 2_000_000 // work))
    p = Problem(batch, p.in_channels, p.out_channels, p.groups, *(getattr(p, name) for name in AXES))
    layouts = (layouts[0], "sliced" if layouts[1] == "expanded" else layouts[1], layouts[2])
    run("grad_weight", p, dtype, layouts, backwards=backwards)


AXES = ("input", "filter", "stride", "padding", "output_padding", "dilation")


@pytest.mark.parametrize("operator", GRADIENTS)
def test_same_bits_whatever_the_order_of_threads(operator):
    for p in (SPLIT["upsampling"], ADVERSARIAL["odd"], ADVERSARIAL["deep"]):
        for layout in ("contiguous", "channels_last"):
            results = []
            for backwards in (False, True, False):
                tensors = arguments(operator, p, torch.float32, (layout, "contiguous", layout))
                compute(operator, p, tensors, backwards=backwards)
                results.append(tensors[PLACES[operator]])
            assert results[0].equal(results[1]) and results[0].equal(results[2])


def test_nothing_beside_the_result_is_written():
    for operator in GRADIENTS:
        p = ADVERSARIAL["odd"]
        tensors = arguments(operator, p, torch.float32, ("sliced",) * 3)
        before = [tensor.clone() for tensor in tensors]
        around = tensors[PLACES[operator]]
        storage = torch.empty(0).set_(around.untyped_storage())
        compute(operator, p, tensors)
        inside = torch.zeros_like(storage).as_strided(around.shape, around.stride(), around.storage_offset())
        inside.fill_(1)
        mask = torch.empty(0).set_(inside.untyped_storage()).bool()
        assert storage[~mask].isnan().all() and not storage[mask].isnan().any()
        for place in set(range(3)) - {PLACES[operator]}:
            assert tensors[place].equal(before[place])


@pytest.mark.parametrize("operator", GRADIENTS)
def test_strides_whose_products_pass_2_to_the_31(operator):
    """Images and channels far apart in memory that is never touched in between."""
    p = problem(3, 2, 2, (3, 4), 3, 2, 1, groups=2)
    image = 2**30 + 7

    def far(values, channel):
        storage = torch.empty(2 * image + channel + 64, dtype=torch.bfloat16)
        return storage.as_strided(values.shape, (image, channel, values.shape[3], 1)).copy_(values)

    input, weight, output = arguments(operator, p, torch.bfloat16, CONTIGUOUS)
    tensors = [far(input, 2**28 + 1), weight, far(output, 2**29 + 3)]
    compute(operator, p, tensors)
    truth = exact_gradient(operator, p, input, weight, output)
    assert torch.allclose(tensors[PLACES[operator]].double(), truth, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("operator", GRADIENTS)
def test_infinity_stays_in_its_own_sums(operator):
    """Pixels beyond the end of a tile and rows beyond the end of a sum take nothing from their neighbours."""
    p = problem(2, 3, 5, (4, 3), 3, 2, 1)
    tensors = arguments(operator, p, torch.float32, CONTIGUOUS)
    tensors[2][1, 4, 2, 3] = float("inf")
    compute(operator, p, tensors)
    reached = torch.zeros_like(tensors[2])
    reached[1, 4, 2, 3] = 1
    ones = [torch.ones_like(tensor) for tensor in tensors[:2]]
    expected = exact_gradient(operator, p, *ones, reached) != 0
    assert expected.any() and not expected.all()
    assert tensors[PLACES[operator]].isfinite().equal(~expected)


def dry(operator: str, p: Problem, dtype: torch.dtype = torch.float32, layout: str = "contiguous"):
    def untouched(size):
        if torch.Size(size).numel() > 2**40:
            return torch.empty(1, dtype=dtype).expand(size)
        strides = laid_out(torch.empty(size, device="meta"), layout).stride()
        return torch.empty_strided(size, strides, dtype=dtype)

    return compute(operator, p, [untouched(size) for size in (p.input_size, p.weight_size, p.output_size)], dry=True)


def test_reasons():
    def refuse(operator, p, match):
        tensors = [torch.empty(1).expand(size) for size in (p.input_size, p.weight_size, p.output_size)]
        with pytest.raises(ValueError, match=match):
            compute(operator, p, tensors, dry=True)

    for operator in GRADIENTS:
        refuse(
            operator,
            problem(1, 1, 1, (2**22 + 1,), 2, 1024),
            "simt: an output axis of 4294967298 pixels, over 2\\*\\*32",
        )
    refuse(
        "grad_weight", problem(1, 1, 1, (2**31,), 1), "simt: an input axis of 2147483648 pixels, not below 2\\*\\*31"
    )
    refuse("grad_input", problem(1, 1, 1, (1,), 2**31), "simt: a filter axis of 2\\*\\*31 taps or more")
    refuse("grad_weight", problem(2**31, 1, 1, (1,), 1), "simt: a sum over 2\\*\\*31 channels or images")
    refuse("grad_input", problem(1, 1, 2**31, (1,), 1), "simt: a sum over 2\\*\\*31 channels or images")
    refuse("grad_weight", problem(2**12, 1, 1, (2**21,), 1), "simt: a sum of more than 2\\*\\*33 products per element")
    for operator in GRADIENTS:
        assert dry(operator, problem(1, 1, 1, (2**21,), 2, 1024))["grid"] > 0


def test_predictions():
    """Near the arithmetic of the H200 that plans are made for, in either gradient."""
    for operator in GRADIENTS:
        for layout in ("contiguous", "channels_last"):
            for p in (problem(16, 64, 64, (32, 32), 4, 2, 1), problem(4, 256, 256, (64, 64), 3, 2, 1, 1)):
                told = dry(operator, p, torch.float64, layout)
                assert 1 < told["predicted_us"] / (2 * p.macs / 34e6) < 3, told
    # A small filter of a large image: the pixels are shared by the whole GPU, and the partial sums are no burden.
    told = dry("grad_weight", problem(16, 16, 16, (128, 128), 3, 1, 1))
    assert told["grid"] >= 100 and told["splits"] >= 16 and told["workspace_bytes"] < 2**24, told
    # A large filter fills it without.
    assert dry("grad_weight", problem(2, 1024, 1024, (4, 4), 4, 2, 1))["splits"] == 1


@pytest.mark.parametrize("operator", GRADIENTS)
def test_plans_of_every_type(operator):
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        sizes = (4, 8, 40, 40), (12800, 1600, 40, 1), (8, 8, 3, 3), (72, 9, 3, 1), None, (14112, 1764, 42, 1)
        geometry = (1, 1), (0, 0), (0, 0), 1, (1, 1)
        made = _C.cuda_plan(operator, *sizes, dtype, "ieee", *geometry, None, "simt")
        told = made.explain()
        assert made.kernel == "simt" and made.config == told["config"]
        assert told["tile"].keys() == {
            "input_channels", "columns" if operator == "grad_weight" else "pixels", "products",
        }  # fmt: skip
        threads = (
            told["tile"]["input_channels"]
            // 4
            * next(size // 8 for name, size in told["tile"].items() if name in ("columns", "pixels"))
        )
        slices = told["threads"] // threads
        splits = int([*made.config.split("x"), "1"][3])
        assert told["split"] == slices * splits
        assert (made.workspace_bytes > 0) == (splits > 1)
        assert operator == "grad_weight" or splits == 1
