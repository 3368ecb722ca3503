"""How much the tensor cores multiply and how often shared memory stalls: what the geometry says, and no more."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest

from convt import _C
from convt.problem import Problem
from simulated import CONFIGS, GROUPED, LAYOUTS, Call, operands_of, problem

pytestmark = pytest.mark.simulator

MMA_ROWS, MMA_PIXELS, GROUP_PIXELS = 16, 8, 128


@dataclass(frozen=True)
class Work:
    """What one tile does, from the geometry alone; the plan has a single block of phases."""

    shifts: dict[tuple[int, ...], int]  # shift to the mask of row tiles that have a tap there

    @property
    def row_tiles(self) -> int:
        """Row tiles with a tap, summed over the shifts."""
        return sum(bin(mask).count("1") for mask in self.shifts.values())

    @classmethod
    def of(cls, call: Call) -> Work:
        told, wanted = call.told, call.problem
        assert told["phase_blocks"] == 1
        names = ("d", "h", "w")[3 - wanted.rank :]
        per_axis = []  # [axis][phase] -> shifts
        for axis, name in enumerate(names):
            line = _C.Axis(
                wanted.input[axis], wanted.filter[axis], wanted.stride[axis], wanted.padding[axis],
                wanted.output_padding[axis], wanted.dilation[axis],
            )  # fmt: skip
            origin = getattr(_C.Origin, told["origin"][name])
            shifts: list[list[int]] = [[] for _ in range(wanted.stride[axis])]
            for tap in range(wanted.filter[axis]):
                shift, phase = line.tap(tap, origin)
                shifts[phase].append(shift)
            per_axis.append(shifts)
        channels, slot = told["tile"]["output_channels"], 0
        masks: dict[tuple[int, ...], int] = {}
        for phase in itertools.product(*per_axis):
            if not all(phase):
                continue
            first, last = slot * channels // MMA_ROWS, ((slot + 1) * channels - 1) // MMA_ROWS
            slot += 1
            for shift in itertools.product(*phase):
                masks[shift] = masks.get(shift, 0) | sum(1 << tile for tile in range(first, last + 1))
        return cls(masks)


PROBLEMS = {
    "stride-1": problem(1, (20, 24), (14, 15), 3, padding=1),
    "k4s2p1": problem(1, (9, 12), (11, 9), 4, 2, padding=1),
    "k3s2": problem(1, (8, 16), (11, 9), 3, 2, padding=1),
    "pixel-shuffle": problem(2, (17, 5), (9, 8), 2, 2),
    "stride-over-filter": problem(1, (8, 3), (6, 7), 2, 4, padding=1),
    "gcd": problem(1, (6, 8), (30,), 5, 4, dilation=6),
    "groups": problem(1, (12, 15), (9, 9), 3, 2, groups=3),
    "split": problem(1, (140, 16), (5, 5), 3, padding=1),
    "3d": problem(1, (5, 4), (4, 5, 6), 2, (1, 2, 1)),
    "one-channel": problem(1, (1, 1), (300,), 16, 8, padding=4),
}


def columns_of(config: str) -> int:
    """Of one mma.sync, or of what a warp does of a wgmma."""
    return GROUP_PIXELS if config in GROUPED else MMA_PIXELS


def macs_of(call: Call) -> float:
    """Multiply-adds of the operand's values that count as one product."""
    columns = columns_of(call.told["config"])
    return MMA_ROWS * columns * 2 * call.operand.vector / (3 if call.told["operand"] == "ieee" else 1)


