"""Kernels of warpgroups: a thread block that takes tile after tile computes what as many thread blocks do."""

from __future__ import annotations

import math
import re

import pytest

from simulated import (
    GROUPED,
    LAYOUTS,
    OPERANDS,
    SCHEDULES,
    Call,
    Layouts,
    channels_last,
    contiguous,
    operands_of,
    problem,
)

pytestmark = pytest.mark.simulator

# Two row blocks and two chunks of channels, a few tiles each, with a bias where an operator has one.
OUTPUTS = {
    # Outputs without phases leave from registers: in pairs, or one by one where rows begin at odd elements.
    "pairs": ("pairs", "forward", (13, 70), 3, 1, Layouts()),
    "odd-width": ("singles", "forward", (17, 53), 3, 1, Layouts(contiguous, channels_last, contiguous, 3)),
    "odd-address": ("pairs singles", "forward", (13, 70), 3, 1, Layouts(elements=1)),
    "odd-pitch": ("pairs singles", "forward", (13, 69), (3, 2), 1, LAYOUTS[2]),
    # Those of phases row by row, wherever rows begin; those whose channels are innermost pixel by pixel.
    "phases": ("rows", "forward", (13, 70), 4, 2, Layouts()),
    "odd-phases": ("rows", "forward", (17, 53), 3, (1, 2), Layouts(elements=1)),
    "channels-last": ("pixels", "forward", (13, 70), 3, 1, Layouts(channels_last, contiguous, channels_last, 1)),
    "phases-channels-last": ("pixels", "forward", (13, 70), 4, 3, LAYOUTS[1]),
    # Through the pipeline's memory, where no tap reaches some phases.
    "few-taps": ("staged", "forward", (13, 70), 1, 2, Layouts()),
    "grad-input": ("pairs", "grad_input", (13, 70), 3, 1, Layouts()),
    "grad-input-strided": ("singles", "grad_input", (17, 53), 4, 2, Layouts()),
    "grad-input-channels-last": ("pixels", "grad_input", (13, 70), 3, 1, LAYOUTS[1]),
}


# However patches come. Outputs with phases may begin elsewhere where they come in boxes: another order of sums.
CALLS = [(name, 0) for name in OUTPUTS] + [(name, 2) for name in OUTPUTS if OUTPUTS[name][4] == 1]


@pytest.mark.parametrize(("name", "copies"), CALLS)
@pytest.mark.parametrize("config", GROUPED)
def test_tile_after_tile(config, name, copies):
    way, operator, input, filter, stride, layouts = OUTPUTS[name]
    names = operands_of(config, operator)
    at = list(OUTPUTS).index(name) + GROUPED.index(config)
    operand = names[at % len(names)]
    rows, planes = map(int, re.match(r"(\d+)x\d+p(\d+)", config).groups())
    reduced, written = planes * OPERANDS[operand].vector + 3, rows + 5
    channels = (reduced, written) if operator == "forward" else (written, reduced)
    wanted = problem(1, channels, input, filter, stride, padding=1)

    def call(multiprocessors: int) -> tuple[Call, int]:
        device = {"multiprocessors": multiprocessors, "tensor_copies": copies}
        made = Call(config, wanted, operand, layouts, device, 0, operator)
        assert (made.told["way_in"] == "gathered") == (copies == 0)
        told = made.told
        return made, math.prod(told["tiles"].values()) * told["phase_blocks"] * told["channel_blocks"]

    alone = next(made for made, tiles in map(call, range(6, 99)) if made.told["grid"] == tiles)
    assert alone.told["way_out"] in way.split()
    expected, _ = alone.play(SCHEDULES[at % len(SCHEDULES)])
    assert alone.error(expected) <= 1
    for multiprocessors in (1, 2, 3):
        made, tiles = call(multiprocessors)
        assert made.told["grid"] < tiles, f"a thread block takes one tile: {made.told}"
        assert made.told["origin"] == alone.told["origin"], "the order of sums"
        output, _ = made.play(SCHEDULES[(at + multiprocessors) % len(SCHEDULES)])
        assert (made.bits(output) == alone.bits(expected)).all(), f"{made.label} {multiprocessors}"
