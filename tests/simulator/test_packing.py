"""The packed filter, bit by bit: the kernel's own code against taps, shifts and phases one by one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from adversarial import grouped
from convt import _C
from convt.problem import Problem
from convt.testing.definition import tf32_nearest
from simulated import (
    OPERANDS,
    Layout,
    among_nan,
    channels_last,
    contiguous,
    expanded,
    expanded_rows,
    operands_of,
    problem,
    sliced,
    transposed,
)

pytestmark = pytest.mark.simulator

LAYOUTS = {
    "contiguous": contiguous,
    "channels-last": channels_last,
    "transposed": transposed,
    "sliced": sliced,
    "expanded": expanded,
    "expanded-rows": expanded_rows,
    # Output channels innermost, input channels next to them; and taps outermost, input channels innermost.
    "taps-first": lambda size: (size[1], 1, *(size[0] * size[1] * s for s in contiguous(size[2:]))),
    "hwoi": lambda size: (1, size[0], *(size[0] * size[1] * s for s in contiguous(size[2:]))),
}


FILTERS = {
    "k3": problem(1, (70, 75), (5, 6), 3, padding=1),
    "k4s2": problem(1, (24, 40), (5, 6), 4, 2, padding=1),
    "k3s2": problem(1, (33, 9), (5, 6), 3, 2, padding=1),
    "k1": problem(1, (40, 64), (5, 6), 1),
    "one": problem(1, (1, 1), (5,), 1),
    "few-channels": problem(1, (3, 2), (5, 6), 4, 2, padding=1),
    "groups": problem(1, (30, 36), (5, 6), 3, 2, padding=1, groups=3),
    "groups-of-one": problem(1, (12, 12), (5, 6), 3, groups=12),
    "dilated": problem(1, (20, 24), (9, 8), (3, 4), (2, 3), dilation=(3, 4)),
    "gcd": problem(1, (20, 24), (40,), 7, 6, dilation=4),
    "cropped": problem(1, (9, 16), (7, 8), 3, 2, padding=2),
    "stride-over-filter": problem(1, (9, 16), (7, 8), 2, 3, output_padding=1),
    "3d": problem(1, (17, 20), (3, 4, 5), (2, 3, 3), (1, 2, 2)),
    "many-channels": problem(1, (200, 300), (3, 3), 3),
    "large": problem(1, (16, 72), (40, 40, 40), (5, 5, 5)),
    "long": problem(1, (12, 10), (600,), 400, 3),
    "few-jobs": problem(1, (8, 16), (40, 40), 9),
    "most-taps": problem(1, (2, 3), (8200,), 8192),
    "most-phases": problem(1, (3, 2), (3, 3, 3), 16, 16),
    "taps-that-miss": problem(1, (5, 4), (3000,), 600, 8, dilation=9),
}
# Their halos are too wide for the patches of warpgroups.
WIDE = {"long", "most-taps", "taps-that-miss", "few-jobs"}
# One operand and layout of each operator is enough of them.
DEAR = {"most-taps", "taps-that-miss"}
CONFIGS = ("64x256p4w1x4", "48x256p4w1x4", "16x256p4w1x4", "128x128p8w2x2", "64x256p8w1x4", "128x256p8g2")


@dataclass
class Packed:
    """What the simulator packs, and what it says about it."""

    told: dict
    bits: np.ndarray

    @property
    def features(self) -> set[str]:
        """How the work was shared out."""
        told = self.told
        found = {f"width {told['width']}", "gathered" if told["staged_bytes"] == 0 else "staged"}
        found |= {name for name in ("pieces", "ranges", "job_planes") if told[name] > 1}
        return found | ({"rounds"} if told["grid"] < told["jobs"] else set())


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.int32 if tensor.dtype is torch.float32 else torch.int16).numpy()


def halves(weight: torch.Tensor, operand: str) -> list[np.ndarray]:
    """The copies of a filter, as bits: itself, rounded, or both halves of what is split."""
    if operand == "tf32":
        return [bits_of(tf32_nearest(weight))]
    if operand == "ieee":
        high = tf32_nearest(weight)
        return [bits_of(high), bits_of(tf32_nearest(weight - high))]
    return [bits_of(weight)]


class Case:
    """A filter at its strides, and the plan of a call that packs it."""

    def __init__(
        self, config: str, wanted: Problem, operand: str, operator: str, layout: Layout, elements: int, device: dict
    ) -> None:
        self.wanted, self.operand, self.operator = wanted, operand, operator
        self.kind = OPERANDS[operand]
        generator = torch.Generator().manual_seed(wanted.in_channels)
        strides = layout(wanted.weight_size)
        values = torch.randn(wanted.weight_size, generator=generator).to(self.kind.dtype)
        for axis, stride in enumerate(strides):
            values = values.narrow(axis, 0, 1).expand(wanted.weight_size) if stride == 0 else values
        self.weight = among_nan(values, strides, elements)
        self.plan = _C.cuda_plan(
            operator, wanted.input_size, contiguous(wanted.input_size), wanted.weight_size, strides, None,
            contiguous(wanted.output_size), str(self.kind.dtype).removeprefix("torch."), self.kind.precision,
            wanted.stride, wanted.padding, wanted.output_padding, wanted.groups, wanted.dilation, device, config,
        )  # fmt: skip
        self.explained = self.plan.explain()

    def packed(self, backwards: bool = False) -> Packed:
        """By the kernel's own code; nothing beyond the workspace is written."""
        size = self.plan.workspace_bytes
        workspace = torch.full((size + 512,), 0xFF, dtype=torch.uint8)
        first = -workspace.data_ptr() % 256
        told = _C.simulate_packing(self.plan, self.weight.data_ptr(), workspace.data_ptr() + first, backwards)
        assert (workspace[:first] == 0xFF).all() and (workspace[first + size :] == 0xFF).all()
        assert told["shared_bytes"] < 48 << 10 and told["width"] >= self.weight.itemsize
        begin = first + told["offset"]
        return Packed(told, workspace[begin : begin + self.slabs(told["blocks"]).nbytes].numpy())

    def slabs(self, blocks: list) -> np.ndarray:
        """An empty filter: [conv group][channel block][slab] of 16-byte units, as bytes."""
        told = self.explained
        steps = sum(len(group) for _, groups in blocks for group in groups)
        units = self.copies * self.planes * told["tile"]["rows"] + 1
        return np.zeros((self.wanted.groups, told["channel_blocks"], steps * told["chunks"], units, 16), dtype=np.uint8)

    @property
    def copies(self) -> int:
        return 2 if self.operand == "ieee" else 1

    @property
    def planes(self) -> int:
        return self.explained["tile"]["input_channels"] // self.kind.vector

    def taps(self):
        """Of every tap its place in the filter, phase and shift per axis."""
        wanted, origin = self.wanted, self.explained["origin"]
        axes = []
        for axis, name in enumerate("dhw"[3 - wanted.rank :]):
            line = _C.Axis(
                wanted.input[axis], wanted.filter[axis], wanted.stride[axis], wanted.padding[axis],
                wanted.output_padding[axis], wanted.dilation[axis],
            )  # fmt: skip
            which = getattr(_C.Origin, origin[name]) if self.operator == "forward" else _C.Origin.padded
            axes.append([line.tap(tap, which) for tap in range(wanted.filter[axis])])
        for tap in itertools.product(*(range(extent) for extent in wanted.filter)):
            shift = (0,) * (3 - wanted.rank) + tuple(axes[axis][at][0] for axis, at in enumerate(tap))
            phase = 0
            for axis, at in enumerate(tap):
                phase = phase * wanted.stride[axis] + axes[axis][at][1]
            yield tap, shift, phase

    def expected(self, order: tuple[int, int], blocks: list) -> np.ndarray:
        """The same from the definition."""
        wanted, told, vector = self.wanted, self.explained, self.kind.vector
        forward, chunks, rows = self.operator == "forward", told["chunks"], told["tile"]["rows"]
        channels = told["tile"]["output_channels"]  # of a row block
        made = self.slabs(blocks)
        # [conv group][row's channel][reduction's channel][taps], in whole blocks and chunks
        filters = []
        for bits in halves(self.weight, self.operand):
            grouped = bits.reshape(wanted.groups, -1, *bits.shape[1:])
            grouped = grouped.swapaxes(1, 2) if forward else grouped
            more = (
                told["channel_blocks"] * channels - grouped.shape[1],
                chunks * self.planes * vector - grouped.shape[2],
            )
            assert min(more) >= 0
            filters.append(np.pad(grouped, ((0, 0), (0, more[0]), (0, more[1]), *((0, 0),) * wanted.rank)))
        steps, slots, before = {}, {}, 0
        for number, (phases, groups) in enumerate(blocks):
            slots |= {phase: (number, slot) for slot, phase in enumerate(phases)}
            for at, group in enumerate(groups):
                for own, (shift, phase, _, _) in enumerate(group):
                    slab = [before + chunk * len(group) + own for chunk in range(chunks)]
                    steps[number, shift, phase] = slab
                    for chunk in range(chunks):
                        following = group[(own + 1) % len(group)]
                        if own + 1 == len(group) and chunk + 1 == chunks and at + 1 < len(groups):
                            following = groups[at + 1][0]
                        header = np.array([following[2], following[3], 0, 0], dtype=np.uint32)
                        made[:, :, slab[chunk], -1] = header.view(np.uint8)
                before += chunks * len(group)
        units = made[..., :-1, :].view(np.uint32 if filters[0].itemsize == 4 else np.uint16)
        units = units.reshape(*units.shape[:3], self.copies, self.planes, rows, vector)
        # Sixteen rows have so many units: a channel of an outer phase, with its W phases one after the other.
        phases, beside = order
        for tap, shift, phase in self.taps():
            block, slot = slots[phase] if forward else (0, 0)
            slab = steps[(block, shift, 0) if forward else (0, tuple(-at for at in shift), phase)]
            for copy, bits in enumerate(filters):
                values = bits[(..., *tap)].reshape(
                    wanted.groups, told["channel_blocks"], channels, chunks, self.planes, vector
                )
                # to [conv group][channel block][chunk][plane][row][element]
                unit = slot // phases * channels + np.arange(channels)
                at = unit // beside * 16 + slot % phases * beside + unit % beside
                for chunk in range(chunks):
                    units[:, :, slab[chunk], copy][:, :, :, at] = values[:, :, :, chunk].swapaxes(2, 3)
        made[..., :-1, :] = units.reshape(*made.shape[:3], -1, vector).view(np.uint8)
        return made


