"""Problem x operator x device -> Plan: who computes, and why. Cached; told once, when it is made.

CONVT_PRINT_PLAN=1 prints it, and the logger "convt.plan" has it at level INFO: TORCH_LOGS=convt shows that.

On a GPU a native plan has a second half, the CudaPlan: which kernel, in which tiles, at what predicted cost.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from . import _C, choices, heuristics, settings
from .problem import Ints, OperandKey, Problem
from .settings import OPERATORS, forced_kernel

__all__ = ["OPERATORS", "Plan", "cuda_plan", "forced_kernel", "plan"]

_log = logging.getLogger(__name__)

MOST_PHASES = 2**20
LEAST_CAPABILITY = (8, 0)

# Of input, weight, bias (one number, or None without a bias) and output, in elements.
Strides = tuple[Ints, Ints, int | None, Ints]


@dataclass(frozen=True, slots=True)
class Plan:
    """The backend that computes an operator, "native" or "aten", and the reason in words."""

    backend: str
    reason: str
    kernel: str | None = None  # of a GPU's: the one that was measured to be fastest; None is the cost model's choice

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"


def candidates(requested: str) -> tuple[str, ...]:
    """The backends to consider for a convt.backend setting, in order of preference among equals."""
    return ("native", "aten") if requested == "auto" else (requested,)


def refusal(backend: str, problem: Problem, device: torch.device) -> str | None:
    """Why a backend cannot compute a problem on this device; None when it can."""
    if backend != "native":
        return None
    if device.type == "cuda":
        reason = _cuda_refusal(device)
        if reason is not None:
            return reason
    elif device.type != "cpu":
        return f"this build of convt has no native code for device {device.type!r}, only for 'cpu' and 'cuda'"
    phases = math.prod(problem.stride)
    if phases > MOST_PHASES:
        return (
            f"stride {problem.stride} has {phases} phases, and the native code keeps a table of at most {MOST_PHASES}"
        )
    return None


def _cuda_refusal(device: torch.device) -> str | None:
    """Why the kernels of this build cannot run on a GPU, and what to do about it; None when they can."""
    built = _C.build_info()["cuda"]
    if built is None:
        return "this build of convt has no CUDA kernels: reinstall with nvcc on PATH and CONVT_CUDA=on"
    traits = cuda_traits(device)
    if traits is None:
        needed = ".".join(built.split(".")[:2])
        return (
            f"this build of convt cannot open {device}: it needs a driver for CUDA {needed} (or build it with an older "
            f"nvcc); use convt.backend('aten') until then"
        )
    if tuple(traits["capability"]) < LEAST_CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (traits["capability"], LEAST_CAPABILITY))
        return (
            f"{traits['name']} ({device}) has compute capability {have} and the CUDA kernels need {need} or later: use "
            f"convt.backend('aten')"
        )
    return None


@lru_cache(maxsize=1)
def cuda_devices() -> tuple[dict[str, Any], ...]:
    """The GPUs of this process as _C.cuda_devices() tells them, read once: none of it changes."""
    return tuple(_C.cuda_devices())


def cuda_traits(device: torch.device) -> dict[str, Any] | None:
    """A GPU's entry of cuda_devices(); "cuda" without an index is the first one. None when convt cannot open it."""
    index, devices = device.index or 0, cuda_devices()
    return devices[index] if index < len(devices) else None


def score(
    backend: str,
    problem: Problem,
    operator: str,
    dtype: torch.dtype,
    channels_last: bool,
    device: torch.device,
    precision: str,
    bias: bool,
) -> float:
    """Preference among the legal backends; the highest wins."""
    if device.type == "cuda":
        return float(heuristics.choose_cuda(problem, operator, dtype, channels_last, precision, bias) == backend)
    return float(heuristics.choose(problem, operator, dtype, channels_last) == backend)


@lru_cache(maxsize=4096)
def plan(
    problem: Problem,
    operator: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    requested: str = "auto",
    precision: str = "tf32",
    bias: bool = False,
) -> Plan:
    """Choose the backend for one operator ("forward", "grad_input", "grad_weight") of a problem.

    channels_last tells the layout of the result; requested is the convt.backend setting, precision "ieee" or "tf32" how
    a GPU multiplies float32, bias whether a forward has one. On a GPU the strides of a call
    have a say as well: see plan_of_call. Under "auto" a choice that was measured on this machine (convt.choices) comes
    before the rule. Raises RuntimeError when the requested backend cannot run on the device.
    """
    device = torch.device(device)
    tuned = measured(problem, operator, dtype, device, channels_last, precision) if requested == "auto" else None
    if tuned is not None and refusal(tuned.backend, problem, device) is None:
        choice = Plan(tuned.backend, tuned.reason, tuned.kernel)
    else:
        choice = ruled(problem, operator, dtype, device, channels_last, requested, precision, bias)
    return _told(choice, problem, operator, dtype, device, channels_last)


