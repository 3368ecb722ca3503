"""A GPU that is only pretended: tensors stay on the CPU, convt believes that they are on "cuda:1", and what it launches
is computed in float64 from nothing but the numbers that a launch has: pointers, sizes and strides."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from convt import _C, delegation, eager, gradients, operators
from convt import plan as planning
from convt.problem import operand
from programs import composed
from reference import conv_transpose

DEVICE = torch.device("cuda", 1)


def gpu(name, capability):
    """An entry of _C.cuda_devices()."""
    return {
        "name": name, "capability": capability, "multiprocessors": 100, "memory_bytes": 2**34,
        "shared_per_block": 99 * 1024, "shared_per_multiprocessor": 100 * 1024, "l2_bytes": 2**22,
        "clock_ghz": 1.5, "memory_gbs": 500.0,
    }  # fmt: skip


@contextmanager
def fresh_plans():
    """No plan from elsewhere, and none is left behind."""
    calls = operators._forward_call, operators._grad_input_call, operators._grad_weight_call
    caches = planning.plan, planning.channel_sum, gradients.turned_once, *calls
    for cache in caches:
        cache.cache_clear()
    _C.forget_plans()
    yield
    for cache in caches:
        cache.cache_clear()
    _C.forget_plans()


def pretend(monkeypatch, device):
    """Tensors of the CPU are `device`'s, to the operators."""

    def located(tensor):
        size, strides, dtype, _, layout = operand(tensor)
        return size, strides, dtype, device, layout

    switches = operators._switches
    monkeypatch.setattr(
        operators, "_switches", lambda name, tensor: switches(name, SimpleNamespace(is_cuda=True, dtype=tensor.dtype))
    )
    for module in (operators, eager, delegation, gradients):
        monkeypatch.setattr(module, "operand", located)


@dataclass
class Launch:
    """What a kernel was asked: a CudaPlan, as far as Python looks into it, and then what came with the launch."""

    operator: str
    sizes: dict[str, tuple[int, ...]]
    strides: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    precision: str
    geometry: dict[str, object]
    forced: str | None
    workspace_bytes: int
    workspace: int | None = None
    kernel: str = "simt"
    config: str = "played"
    predicted_us: float = 1.0
    turns: bool = False  # grad_output, before it is read

    def explain(self):
        return {"way_in": "turned" if self.turns else "boxes", "turned": ["grad_output"] if self.turns else []}


@dataclass
class Player:
    """Stands in for _C.cuda_plan and _C.cuda_run; keeps what it was asked."""

    planned: list[Launch] = field(default_factory=list)
    ran: list[Launch] = field(default_factory=list)
    summed: list[dict] = field(default_factory=list)  # gradients of biases, by the kernel itself on the CPU
    refuses: dict[str, str] = field(default_factory=dict)  # operator to the reason why no kernel can
    workspace_bytes: int = 0
    rooms: dict[str, int] = field(default_factory=dict)  # workspace of an operator, where it is another
    turning: set[str] = field(default_factory=set)  # operators that turn a grad_output whose channels are not innermost
    turned: list[tuple[int, ...]] = field(default_factory=list)  # once for both gradients: strides of the copies
    devices: list[int | None] = field(default_factory=list)  # where launches went: Python sees tensors of the CPU
    streams: list[int | None] = field(default_factory=list)  # the devices whose stream was asked for

    def raw_stream(self, index):
        self.streams.append(index)
        return 1000

    def cuda_plan(
        self, operator, input, input_strides, weight, weight_strides, bias, output_strides, dtype, precision, *rest
    ):
        *geometry, device, forced = rest
        assert device["name"] == planning.cuda_devices()[1]["name"]
        if operator in self.refuses:
            raise ValueError(self.refuses[operator])
        geometry = dict(zip(("stride", "padding", "output_padding", "groups", "dilation"), geometry, strict=True))
        output = conv_transpose(torch.empty(input, device="meta"), torch.empty(weight, device="meta"), **geometry).shape
        sizes = {"input": input, "weight": weight, "bias": output[1:2], "output": tuple(output)}
        strides = {"input": input_strides, "weight": weight_strides, "bias": (bias,), "output": output_strides}
        if bias is None:
            del sizes["bias"], strides["bias"]
        made = Launch(
            operator, sizes, strides, getattr(torch, dtype), precision, geometry, forced,
            self.rooms.get(operator, self.workspace_bytes),
        )  # fmt: skip
        if operator in self.turning and output_strides[1] != 1:
            made.turns, made.predicted_us = True, 100.0
        self.planned.append(made)
        return made

    def cuda_turn(self, turning, source, target, device, stream):
        assert stream == 1000
        _C.simulate_turning(turning, source, target)
        self.turned.append(tuple(turning.strides))
        self.devices.append(device)

    def cuda_run(self, plan, input, weight, bias, output, workspace, device, stream, epilogue=()):
        if isinstance(plan, _C.ChannelSum):  # from C, where one launcher is all that is rehearsed
            return self.cuda_sum_channels(plan, input, output, workspace, device, stream)
        assert (workspace != 0) == (plan.workspace_bytes > 0) and stream == 1000
        pointers = {"input": input, "weight": weight, "bias": bias, "output": output}
        tensors = {name: at(pointers[name], plan, name) for name in plan.sizes}
        assert "bias" in tensors or bias == 0
        # Below a thread of its own: dispatch keys that are excluded here would keep autograd from recording there.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(compute, plan, tensors, epilogue).result()
        self.ran.append(plan)
        self.devices.append(device)

    def cuda_sum_channels(self, plan, source, result, workspace, device, stream):
        assert (workspace != 0) == (plan.workspace_bytes > 0) and stream == 1000
        _C.simulate_channel_sum(plan, source, result, workspace)
        self.summed.append(plan.explain())
        self.devices.append(device)


