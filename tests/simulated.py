"""Calls played by the CTA simulator: operands among NaN, the definition in float64, and every schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from adversarial import ADVERSARIAL, NO_ROOM, grouped
from convt import _C
from convt.problem import Problem
from convt.testing.definition import tf32_nearest
from reference import Case, conv_transpose

CONFIGS = tuple(_C.cuda_configs())
# Warpgroups multiply whole tiles, which are dear to a simulator, however little is in them: not one for each of 132.
FEW = {"multiprocessors": 12}
GROUPED = tuple(config for config in CONFIGS if grouped(config))
# Order of the warps, and whether asynchronous copies happen when they are waited for instead of when they are issued.
SCHEDULES = tuple((order, late) for order in range(3) for late in (False, True))


@dataclass(frozen=True)
class Operand:
    """What tensor cores multiply, and how far a result may be from the definition, relative to the sum of |x| |w|."""

    dtype: torch.dtype
    precision: str
    error: float

    @property
    def vector(self) -> int:
        """Channels in 16 bytes."""
        return 16 // self.dtype.itemsize

    def rounded(self, tensor: Tensor) -> Tensor:
        """What remains of an input or a filter in the products."""
        return tf32_nearest(tensor) if self.precision == "tf32" else tensor


OPERANDS = {
    "tf32": Operand(torch.float32, "tf32", 1e-6),
    "ieee": Operand(torch.float32, "ieee", 1e-6),
    "bfloat16": Operand(torch.bfloat16, "ieee", 4e-3),
    "float16": Operand(torch.float16, "ieee", 5e-4),
}


@lru_cache
def operands_of(config: str, operator: str = "forward") -> tuple[str, ...]:
    """The operands that a configuration multiplies: large tiles have no registers for the three products of ieee."""
    return tuple(operand for operand in OPERANDS if config in _C.cuda_configs(operator, operand))


# Configurations of the forward with each operand that they multiply.
PAIRS = tuple((config, operand) for config in CONFIGS for operand in operands_of(config))


def problem_of(case: Case) -> Problem:
    """The same problem as one value."""
    stride, padding, output_padding, groups, dilation = case.geometry
    channels = case.input[1], case.out_channels, groups
    return Problem(case.input[0], *channels, case.input[2:], case.weight[2:], stride, padding, output_padding, dilation)


def problem(
    batch: int,
    channels: tuple[int, int],
    input: tuple[int, ...],
    filter: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Problem:
    """A problem from integers that count for every axis, or from tuples."""
    each = ((v,) * len(input) if isinstance(v, int) else v for v in (filter, stride, padding, output_padding, dilation))
    return Problem(batch, *channels, groups, input, *each)


# Dear to a simulator: one operand per configuration, in turn.
COSTLY = {
    "2d-groups-of-8", "2d-67-33", "2d-3-130", "2d-17-1", "2d-depthwise-37", "2d-multiplier-3", "1d-depthwise",
    "3d-depthwise", "2d-depthwise-k16", "2d-600", "1d-320-phases", "2d-k2s2", "3d-odd", "2d-large-filter",
    "1d-long-filter",
}  # fmt: skip
# Large enough for a GPU; smaller ones stand for them here.
LEFT_TO_GPUS = {"2d-pixel-of-1024", "2d-tiles", "2d-tiles-k4s2p1", "3d-tiles", "1d-tiles", "3d-dilated"}
NAMED = {case.name: problem_of(case) for case in ADVERSARIAL if case.name not in LEFT_TO_GPUS} | {
    "3d-dilated-little": problem(1, (6, 5), (3, 4, 5), (2, 3, 2), dilation=(2, 3, 4)),
    "2d-67-5": problem(1, (67, 5), (5, 6), 3, padding=1),
    "1d-k-is-s": problem(2, (20, 6), (43,), 4, 4),
    "2d-aligned-origin": problem(1, (8, 12), (4, 4), 4, 2, padding=1),
    "3d-crop": problem(1, (5, 3), (4, 5, 6), 3, 2, padding=2),
    "1d-far-taps": problem(1, (4, 5), (21,), 3, 2, dilation=31, padding=20, output_padding=17),
}


# Layouts: where a tensor's elements lie, and NaN everywhere else.

_GUARD = 64


def among_nan(tensor: Tensor, strides: tuple[int, ...], elements: int) -> Tensor:
    """The same values at these strides, `elements` past a 64-byte boundary, every other byte 0xff."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    size = tensor.dtype.itemsize
    memory = torch.full(((2 * _GUARD + elements + extent) * size,), 0xFF, dtype=torch.uint8).view(tensor.dtype)
    placed = memory.as_strided(tensor.shape, strides, _GUARD + elements)
    once = tuple(slice(0, 1 if stride == 0 else None) for stride in strides)
    placed[once] = tensor[once]
    return placed


