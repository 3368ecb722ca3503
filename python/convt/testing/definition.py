"""The definition in float64 at sampled positions of a result, and how near to it a result has to be.

`o + padding = stride * i + dilation * k` per spatial axis, gathered tap by tap; it calls neither convt nor PyTorch's
convolutions, so that it can judge both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convt.problem import Problem

OPERATORS = ("forward", "grad_input", "grad_weight")


def tf32_nearest(tensor: Tensor) -> Tensor:
    """float32 rounded to TF32's 10 bits of mantissa, to nearest with ties away from zero, as `cvt.rna.tf32` does."""
    return _keep_ten_bits(tensor, 0x1000)


def tf32_truncated(tensor: Tensor) -> Tensor:
    """float32 cut off after TF32's 10 bits of mantissa: what a tensor core does with bits that nobody rounded away."""
    return _keep_ten_bits(tensor, 0)


def _keep_ten_bits(tensor: Tensor, added: int) -> Tensor:
    if tensor.dtype != torch.float32:
        raise ValueError(f"tensor: dtype {tensor.dtype} cannot be rounded to TF32; legal is torch.float32")
    rounded = ((tensor.view(torch.int32) + added) & -0x2000).view(torch.float32)
    return torch.where(tensor.isfinite(), rounded, tensor)


# What may happen to float32 operands before they are multiplied.
ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda tensor: tensor,
    "tf32_nearest": tf32_nearest,
    "tf32_truncated": tf32_truncated,
}


@dataclass(frozen=True)
class Sample:
    """The definition in float64 at sampled positions of a result."""

    index: Tensor  # (points, dimensions of the result), int64
    value: Tensor  # (points,), float64
    magnitude: Tensor  # (points,), float64: the sum of the products' absolute values
    terms: int  # products per element, at most

    def error(self, result: Tensor) -> float:
        """Largest absolute difference between `result` and the definition; NaN where either is NaN."""
        return float((self.at(result) - self.value).abs().max())

    def relative_error(self, result: Tensor) -> float:
        """Largest difference relative to the sum of the products' absolute values; infinite where nothing is right."""
        difference = (self.at(result) - self.value).abs()
        untouched = torch.where(difference == 0, 0.0, torch.inf)
        return float(torch.where(self.magnitude > 0, difference / self.magnitude, untouched).max())

    def rms(self, result: Tensor) -> float:
        """Root mean square of the differences, relative to that of the definition."""
        difference = (self.at(result) - self.value).square().mean().sqrt()
        size = self.value.square().mean().sqrt()
        return float(difference / size) if size else (0.0 if difference == 0 else math.inf)

    def at(self, result: Tensor) -> Tensor:
        """`result` at the sampled positions, (points,) in float64."""
        return result.detach()[tuple(self.index.unbind(1))].double()

    def matches(self, result: Tensor, *, other_error: float = 0.0, slack: float = 1.0) -> bool:
        """Whether every sampled element is as near to the definition as its dtype allows.

        Allowed is one rounding of the result plus a random walk of roundings in the accumulator (float32 for the
        16-bit types), or three times the error that another implementation makes at the same precision. `slack`
        multiplies the walk, for accumulators that do not round to nearest.
        """
        walk = slack * self._walk(result.dtype)
        bound = torch.finfo(result.dtype).eps * self.value.abs() + walk * self.magnitude
        return bool(((self.at(result) - self.value).abs() <= bound.clamp(min=3.0 * other_error)).all())

    def is_close(self, result: Tensor, *, other_rms: float = 0.0) -> bool:
        """Whether the root mean square of the errors is that of roundings.

        matches() allows for long sums whose terms all have one sign. Those of a weight gradient, of millions of
        products of both signs, are small against their terms: a part of them may be missing and nothing show there. It
        shows here, as an error that does not go down with the number of products.
        """
        return self.rms(result) <= max(torch.finfo(result.dtype).eps + 16 * self._walk(result.dtype), 3.0 * other_rms)

    def agree(self, result: Tensor, other: Tensor) -> bool:
        """Whether two results are near to each other everywhere, sampled or not, as far as the sample tells."""
        eps = torch.finfo(result.dtype).eps + self._walk(result.dtype)
        bound = max(eps * float(self.magnitude.max()), 4.0 * (self.error(result) + self.error(other)))
        # Image by image: the results may fill half of the memory.
        return all(
            float((ours - theirs).abs().max()) <= bound
            for ours, theirs in zip(result.detach(), other.detach(), strict=True)
        )

    def _walk(self, dtype: torch.dtype) -> float:
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        return (4.0 + math.sqrt(self.terms)) * torch.finfo(accumulator).eps


