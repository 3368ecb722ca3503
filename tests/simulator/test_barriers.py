"""Every barrier is needed: without it, some schedule of the warps and copies computes something else."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from simulated import (
    CONFIGS,
    GROUPED,
    OPERANDS,
    PAIRS,
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

KERNELS = Path(__file__).parents[2] / "cuda" / "kernel"
# The names in cuda/kernel/implicit_gemm.hpp, and what a barrier separates.
BARRIERS = {
    "Step": "copies of a filter slab and a patch from the products that read them, and these from the next copies",
    "Staging": "the products from the accumulators' staging in the same memory",
    "Output": "the staging from the output's rows, which other warps have staged",
    "Split": "a part of a sum from the count that says it is there",
}
WARPS = tuple(config for config in CONFIGS if config not in GROUPED)
# A GPU's multiprocessors decide about splits: one has enough to do without.
WHOLE = {"multiprocessors": 1}
# The last slab of filter lies in one stage of the pipeline or another: shifts of any remainder. Two phases along H:
# outputs without phases may leave from registers.
PROBLEMS = [
    problem(1, (channels, 64), (17, 19), (2, taps), (2, 1), padding=1) for channels in (8, 24) for taps in (3, 4, 5, 6)
]
# Cut into parts, but never by warpgroups.
SPLIT = problem(1, (150, 64), (9, 15), 3, padding=1)


# The same in cuda/kernel/warpgroup_gemm.hpp: among those who multiply, and what one role awaits of another.
AMONG_WARPGROUPS = {
    "Staging": "the products, of the slowest warp too, from the sums' staging in the same memory",
    "Output": "the staging from the output's rows, which other warps have staged",
    "Table": "the places of pairs, each found by one thread, from the stores that use them",
}
AMONG_ROLES = {
    "FilterFull": "the copy of a slab from the products that read it",
    "FilterEmpty": "the products that read a slab from the copy that takes its place",
    "PatchFull": "the stores of a patch, of every loader, from the products that read it",
    "PatchEmpty": "the products that read a patch from the stores that take its place",
    "PatchReady": "the rounding of a patch, or its turning, from the products that read it",
    "RowsEmpty": "the turning of rows from the copy that takes their place",
    "SliceFull": "the sums of a slice from the stores of those who fetch them there",
    "SliceEmpty": "the stores of a slice from the sums that take its place",
    "Left": "the staged output of a tile from patches and slabs of the next one",
}
PATCH_STAGES, MOST_STAGES = 2, 4  # kPatchStages, kMostPatchStages and kMostSliceStages of cuda/config/tile_config.hpp


MOST = "kMostPatchStages", "kMostSliceStages"


def barriers(kernel: str = "implicit_gemm") -> dict[str, int]:
    """Numbers of the barriers by name."""
    text = (KERNELS / f"{kernel}.hpp").read_text()
    return {name: int(value) for name, value in re.findall(r"\bk(\w+?)Barrier = (\d+);", text)}


def waits(config: str, stages_of_patches: int = PATCH_STAGES) -> dict[str, tuple[int, ...]]:
    """Numbers of the barriers between roles by name: of the first stage, and of the last (of the first warpgroup)."""
    groups = int(re.search(r"g(\d+)$", config)[1])
    lines = re.findall(r"^CONVT_CONFIG\((.*)\)$", (KERNELS.parent / "config" / "configs.def").read_text(), re.MULTILINE)
    stages = int(lines[CONFIGS.index(config)].split(",")[5])
    text = (KERNELS / "warpgroup_gemm.hpp").read_text()
    (declared,) = re.findall(r"static constexpr int (kFilterFull = .*?);", text, re.DOTALL)
    first: dict[str, int] = {}
    for name, value in re.findall(r"(\w+) = ([^,]+)", declared):
        value = value.replace("kConfig.groups()", str(groups))
        first[name] = eval(value, {"kStages": stages} | dict.fromkeys(MOST, MOST_STAGES), first)
    of_roles = int(re.search(r"kWaits = (\d+);", (KERNELS.parent / "simulator" / "warpgroup_block.hpp").read_text())[1])
    of_patches = stages_of_patches - 1
    last = {"Filter": stages - 1, "Patch": of_patches, "Rows": of_patches, "Slice": of_patches}
    return {
        name[1:]: tuple(of_roles + at + more for more in {0, last.get(re.match(r"k([A-Z][a-z]+)", name)[1], 0)})
        for name, at in first.items()
    }


def test_every_barrier_has_its_test():
    numbers, grouped = barriers(), barriers("warpgroup_gemm")
    assert set(numbers) == set(BARRIERS) and set(grouped) == set(AMONG_WARPGROUPS)
    assert len(set(numbers.values())) == len(numbers) and len(set(grouped.values())) == len(grouped)
    for config in GROUPED:
        of_roles = waits(config)
        assert set(of_roles) == set(AMONG_ROLES)
        own = [number for every in of_roles.values() for number in every]
        assert len(set(own)) == len(own) == 2 * 8 + 1 and not {*own} & {*grouped.values()}


def differs(call: Call, kept, schedule: tuple[int, bool], barrier: int) -> bool:
    """Whether leaving the barrier out changes the output; a wild access counts as well, and a kernel that hangs."""
    try:
        output, _ = call.play(schedule, barrier)
    except (IndexError, RuntimeError) as error:
        assert re.search("memory|wait for each other|more arrivals than a round has", str(error)), error
        return True
    return not bool((call.bits(output) == call.bits(kept)).all())


def shows(call: Call, barrier: int) -> bool:
    """Whether some schedule is wrong without the barrier; with it, all is right."""
    kept = call.play()[0]
    assert call.error(kept) <= 1
    shown = any(differs(call, kept, schedule, barrier) for schedule in SCHEDULES)
    assert bool((call.bits(call.play()[0]) == call.bits(kept)).all()), "nothing stays behind"
    return shown


@pytest.mark.parametrize("barrier", [name for name in BARRIERS if name != "Split"])
@pytest.mark.parametrize(("config", "operand"), [pair for pair in PAIRS if pair[0] not in GROUPED])
def test_without_a_barrier(config, operand, barrier):
    calls = (Call(config, wanted, operand, device=WHOLE) for wanted in PROBLEMS)
    assert any(shows(call, barriers()[barrier]) for call in calls), f"not needed: {BARRIERS[barrier]}"


# How patches come to shared memory: through registers, as copies from an input that was turned to suit them, or as
# copies that are rounded there, or turned.
WAYS_IN = {"gathered": {"tensor_copies": 0}, "turned": {"tensor_copies": 2}, "rows": {"tensor_copies": 3}, "boxes": {}}
# Of some barriers, the only ways that wait for them.
IN_LINES = ("turned", "rows", "boxes")
OF_WAYS = {"PatchReady": ("boxes", "rows"), "RowsEmpty": ("rows",), "SliceFull": IN_LINES, "SliceEmpty": IN_LINES}
# Where a thread block has a multiprocessor to itself, warps of their own store.
AWAITED = [
    (config, name, way)
    for config in GROUPED
    for name in AMONG_ROLES
    for way in OF_WAYS.get(name, WAYS_IN)
    if config.endswith("g2") or not name.startswith("Slice")
]


def several_tiles(
    config: str, operand: str, staged: bool, chunks: int = 3, taps: int = 5, way: str = "gathered"
) -> Call:
    """A few tiles for each of a multiprocessor's thread blocks, of more patches and slabs than there are stages."""
    rows, pixels, planes = map(int, re.match(r"(\d+)x(\d+)p(\d+)", config).groups())
    channels = chunks * planes * OPERANDS[operand].vector
    outputs, stride = (rows // 2, 2) if staged else (rows, 1)
    wanted = problem(1, (channels, outputs), (5 * pixels,), taps, stride)
    # Neither rows nor pixels of such an output are contiguous.
    layouts = Layouts(channels_last if way == "boxes" else contiguous, output=sliced if staged else contiguous)
    call = Call(config, wanted, operand, layouts, device=WHOLE | WAYS_IN[way])
    assert call.told["way_in"] == way
    assert (call.told["way_out"] == "staged") == staged
    assert math.prod(call.told["tiles"].values()) > 2 * call.told["grid"] and call.told["chunks"] > PATCH_STAGES
    return call


def turn(config: str, name: str) -> str:
    """The operand whose turn it is."""
    operands = operands_of(config)
    return operands[(CONFIGS.index(config) + [*AMONG_WARPGROUPS, *AMONG_ROLES].index(name)) % len(operands)]


@pytest.mark.parametrize("name", AMONG_WARPGROUPS)
@pytest.mark.parametrize("config", GROUPED)
def test_without_a_barrier_among_warpgroups(config, name):
    operand = turn(config, name)
    if name == "Table":  # a single step, whose late warps nobody has awaited, of a tile whose places all warps find
        rows, pixels = map(int, re.match(r"(\d+)x(\d+)p", config).groups())
        call = Call(config, problem(1, (4, rows), (2 * pixels,), 1), operand, device=WHOLE | WAYS_IN["gathered"])
        assert call.told["tile"]["w"] == pixels
    else:
        call = several_tiles(config, operand, True, taps=9)
    assert shows(call, barriers("warpgroup_gemm")[name]), f"not needed: {AMONG_WARPGROUPS[name]}"


@pytest.mark.parametrize(("config", "name", "way"), AWAITED)
def test_without_waiting_for_another_role(config, name, way):
    operand = "tf32" if way == "boxes" else turn(config, name)
    # What comes next in a stage may be the same, or may be late anyhow: other problems show it. Patches of few steps
    # have more stages.
    sizes = ((3, 5), (5, 2), (3, 7), (5, 4), (9, 1), (7, 2), (4, 3), (6, 1), (5, 9), (7, 5))
    calls = [several_tiles(config, operand, name == "Left", *size, way) for size in sizes]
    kind = "row_stages" if name == "RowsEmpty" or (way, name) == ("rows", "PatchFull") else "patch_stages"
    kind = "slice_stages" if name.startswith("Slice") else kind
    staged = name.startswith(("Patch", "Rows", "Slice"))
    for stages in {call.told[kind] for call in calls} if staged else {PATCH_STAGES}:
        for number in waits(config, stages)[name]:
            of_stages = (call for call in calls if not staged or call.told[kind] == stages)
            assert any(shows(call, number) for call in of_stages), f"{number} not needed: {AMONG_ROLES[name]}"


@pytest.mark.parametrize("config", WARPS)
def test_without_a_barrier_in_a_part_of_a_sum(config):
    operands = operands_of(config)
    operand = operands[CONFIGS.index(config) % len(operands)]
    call = Call(config, SPLIT, operand)
    assert call.told["split"] > 1
    assert shows(call, barriers()["Step"])
    assert shows(call, barriers()["Split"])


@pytest.mark.parametrize("config", WARPS)
def test_a_sum_in_parts_does_not_depend_on_who_comes_last(config):
    """Order 1 plays the thread blocks of a tile backwards."""
    for operand in operands_of(config)[1::2]:
        call = Call(config, SPLIT, operand)
        assert call.told["split"] > 1
        first, last = call.play((0, False))[0], call.play((1, False))[0]
        assert call.error(first) <= 1
        assert (call.bits(first) == call.bits(last)).all()


@pytest.mark.parametrize("config", GROUPED)
def test_warpgroups_add_whole_sums(config):
    for operand in operands_of(config):
        assert Call(config, SPLIT, operand).told["split"] == 1
