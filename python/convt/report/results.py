"""Results files as groups of lines that may be compared with each other, and what a group amounts to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convt.bench import record
from convt.bench.record import Line

DIRECTIONS = {
    "forward": "forward",
    "forward_backward": "forward and backward",
    "backward": "backward",
    "grad_input": "gradient of the input",
    "grad_weight": "gradient of the weight",
}
PRECISIONS = {"tf32": "TF32", "ieee": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


@dataclass(frozen=True)
class Roof:
    """What the machine copies and multiplies, as measured; None where that was not recorded."""

    gbs: float | None
    tflops: float | None


@dataclass(frozen=True)
class Group:
    """Lines of one device, suite, direction, precision and layout; losses first."""

    device: str
    suite: str
    direction: str
    precision: str
    layout: str
    lines: tuple[Line, ...]
    roof: Roof

    @property
    def title(self) -> str:
        words = DIRECTIONS.get(self.direction, self.direction), PRECISIONS.get(self.precision, self.precision)
        return f"{self.suite} · {words[0]} · {words[1]} · {self.layout.replace('_', ' ')}"

    @property
    def slug(self) -> str:
        return f"{self.suite}-{self.direction}-{self.precision}-{self.layout}".replace("_", "-")


def read(paths: Sequence[Path]) -> list[Line]:
    """The lines of all files, the last one for each setting; lines of other kinds (roofline, overhead) are left out.

    Raises:
        ValueError: a file is not there, or holds no line of a layer.
    """
    found: dict[tuple[object, ...], Line] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"report: there is no file {path}")
        for line in record.read(path):
            key = *record.settings_of(line)[:-2], line.isa, line.threads
            found.pop(key, None)
            found[key] = line
    if not found:
        raise ValueError(f"report: no line of a layer in {', '.join(map(str, paths))}")
    return list(found.values())


def roofs(paths: Sequence[Path]) -> dict[tuple[str, str], Roof]:
    """What `convt bench roofline` lines in the files tell, by device and precision."""
    copies: dict[str, float] = {}
    rates: dict[tuple[str, str], float] = {}
    for path in paths:
        for text in path.read_text().splitlines():
            try:
                values = json.loads(text)
                if values["suite"] != "roofline":
                    continue
                if values["gbs"] is not None:
                    copies[values["device"]] = values["gbs"]
                if values["tflops"] is not None:
                    rates[values["device"], values["what"]] = values["tflops"]
            except (ValueError, TypeError, KeyError):
                continue
    return {(device, what): Roof(copies.get(device), rate) for (device, what), rate in rates.items()}


def groups(lines: Sequence[Line], measured: dict[tuple[str, str], Roof] | None = None) -> list[Group]:
    """The lines by what may be compared; `measured` are roofs for lines that have none of their own."""
    members: dict[tuple[str, str, str, str, str], list[Line]] = {}
    for line in lines:
        members.setdefault((line.device, line.suite, line.direction, line.precision, line.layout), []).append(line)
    made = []
    for key, inside in members.items():
        with_roof = [line for line in inside if line.roofline_gbs and line.roofline_tflops]
        roof = (measured or {}).get((key[0], key[3]), Roof(None, None))
        if with_roof:
            roof = Roof(with_roof[-1].roofline_gbs, with_roof[-1].roofline_tflops)
        made.append(Group(*key, tuple(sorted(inside, key=lambda line: (speedup(line) or 0.0, line.problem))), roof))
    return made


# ---- numbers of a line -------------------------------------------------------------------------------------------


def over(above: float | None, below: float | None) -> float | None:
    """A quotient, None where either was not recorded."""
    return above / below if above and below else None


def speedup(line: Line) -> float | None:
    """PyTorch's time at its defaults over ours: above 1 convt is faster."""
    return over(line.eager_us, line.us)


def interval(line: Line) -> tuple[float, float] | None:
    """What the 20th and 80th percentiles of both times allow the speed-up to be."""
    low, high = over(line.eager_us_p20, line.us_p80), over(line.eager_us_p80, line.us_p20)
    return None if low is None or high is None else (low, high)


def verdict(line: Line) -> str:
    """ "win" or "loss" against PyTorch's defaults, "tie" where the percentiles overlap, or the speed-up is written as
    1.00, or nothing was compared.
    """
    ratio, spread = speedup(line), interval(line)
    if ratio is None or round(ratio, 2) == 1 or (spread is not None and spread[0] <= 1 <= spread[1]):
        return "tie"
    return "win" if ratio > 1 else "loss"


def intensity(line: Line) -> float | None:
    """flop per byte, when every operand is read and every result written once."""
    return None if not line.tflops or not line.gbs else line.tflops / line.gbs * 1e3


def mean(lines: Iterable[Line], ratio: Callable[[Line], float | None]) -> float | None:
    """The geometric mean over the lines that have the ratio."""
    logs = [math.log(value) for line in lines if (value := ratio(line))]
    return math.exp(sum(logs) / len(logs)) if logs else None