def compute(plan, tensors, epilogue):
    """The result of an operator, with the program that came with it, written where it belongs."""
    place = {"forward": "output", "grad_input": "input", "grad_weight": "weight"}[plan.operator]
    given = {name: tensor.double() for name, tensor in tensors.items() if name != place}
    if plan.operator == "forward":
        value = conv_transpose(**given, **plan.geometry)
        steps = [(name, a, b, None if where is None else over(where, value.shape)) for name, a, b, where in epilogue]
        value = composed(steps, value)
    else:
        grad_output = given.pop("output")
        leaf = given[place] = torch.zeros(plan.sizes[place], dtype=torch.float64, requires_grad=True)
        (value,) = torch.autograd.grad(conv_transpose(**given, **plan.geometry), leaf, grad_output)
    with torch.no_grad():
        tensors[place].copy_(value)


def at(pointer, plan, name):
    """The tensor that a launch means."""
    return seen(pointer, plan.dtype, plan.sizes[name], plan.strides[name])


def over(where, size):
    """The operand that a step means, over an output of the given size."""
    pointer, dtype, strides = where
    whole = (*size[:2], *(1,) * (5 - len(size)), *size[2:])
    return seen(pointer, getattr(torch, dtype), whole, strides).reshape(size).double()


def seen(pointer, dtype, size, strides):
    elements = 1 + sum((extent - 1) * stride for extent, stride in zip(size, strides, strict=True))
    memory = (ctypes.c_char * (elements * dtype.itemsize)).from_address(pointer)
    return torch.frombuffer(memory, dtype=dtype).as_strided(size, strides)


def play(monkeypatch):
    """A Player in the place of the compiled module's planner and launcher."""
    player = Player()
    pretend(monkeypatch, DEVICE)
    monkeypatch.setattr(_C, "cuda_plan", player.cuda_plan)
    monkeypatch.setattr(_C, "cuda_run", player.cuda_run, raising=False)
    monkeypatch.setattr(_C, "cuda_sum_channels", player.cuda_sum_channels, raising=False)
    monkeypatch.setattr(_C, "cuda_turn", player.cuda_turn, raising=False)
    monkeypatch.setattr(operators, "_raw_stream", player.raw_stream)
    return player


@contextmanager
def rehearsed(player, index=DEVICE.index):
    """The eager entry in C takes the CPU's tensors for a GPU's as well, and what it launches reaches the player."""
    _C.rehearse(index, player.cuda_run, player.raw_stream)
    try:
        yield player
    finally:
        _C.rehearse(None)
