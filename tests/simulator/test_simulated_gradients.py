"""Gradients by the implicit GEMM: every configuration, played on the host through the code of GPUs, against float64."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adversarial import grouped, has_room, is_hoppers
from convt import _C
from convt.testing.kernelbench import PROBLEMS as KERNELBENCH
from simulated import COSTLY, LAYOUTS, NAMED, OPERANDS, SCHEDULES, Call, operands_of, planned, problem
from strategies import problems

pytestmark = pytest.mark.simulator

CONFIGS = {operator: tuple(_C.cuda_configs(operator)) for operator in ("grad_input", "grad_weight")}
EVERY = [(operator, config) for operator, configs in CONFIGS.items() for config in configs]
ONE = {"multiprocessors": 1}
exactly = settings(deadline=None, derandomize=True, database=None)


def number(name: str, operator: str, config: str) -> int:
    """A number that changes with every one of the names."""
    names = [*NAMED, *FEATURES, *KERNELBENCH]
    return names.index(name) + EVERY.index((operator, config))


def turns(at: int, operator: str, config: str, count: int) -> list[str]:
    """Some of a configuration's operands, in turn: neighbours in EVERY have others."""
    operands = operands_of(config, operator)
    return [operands[(at + step) % len(operands)] for step in range(count)]


def gpu_of(at: int) -> dict[str, int] | None:
    """An H200, with small tiles for its many multiprocessors, or one of them, where tiles are as large as they get."""
    return (None, ONE, {"multiprocessors": 8})[at % 3]


# What a problem is meant to make a plan do, and how its explanation shows it.
FEATURES = {
    "tiles": (problem(1, (12, 9), (17, 31), (2, 3), padding=1), lambda told: max(told["tiles"].values()) > 1),
    "split-channels": (problem(1, (24, 150), (12, 9), 3, padding=1), lambda told: told["split"] > 1),
    "split-channels-strided": (problem(1, (6, 132), (9, 8), 4, 2, padding=1), lambda told: told["split"] > 1),
    "split-pixels": (problem(1, (9, 12), (39, 37), 3, padding=1), lambda told: told["split"] > 1),
    "split-pixels-strided": (problem(2, (6, 5), (31, 29), 4, 2, padding=1), lambda told: told["split"] > 1),
    "row-blocks": (problem(1, (150, 5), (6, 5), (1, 3), padding=(0, 1)), lambda told: told["channel_blocks"] > 1),
    "row-blocks-of-groups": (problem(1, (270, 6), (5, 4), (2, 1), groups=2), lambda told: told["channel_blocks"] > 1),
    "images": (problem(90, (5, 7), (3,), 3, 2, padding=1), lambda told: told["tile"]["n"] > 1),
    "images-2d": (problem(21, (9, 4), (2, 3), 2, 2), lambda told: told["tile"]["n"] > 1),
    "slices": (problem(1, (6, 5), (5, 4, 3), 3, padding=1), lambda told: told["tile"]["d"] > 1),
}


@pytest.mark.parametrize(("operator", "config"), EVERY)
@pytest.mark.parametrize("name", [name for name in NAMED if name not in COSTLY])
def test_adversarial(name, operator, config):
    at = number(name, operator, config)
    for turn, operand in enumerate(turns(at, operator, config, 2)):
        layouts = LAYOUTS[(at + turn) % len(LAYOUTS)]
        made = planned(config, NAMED[name], operand, layouts, gpu_of(at + turn), 0, operator)
        assert (made is not None) == has_room(config, operator, name), operand
        if made is not None:
            made.check(at + turn, 1 + (turn == at % 3))


def every_third(names: list[str]) -> list[tuple[str, str, str]]:
    """Each name with a third of the configurations, and each configuration with a third of the names."""
    made = [(name, at, *pair) for name in names for at, pair in enumerate(EVERY)]
    return [(name, *pair) for name, at, *pair in made if (names.index(name) + at) % 3 == 0]


