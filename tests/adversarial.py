"""Problems that break kernels, with values whose results are exact in every dtype: any wrong tap shows."""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from torch import Tensor

import convt
from convt import _C
from convt.plan import OPERATORS
from convt.settings import KERNELS
from reference import CASES, Case, case, conv_transpose

FUNCTIONS = {1: convt.conv_transpose1d, 2: convt.conv_transpose2d, 3: convt.conv_transpose3d}
# Every CUDA kernel that can be forced, by what it computes: the weight gradient's GEMM has configurations of its own.
FORCED = {
    operator: (*KERNELS[1:], *_C.cuda_configs("grad_weight" if operator == "grad_weight" else "forward"))
    for operator in OPERATORS
}


def is_hoppers(kernel: str | None) -> bool:
    """Whether warpgroups multiply: configurations for Hopper."""
    return re.search(r"g\d+$", kernel or "") is not None


def grouped(kernel: str | None) -> bool:
    """The same of the forward and of grad_input."""
    return is_hoppers(kernel) and not kernel.startswith("gw")


# Warpgroups multiply patches as they lie: taps are not cut into groups that reach less far. What they refuse therefore.
NO_ROOM = "no tile's patch fits shared memory"
TRUNCATES = "its instructions truncate where they add, which ieee does not allow"
TOO_FAR = {
    "forward": {"1d-dilated-halo", "2d-dilated-halo"},
    "grad_input": {"1d-dilated-halo", "2d-dilated-halo", "1d-320-phases"},
}


def has_room(kernel: str | None, operator: str, name: str) -> bool:
    """Whether a kernel's tile has room for the halo of one of the problems below."""
    return not grouped(kernel) or name not in TOO_FAR[operator]


def hopper() -> bool:
    """Whether plans are for a GPU with the instructions of warpgroups: this machine's, or an H200 where it has none."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() == (9, 0)


def refusal(kernel: str | None, operator: str, case: Case, dtype: torch.dtype, precision: str) -> str | None:
    """Why warpgroups compute none of this, if so; of other kernels nothing is said."""
    if not grouped(kernel):
        return None
    if dtype == torch.float64:
        return "tensor cores of this family do not multiply float64"
    if dtype == torch.float32 and precision == "ieee":
        return TRUNCATES
    if not hopper():
        return "its instructions are Hopper's"
    return None if has_room(kernel, operator, case.name) else NO_ROOM


# dtype, and how float32 is multiplied.
PRECISIONS = (
    (torch.float32, "ieee"),
    (torch.float32, "tf32"),
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
    (torch.float64, "ieee"),
)

ADVERSARIAL = (
    *CASES,
    # Extent 1.
    case("1d-one-of-all", (1, 1, 1), (1, 1, 1)),
    case("3d-pixel", (2, 4, 1, 1, 1), (4, 6, 2, 1, 3), stride=3),
    case("2d-column", (1, 16, 129, 1), (16, 24, 3, 1), padding=(1, 0)),
    case("2d-row", (3, 8, 1, 131), (8, 16, 1, 4), stride=(1, 2)),
    # Halos larger than a tile, and than the input.
    case("2d-dilated-halo", (1, 8, 40, 40), (8, 16, 3, 3), dilation=40, padding=40),
    case("1d-dilated-halo", (1, 8, 700), (8, 8, 3), dilation=512, padding=512),
    case("1d-long-filter", (2, 3, 50), (3, 4, 200), stride=2, padding=60),
    case("2d-large-filter", (1, 2, 9, 8), (2, 3, 21, 17), stride=(2, 3), padding=(5, 0)),
    case("3d-dilated", (1, 6, 5, 6, 7), (6, 5, 4, 3, 5), dilation=(2, 3, 2)),
    # More stride than filter, common divisors, output padding of a stride and more.
    case("2d-stride-over-filter", (2, 9, 9, 11), (9, 12, 2, 3), stride=(5, 7), padding=1, output_padding=(4, 6)),
    case("1d-stride-16", (2, 5, 33), (5, 3, 3), stride=16, padding=1, output_padding=15),
    case("2d-gcd", (1, 8, 7, 9), (8, 8, 3, 4), stride=(4, 6), dilation=(6, 4), padding=(3, 2), output_padding=(5, 5)),
    case("1d-output-padding", (2, 3, 65), (3, 8, 3), dilation=5, output_padding=4, padding=2),
    case("2d-output-padding", (1, 4, 6, 5), (4, 4, 3, 3), stride=2, dilation=5, output_padding=4),
    # Crops: up to a single output.
    case("2d-one-output", (1, 3, 5, 5), (3, 2, 3, 3), padding=3),
    case("1d-crop", (2, 16, 257), (16, 16, 4), stride=2, padding=100),
    # Odd channels, odd rows.
    case("2d-67-33", (2, 67, 13, 11), (67, 33, 3, 3), padding=1),
    case("2d-5-3", (3, 5, 31, 33), (5, 3, 4, 4), stride=2, padding=1),
    case("2d-3-130", (1, 3, 17, 19), (3, 130, 3, 3), stride=2),
    case("2d-17-1", (2, 17, 33, 31), (17, 1, 9, 9), stride=4, padding=4, output_padding=3),
    case("1d-1-1", (3, 1, 301), (1, 1, 3)),
    case("3d-odd", (1, 7, 3, 5, 9), (7, 11, 3, 3, 3), stride=2, padding=1, output_padding=1),
    # Groups: few channels, odd ones, depthwise, with a multiplier.
    case("2d-groups-of-8", (2, 64, 9, 9), (64, 8, 4, 4), stride=2, padding=1, groups=8),
    case("2d-groups-of-5", (2, 15, 9, 7), (15, 7, 3, 3), stride=2, groups=3),
    case("2d-depthwise-37", (2, 37, 15, 17), (37, 1, 4, 4), stride=2, padding=1, groups=37),
    case("2d-multiplier-3", (1, 24, 8, 9), (24, 3, 3, 3), padding=1, groups=24),
    case("2d-shrinking-groups", (1, 24, 8, 9), (24, 1, 3, 2), stride=(2, 1), groups=8),
    case("1d-depthwise", (2, 33, 100), (33, 1, 12), stride=2, padding=5, groups=33),
    case("3d-depthwise", (1, 10, 4, 5, 6), (10, 1, 3, 3, 3), stride=2, padding=1, groups=10),
    case("2d-depthwise-k16", (1, 21, 10, 11), (21, 1, 16, 16), stride=8, padding=4, groups=21),
    # Few pixels, many channels: sums that are split.
    case("2d-pixel-of-1024", (1, 1024, 1, 1), (1024, 64, 4, 4)),
    case("2d-600", (2, 600, 3, 3), (600, 40, 3, 3), stride=2, padding=1),
    # Many phases.
    case("1d-320-phases", (1, 16, 100), (16, 1, 640), stride=320, padding=160),
    # k == s.
    case("2d-k2s2", (2, 64, 20, 24), (64, 32, 2, 2), stride=2),
    case("3d-k2s2", (1, 32, 5, 6, 7), (32, 16, 2, 2, 2), stride=2),
    case("1d-k8s8", (2, 16, 77), (16, 8, 8), stride=8),
    # Many tiles along every axis, many images.
    case("2d-tiles", (2, 64, 61, 67), (64, 64, 3, 3), padding=1),
    case("2d-tiles-k4s2p1", (2, 48, 65, 63), (48, 72, 4, 4), stride=2, padding=1),
    case("3d-tiles", (1, 24, 12, 19, 31), (24, 40, 3, 2, 3), stride=(1, 2, 2), padding=(1, 0, 1)),
    case("1d-tiles", (1, 48, 5000), (48, 9, 7), stride=3, padding=2, output_padding=1),
    case("1d-images", (300, 5, 3), (5, 7, 3), stride=2, padding=1),
)  # fmt: skip


def eighths(shape: tuple[int, ...], seed: int, device: str) -> Tensor:
    """Multiples of 1/8 from -1 to 1 in float64: exact in 16 bits; sums of fewer than 2**17 products in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).to(device, torch.float64) / 8


