"""Problem x operator x device -> Plan: who computes, and why. Cached, printable (CONVT_PRINT_PLAN=1)."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from functools import lru_cache

import torch

from . import heuristics
from .problem import Problem

MOST_PHASES = 2**20
OPERATORS = ("forward", "grad_input", "grad_weight")


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


def refusal(backend: str, problem: Problem, device_type: str) -> str | None:
    """Why a backend cannot compute a problem on this device; None when it can."""
    if backend != "native":
        return None
    if device_type != "cpu":
        return f"this build of convt has no native code for device {device_type!r}, only for 'cpu'"
    phases = math.prod(problem.stride)
    if phases > MOST_PHASES:
        return (
            f"stride {problem.stride} has {phases} phases, and the native code keeps a table of at most {MOST_PHASES}"
        )
    return None


def score(backend: str, problem: Problem, operator: str, dtype: torch.dtype, channels_last: bool) -> float:
    """Preference among the legal backends; the highest wins."""
    return float(heuristics.choose(problem, operator, dtype, channels_last) == backend)


@lru_cache(maxsize=4096)
def plan(
    problem: Problem,
    operator: str,
    dtype: torch.dtype,
    device_type: str = "cpu",
    channels_last: bool = False,
    requested: str = "auto",
) -> Plan:
    """Choose the backend for one operator ("forward", "grad_input", "grad_weight") of a problem.

    channels_last tells the layout of the result; requested is the convt.backend setting. Raises RuntimeError when the
    requested backend cannot run on the device.
    """
    refusals = {name: refusal(name, problem, device_type) for name in candidates(requested)}
    legal = [name for name, reason in refusals.items() if reason is None]
    if not legal:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        raise RuntimeError(f"convt.backend({requested!r}) cannot compute {operator}: {reasons}; 'auto' and 'aten' can")
    best = max(legal, key=lambda name: score(name, problem, operator, dtype, channels_last))
    if requested != "auto":
        reason = f"forced by convt.backend({requested!r})"
    elif len(legal) == 1:
        reason = "; ".join(f"{name}: {why}" for name, why in refusals.items() if why is not None)
    else:
        reason = "measured rule"
    choice = Plan(best, reason)
    if os.environ.get("CONVT_PRINT_PLAN") == "1":
        layout = "channels_last" if channels_last else "contiguous"
        print(f"convt: {operator} {dtype} {device_type} {layout} {problem} -> {choice}", file=sys.stderr)
    return choice