def check(case: Case) -> Packed:
    """Both orders of the threads write the definition's bits."""
    packed = case.packed()
    expected = case.expected(packed.told["order"], packed.told["blocks"])
    assert expected[..., :-1, :].any()
    for made in (packed, case.packed(backwards=True)):
        differ = np.flatnonzero(made.bits != expected.reshape(-1))
        assert differ.size == 0, (
            f"{case.plan.config}: {differ.size} of {expected.size} bytes differ, first {differ[:4]}"
        )
    return packed


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in FILTERS if name not in DEAR])
def test_packed_filter(name, layout, operator):
    """Every operand; configurations, addresses and numbers of multiprocessors take turns."""
    first = 3 * list(FILTERS).index(name) + 5 * list(LAYOUTS).index(layout) + (operator == "forward")
    for turn, operand in enumerate(OPERANDS, first):
        configs = [config for config in CONFIGS if operand in operands_of(config, operator)]
        configs = [config for config in configs if name not in WIDE or not grouped(config)]
        device = {"multiprocessors": (132, 1, 12)[turn % 3], "outputs_together": 1}
        wanted, config = FILTERS[name], configs[turn % len(configs)]
        check(Case(config, wanted, operand, operator, LAYOUTS[layout], (0, 1, 8, 2, 4)[turn % 5], device))


