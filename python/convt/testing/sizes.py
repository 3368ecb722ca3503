"""The same layer on fewer and smaller images, for machines that the real one would keep busy for minutes."""

from __future__ import annotations

import math
from dataclasses import replace

from convt.problem import Problem

from . import kernelbench

SIZES = ("full", "reduced", "tiny")

_MACS = 1 << 28  # some milliseconds on two cores
_ELEMENTS = 1 << 22  # of input and output together: beyond most caches


def resized(problem: Problem, sizes: str) -> Problem:
    """A problem at "full" size, "reduced" to a quarter of a billion products at most, or "tiny": everything else stays.

    Reduced is for speed: images are left out, then the longest axes halved. Tiny is for right and wrong.
    """
    if sizes not in SIZES:
        raise ValueError(f"sizes: {sizes!r}; legal are {', '.join(SIZES)}")
    if sizes == "tiny":
        return kernelbench.shrunk(problem)
    while sizes == "reduced" and _is_large(problem):
        longest = max(problem.input)
        if problem.batch > 2 or (problem.batch > 1 and longest < 32):
            problem = replace(problem, batch=problem.batch // 2)
        elif longest >= 16:
            axis = problem.input.index(longest)
            halved = *problem.input[:axis], longest // 2, *problem.input[axis + 1 :]
            problem = replace(problem, input=halved)
        else:
            break
    return problem


def _is_large(problem: Problem) -> bool:
    elements = math.prod(problem.input_size) + math.prod(problem.output_size)
    return problem.macs > _MACS or elements > _ELEMENTS
