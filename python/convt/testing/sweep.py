"""The layers that the rule in convt.heuristics was read off: filters by channels, sizes, groups, dtypes and layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .layers import Layer, layer

# filter, stride, padding, output_padding
_FILTERS = ((2, 2, 0, 0), (3, 1, 1, 0), (3, 2, 1, 1), (4, 2, 1, 0), (5, 1, 2, 0), (8, 4, 2, 0))
# in and out channels, length of every axis, batch
_DENSE = {
    1: ((64, 32, 2048, 2), (256, 128, 256, 1), (32, 2, 8192, 1), (128, 64, 64, 4)),
    2: (
        (16, 16, 64, 1), (64, 3, 64, 1), (64, 32, 32, 4), (64, 64, 8, 4), (256, 128, 16, 1), (256, 256, 4, 8),
        (512, 256, 4, 1), (8, 8, 16, 1), (128, 64, 2, 1), (24, 24, 40, 1), (32, 32, 16, 1), (128, 64, 32, 1),
    ),
    3: ((32, 32, 16, 1), (64, 32, 8, 2), (16, 2, 24, 1), (128, 64, 4, 1), (32, 32, 16, 2)),
}  # fmt: skip
# channels, groups, length, batch
_GROUPED = {
    1: ((128, 128, 1024, 2), (128, 4, 1024, 2)),
    2: ((64, 64, 32, 2), (64, 4, 32, 2), (256, 256, 8, 4), (256, 32, 16, 2), (64, 64, 16, 4), (64, 64, 48, 4)),
    3: ((32, 32, 12, 1), (32, 4, 12, 1)),
}
# stride, dilation, filter
_DILATED = ((1, 2, 3), (1, 4, 3), (1, 3, 5), (2, 2, 3), (2, 3, 3), (5, 2, 3), (3, 1, 2), (4, 1, 1))


def sweep_layers() -> Iterator[Layer]:
    """More than 300 layers of 10 microseconds to 20 milliseconds on two AVX-512 cores."""
    half, brain, double, last = torch.float16, torch.bfloat16, torch.float64, "channels_last"
    for filter, stride, padding, output_padding in _FILTERS:
        for rank in (1, 2, 3):
            # 8 taps per axis are 512 in 3-D, which no network has.
            taps, pad = (min(filter, 4), min(padding, 1)) if rank == 3 else (filter, padding)
            shared: dict[str, Any] = {"stride": stride, "padding": pad, "output_padding": output_padding}
            for c_in, c_out, length, batch in _DENSE[rank]:
                yield layer((length,) * rank, taps, (c_in, c_out), batch=batch, **shared)
            for channels, groups, length, batch in _GROUPED[rank]:
                pair = (channels, channels)
                yield layer((length,) * rank, taps, pair, batch=batch, groups=groups, **shared)
                if rank == 2:
                    yield layer((length,) * rank, taps, pair, batch=batch, groups=groups, layout=last, **shared)
        shared = {"stride": stride, "padding": padding, "output_padding": output_padding}
        for pair, length, batch in (((64, 64), 32, 4), ((32, 3), 64, 1)):
            yield layer((length,) * 2, filter, pair, batch=batch, layout=last, **shared)
        for dtype in (brain, half, double):
            yield layer((16, 16), filter, (64, 64), batch=2, dtype=dtype, **shared)
            yield layer((8, 8), filter, (256, 128), dtype=dtype, **shared)
            yield layer((1024,), filter, (64, 32), batch=2, dtype=dtype, **shared)
            yield layer((32, 32), filter, (64, 64), batch=2, groups=64, dtype=dtype, **shared)
    for stride, dilation, filter in _DILATED:
        shared = {"stride": stride, "dilation": dilation}
        yield layer((2048,), filter, (64, 64), batch=2, **shared)
        yield layer((2048,), filter, (64, 64), batch=2, dtype=double, **shared)
        yield layer((256,), filter, (256, 256), **shared)
        yield layer((32, 32), filter, (32, 32), batch=2, **shared)
        yield layer((32, 32), filter, (32, 32), batch=2, layout=last, **shared)
        yield layer((32, 32), filter, (32, 32), batch=2, groups=4, **shared)
        yield layer((16, 16), filter, (128, 128), **shared)
        yield layer((10, 10, 10), filter, (16, 32), **shared)
