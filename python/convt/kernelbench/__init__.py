"""KernelBench level 1 solved with convt: the submissions as sources, its check, its clock, and what passes when.

`python -m convt.kernelbench write DIR` writes the 17 submissions, `run` checks and times them by KernelBench's rules,
`precision` compares the roundings of float32 under its tolerance (docs/precision.md).
"""

from convt.kernelbench.harness import Verdict, check, load, tolerance
from convt.kernelbench.sources import NUMBERS, reference, submission

__all__ = ["NUMBERS", "Verdict", "check", "load", "reference", "submission", "tolerance"]