def device_name(device: torch.device) -> str | None:
    """What choices of a device are filed under; None for one that convt cannot open."""
    if device.type == "cpu":
        return choices.processor()
    traits = cuda_traits(device) if device.type == "cuda" else None
    return None if traits is None else str(traits["name"])


def measured(
    problem: Problem, operator: str, dtype: torch.dtype, device: torch.device, channels_last: bool, precision: str
) -> choices.Choice | None:
    """What `convt tune` found for an operator on a device of this machine; None where the rule holds."""
    name = device_name(device)
    if name is None:
        return None
    counts = device.type == "cuda" and dtype is torch.float32
    return choices.lookup(name, problem, operator, dtype, channels_last, precision if counts else "ieee")


def ruled(
    problem: Problem,
    operator: str,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool,
    requested: str,
    precision: str,
    bias: bool = False,
) -> Plan:
    """The plan by legality and rule alone, as in `plan`."""
    refusals = {name: refusal(name, problem, device) for name in candidates(requested)}
    legal = [name for name, reason in refusals.items() if reason is None]
    if not legal:
        raise RuntimeError(
            _complaint(operator, "; ".join(f"{name}: {why}" for name, why in refusals.items()), requested)
        )
    best = max(legal, key=lambda name: score(name, problem, operator, dtype, channels_last, device, precision, bias))
    if best == requested:
        reason = f"forced by convt.backend({requested!r})"
    elif len(legal) == 1:
        reason = "; ".join(f"{name}: {why}" for name, why in refusals.items() if why is not None)
    else:
        reason = "rule for GPUs" if device.type == "cuda" else "measured rule"
    return Plan(best, reason)


def _complaint(operator: str, reasons: str, requested: str) -> str:
    return f"convt.backend({requested!r}) cannot compute {operator}: {reasons}; 'auto' and 'aten' can"


def _told(
    choice: Plan, problem: Problem, operator: str, dtype: torch.dtype, device: torch.device, channels_last: bool
) -> Plan:
    if _is_told():
        layout = "channels_last" if channels_last else "contiguous"
        _tell(f"{operator} {dtype} {device} {layout} {problem} -> {choice}")
    return choice


def _prints() -> bool:
    return os.environ.get("CONVT_PRINT_PLAN") == "1"


def _is_told() -> bool:
    return _prints() or _log.isEnabledFor(logging.INFO)


def _tell(choice: str) -> None:
    if _prints():
        print(f"convt: {choice}", file=sys.stderr)
    else:
        _log.info("%s", choice)


# ---- the second half, on a GPU -----------------------------------------------------------------------------------


def cuda_plan(
    problem: Problem,
    dtype: torch.dtype = torch.float32,
    *,
    operator: str = "forward",
    precision: str | None = None,
    channels_last: bool = False,
    bias: bool = False,
    device: torch.device | str | Mapping[str, Any] | None = None,
    kernel: str | None = None,
) -> _C.CudaPlan:
    """How the CUDA kernels compute an operator of a problem; needs no GPU and launches nothing.

    Args:
        operator: "forward", "grad_input" or "grad_weight".
        precision: "ieee" or "tf32", for float32 only; convt.current_precision() by default.
        channels_last: of input and output, and of the gradient of the weight; the weight itself is contiguous.
        bias: whether there is one; of the forward only.
        device: a GPU of this machine, or a mapping like an entry of convt._C.cuda_devices(); None is an H200.
        kernel: family or configuration to force; what convt.plan.forced_kernel asks for by default.

    Raises ValueError for a kernel of another name and for one that cannot compute the problem (with the reason), and
    RuntimeError for a device that convt cannot open.
    """
    traits: Mapping[str, Any] | None
    if device is None or isinstance(device, Mapping):
        traits = device
    else:
        device = torch.device(device)
        traits = cuda_traits(device) if device.type == "cuda" else None
        if traits is None:
            raise RuntimeError(f"cuda_plan: device: convt cannot open {device}; it sees {len(cuda_devices())} GPUs")
    strides = (
        dense_strides(problem.input_size, channels_last),
        dense_strides(problem.weight_size, channels_last and operator == "grad_weight"),
        1 if bias and operator == "forward" else None,
        dense_strides(problem.output_size, channels_last),
    )
    if dtype is not torch.float32:
        precision = "ieee"
    kernel = settings.current_kernel(operator) if kernel is None else settings.kernel_name(kernel)
    return _cuda_plan(operator, problem, dtype, traits, strides, precision or settings.current_precision(), kernel)


