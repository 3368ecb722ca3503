"""The gradient of a bias as a GPU sums it: every layout, dtype and alignment, thread by thread on the host."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convt import _C

pytestmark = pytest.mark.simulator

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = ("contiguous", "channels_last", "images of a larger tensor", "channels of one", "channels of wider rows")


def laid_out(size, dtype, layout, elements, seed=0):
    """Integers as such a tensor, that many elements behind an address of 16 bytes, with NaN wherever it is not."""
    batch, channels, *extents = size
    larger = {
        "images of a larger tensor": (2 * batch, channels, *extents),
        "channels of one": (batch, channels + 3, *extents),
        "channels of wider rows": (batch, channels + 5, *extents),
    }.get(layout, size)
    last = layout in ("channels_last", "channels of wider rows")
    order = (0, *range(2, len(size)), 1) if last else range(len(size))
    memory = torch.full((elements + math.prod(larger) + 8,), math.nan, dtype=dtype)
    skipped = -memory.data_ptr() % 16 // dtype.itemsize + elements
    tensor = memory[skipped : skipped + math.prod(larger)].view([larger[axis] for axis in order])
    tensor = tensor.permute([list(order).index(axis) for axis in range(len(size))])
    tensor = tensor[::2] if layout == "images of a larger tensor" else tensor[:, :channels]
    generator = torch.Generator().manual_seed(seed)
    return tensor.copy_(torch.randint(-4, 5, size, generator=generator))


def planned(tensor, multiprocessors=132):
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _C.cuda_channel_sum(tuple(tensor.shape), tensor.stride(), dtype, {"multiprocessors": multiprocessors})


def summed(tensor, plan, backwards=False):
    workspace = torch.full((plan.workspace_bytes + 16,), 0xFF, dtype=torch.uint8)
    result = torch.full((tensor.shape[1],), math.nan, dtype=tensor.dtype)
    first = workspace.data_ptr() + -workspace.data_ptr() % 16
    _C.simulate_channel_sum(plan, tensor.data_ptr(), result.data_ptr(), first, backwards)
    return result


def exact(tensor):
    return tensor.double().sum((0, *range(2, tensor.dim()))).to(tensor.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("elements", (0, 1, 2, 4))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "size", ((3, 40, 24, 32), (2, 7, 5, 9), (9, 64, 1000), (2, 3, 4, 6, 10), (5, 260, 3), (4, 1, 77))
)
def test_sums_of_every_layout(size, dtype, elements, layout):
    tensor = laid_out(size, DTYPES[dtype], layout, elements)
    plan = planned(tensor)
    for backwards in (False, True):
        assert torch.equal(summed(tensor, plan, backwards), exact(tensor)), plan.explain()


def test_shares_are_summed_by_a_second_launch():
    for layout in ("contiguous", "channels_last"):
        tensor = laid_out((4, 6, 64, 128), torch.bfloat16, layout, 0)
        plan, alone = planned(tensor), planned(laid_out((1, 300, 2, 2), torch.bfloat16, layout, 0))
        assert plan.explain()["shares"] > 1 and plan.workspace_bytes == plan.explain()["shares"] * 6 * 4
        assert plan.explain()["rows_of"] == ("pixels" if layout == "contiguous" else "channels")
        assert alone.explain()["shares"] == 1 and alone.workspace_bytes == 0
        assert torch.equal(summed(tensor, plan), exact(tensor))
        few = planned(tensor, 1)
        assert few.explain()["grid"] <= 12 <= plan.explain()["grid"] and torch.equal(summed(tensor, few), exact(tensor))


def test_sums_of_sixteen_bits_are_kept_in_float32():
    tensor = torch.ones(8, 2, 64, 64, dtype=torch.bfloat16)
    tensor[:, 1] = 2.0**-9
    assert summed(tensor, planned(tensor)).tolist() == [32768, 64]


def test_pieces_are_as_wide_as_rows_allow():
    def piece(size, layout="contiguous", dtype="bfloat16"):
        return planned(laid_out(size, DTYPES[dtype], layout, 0)).explain()["piece"]

    assert [piece((2, 4, 8, width)) for width in (8, 10, 9)] == [16, 16, 16]
    assert [piece((2, 4, 5, width)) for width in (16, 12, 10, 9)] == [16, 8, 4, 2]
    assert [piece((2, 4, 5, width), dtype="float32") for width in (16, 6, 9)] == [16, 8, 4]
    assert [piece((2, channels, 5, 9), "channels_last") for channels in (8, 12, 6, 3)] == [16, 8, 4, 2]


def test_what_is_left_to_pytorch():
    """Neighbours that are neither pixels nor channels; more pixels than an index tells."""

    def refused(size, strides):
        return _C.cuda_channel_sum(size, strides, "float32", None) is None

    assert refused((2, 3, 4, 5), (60, 20, 1, 4)) and refused((2, 3, 4, 5), (0, 0, 0, 0))
    assert refused((2, 3, 4, 10), (240, 80, 20, 2)) and not refused((2, 3, 4, 5), (60, 20, 5, 1))
    assert refused((1, 1, 1 << 31), (1 << 31, 1 << 31, 1))
    assert not refused((5, 7, 1, 1), (7, 1, 1, 1)) and not refused((1, 7, 1, 1), (9, 5, 3, 2))


@settings(max_examples=60)
@given(st.data())
def test_sums_of_any_size(data):
    rank = data.draw(st.integers(1, 3))
    size = tuple(data.draw(st.integers(1, most)) for most in (6, 70, *(60 // rank**2,) * rank))
    layout, dtype = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from(sorted(DTYPES)))
    tensor = laid_out(size, DTYPES[dtype], layout, data.draw(st.integers(0, 7)), data.draw(st.integers(0, 99)))
    plan = planned(tensor, data.draw(st.sampled_from((1, 20, 132))))
    if plan is None:
        assert layout == "channels of wider rows" and size[1] == 1 < max(size[2:])
        return
    assert torch.equal(summed(tensor, plan, data.draw(st.booleans())), exact(tensor)), plan.explain()