SHARED_OUT = {
    # Vectors from both ends of the filter's sizes, and down to single elements.
    ("k4s2", "forward", "bfloat16", "contiguous", 0): {"staged", "width 16"},
    ("k4s2", "forward", "bfloat16", "contiguous", 2): {"width 4"},
    ("k4s2", "grad_input", "tf32", "channels-last", 2): {"width 8"},
    ("k3", "forward", "float16", "contiguous", 0): {"width 2"},
    ("k1", "forward", "float16", "sliced", 0): {"width 2"},
    ("many-channels", "forward", "bfloat16", "contiguous", 0): {"staged", "width 8", "rounds"},
    ("large", "forward", "tf32", "contiguous", 0): {"pieces"},
    ("few-jobs", "forward", "tf32", "contiguous", 0): {"ranges", "staged"},
    ("most-taps", "forward", "tf32", "contiguous", 0): {"gathered", "ranges"},
    ("most-taps", "grad_input", "ieee", "channels-last", 1): {"gathered", "ranges"},
    ("taps-that-miss", "forward", "float16", "transposed", 0): {"gathered", "ranges"},
    ("taps-that-miss", "grad_input", "bfloat16", "sliced", 1): {"staged", "width 2"},
}


@pytest.mark.parametrize("which", SHARED_OUT, ids=lambda which: "-".join(map(str, which)))
def test_how_packing_is_shared_out(which):
    """Every way to read a filter and to share it out is taken by some problem, and right."""
    name, operator, operand, layout, elements = which
    device = {"multiprocessors": 1} if "rounds" in SHARED_OUT[which] else {}
    packed = check(Case("64x256p4w1x4", FILTERS[name], operand, operator, LAYOUTS[layout], elements, device))
    assert SHARED_OUT[which] <= packed.features, packed.features


def test_jobs_have_several_planes_where_there_are_many():
    """And as many thread blocks as an H200 holds, each with the same number of jobs."""
    wanted = problem(8, (512, 512), (32, 32), 4, 2, padding=1)
    told = check(Case("64x256p4w1x4", wanted, "bfloat16", "forward", contiguous, 0, {})).told
    assert told["job_planes"] == 2 and told["staged_bytes"] < 20 << 10 and told["width"] == 16
    assert 2 * 132 < told["grid"] <= 4 * 132


def test_only_what_packs_is_played():
    case = Case("64x256p4w1x4", FILTERS["k3"], "tf32", "forward", contiguous, 0, {})
    other = _C.cuda_plan(
        "forward", (1, 1, 4), (4, 4, 1), (1, 1, 3), (3, 3, 1), None, (6, 6, 1), "float64", "ieee", (1,), (0,), (0,), 1,
        (1,), None, "simt",
    )  # fmt: skip
    with pytest.raises(ValueError, match="simt; only forward and grad_input of implicit_gemm pack a filter"):
        _C.simulate_packing(other, case.weight.data_ptr(), 0)