def _dense(size: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    strides, pitch = [0] * len(size), 1
    for axis in reversed(order):
        strides[axis] = pitch
        pitch *= size[axis]
    return tuple(strides)


def contiguous(size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in the order of the axes."""
    return _dense(size, tuple(range(len(size))))


def channels_last(size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with the channels innermost, whatever the rank."""
    return _dense(size, (0, *range(2, len(size)), 1))


def transposed(size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in the opposite order of the axes."""
    return _dense(size, tuple(reversed(range(len(size)))))


def sliced(size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a slice of a wider tensor: odd pitches, gaps everywhere."""
    return tuple(2 * stride for stride in contiguous(tuple(extent + 1 for extent in size)))


def expanded(size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an expanded tensor: all images, or all input channels of a filter, are one."""
    return (0, *contiguous(size)[1:])


def expanded_rows(size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor whose last axis is expanded, with channels innermost."""
    return (*channels_last((*size[:-1], 1))[:-1], 0)


Layout = Callable[[tuple[int, ...]], tuple[int, ...]]


@dataclass(frozen=True)
class Layouts:
    """Where the tensors of a call lie; `elements` from an aligned address to their first elements."""

    input: Layout = contiguous
    weight: Layout = contiguous
    output: Layout = contiguous
    bias: int | None = 1  # stride
    elements: int = 0


LAYOUTS = (
    Layouts(),
    Layouts(channels_last, channels_last, channels_last, None),
    Layouts(sliced, transposed, contiguous, 3),
    Layouts(channels_last, contiguous, channels_last, 1, elements=1),
    Layouts(expanded, sliced, channels_last, 0),
    Layouts(contiguous, channels_last, contiguous, None, elements=1),
    Layouts(channels_last, expanded, contiguous, 1),
    Layouts(expanded_rows, transposed, channels_last, 2, elements=1),
)


# The tensor that an operator writes; the other two are read.
RESULTS = {"forward": "output", "grad_input": "input", "grad_weight": "weight"}


@lru_cache(maxsize=256)
def _values(
    operator: str, problem: Problem, operand: str, layouts: Layouts, seed: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What is read, in its layout; the definition and, per element of the result, the sum of all |product|."""
    generator = torch.Generator().manual_seed(seed)
    kind = OPERANDS[operand]

    def normal(size: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        values = torch.randn(size, generator=generator, dtype=torch.float64).to(kind.dtype)
        # What an expanded tensor repeats is its first slice.
        for axis, stride in enumerate(strides):
            values = values.narrow(axis, 0, 1).expand(size) if stride == 0 else values
        return among_nan(values, strides, layouts.elements)

    sizes = {"input": problem.input_size, "weight": problem.weight_size, "output": problem.output_size}
    result = RESULTS[operator]
    read = {name: normal(size, getattr(layouts, name)(size)) for name, size in sizes.items() if name != result}
    if operator == "forward":
        read["bias"] = normal((problem.out_channels,), (1 if layouts.bias is None else layouts.bias,))
    keywords = {
        "stride": problem.stride,
        "padding": problem.padding,
        "output_padding": problem.output_padding,
        "groups": problem.groups,
        "dilation": problem.dilation,
    }

    def definition(tensors: dict[str, Tensor]) -> Tensor:
        if operator == "forward":
            bias = None if layouts.bias is None else tensors["bias"]
            return conv_transpose(tensors["input"], tensors["weight"], bias, **keywords)
        wanted = torch.zeros(sizes[result], dtype=torch.float64, requires_grad=True)
        factors = {**tensors, result: wanted}
        output = conv_transpose(factors["input"], factors["weight"], None, **keywords)
        return torch.autograd.grad(output, wanted, tensors["output"])[0]

    exact = {name: (tensor if name == "bias" else kind.rounded(tensor)).double() for name, tensor in read.items()}
    return read, definition(exact), definition({name: tensor.abs() for name, tensor in exact.items()})


@lru_cache
def room_for(config: str, operand: str, operator: str = "forward") -> dict[str, Any]:
    """What a GPU must have beyond an H200 for this configuration: an operand may be too large for its stages."""
    kind, ones = OPERANDS[operand], (1, 1, 1)
    name = str(kind.dtype).removeprefix("torch.")
    room = {"shared_per_block": 2**20, "shared_per_multiprocessor": 2**23}
    for device in ({}, room):
        with suppress(ValueError):
            _C.cuda_plan(
                operator,
                ones,
                ones,
                ones,
                ones,
                None,
                ones,
                name,
                kind.precision,
                (1,),
                (0,),
                (0,),
                1,
                (1,),
                device,
                config,
            )
            return device
    raise ValueError(f"config: {config} multiplies no {operand}")


class Call:
    """A call of one configuration, planned once and played any number of times.

    Raises:
        ValueError: the configuration cannot compute the problem.
    """

    def __init__(
        self,
        config: str,
        problem: Problem,
        operand: str = "tf32",
        layouts: Layouts = LAYOUTS[0],
        device: dict[str, Any] | None = None,
        seed: int = 0,
        operator: str = "forward",
    ) -> None:
        self.label = f"{operator} {config} {operand} {problem} {layouts}"
        few = FEW if grouped(config) else {}
        device = {**room_for(config, operand, operator), **few, **(device or {})}
        self.problem, self.operand, self.layouts = problem, OPERANDS[operand], layouts
        self.result = RESULTS[operator]
        self.read, self.truth, self.magnitude = _values(operator, problem, operand, layouts, seed)
        self.size = tuple(self.truth.shape)
        self.strides = getattr(layouts, self.result)(self.size)
        if 0 in self.strides:  # nobody writes one element twice
            self.strides = contiguous(self.size)
        strides = {name: tensor.stride() for name, tensor in self.read.items()} | {self.result: self.strides}
        self.plan = _C.cuda_plan(
            operator,
            problem.input_size,
            strides["input"],
            problem.weight_size,
            strides["weight"],
            layouts.bias if operator == "forward" else None,
            strides["output"],
            str(self.operand.dtype).removeprefix("torch."),
            self.operand.precision,
            problem.stride,
            problem.padding,
            problem.output_padding,
            problem.groups,
            problem.dilation,
            device,
            config,
        )
        self.told = self.plan.explain()

    def play(
        self, schedule: tuple[int, bool] = SCHEDULES[0], skipped_barrier: int = -1, epilogue: list | None = None
    ) -> tuple[Tensor, dict]:
        """The result, and what the simulator counted. Memory that nobody wrote is NaN, and nothing else is written."""
        nothing = torch.zeros((), dtype=self.operand.dtype).expand(self.size)
        result = among_nan(nothing, self.strides, self.layouts.elements)
        result.view(torch.uint8 if result.numel() == 0 else self._integers).fill_(-1)
        workspace = torch.full((self.plan.workspace_bytes + 512,), 0xFF, dtype=torch.uint8)
        first = -workspace.data_ptr() % 256
        pointers = {name: tensor.data_ptr() for name, tensor in self.read.items()} | {self.result: result.data_ptr()}
        if self.layouts.bias is None or "bias" not in pointers:
            pointers["bias"] = 0
        counted = _C.simulate(
            self.plan, *(pointers[name] for name in ("input", "weight", "bias", "output")),
            workspace.data_ptr() + first, *schedule, skipped_barrier, epilogue,
        )  # fmt: skip
        beyond = workspace[first + self.plan.workspace_bytes :]
        assert (beyond == 0xFF).all() and (workspace[:first] == 0xFF).all(), f"{self.label}: beyond the workspace"
        memory = torch.empty((), dtype=self._integers).set_(result.untyped_storage()).clone()
        memory.as_strided(result.shape, result.stride(), result.storage_offset()).fill_(-1)
        assert (memory == -1).all(), f"{self.label}: written outside of the result"
        return result, counted

    @property
    def _integers(self) -> torch.dtype:
        return torch.int32 if self.operand.dtype is torch.float32 else torch.int16

    def error(self, output: Tensor) -> float:
        """Largest error, in units of what is allowed; infinite where an output is NaN."""
        smallest = torch.finfo(self.operand.dtype).smallest_normal
        allowed = self.operand.error * self.magnitude + smallest
        error = ((output.double() - self.truth).abs() / allowed).max().item()
        return math.inf if math.isnan(error) else error

    def bits(self, output: Tensor) -> Tensor:
        """The output's bit patterns, which compare equal even where it is NaN."""
        return output.view(self._integers)

    def check(self, first: int = 0, count: int = 2) -> dict:
        """Plays `count` of the six schedules, beginning with the given one; right, and the same to the last bit."""
        kept = None
        for number in range(count):
            # Neighbours differ in the order of the warps and in the time of the copies.
            schedule = SCHEDULES[(first + 3 * number + number // 2) % len(SCHEDULES)]
            output, counted = self.play(schedule)
            if kept is None:
                kept = output, counted
                error = self.error(output)
                assert error <= 1, f"{self.label}: {schedule}: {error:.3g} times the allowed error\n{self.told}"
            assert torch.equal(self.bits(output), self.bits(kept[0])), f"{self.label}: {schedule} differs"
            assert counted == kept[1], f"{self.label}: {schedule}: {counted}, not {kept[1]}"
        return kept[1]


@lru_cache
def reach(config: str, operand: str, operator: str, shared: int | None) -> int:
    """Pixels that a row of a patch may have: of a filter of two taps, which reach farther and farther."""
    device = giving(shared) if shared else None
    fits, too_far = 0, 2**14
    while too_far - fits > 1:
        middle = (fits + too_far) // 2
        try:
            Call(
                config, problem(1, (1, 1), (middle + 1,), 2, dilation=middle), operand, device=device, operator=operator
            )
            fits = middle
        except ValueError as error:
            assert NO_ROOM in str(error)
            too_far = middle
    return fits


def giving(shared: int) -> dict[str, int]:
    """A GPU whose blocks get this many bytes of shared memory."""
    return {"shared_per_block": shared, "shared_per_multiprocessor": 100 * shared}


def crowded(problem: Problem, operator: str, room: int) -> bool:
    """Whether the taps of one position reach over half of so many pixels: a tile has more than one."""
    pixels = 1
    for filter, stride, dilation in zip(problem.filter, problem.stride, problem.dilation, strict=True):
        pixels *= 1 + dilation * (filter - 1) // stride + (stride > 1)
    if operator == "grad_input":  # which reads the phases of a row side by side
        pixels *= min(problem.stride[-1], problem.filter[-1])
    return 2 * pixels > room


def planned(
    config: str,
    problem: Problem,
    operand: str = "tf32",
    layouts: Layouts = LAYOUTS[0],
    device: dict[str, Any] | None = None,
    seed: int = 0,
    operator: str = "forward",
) -> Call | None:
    """A call; None where warpgroups say that they have no room for a halo which is indeed large."""
    try:
        return Call(config, problem, operand, layouts, device, seed, operator)
    except ValueError as error:
        if not (grouped(config) and NO_ROOM in str(error)):
            raise
    room = reach(config, operand, operator, (device or {}).get("shared_per_block"))
    assert crowded(problem, operator, room), f"{operator} {config} {operand} {problem}: {room} pixels fit"
    return None
