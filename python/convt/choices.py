"""Choices that `convt tune` measured, kept in the user's cache directory: the plan prefers them to its rule.

One JSON file per device and set of versions. It is read once per process, when the first plan is made for the device.
CONVT_CHOICES names another directory, or is "off". A file that is corrupted or belongs to something else is ignored
with a warning; one that cannot be written is kept in memory, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import torch

from . import _C
from .problem import Problem

FORMAT = 1

_LOCK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Who computes a problem fastest on this machine, and how long that took against the rule's choice (medians)."""

    backend: str  # "native" | "aten"
    kernel: str | None  # family or configuration on a GPU; None is the cost model's choice
    us: float
    rule_us: float

    @property
    def reason(self) -> str:
        """In words, for plans."""
        return f"tuned here: {self.us:.3g} us, the rule's choice {self.rule_us:.3g} us"


def key(problem: Problem, operator: str, dtype: torch.dtype, channels_last: bool, precision: str) -> str:
    """What a choice holds for, in one line: operator, dtype, layout of the result, precision, problem.

    precision is "ieee" or "tf32", and counts for float32 on a GPU; give "ieee" elsewhere.
    """
    p = problem
    layout = "channels_last" if channels_last else "contiguous"
    numbers = (
        (name, getattr(p, name)) for name in ("input", "filter", "stride", "padding", "output_padding", "dilation")
    )
    axes = " ".join(f"{name}={'x'.join(map(str, values))}" for name, values in numbers)
    channels = f"batch={p.batch} channels={p.in_channels}->{p.out_channels} groups={p.groups}"
    return f"{operator} {str(dtype).removeprefix('torch.')} {layout} {precision} {channels} {axes}"


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's model name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def processor() -> str:
    """This processor with all that its times depend on: model, instruction set, number of threads."""
    return f"{cpu_name()}, {_C.isa()}, {torch.get_num_threads()} threads"


def directory() -> Path | None:
    """Where the files are: CONVT_CHOICES, or the user's cache directory; None when they are switched off."""
    named = os.environ.get("CONVT_CHOICES")
    if named == "off":
        return None
    return Path(named) if named else Path(platformdirs.user_cache_dir("convt", appauthor=False)) / "choices"


def versions(device: str) -> dict[str, Any]:
    """What makes measurements comparable: the head of a file."""
    return {
        "format": FORMAT,
        "device": device,
        "convt": _C.build_info()["version"],
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
    }


def file_of(device: str) -> Path | None:
    """The file of a device (a GPU's name, or processor()); None when choices are switched off."""
    folder = directory()
    if folder is None:
        return None
    head = versions(device)
    name = "".join(letter if letter.isalnum() else "-" for letter in device).strip("-").lower()[:40]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{name}-{digest}.json"


# ---- reading -----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_known: dict[str, dict[str, Choice]] = {}  # by device


def lookup(
    device: str, problem: Problem, operator: str, dtype: torch.dtype, channels_last: bool, precision: str
) -> Choice | None:
    """The measured choice for a problem on a device; None where the rule holds."""
    known = of(device)
    return known.get(key(problem, operator, dtype, channels_last, precision)) if known else None


def of(device: str) -> Mapping[str, Choice]:
    """All choices of a device by their keys."""
    known = _known.get(device)
    if known is None:
        with _lock:
            known = _known.setdefault(device, {})
            path = file_of(device)
            if path is not None:
                known |= _read(path, device)
    return known


def forget() -> None:
    """Read the files again when they are asked for next."""
    with _lock:
        _known.clear()


def _read(path: Path, device: str) -> dict[str, Choice]:
    """The choices of a file; none, with a warning, when it is corrupted or foreign."""
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        _warn(f"{path} is ignored: it cannot be read ({error})")
        return {}
    head = versions(device)
    try:
        foreign = [name for name in head if values[name] != head[name]]
        found = {name: _choice(entry) for name, entry in values["choices"].items()}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        _warn(f"{path} is ignored: it is no file of choices ({type(error).__name__}: {error})")
        return {}
    if foreign:
        told = ", ".join(f"{name} {values[name]!r} instead of {head[name]!r}" for name in foreign)
        _warn(f"{path} is ignored: it is of {told}")
        return {}
    return found


def _choice(entry: Mapping[str, Any]) -> Choice:
    choice = Choice(entry["backend"], entry["kernel"], float(entry["us"]), float(entry["rule_us"]))
    if choice.backend not in ("native", "aten") or not isinstance(choice.kernel, (str, type(None))):
        raise ValueError(f"{entry!r} names no backend or kernel")
    return choice


def _warn(text: str) -> None:
    warnings.warn(f"convt: {text}", RuntimeWarning, stacklevel=3)


# ---- writing -----------------------------------------------------------------------------------------------------


def store(device: str, found: Mapping[str, Choice | None]) -> Path | None:
    """Add choices to those of a device, None takes one away; whatever others wrote meanwhile is kept.

    Returns the file, or None when nothing was written: choices are switched off and nothing is kept, or, with a
    warning, the file cannot be written and they hold in this process. Plans that are made already do not change: see
    tuning.forget_plans.
    """
    path = file_of(device)
    if path is None:
        return None
    known, written = dict(of(device)), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            known |= _read(path, device)
            _apply(known, found)
            _replace(path, versions(device) | {"choices": {name: asdict(c) for name, c in sorted(known.items())}})
        written = path
    except (OSError, filelock.Timeout) as error:
        if device not in _unwritable:
            _unwritable.add(device)
            _warn(f"{path} cannot be written, choices hold for this process only ({error})")
    _apply(known, found)
    with _lock:
        _known[device] = known
    return written


_unwritable: set[str] = set()


def _apply(known: dict[str, Choice], found: Mapping[str, Choice | None]) -> None:
    for name, choice in found.items():
        if choice is None:
            known.pop(name, None)
        else:
            known[name] = choice


def _replace(path: Path, values: Mapping[str, Any]) -> None:
    """A reader sees the old file or the new one, never half of one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(values, file, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def clear(device: str) -> Path | None:
    """Remove a device's file and forget its choices; returns the file when there was one."""
    path = file_of(device)
    forget()
    if path is None or not path.exists():
        return None
    path.unlink()
    return path