@lru_cache(maxsize=2 * len(ADVERSARIAL))
def exact(problem: Case, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and output in float64."""
    shapes = problem.input, problem.weight, (problem.out_channels,)
    tensors = [eighths(shape, seed, device) for seed, shape in enumerate(shapes)]
    return tensors[0], tensors[1], tensors[2], conv_transpose(*tensors, **problem.keywords)


@lru_cache(maxsize=2 * len(ADVERSARIAL))
def exact_gradients(problem: Case, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, grad_output, grad_input and grad_weight in float64; each sum has fewer than 2**17 products."""
    leaves = [tensor.detach().requires_grad_() for tensor in exact(problem, device)[:2]]
    output = conv_transpose(*leaves, **problem.keywords)
    grad_output = eighths(tuple(output.shape), 3, device)
    grads = torch.autograd.grad(output, leaves, grad_output)
    return leaves[0].detach(), leaves[1].detach(), grad_output, *grads


def channels_last(tensor: Tensor) -> Tensor:
    """The same values, channels innermost, for tensors of any rank."""
    return torch.movedim(torch.movedim(tensor, 1, -1).contiguous(), -1, 1)


def sliced(tensor: Tensor) -> Tensor:
    """The same values at odd offsets and pitches, NaN all around."""
    wide = tensor.new_full([2 * size + 1 for size in tensor.shape], float("nan"))
    return wide[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """The same values, axes stored in the opposite order."""
    order = range(tensor.dim() - 1, -1, -1)
    return tensor.permute(*order).contiguous().permute(*order)


def offset(tensor: Tensor) -> Tensor:
    """Contiguous, but starting one element into its storage."""
    return torch.cat([tensor.new_full((1,), float("nan")), tensor.flatten()])[1:].view(tensor.shape)


def padded(tensor: Tensor) -> Tensor:
    """The same values in rows that begin at multiples of 16 bytes, NaN behind each."""
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] // 8 * 8 + 16), float("nan"))
    return wide[..., : tensor.shape[-1]].copy_(tensor)


def contiguous(tensor: Tensor) -> Tensor:
    """The same values, contiguous."""
    return tensor.contiguous()
