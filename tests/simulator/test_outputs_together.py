"""Neighbouring outputs as phases beside those of a stride: rows of a tile that would be empty have channels."""

from __future__ import annotations

import math

import pytest

from simulated import (
    GROUPED,
    LAYOUTS,
    Call,
    Layouts,
    channels_last,
    contiguous,
    operands_of,
    planned,
    problem,
)

pytestmark = pytest.mark.simulator

PROBLEMS = {
    "k3": problem(1, (8, 16), (9, 11), 3, 1, 1),
    "k3x2": problem(2, (24, 32), (10, 7), (3, 2), 1, (1, 0)),
    "k5": problem(1, (16, 8), (13, 6), 5, 1, 2),
    "k4": problem(1, (8, 3), (6, 6), 4),
    "3d": problem(1, (8, 16), (4, 5, 6), (3, 5, 2), 1, (1, 2, 0)),
    "1d": problem(2, (16, 16), (41,), 7, 1, 3),
    "dilated": problem(1, (9, 5), (9, 8), (3, 4), 1, 1, 0, 1, (3, 2)),
    "groups": problem(1, (16, 32), (7, 8), 3, 1, 1, 0, 2),
    "k4s2": problem(1, (8, 3), (7, 6), 4, 2, 1),
    "k3s2": problem(2, (3, 5), (7, 6), 3, 2, 1, 1),
    "k3s2-3d": problem(1, (4, 2), (3, 4, 5), 3, 2, 1, 1),
    "k5s3-dilated": problem(1, (3, 2), (17,), 5, 3, 2, 0, 1, 2),
    "k5s2-cropped": problem(1, (8, 8), (9,), 5, 2, 2, 1),
}
INNERMOST = Layouts(channels_last, contiguous, channels_last, 1)


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("config", GROUPED)
def test_sums_are_the_definitions(config, name, operator):
    """By every way in and out, with two, three and four of them along whatever axis the model prefers."""
    number = sum(map(ord, config + name + operator))
    seen = 0
    for turn, outputs in enumerate((2, 3, 4)):
        operands = operands_of(config)
        operand = operands[(number + turn) % len(operands)]
        for layouts in (INNERMOST, LAYOUTS[(number + turn) % len(LAYOUTS)]):
            device = {"outputs_together": outputs, "tensor_copies": 2 * ((number + turn) % 2), "multiprocessors": 4}
            made = planned(config, PROBLEMS[name], operand, layouts, device, 0, operator)
            if made is None:  # the halo of a part has no room
                continue
            phases = made.told["output_phases"]
            own = PROBLEMS[name].stride if operator == "forward" else (1,) * PROBLEMS[name].rank
            together = math.prod(phases) // math.prod(own)
            assert together in (1, outputs)
            seen += together > 1
            made.check(number, 1)
    channels = PROBLEMS[name].out_channels if operator == "forward" else PROBLEMS[name].in_channels
    rows = int(config.split("x")[0])
    if channels * 2 * (math.prod(PROBLEMS[name].stride) if operator == "forward" else 1) <= rows:
        assert seen


def test_where_outputs_come_together():
    def phases(wanted, outputs=2, operator="forward", config="64x256p4g1"):
        device = {"outputs_together": outputs}
        return Call(config, wanted, "bfloat16", INNERMOST, device, 0, operator).told["output_phases"]

    few = problem(1, (64, 16), (64, 64), 3, 1, 1)
    assert math.prod(phases(few)) == 2 and math.prod(phases(few, 4)) == 4
    assert math.prod(phases(few, 0)) > 1, "as many as pay"
    assert phases(few, 1) == (1, 1, 1), "none are wanted"
    assert phases(few, 5) == (1, 1, 1), "80 rows"
    assert phases(problem(1, (64, 16), (64, 64), 1)) == (1, 1, 1), "neighbours read nothing in common"
    assert phases(problem(1, (64, 8), (64, 64), 2, 2)) == (1, 2, 2)
    assert math.prod(phases(problem(1, (64, 8), (64, 64), 4, 2, 1))) == 8
    assert math.prod(phases(problem(1, (16, 64), (64, 64), 4, 2, 1), operator="grad_input")) == 2
    assert phases(few, operator="grad_input") == (1, 1, 1), "64 channels are all rows"
    assert phases(problem(1, (64, 64), (64, 64), 3, 1, 1), 0) == (1, 1, 1), "so are these"


def test_products_are_fewer():
    """Three taps of two outputs are four shifts: of 32 channels one row of outputs leaves half of a tile empty."""
    wanted = problem(1, (32, 32), (64, 62), 3, 1, 1)
    plain, together = (
        Call("64x256p4g1", wanted, "bfloat16", INNERMOST, {"outputs_together": outputs, "multiprocessors": 1}).play()[1]
        for outputs in (1, 2)
    )
    assert together["products"] < 0.75 * plain["products"]