@pytest.mark.parametrize(("name", "operator", "config"), every_third(sorted(COSTLY & set(NAMED))))
def test_adversarial_costly(name, operator, config):
    at = number(name, operator, config)
    (operand,) = turns(at // 3, operator, config, 1)
    device = gpu_of(1 + at % 2)  # a few blocks, with large tiles
    made = planned(config, NAMED[name], operand, LAYOUTS[at % len(LAYOUTS)], device, 0, operator)
    assert (made is not None) == has_room(config, operator, name), operand
    if made is not None:
        made.check(at, 1 if grouped(config) else 1 + at % 2)


# What an operator splits: its sums run over channels, or over pixels.
SPLITS = {"grad_input": "channels", "grad_weight": "pixels"}


@pytest.mark.parametrize(
    ("name", "operator", "config"),
    [
        (name, operator, config)
        for name in FEATURES
        for operator, config in EVERY
        if not name.startswith("split") or SPLITS[operator] in name
    ],
)
def test_features_of_plans(name, operator, config):
    wanted, shows = FEATURES[name]
    # Of many multiprocessors warpgroups would each take a slice.
    device = {"multiprocessors": 1} if grouped(config) and name == "slices" else None
    seen = [
        Call(config, wanted, operand, LAYOUTS[turn], device, operator=operator)
        for turn, operand in enumerate(operands_of(config, operator))
    ]
    for turn, call in enumerate(seen):
        call.check(turn, 1 + (turn == 0))
    splits = name.startswith("split") and grouped(config)
    assert any(shows(call.told) for call in seen) != splits, seen[0].told


@pytest.mark.parametrize(("name", "operator", "config"), every_third(list(KERNELBENCH)))
def test_kernelbench(name, operator, config):
    at = number(name, operator, config)
    full = KERNELBENCH[name]
    small = replace(full, batch=1, input=tuple(min(extent, {1: 131, 2: 9, 3: 3}[full.rank]) for extent in full.input))
    (operand,) = turns(at // 3, operator, config, 1)
    Call(config, small, operand, LAYOUTS[at % 2], gpu_of(at // 3), 0, operator).check(at, 1)


@pytest.mark.parametrize(("operator", "config"), EVERY)
def test_all_schedules(operator, config):
    """Every order of the warps, copies early and late: the same bits."""
    wanted = problem(2, (20, 24), (7, 5), 3, 2, padding=1, output_padding=1)
    for turn, operand in enumerate(operands_of(config, operator)):
        Call(config, wanted, operand, LAYOUTS[turn], ONE, 0, operator).check(0, 6)


CUT = {
    "2d": problem(1, (6, 10), (14, 15), (2, 3), padding=25, dilation=(61, 30)),
    "3d-strided": problem(1, (5, 6), (3, 5, 6), (1, 3, 2), (1, 2, 1), dilation=(1, 9, 31)),
    "1d": problem(1, (9, 5), (300,), 4, padding=800, dilation=611),
    "1d-many-phases": problem(2, (9, 5), (40,), 32, 16, padding=8),
}
SMALL = {"shared_per_block": 60 * 1024, "shared_per_multiprocessor": 100 * 1024}


@pytest.mark.parametrize(("operator", "config"), EVERY)
@pytest.mark.parametrize("name", CUT)
def test_patches_that_are_cut(name, operator, config):
    """Taps that reach far, and many phases, in little shared memory: a patch for some of them at a time."""
    played = 0
    for turn, operand in enumerate(operands_of(config, operator)):
        if grouped(config):  # no patch of theirs is cut: refused for want of room where all have it
            made = planned(config, CUT[name], operand, LAYOUTS[turn], {"outputs_together": 1}, 0, operator)
            assert made is not None or name != "1d-many-phases"
            assert made is None or name not in ("1d", "2d")
            if made is not None and turn == list(CUT).index(name) % 3:
                made.check(turn, 1)
            played += 1
            continue
        try:
            made = Call(config, CUT[name], operand, LAYOUTS[turn], SMALL, 0, operator)
        except ValueError as error:
            assert "shared memory" in str(error)
            continue
        assert made.told["shared_bytes"] <= SMALL["shared_per_block"]
        made.check(turn, 1)
        played += 1
    tile = Call(config, problem(1, (1, 1), (1,), 1), operands_of(config, operator)[0], operator=operator).told
    assert played or tile["shared_bytes"] > SMALL["shared_per_block"], "none fits"


@pytest.mark.parametrize(("operator", "config"), EVERY)
def test_random_problems(operator, config):
    operands = operands_of(config, operator)

    @settings(exactly, max_examples=25)
    @given(
        problems(max_macs=20_000),
        st.sampled_from(operands),
        st.sampled_from(LAYOUTS),
        st.integers(0, 5),
        st.sampled_from((None, ONE, {"multiprocessors": 8})),
        st.integers(0, 99),
    )
    def is_the_definition(wanted, operand, layouts, first, device, seed):
        made = planned(config, wanted, operand, layouts, device, seed, operator)
        played.append(made is not None)
        if made is not None:
            made.check(first)

    played: list[bool] = []
    is_the_definition()
    assert sum(played) >= 20 and len(played) >= 25, f"{sum(played)} of {len(played)} problems"


# Of the weight gradient, warpgroups multiply in some configurations, which have another kernel.
OUTER = tuple(filter(is_hoppers, CONFIGS["grad_weight"]))
WARPS = tuple(config for config in CONFIGS["grad_weight"] if config not in OUTER)
# The names in cuda/kernel/weight_gemm.hpp, and what a barrier separates.
BARRIERS = {
    "Table": "tables from the loads that use them, which other threads do",
    "Box": "a box and its tables from its products and loads, and these from the next box but one",
}
# The same in cuda/kernel/outer_gemm.hpp: among those who do the same, and what one role awaits of another, by stage.
OUTER_BARRIERS = {
    "Position": "places of positions, each found by one thread, from the products that use them",
    "Table": "the table and the places of boxes from the copies that use them, which other threads start",
    "Told": "the places of boxes from those of the next, found where they were",
    "Done": "the products of all warpgroups from the sums that take the place of their operands",
    "Staged": "sums in shared memory from the threads that write them",
}
TOLD_BOXES = 64  # kToldBoxes: found at a time
WAITS = {"full": "the copies of a box from the products that read it", "empty": "the products from the next copies"}
MOST_BOXES = 4  # kMostBoxes of cuda/config/outer_config.hpp: barriers `full` of every stage, then `empty`
OF_ROLES = 8  # HostGroup::kWaits of the simulator


def barriers(kernel: str = "weight_gemm") -> dict[str, int]:
    """Numbers of the barriers by name."""
    text = (Path(__file__).parents[2] / "cuda" / "kernel" / f"{kernel}.hpp").read_text()
    return {name: int(value) for name, value in re.findall(r"\bk(\w+?)Barrier = (\d+);", text)}


def test_every_barrier_has_its_test():
    for kernel, names in (("weight_gemm", BARRIERS), ("outer_gemm", OUTER_BARRIERS)):
        numbers = barriers(kernel)
        assert set(numbers) == set(names) and len(set(numbers.values())) == len(names)
    assert max(barriers("outer_gemm").values()) < OF_ROLES


def shown(call: Call, kept: Tensor, schedule: tuple[int, bool], barrier: int) -> bool:
    """Whether leaving the barrier out changes the result; a wild access counts as well, and a kernel that hangs."""
    try:
        result, _ = call.play(schedule, barrier)
    except (IndexError, RuntimeError) as error:
        assert re.search("memory|wait for each other|more arrivals than a round has", str(error)), error
        return True
    return not bool((call.bits(result) == call.bits(kept)).all())


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize("config", WARPS)
def test_without_a_barrier(config, barrier):
    """Some operand, problem or schedule shows it; the others are not asked."""

    def trials() -> Iterator[bool]:
        for operand in operands_of(config, "grad_weight"):
            for channels, input, k, stride in (((40, 40), (31, 29), 3, 1), ((24, 40), (19, 17), 4, 2)):
                wanted = problem(2, channels, input, k, stride, padding=1)
                call = Call(config, wanted, operand, device=ONE, operator="grad_weight")
                kept = call.play()[0]
                assert call.error(kept) <= 1
                yield from (shown(call, kept, schedule, barriers()[barrier]) for schedule in SCHEDULES[::2])

    assert any(trials()), f"not needed: {BARRIERS[barrier]}"


@pytest.mark.parametrize("barrier", [*OUTER_BARRIERS, *WAITS])
@pytest.mark.parametrize("config", OUTER)
def test_without_a_barrier_among_warpgroups(config, barrier):
    """The first and the last stage of those that a role awaits; boxes at the edges have tables of their own."""
    operands = operands_of(config, "grad_weight")
    # Boxes of 16 bits have as many positions as a warpgroup has threads: the late one of its warps finds some.
    wanted = [operand for operand in operands if OPERANDS[operand].vector == 8 or barrier != "Position"]
    operand = wanted[(OUTER.index(config) + [*OUTER_BARRIERS, *WAITS].index(barrier)) % len(wanted)]
    size = (95, 94) if barrier == "Told" else (35, 30)
    call = Call(config, problem(3, (8, 8), size, 3, padding=2), operand, device=ONE, operator="grad_weight")
    stages = call.told["stages"]
    boxes = math.prod(call.told["tiles"].values()) // call.told["split"]
    assert boxes > 2 * stages, "every stage is used again"
    assert boxes > TOLD_BOXES or barrier != "Told"
    numbers = [barriers("outer_gemm").get(barrier)]
    if barrier in WAITS:
        first = OF_ROLES + list(WAITS).index(barrier) * MOST_BOXES
        numbers = [first, first + stages - 1]
    kept = call.play()[0]
    assert call.error(kept) <= 1
    for number in numbers:
        assert any(shown(call, kept, schedule, number) for schedule in SCHEDULES), f"{number} is not needed"


@pytest.mark.parametrize("config", OUTER)
def test_products_of_warpgroups_are_the_boxes(config):
    """A warp's part of a wgmma for 16 pairs of a tap and a channel, a tile's input channels, and 8 or 16 pixels."""
    for operand in operands_of(config, "grad_weight"):
        for layouts in LAYOUTS[:2]:
            channels = 2 * OPERANDS[operand].vector, OPERANDS[operand].vector * 3
            wanted = problem(2, channels, (24, 16), 3, 2, padding=1, output_padding=1)
            call = Call(config, wanted, operand, layouts, ONE | {"tensor_copies": 0}, operator="grad_weight")
            told, counted = call.told, call.play()[1]
            tile, boxes = told["tile"], math.prod(told["tiles"].values())
            each = tile["columns"] // 16 * tile["pixels"] // (2 * call.operand.vector)
            assert counted["products"] == told["grid"] // told["split"] * boxes * each
            assert told["input_bytes"] == 16, "whole vectors"
            # Channels of 16 bits come by ldmatrix, 8 pixels of it: those of a phase lie side by side, in as many banks.
            along_channels = layouts is not LAYOUTS[0] and call.operand.dtype.itemsize == 2
            assert (counted["matrix_loads"] > 0) == along_channels
            assert not along_channels or (told["patch_phases"] == 2 and counted["bank_conflicts"] == 0)


@pytest.mark.parametrize("config", WARPS)
def test_products_are_the_boxes(config):
    """One mma.sync for 16 input channels, 8 columns and 8 or 16 pixels of every box; a full box wastes nothing."""
    for operand in operands_of(config, "grad_weight"):
        tile = Call(config, problem(1, (1, 1), (1,), 1), operand, operator="grad_weight").told["tile"]
        wanted = problem(1, (tile["rows"], tile["columns"] // 4), (2, tile["pixels"]), (1, 4), padding=(0, 1))
        call = Call(config, wanted, operand, device=ONE, operator="grad_weight")
        told, counted = call.told, call.play()[1]
        products = counted["products"]
        boxes = 1
        for tiles in told["tiles"].values():
            boxes *= tiles
        depth = 2 * call.operand.vector
        each = tile["rows"] // 16 * (tile["columns"] // 8) * (tile["pixels"] // depth) * (3 if operand == "ieee" else 1)
        assert products == told["grid"] // told["split"] * boxes * each
        full = tile["rows"] * tile["columns"] * tile["pixels"] * 2
        assert products // (3 if operand == "ieee" else 1) * 16 * 8 * depth <= 2 * full, told
        # 16 bits come by ldmatrix, whose eight pixels lie side by side.
        assert (counted["matrix_loads"] > 0) == (call.operand.dtype.itemsize == 2)
        assert counted["bank_conflicts"] == 0
