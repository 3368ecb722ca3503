"""Every configuration of the implicit GEMM, played on the host through the code that GPUs run, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adversarial import grouped, has_room
from convt import _C
from convt.testing.kernelbench import PROBLEMS as KERNELBENCH
from simulated import (
    CONFIGS,
    COSTLY,
    LAYOUTS,
    NAMED,
    OPERANDS,
    PAIRS,
    Call,
    giving,
    operands_of,
    planned,
    problem,
)
from strategies import problems

pytestmark = pytest.mark.simulator

PRECISE = [name for name in NAMED if name not in COSTLY]

# What a problem is meant to make a plan do, and how its explanation shows it.
FEATURES = {
    "tiles": (problem(1, (12, 9), (17, 31), (2, 3), padding=1), lambda told: max(told["tiles"].values()) > 1),
    "split": (problem(1, (150, 24), (3, 3), 3, padding=1), lambda told: told["split"] > 1),
    "split-strided": (problem(1, (260, 6), (4, 5), 4, 2, padding=1), lambda told: told["split"] > 1),
    "chunks": (problem(1, (99, 9), (7, 7), 3, padding=1), lambda told: told["chunks"] > 1),
    "row-blocks": (problem(1, (5, 150), (6, 5), (1, 3), padding=(0, 1)), lambda told: told["channel_blocks"] > 1),
    "row-blocks-of-groups": (problem(1, (6, 270), (5, 4), (2, 1), groups=2), lambda told: told["channel_blocks"] > 1),
    "phase-blocks": (problem(1, (6, 9), (3, 4, 3), (3, 4, 5), (3, 4, 5)), lambda told: told["phase_blocks"] > 1),
    "w-phases": (problem(1, (5, 1), (23,), 640, 320, padding=160), lambda told: told["phase_blocks"] > 1),
    "w-phases-2d": (problem(1, (3, 2), (3, 4), (3, 300), (2, 150)), lambda told: told["phase_blocks"] > 1),
    "istft": (problem(1, (18, 1), (30,), 1024, 256, padding=384), lambda told: told["phase_blocks"] > 1),
    "images": (problem(90, (5, 7), (3,), 3, 2, padding=1), lambda told: told["tile"]["n"] > 1),
    "images-2d": (problem(21, (9, 4), (2, 3), 2, 2), lambda told: told["tile"]["n"] > 1),
    "slices": (problem(1, (6, 5), (5, 4, 3), 3, padding=1), lambda told: told["tile"]["d"] > 1),
}

ONE = {"multiprocessors": 1}
exactly = settings(deadline=None, derandomize=True, database=None)


def number(*names: str) -> int:
    """A number that changes with every one of the names."""
    lists = [list(NAMED) + list(FEATURES) + list(KERNELBENCH), CONFIGS, list(OPERANDS)]
    return sum(
        weight * next(names_.index(name) for names_ in lists if name in names_)
        for weight, name in zip((1, 1, 2), names, strict=False)
    )


def turn(name: str, config: str) -> str:
    """The operand whose turn it is where one stands for all: for a second schedule, and for what takes long."""
    operands = operands_of(config)
    return operands[number(name, config) % len(operands)]


def is_turn(name: str, config: str, operand: str) -> bool:
    return turn(name, config) == operand


def layouts_of(name: str, config: str, operand: str):
    """Half of the configurations share a layout, so that the definition is computed once for them."""
    which = number(name) + 2 * list(OPERANDS).index(operand) + CONFIGS.index(config) % 2
    return LAYOUTS[which % len(LAYOUTS)]


def gpu_of(name: str, config: str, operand: str) -> dict[str, int] | None:
    """An H200, with small tiles for its many multiprocessors, or one of them, where tiles are as large as they get."""
    return None if number(name, config, operand) // 2 % 2 else ONE


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", PRECISE)
def test_adversarial(name, config):
    for operand in operands_of(config):
        made = planned(config, NAMED[name], operand, layouts_of(name, config, operand), gpu_of(name, config, operand))
        assert (made is not None) == has_room(config, "forward", name), operand
        if made is not None:
            made.check(number(name, config, operand), 1 + is_turn(name, config, operand))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", sorted(COSTLY & set(NAMED)))
def test_adversarial_costly(name, config):
    operand = turn(name, config)
    layouts, device = layouts_of(name, config, operand), gpu_of(name, config, operand)
    assert has_room(config, "forward", name)
    Call(config, NAMED[name], operand, layouts, device).check(number(name, config, operand))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", FEATURES)
def test_features_of_plans(name, config):
    wanted, shows = FEATURES[name]
    seen = 0
    for operand in operands_of(config):
        # Of many multiprocessors warpgroups would each take a slice.
        device = ONE if grouped(config) and name == "slices" else None
        made = Call(config, wanted, operand, layouts_of(name, config, operand), device)
        made.check(number(name, config, operand), 1 + is_turn(name, config, operand))
        seen += shows(made.told)
    if grouped(config) and name.startswith("split"):
        assert seen == 0, "warpgroups add whole sums"
        return
    # Tiles of many rows have room for what small ones cut; elsewhere every plan has to do it.
    assert seen == len(operands_of(config)) or (name == "phase-blocks" and made.told["tile"]["rows"] > 64), made.told


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", KERNELBENCH)
def test_kernelbench(name, config):
    operand = turn(name, config)
    full = KERNELBENCH[name]
    small = replace(full, batch=1, input=tuple(min(extent, {1: 131, 2: 9, 3: 3}[full.rank]) for extent in full.input))
    layout = LAYOUTS[0] if number(name, config) % 8 < 4 else LAYOUTS[1]
    Call(config, small, operand, layout, ONE).check(number(name, config, operand))


@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
@pytest.mark.parametrize("config", CONFIGS)
def test_all_schedules(config, layouts):
    """Every order of the warps, copies early and late, and every layout: the same bits."""
    names = operands_of(config)
    operand = names[(LAYOUTS.index(layouts) + CONFIGS.index(config)) % len(names)]
    wanted = problem(2, (20, 24), (7, 5), 3, 2, padding=1, output_padding=1)
    Call(config, wanted, operand, layouts, ONE).check(0, 6)


def least_shared(config: str, operand: str, wanted) -> int:
    """Bytes of shared memory per block that a configuration cannot do without."""
    refused, enough = 0, 2**20
    while enough - refused > 256:
        middle = (refused + enough) // 2
        try:
            Call(config, wanted, operand, device=giving(middle))
            enough = middle
        except ValueError as error:
            assert "shared memory" in str(error)
            refused = middle
    return enough


CUT = {
    "2d": problem(1, (6, 10), (14, 15), (2, 3), padding=25, dilation=(61, 30)),
    "3d-strided": problem(1, (5, 6), (3, 5, 6), (1, 3, 2), (1, 2, 1), dilation=(1, 9, 31)),
    "1d": problem(1, (9, 5), (300,), 4, padding=800, dilation=611),
}


@pytest.mark.parametrize(("config", "operand"), PAIRS)
def test_patches_that_are_cut(config, operand):
    """In shared memory that is as small as it may be, shifts are cut into groups; of warpgroups, refused."""
    for at, (name, wanted) in enumerate(CUT.items()):
        least = least_shared(config, operand, problem(1, (4, 4), (6, 6), 3))
        if grouped(config):
            made = planned(config, wanted, operand, LAYOUTS[at], giving(least + 512 * at))
            assert made is None or name == "3d-strided", "whose shifts reach less far"
            # Instead a patch that just fits.
            made = made or Call(config, problem(1, (4, 4), (6, 6), 3), operand, LAYOUTS[at], giving(least))
            assert made.told["shared_bytes"] <= least + 512 * at
            made.check(number(config, operand) + at, 1)
            continue
        made = Call(config, wanted, operand, LAYOUTS[at], giving(least + 512 * at))
        tile = made.told["tile"]
        if name != "3d-strided":
            axes = ("d", "h", "w")[-wanted.rank :]
            patch = tile["n"]
            for axis, k, dilation in zip(axes, wanted.filter, wanted.dilation, strict=True):
                patch *= tile[axis] + dilation * (k - 1)
            planes = tile["input_channels"] // OPERANDS[operand].vector
            assert patch * planes * 16 > made.told["shared_bytes"], f"not cut: {made.told}"
        assert made.told["shared_bytes"] <= least + 512 * at
        made.check(number(config, operand) + at, 1 + (at == CONFIGS.index(config) % len(CUT)))


@pytest.mark.parametrize("config", CONFIGS)
def test_random_problems(config):
    @settings(exactly, max_examples=30)
    @given(
        problems(max_macs=20_000),
        st.sampled_from(sorted(operands_of(config))),
        st.sampled_from(LAYOUTS),
        st.integers(0, 5),
        st.sampled_from((None, ONE, {"multiprocessors": 8})),
        st.integers(0, 99),
    )
    def is_the_definition(wanted, operand, layouts, first, device, seed):
        made = planned(config, wanted, operand, layouts, device, seed)
        played.append(made is not None)
        if made is not None:
            made.check(first)

    played: list[bool] = []
    is_the_definition()
    assert sum(played) >= 24 and len(played) >= 30, f"{sum(played)} of {len(played)} problems"


def test_what_is_not_simulated_says_so():
    plan = _C.cuda_plan(
        "forward", (1, 4, 5), (20, 5, 1), (4, 4, 3), (12, 3, 1), None, (28, 7, 1), "float64", "ieee", (1,), (0,), (0,),
        1, (1,), None, None,
    )  # fmt: skip
    assert plan.kernel != "implicit_gemm"
    with pytest.raises(ValueError, match="only implicit_gemm is simulated"):
        _C.simulate(plan, 0, 0, 0, 0, 0)