def sample(
    operator: str,
    problem: Problem,
    first: Tensor,
    second: Tensor,
    *,
    points: int = 1024,
    seed: int = 0,
    rounding: str = "fp32",
) -> Sample:
    """The definition of an operator in float64 at `points` random positions and at the corners of the result.

    Args:
        operator: "forward" (of input, weight), "grad_input" (of grad_output, weight) or "grad_weight" (of
            grad_output, input).
        first: (batch, channels, *spatial) input or grad_output.
        second: (in_channels, out_channels / groups, *filter) weight, or (batch, in_channels, *input) input.
        rounding: what happens to float32 operands first, a name in ROUNDINGS. The products and their sum are exact.

    The tensors stay where they are: on a GPU, only what the sampled positions need is read there.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding: {rounding!r}; legal are {tuple(ROUNDINGS)}")
    sampler = {"forward": _forward, "grad_input": _grad_input, "grad_weight": _grad_weight}.get(operator)
    if sampler is None:
        raise ValueError(f"operator: {operator!r}; legal are {OPERATORS}")
    return sampler(problem, first.detach(), second.detach(), points, seed, ROUNDINGS[rounding])


def closest(truths: Mapping[str, Sample], result: Tensor) -> tuple[str, dict[str, float]]:
    """The name in `truths` that `result` is nearest to in the root mean square, and the distance to each."""
    distances = {name: truth.rms(result) for name, truth in truths.items()}
    return min(distances, key=distances.__getitem__), distances


def _positions(shape: tuple[int, ...], points: int, seed: int, device: torch.device) -> Tensor:
    """(points + corners, len(shape)); the corners are those of the spatial box, in the first and the last channel."""
    generator = torch.Generator().manual_seed(seed)
    random = [torch.randint(extent, (points,), generator=generator) for extent in shape]
    corners = torch.tensor(list(itertools.product(*((0, extent - 1) for extent in shape))))
    return torch.cat([torch.stack(random, 1), corners]).to(device)


def _gathered(
    problem: Problem,
    tensor: Tensor,
    filters: Tensor,
    index: Tensor,
    channels: Tensor,
    pixel: Callable[[int, int], tuple[Tensor, Tensor]],
    rounded: Callable[[Tensor], Tensor],
) -> Sample:
    """Sum over taps and channels of tensor[n, channel, pixel] * filter.

    Args:
        filters: (points, channels, *filter), the filter values that meet each point.
        index: (points, dimensions of the result).
        channels: (points, channels), of `tensor`.
        pixel: (axis, tap) to (position, exists), each (points,).
        rounded: what happens to the values before they are multiplied.
    """
    filters = rounded(filters.flatten(2)).double()
    value = torch.zeros(len(index), dtype=torch.float64, device=tensor.device)
    magnitude = torch.zeros_like(value)
    for which, tap in enumerate(itertools.product(*(range(extent) for extent in problem.filter))):
        places = [pixel(axis, k) for axis, k in enumerate(tap)]
        exists = torch.stack([e for _, e in places]).all(0)[:, None]
        at = [torch.where(exists[:, 0], p, 0)[:, None] for p, _ in places]
        read = (index[:, :1], channels, *at)
        products = rounded(tensor[read]).double() * filters[:, :, which]
        products = torch.where(exists, products, 0.0)
        value += products.sum(1)
        magnitude += products.abs().sum(1)
    return Sample(index, value, magnitude, problem.taps * channels.shape[1])


def _forward(
    problem: Problem, input: Tensor, weight: Tensor, points: int, seed: int, rounded: Callable[[Tensor], Tensor]
) -> Sample:
    index = _positions(problem.output_size, points, seed, input.device)
    per_group = problem.in_channels // problem.groups
    group, out_channel = index[:, 1] // weight.shape[1], index[:, 1] % weight.shape[1]
    channels = group[:, None] * per_group + torch.arange(per_group, device=input.device)

    def pixel(axis: int, tap: int) -> tuple[Tensor, Tensor]:
        stride = problem.stride[axis]
        reached = index[:, 2 + axis] + problem.padding[axis] - problem.dilation[axis] * tap
        i = torch.div(reached, stride, rounding_mode="floor")
        return i, (reached == i * stride) & (i >= 0) & (i < problem.input[axis])

    return _gathered(problem, input, weight[channels, out_channel[:, None]], index, channels, pixel, rounded)


def _grad_input(
    problem: Problem, grad_output: Tensor, weight: Tensor, points: int, seed: int, rounded: Callable[[Tensor], Tensor]
) -> Sample:
    index = _positions(problem.input_size, points, seed, grad_output.device)
    within = torch.arange(weight.shape[1], device=grad_output.device)
    channels = (index[:, 1] // (problem.in_channels // problem.groups))[:, None] * weight.shape[1] + within

    def pixel(axis: int, tap: int) -> tuple[Tensor, Tensor]:
        o = index[:, 2 + axis] * problem.stride[axis] + problem.dilation[axis] * tap - problem.padding[axis]
        return o, (o >= 0) & (o < problem.output[axis])

    return _gathered(problem, grad_output, weight[index[:, 1:2], within], index, channels, pixel, rounded)


def _grad_weight(
    problem: Problem, grad_output: Tensor, input: Tensor, points: int, seed: int, rounded: Callable[[Tensor], Tensor]
) -> Sample:
    per_group = problem.out_channels // problem.groups
    # Each of these elements is a sum over all pixels: fewer points.
    index = _positions(problem.weight_size, max(points // 16, 1), seed, input.device)
    value, magnitude = [], []
    for in_channel, out_channel, *tap in index.tolist():
        group = in_channel * problem.groups // problem.in_channels
        image, gradient = input[:, in_channel], grad_output[:, group * per_group + out_channel]
        for axis, k in enumerate(tap):
            stride, offset = problem.stride[axis], problem.dilation[axis] * k - problem.padding[axis]
            first = max(0, -(offset // stride))  # the first input pixel whose output exists
            last = min(problem.input[axis] - 1, (problem.output[axis] - 1 - offset) // stride)
            count = max(last - first + 1, 0)
            image = image.narrow(1 + axis, min(first, problem.input[axis]), count)
            outputs = first * stride + offset + stride * torch.arange(count, device=input.device)
            gradient = gradient.index_select(1 + axis, outputs)
        products = rounded(image).double() * rounded(gradient).double()
        value.append(products.sum())
        magnitude.append(products.abs().sum())
    return Sample(index, torch.stack(value), torch.stack(magnitude), problem.batch * math.prod(problem.input))


def grad_bias(grad_output: Tensor) -> Sample:
    """The gradient of a bias in float64, all of it: there are few elements, and no products that could be rounded."""
    axes = tuple(range(1, grad_output.dim() - 1))
    value = sum(image.sum(axes, dtype=torch.float64) for image in grad_output)
    magnitude = sum(image.abs().sum(axes, dtype=torch.float64) for image in grad_output)
    assert isinstance(value, Tensor) and isinstance(magnitude, Tensor)
    index = torch.arange(grad_output.shape[1], device=grad_output.device)[:, None]
    return Sample(index, value, magnitude, grad_output.numel() // grad_output.shape[1])


def with_bias(truth: Sample, bias: Tensor) -> Sample:
    """The same output with a bias on top."""
    added = bias.detach().double()[truth.index[:, 1]]
    return Sample(truth.index, truth.value + added, truth.magnitude + added.abs(), truth.terms + 1)
