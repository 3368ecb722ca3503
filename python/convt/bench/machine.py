"""The machine as a roofline: what it copies and multiplies per second, and how much memory is free."""

from __future__ import annotations

import math
import os
import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from convt.choices import cpu_name
from convt.problem import Problem
from convt.timing import interleaved


@dataclass(frozen=True)
class Roofline:
    """Measured with PyTorch itself: a large copy and a large matrix product."""

    copy: float  # bytes per second, read and written both counted
    multiply: float  # flop per second

    def seconds(self, flops: float, bytes: float) -> float:
        return max(flops / self.multiply, bytes / self.copy)


def measure_roofline(device: str = "cpu", dtype: torch.dtype = torch.float32, seconds: float = 0.6) -> Roofline:
    """Copy 256 MB and multiply 2048 x 2048 (8192 on a GPU) matrices, in turns, best of all turns."""
    source = torch.ones(64 << 20, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    size = 8192 if device == "cuda" else 2048
    matrix = torch.rand(size, size, device=device).to(dtype)
    product = torch.empty_like(matrix)
    copy, multiply = interleaved(
        [lambda: target.copy_(source), lambda: torch.mm(matrix, matrix, out=product)], seconds=seconds, device=device
    )
    return Roofline(copy=2 * source.nbytes / copy.low, multiply=2 * size**3 / multiply.low)


def operator_bytes(problem: Problem, itemsize: int) -> int:
    """Any one operator: two of input, filter and output read once, the third written once."""
    return itemsize * sum(math.prod(size) for size in (problem.input_size, problem.weight_size, problem.output_size))


def backward_bytes(problem: Problem, itemsize: int) -> int:
    """grad_output, input and filter read once, the gradients of the last two written once."""
    sizes = (problem.output_size, *2 * (problem.input_size, problem.weight_size))
    return itemsize * sum(math.prod(size) for size in sizes)


def free_bytes(device: str = "cpu") -> int | None:
    """Memory that can still be allocated, in bytes; None when the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    candidates = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        candidates.append(int(fields["MemAvailable"].split()[0]) * 1024)
    # A container may own less than the machine has.
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        candidates.append(int(limit.read_text()) - int(used.read_text()))
    return min(candidates, default=None)


def busy() -> str | None:
    """A sentence when others keep this machine's processors busy, None when it is quiet or does not say."""
    if not hasattr(os, "getloadavg"):
        return None
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.5 * processors:
        return None
    return f"Load average {load:.1f} on {processors} processors: others compute here, expect noise."


def device_name(device: str) -> str:
    """The model of the GPU, or of the processor."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


@lru_cache(maxsize=1)
def driver() -> str | None:
    """Version of the NVIDIA driver, as nvidia-smi or the kernel module tells; None when there is none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20)
        said = run.stdout
    except (OSError, subprocess.SubprocessError):
        version = Path("/proc/driver/nvidia/version")
        said = version.read_text() if version.exists() else ""
    found = re.search(r"(?<![\d.])\d{3,}\.\d+(\.\d+)?", said)
    return found[0] if found else None


def commit() -> str | None:
    """Commit of the source tree that this package is imported from; None when it is installed elsewhere.

    Where a copy of the tree has lost its history, the environment variable CONVT_COMMIT tells.
    """
    return os.environ.get("CONVT_COMMIT") or _commit()


@lru_cache(maxsize=1)
def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        revision = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("-dirty" if changed else "")
