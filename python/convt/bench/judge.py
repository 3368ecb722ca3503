"""Whether results are right: the definition in float64 at sampled positions, and agreement everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convt.problem import Problem
from convt.testing import ROUNDINGS, closest, sample
from convt.testing.definition import grad_bias, with_bias

# Tensor cores cut off what they add: an error that grows with the number of products, not with its root. A product that
# is missing shows a hundred times more.
_SLACK = 4.0

# What a direction computes. backward leaves the forward outside of what is timed; the plan decides on single operators.
OPERATORS = {
    "forward": ("forward",),
    "forward_backward": ("forward", "grad_input", "grad_weight"),
    "backward": ("grad_input", "grad_weight"),
    "grad_input": ("grad_input",),
    "grad_weight": ("grad_weight",),
}


def results_of(direction: str, bias: bool) -> tuple[str, ...]:
    """The operators whose results a call of the direction returns, in its order."""
    return OPERATORS[direction] + (("grad_bias",) if bias and "backward" in direction else ())


class Judge:
    """The definition of one problem's results in float64, for float32 with each rounding of the operands."""

    def __init__(
        self,
        problem: Problem,
        direction: str,
        tensors: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        points: int = 1024,
        roundings: Sequence[str] = tuple(ROUNDINGS),
    ) -> None:
        """Args:
        tensors: (input, weight), and grad_output unless the direction is the forward; they stay on their device.
        points: at how many positions of each result; more where strides leave outputs without a product.
        roundings: what may have been done to float32 operands, names in ROUNDINGS.
        """
        input, weight, *rest = tensors
        operands = {"forward": (input, weight)}
        if rest:
            operands |= {"grad_input": (rest[0], weight), "grad_weight": (rest[0], input)}
        # Outputs that no tap reaches are no evidence: more strides, more positions.
        points = min(points * math.prod(problem.stride), 8 * points)
        roundings = tuple(roundings) if input.dtype == torch.float32 else ("fp32",)
        self._names = results_of(direction, bias is not None)
        self._truths = [
            {name: sample(operator, problem, *operands[operator], points=points, rounding=name) for name in roundings}
            for operator in OPERATORS[direction]
        ]
        if bias is not None and self._names[0] == "forward":
            self._truths[0] = {name: with_bias(truth, bias) for name, truth in self._truths[0].items()}
        if "grad_bias" in self._names:
            self._truths.append({"fp32": grad_bias(rest[0])})

    def errors(self, results: Sequence[Tensor]) -> dict[str, float]:
        """Largest error of each result, relative to the sum of the absolute values of its products; NaN where NaN."""
        return {
            name: truths["fp32"].relative_error(result)
            for name, truths, result in zip(self._names, self._truths, results, strict=True)
        }

    def error(self, results: Sequence[Tensor]) -> float:
        """The largest of them."""
        errors = self.errors(results).values()
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def rounding(self, results: Sequence[Tensor]) -> tuple[str, dict[str, float]] | None:
        """What the first operator did to float32 operands, a name in ROUNDINGS, with the rms error against each.

        None where nothing may have been rounded: for other dtypes, and on a CPU.
        """
        return closest(self._truths[0], results[0]) if len(self._truths[0]) > 1 else None

    def complaint(
        self, results: Sequence[Tensor], precision: str, *, native: Sequence[bool], other: Sequence[Tensor] | None
    ) -> str | None:
        """What is wrong with results at a precision; None when they are right.

        Args:
            native: per result, whether our own code computed it. That has to be the definition up to roundings of the
                accumulator and of the result, with "tf32" operands rounded to nearest or not at all. What another
                implementation computes may also be as far off as three times `other`.
            other: PyTorch's results, near which ours have to be at every single element, sampled or not.
        """
        for index, (name, truths, result) in enumerate(zip(self._names, self._truths, results, strict=True)):
            what = "output" if name == "forward" else name
            if bool(result.sum(dtype=torch.float32).isnan()):
                return f"{what} holds NaN"
            theirs = None if other is None else other[index]
            allowed = ["fp32"]
            if precision == "tf32" and len(truths) > 1:
                allowed += ["tf32_nearest"] if native[index] else ["tf32_nearest", "tf32_truncated"]
            excuse = 0.0 if native[index] or theirs is None else truths["fp32"].error(theirs)
            if not any(truths[name].matches(result, other_error=excuse, slack=_SLACK) for name in allowed):
                return f"{what} differs from the definition by {truths['fp32'].relative_error(result):.1e}"
            blur = 0.0 if native[index] or theirs is None else truths["fp32"].rms(theirs)
            if not any(truths[name].is_close(result, other_rms=blur) for name in allowed):
                return f"{what} differs from the definition by {truths['fp32'].rms(result):.1e} in the rms"
            if theirs is not None and not truths["fp32"].agree(result, theirs):
                return f"{what} differs from PyTorch's where nothing was sampled"
        return None
