"""Two results files: what became slower, what faster, and what is noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convt.bench.record import Line

# What makes two lines measurements of the same thing, whatever commit, driver and PyTorch they are of.
SAME = ("suite", "problem", "direction", "precision", "layout", "device", "forced", "sizes", "backend")

_LEAST = 0.02  # medians nearer than that are the same
_UNKNOWN = 0.10  # the noise of a line without percentiles


@dataclass(frozen=True)
class Change:
    """One problem in both files."""

    line: Line
    before: Line
    ratio: float  # new time over old time: above 1 is slower
    noise: float  # relative change that the percentiles of both explain

    @property
    def kind(self) -> str:
        """ "slower", "faster" or "same"; "wrong" where a line is not right any more, "right" where it became so."""
        if self.line.ok != self.before.ok:
            return "right" if self.line.ok else "wrong"
        if abs(self.ratio - 1) <= max(self.noise, _LEAST):
            return "same"
        return "slower" if self.ratio > 1 else "faster"


_ORDER = ("wrong", "slower", "same", "faster", "right")


def compare(new: Sequence[Line], old: Sequence[Line]) -> list[Change]:
    """The problems that both have, regressions first, the worst of them on top."""
    known = {_key(line): line for line in old}
    changes = []
    for line in new:
        before = known.get(_key(line))
        if before is None:
            continue
        lost = line.ok != before.ok and not (line.us and before.us)
        if not lost and not (line.us and before.us):
            continue
        ratio = line.us / before.us if line.us and before.us else float("nan")
        changes.append(Change(line, before, ratio, _noise(line) + _noise(before)))
    return sorted(changes, key=lambda change: (_ORDER.index(change.kind), -change.ratio))


def _key(line: Line) -> tuple[object, ...]:
    return tuple(getattr(line, name) for name in SAME)


def _noise(line: Line) -> float:
    """How far from the median the farther of the two percentiles is."""
    if not line.us or line.us_p20 is None or line.us_p80 is None:
        return _UNKNOWN
    return max(line.us - line.us_p20, line.us_p80 - line.us) / line.us
