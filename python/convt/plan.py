"""Problem x operator x device -> Plan: who computes, and why. Cached, printable (CONVT_PRINT_PLAN=1).

On a GPU the forward's plan has a second half, the CudaPlan: which kernel, in which tiles, at what predicted cost.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from . import _C, heuristics, settings
from .problem import Ints, Problem
from .settings import forced_kernel

__all__ = ["OPERATORS", "Plan", "cuda_plan", "forced_kernel", "plan"]

MOST_PHASES = 2**20
OPERATORS = ("forward", "grad_input", "grad_weight")
# Those with CUDA kernels of our own; on a GPU the others are PyTorch's.
CUDA_OPERATORS = ("forward",)
LEAST_CAPABILITY = (8, 0)

# Of input, weight, bias (one number, or None without a bias) and output, in elements.
Strides = tuple[Ints, Ints, int | None, Ints]


@dataclass(frozen=True, slots=True)
class Plan:
    """The backend that computes an operator, "native" or "aten", and the reason in words."""

    backend: str
    reason: str

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
    backend: str, problem: Problem, operator: str, dtype: torch.dtype, channels_last: bool, device: torch.device
) -> float:
    """Preference among the legal backends; the highest wins."""
    choose = heuristics.choose_cuda if device.type == "cuda" else heuristics.choose
    return float(choose(problem, operator, dtype, channels_last) == backend)


@lru_cache(maxsize=4096)
def plan(
    problem: Problem,
    operator: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    requested: str = "auto",
) -> Plan:
    """Choose the backend for one operator ("forward", "grad_input", "grad_weight") of a problem.

    channels_last tells the layout of the result; requested is the convt.backend setting. A "native" that is asked for
    on a GPU leaves the operators without CUDA kernels to ATen, so that training goes on. Raises RuntimeError when the
    requested backend cannot run on the device.
    """
    device = torch.device(device)
    refusals = {name: refusal(name, problem, device) for name in candidates(requested)}
    if device.type == "cuda" and operator not in CUDA_OPERATORS and refusals.get("native", "") is None:
        refusals |= {"native": f"convt has no CUDA kernels for {operator} yet", "aten": None}
    legal = [name for name, reason in refusals.items() if reason is None]
    if not legal:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise RuntimeError(f"convt.backend({requested!r}) cannot compute {operator}: {reasons}; 'auto' and 'aten' can")
    best = max(legal, key=lambda name: score(name, problem, operator, dtype, channels_last, device))
    if best == requested:
        reason = f"forced by convt.backend({requested!r})"
    elif len(legal) == 1:
        reason = "; ".join(f"{name}: {why}" for name, why in refusals.items() if why is not None)
    else:
        reason = "rule for GPUs" if device.type == "cuda" else "measured rule"
    choice = Plan(best, reason)
    if _prints():
        layout = "channels_last" if channels_last else "contiguous"
        print(f"convt: {operator} {dtype} {device} {layout} {problem} -> {choice}", file=sys.stderr)
    return choice


def _prints() -> bool:
    return os.environ.get("CONVT_PRINT_PLAN") == "1"


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
        channels_last: of input and output; the weight is contiguous.
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
        dense_strides(problem.weight_size, False),
        1 if bias else None,
        dense_strides(problem.output_size, channels_last),
    )
    if dtype is not torch.float32:
        precision = "ieee"
    kernel = settings.current_kernel() if kernel is None else settings.kernel_name(kernel)
    return _cuda_plan(operator, problem, dtype, traits, strides, precision or settings.current_precision(), kernel)


def cuda_plan_of_call(
    operator: str,
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device,
    strides: Strides,
    precision: str,
    kernel: str | None,
) -> _C.CudaPlan:
    """The CudaPlan of a call on a GPU that refusal() lets pass; the caller caches it. Prints it when asked to."""
    made = _cuda_plan(operator, problem, dtype, cuda_traits(device), strides, precision, kernel)
    if _prints():
        print(
            f"convt: {operator} {dtype} {precision} {device} {problem} -> {made.kernel} {made.config}, "
            f"{made.workspace_bytes} bytes of workspace, predicted {made.predicted_us:.1f} us",
            file=sys.stderr,
        )
    return made


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
