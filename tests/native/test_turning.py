"""The copy with channels innermost that both gradients of a backward pass read."""

from __future__ import annotations

import pytest
import torch

from convt import _C

SIZES = {1: (3, 24, 77), 2: (2, 8, 9, 13), 3: (2, 40, 3, 5, 8)}
LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "channels_last": lambda tensor: tensor.movedim(1, -1).contiguous().movedim(-1, 1),
    "rows apart": lambda tensor: torch.nn.functional.pad(tensor, (0, 3))[..., :-3],
    "channels apart": lambda tensor: tensor.repeat_interleave(2, 1)[:, ::2],
    "one value": lambda tensor: tensor[:1, :1, ..., :1].expand(tensor.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_copies_every_bit(rank, layout, dtype):
    size = SIZES[rank]
    bits = torch.randint(-(2**15), 2**15, size, dtype=torch.int16, generator=torch.Generator().manual_seed(rank))
    source = LAYOUTS[layout](bits.view(dtype))
    turning = _C.cuda_turning(size, source.stride(), str(dtype).removeprefix("torch."), None)
    strides = torch.empty((size[0], *size[2:], size[1])).movedim(-1, 1).stride()
    assert tuple(turning.strides) == strides and turning.predicted_us > 0
    for backwards in (False, True):
        target = torch.full((source.numel() + 8,), torch.nan, dtype=dtype)
        _C.simulate_turning(turning, source.data_ptr(), target.data_ptr(), backwards)
        assert torch.equal(target[:-8].as_strided(size, strides).view(torch.int16), source.view(torch.int16))
        assert target[-8:].isnan().all(), "nothing beyond"


def test_of_what_there_is_none():
    def turning(size, dtype="bfloat16"):
        return _C.cuda_turning(size, torch.empty(size, device="meta").stride(), dtype, None)

    assert turning((2, 8, 5)) is not None
    assert turning((2, 12, 5)) is None, "no whole vectors"
    assert turning((2, 8, 5), "float32") is turning((2, 8, 5), "float64") is None, "tensor cores would round them"
    assert turning((1, 8, 2**16, 2**15)) is None, "no index of a pixel"


def test_what_it_takes():
    """Both ways through memory, at what a copy reaches."""
    size, strides = (8, 64, 512, 512), torch.empty(8, 64, 512, 512, device="meta").stride()
    here = _C.cuda_turning(size, strides, "bfloat16", {"memory_gbs": 4000.0}).predicted_us
    there = _C.cuda_turning(size, strides, "bfloat16", {"memory_gbs": 2000.0}).predicted_us
    least = 2 * 2 * 8 * 64 * 512**2 / 4000e9 * 1e6
    assert least < here < 1.5 * least and 1.9 * here < there < 2.1 * here