def tiles_of(call: Call) -> int:
    """Tiles of all phases, row blocks and groups; thread blocks may take several."""
    told = call.told
    blocks = told["phase_blocks"] * told["channel_blocks"] * call.problem.groups
    return math.prod(told["tiles"].values()) * blocks


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("config", CONFIGS)
def test_products_are_the_masks(config, name):
    """One mma.sync for every row tile with a tap at a shift: row tiles and phases without one cost nothing.

    Warpgroups multiply all rows of a tile, and whole chunks: half of the last one where its other half has no channels.
    """
    planned = 0
    for operand in operands_of(config)[list(PROBLEMS).index(name) % 2 :: 2]:
        call = Call(config, PROBLEMS[name], operand)
        told, products = call.told, call.play()[1]["products"]
        # Every multiply-add that the definition needs is among them.
        assert products * macs_of(call) >= told["flops"] / 2
        if told["phase_blocks"] != 1:
            continue
        planned += 1
        work = Work.of(call)
        assert told["shifts"] == len(work.shifts)
        tiles, columns = tiles_of(call), told["tile"]["pixels"] // columns_of(config)
        assert config in GROUPED or tiles * told["split"] == told["grid"]
        row_tiles = len(work.shifts) * told["tile"]["rows"] // MMA_ROWS if config in GROUPED else work.row_tiles
        steps, rest = divmod(products, tiles * columns * row_tiles * (3 if operand == "ieee" else 1))
        # Of a chunk of channels at most the whole: a step multiplies two planes of 16 bytes.
        depth, channels = 2 * call.operand.vector, call.problem.in_channels // call.problem.groups
        chunk = told["tile"]["input_channels"]
        most, least = told["chunks"] * chunk // depth, math.ceil(channels / depth)
        if config in GROUPED:
            is_half = channels % chunk and channels % chunk <= chunk // 2
            least = most = most - (chunk // 2 // depth if is_half else 0)
        assert rest == 0 and least <= steps <= most, f"{call.label}: {products} products\n{told}"
    assert planned or told["tile"]["rows"] < 64, f"{config}: no plan of {name} has all phases in one block: {told}"


def tile_of(config: str, operand: str) -> dict[str, int]:
    """What a configuration's tile holds."""
    return Call(config, problem(1, (1, 1), (1,), 1), operand).told["tile"]


@pytest.mark.parametrize("config", CONFIGS)
def test_full_tiles_waste_nothing(config):
    """Whole chunks, whole tiles, one shift: every product is one that the definition needs."""
    for operand in operands_of(config):
        tile = tile_of(config, operand)
        wanted = problem(1, (2 * tile["input_channels"], tile["rows"] // 4), (tile["pixels"] // 32, 64), 2, 2)
        call = Call(config, wanted, operand, device={"multiprocessors": 1, "tensor_copies": 0})
        assert call.told["tile"]["output_channels"] * 4 == tile["rows"] and call.told["phase_blocks"] == 1
        assert call.play()[1]["products"] * macs_of(call) == wanted.macs, call.told


@pytest.mark.parametrize("config", CONFIGS)
def test_empty_phases_cost_no_products(config):
    """15 of 16 phases have no tap: as many products as without stride."""
    for operand in operands_of(config):
        one = Call(config, problem(1, (8, 8), (9, 16), 1), operand)
        sparse = Call(config, problem(1, (8, 8), (9, 16), 1, 4), operand)
        each = [call.play()[1]["products"] / tiles_of(call) / call.told["split"] for call in (one, sparse)]
        assert each[0] == each[1], (one.told, sparse.told)


def patch_conflicts(call: Call, padded: bool) -> tuple[int, list[int]]:
    """Pixels of the patch, and the conflicts of every eight positions of a tile that is full."""
    tile, work = call.told["tile"], Work.of(call)
    rank = call.problem.rank
    shifts = list(work.shifts)
    box = [tile[axis] for axis in ("n", "d", "h", "w")]
    halo = [0] * (4 - rank) + [
        max(shift[axis] for shift in shifts) - min(shift[axis] for shift in shifts) for axis in range(rank)
    ]
    pitches, pitch, positions = [0] * 4, 1, 1
    for axis in (3, 2, 1, 0):
        pitches[axis] = pitch
        pitch *= box[axis] + halo[axis]
        positions *= box[axis]
        if padded and math.prod(box[:axis]) > 1 and positions % 8:
            pitch += (positions - pitch) % 8
    pixels = [
        sum(at * own for at, own in zip(place, pitches, strict=True)) for place in itertools.product(*map(range, box))
    ]
    conflicts = []
    for first in range(0, len(pixels), 8):
        banks = [pixel % 8 for pixel in pixels[first : first + 8]]
        conflicts.append(max(map(banks.count, banks)) - 1)
    return pitch, conflicts


def filling(pixels: int) -> list[Problem]:
    """Problems whose tiles are full and of many shapes: one, two and three axes, short rows and long ones."""
    return [
        problem(1, (8, 16), (4 * pixels,), 3, padding=1),
        problem(1, (8, 16), (pixels // 8, 8), 3, padding=1),
        problem(1, (8, 16), (pixels // 4, 4), 3, padding=1),
        problem(1, (8, 16), (pixels // 4, 4), 2, 2),
        problem(1, (8, 16), (pixels // 2, 2), 4, 2, padding=1),
        problem(1, (8, 16), (pixels // 16, 4, 4), 3, padding=1),
        problem(1, (8, 16), (pixels // 8, 4, 2), (3, 1, 3), padding=(1, 0, 1)),
        problem(pixels // 4, (8, 16), (2, 2), 3, padding=1),
        problem(pixels // 2, (8, 16), (2,), 2, 2),
        problem(1, (8, 16), (pixels // 32, 32), 5, padding=2),
    ]


@pytest.mark.parametrize("config", GROUPED)
def test_warpgroups_load_no_fragments(config):
    """Both operands of a wgmma lie in shared memory, eight rows of 16 bytes in 128: those meet in no bank."""
    counted = Call(config, PROBLEMS["stride-1"], operands_of(config)[0]).play()[1]
    assert counted["products"] > 0 == counted["matrix_loads"] == counted["bank_conflicts"]


@pytest.mark.parametrize("operand", ["tf32", "bfloat16"])
@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in GROUPED])
def test_bank_conflicts(config, operand):
    """None where the patch's pitches promise it: rows go on where the last one stopped, modulo eight pixels."""
    full = promised = padded = 0
    for wanted in filling(tile_of(config, operand)["pixels"]):
        call = Call(config, wanted, operand, LAYOUTS[0], {"multiprocessors": 1})
        tile = call.told["tile"]
        counted = call.play()[1]
        assert counted["matrix_loads"] > 0
        if call.told["phase_blocks"] > 1 or math.prod(tile[axis] for axis in ("n", "d", "h", "w")) != tile["pixels"]:
            # Positions that do not exist repeat the last.
            assert counted["bank_conflicts"] <= 7 * counted["matrix_loads"]
            continue
        full += 1
        plain, plainly = patch_conflicts(call, False)
        larger, carefully = patch_conflicts(call, True)
        assert not any(carefully)
        if not any(plainly) or larger <= 1.25 * plain:
            promised += 1
            padded += any(plainly)
            assert counted["bank_conflicts"] == 0, f"{call.label}: {counted}\n{call.told}"
        else:
            # Rows of two or four pixels: padding would cost more than a quarter of the patch.
            worst = max(plainly)
            assert counted["bank_conflicts"] <= worst * counted["matrix_loads"], f"{call.label}: {counted}"
    assert full >= 5 and promised >= 4, (full, promised, padded)
