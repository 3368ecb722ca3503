"""How sums of warpgroups leave: row by row with all W phases, pixel by pixel with all channels, and when neither."""

from __future__ import annotations

import pytest

from simulated import (
    GROUPED,
    LAYOUTS,
    SCHEDULES,
    Call,
    Layouts,
    channels_last,
    contiguous,
    operands_of,
    problem,
    sliced,
)

pytestmark = pytest.mark.simulator

LAST = Layouts(channels_last, contiguous, channels_last)
ROWS = {
    "k4s2p1": (problem(2, (9, 20), (9, 14), 4, 2, 1), Layouts()),
    "k3s2p1": (problem(1, (9, 12), (8, 15), 3, 2, 1, 1), Layouts()),
    "k2s2": (problem(1, (5, 40), (14, 14), 2, 2), Layouts(bias=None)),
    "k2s2-wide": (problem(1, (5, 9), (2, 300), 2, 2), Layouts()),
    "k5s3": (problem(1, (5, 11), (7, 13), 5, 3, 2, 1), Layouts()),
    "k16s8": (problem(2, (6, 5), (75,), 16, 8, 4), Layouts()),
    "k8s5": (problem(1, (6, 7), (61,), 8, 5, 3, 4), Layouts(elements=1)),
    "s6": (problem(1, (3, 7), (50,), 7, 6, 1), Layouts()),
    "s7": (problem(1, (3, 9), (50,), 7, 7), Layouts(elements=2)),
    "s11": (problem(1, (3, 6), (40,), 12, 11, 5), Layouts()),
    "s16": (problem(1, (3, 6), (40,), 17, 16, 3), Layouts()),
    "odd-rows": (problem(2, (5, 9), (6, 15), 3, 2), Layouts()),
    "odd-rows-of-an-odd-view": (problem(1, (5, 9), (6, 26), 3, 2), Layouts(elements=1)),
    "odd-rows-of-three-phases": (problem(1, (5, 7), (7, 13), 3, 3, 1), Layouts()),
    "odd-images": (problem(3, (5, 3), (21,), 4, 2, 0, 1), Layouts()),
    "a-column": (problem(1, (5, 6), (19, 1), 2, 2), Layouts()),
    "a-narrow-column": (problem(1, (5, 6), (19, 1), 3, 2, 1), Layouts()),
    "one-channel": (problem(2, (7, 1), (11, 30), 4, 2, 1), Layouts()),
    "one-channel-last": (problem(1, (9, 1), (7, 14), 4, 2, 1), LAST),
    "two-channels": (problem(1, (7, 2), (11, 9), 4, 4), Layouts()),
    "groups": (problem(1, (12, 15), (6, 17), 4, 2, 1, groups=3), Layouts()),
    "tall": (problem(1, (7, 9), (12, 33), (4, 3), (2, 1), 1), Layouts()),
    "across": (problem(1, (7, 9), (12, 33), (3, 4), (1, 2), 1), Layouts()),
    "mixed": (problem(1, (4, 5), (6, 7), (4, 6), (3, 2), (1, 2), (2, 1)), Layouts()),
    "3d": (problem(1, (5, 6), (4, 5, 6), 2, 2), Layouts()),
    "3d-padded": (problem(2, (5, 3), (3, 4, 5), 3, 2, 1, 1), Layouts()),
    "offset-view": (problem(1, (9, 20), (9, 16), 4, 2, 1), Layouts(elements=4)),
    "odd-view": (problem(1, (9, 20), (9, 16), 4, 2, 1), Layouts(elements=1)),
    "far-taps": (problem(1, (4, 5), (40,), 3, 2, 20, 17, dilation=31), Layouts()),
    "cropped": (problem(1, (4, 5), (9, 20), 4, 2, 3), Layouts()),
}
PIXELS = {
    **{f"k4s2p1-{channels}": (problem(1, (9, channels), (7, 14), 4, 2, 1), LAST) for channels in (3, 20, 24, 64)},
    "k2s2": (problem(2, (9, 72), (14, 14), 2, 2), LAST),
    "k3s2p1": (problem(1, (9, 24), (8, 15), 3, 2, 1, 1), Layouts(channels_last, contiguous, channels_last, None)),
    "k3": (problem(1, (9, 24), (11, 15), 3, 1, 1), LAST),
    "k5s3": (problem(1, (5, 16), (7, 13), 5, 3, 2, 1), LAYOUTS[1]),
    "1d-k16s8": (problem(2, (6, 16), (75,), 16, 8, 4), LAST),
    "1d-s20": (problem(1, (6, 8), (30,), 21, 20, 4), LAST),
    "3d": (problem(1, (5, 10), (4, 5, 6), 2, 2), LAST),
    "groups": (problem(1, (12, 24), (6, 17), 4, 2, 1, groups=3), LAST),
    "odd-groups": (problem(1, (12, 15), (6, 17), 4, 2, 1, groups=3), LAST),
    "odd-view": (problem(1, (9, 24), (9, 16), 4, 2, 1), LAYOUTS[3]),
    "offset-view": (
        problem(1, (9, 24), (9, 16), 4, 2, 1),
        Layouts(channels_last, contiguous, channels_last, elements=4),
    ),
}
STAGED = {
    "few-taps": (problem(1, (7, 20), (9, 14), 1, 2), Layouts()),
    "few-taps-channels-last": (problem(1, (7, 24), (9, 14), 2, 3), LAST),
    "even-taps": (problem(1, (7, 20), (40,), 3, 2, dilation=2), Layouts()),
    "s17": (problem(1, (3, 6), (40,), 18, 17, 3), Layouts()),
    "sliced": (problem(1, (9, 20), (9, 14), 4, 2, 1), Layouts(output=sliced)),
}
ALL = [(way, name) for way, of in (("rows", ROWS), ("pixels", PIXELS), ("staged", STAGED)) for name in of]


@pytest.mark.parametrize("config", GROUPED)
@pytest.mark.parametrize(("way", "name"), ALL)
def test_way_out(config, way, name):
    wanted, layouts = {"rows": ROWS, "pixels": PIXELS, "staged": STAGED}[way][name]
    at = ALL.index((way, name)) + GROUPED.index(config)
    names = operands_of(config)
    # Few multiprocessors take tile after tile. Outputs together may have more phases than a way out takes.
    device = {"multiprocessors": (1, 12)[at % 2], "outputs_together": 1}
    call = Call(config, wanted, names[at % len(names)], layouts, device)
    assert call.told["way_out"] == way, call.told
    call.check(at)


@pytest.mark.parametrize("config", GROUPED)
def test_who_stores(config):
    """Others, of what comes turned; where rows are turned beside the products, those who multiply store rows."""
    wanted = problem(1, (24, 40), (9, 16), 4, 2, 1)
    for operand in operands_of(config):
        for copies, way in ((2, "turned"), (3, "rows")):
            device = {"multiprocessors": 1, "tensor_copies": copies, "outputs_together": 1}
            made = Call(config, wanted, operand, Layouts(), device)
            assert (made.told["way_in"], made.told["way_out"]) == (way, "rows")
            assert (made.told["slice_stages"] > 1) == (config.endswith("g2") and way == "turned")
            assert made.told["grid"] < 3
            for schedule in SCHEDULES:
                assert made.error(made.play(schedule)[0]) <= 1
            pairs = Call(config, problem(1, (24, 40), (9, 16), 3, 1, 1), operand, Layouts(), device)
            assert pairs.told["way_out"] == "pairs" and (pairs.told["slice_stages"] > 1) == config.endswith("g2")