def plan_of_call(
    operator: str,
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool,
    requested: str,
    strides: Strides,
    precision: str,
    kernel: str | None,
) -> tuple[Plan, _C.CudaPlan | None]:
    """The plan of a call on a GPU with both of its halves, the second one where it is native; the caller caches it.

    Where no kernel can compute it "auto" is ATen, with the reason. Raises RuntimeError when "native" is asked for then,
    and ValueError when a forced kernel cannot: who forces it does not want to measure another one.
    """
    bias = strides[2] is not None and operator == "forward"
    choice = plan(problem, operator, dtype, device, channels_last, requested, precision, bias)
    if kernel is not None and choice.backend != "native" and "native" in candidates(requested):
        reason = refusal("native", problem, device)
        if reason is not None:
            raise ValueError(f"kernel {kernel} cannot compute {operator}: {reason}")
        choice = Plan("native", f"forced by convt.plan.forced_kernel({kernel!r})")
    if choice.backend != "native":
        return choice, None
    try:
        planned = partial(_cuda_plan, operator, problem, dtype, cuda_traits(device), strides, precision)
        made = _preferred(planned, choice.kernel, kernel)
    except ValueError as error:
        if kernel is not None:
            raise
        if "aten" not in candidates(requested):
            raise RuntimeError(_complaint(operator, f"native: {error}", requested)) from None
        return _told(Plan("aten", f"native: {error}"), problem, operator, dtype, device, channels_last), None
    if _is_told():
        _tell(
            f"{operator} {dtype} {precision} {device} {problem} -> {made.kernel} {made.config}, "
            f"{made.workspace_bytes} bytes of workspace, predicted {made.predicted_us:.1f} us"
        )
    return choice, made


@lru_cache(maxsize=4096)
def channel_sum(grad_output: OperandKey, requested: str) -> _C.ChannelSum | None:
    """How native code sums grad_output on a GPU for the gradient of a bias; None where PyTorch does.

    That is under "aten", for a GPU that convt cannot use, and for tensors whose neighbours in memory are neither pixels
    of a channel nor channels of a pixel.
    """
    sizes, strides, dtype, device, _ = grad_output
    if "native" not in candidates(requested) or 0 in sizes or _cuda_refusal(device) is not None:
        return None
    traits = cuda_traits(device)
    return _C.cuda_channel_sum(
        sizes, strides, str(dtype).removeprefix("torch."), None if traits is None else dict(traits)
    )


def _preferred(planned: Callable[[str | None], _C.CudaPlan], tuned: str | None, forced: str | None) -> _C.CudaPlan:
    """The plan with a measured kernel, where that computes tensors with these strides too and none is forced."""
    if tuned is not None and forced is None:
        with suppress(ValueError):
            return planned(tuned)
    return planned(forced)


def _cuda_plan(
    operator: str,
    problem: Problem,
    dtype: torch.dtype,
    traits: Mapping[str, Any] | None,
    strides: Strides,
    precision: str,
    kernel: str | None,
) -> _C.CudaPlan:
    input, weight, bias, output = strides
    return _C.cuda_plan(
        operator,
        problem.input_size,
        tuple(input),
        problem.weight_size,
        tuple(weight),
        bias,
        tuple(output),
        str(dtype).removeprefix("torch."),
        precision,
        *problem.geometry,
        None if traits is None else dict(traits),
        kernel,
    )


def dense_strides(size: Ints, channels_last: bool) -> Ints:
    """Strides in elements of a contiguous or channels_last(_3d) tensor; there is no channels_last with one axis."""
    order = (0, *range(2, len(size)), 1) if channels_last and len(size) > 3 else tuple(range(len(size)))
    strides, step = [0] * len(size), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(size[axis], 1)
    return tuple(strides)
