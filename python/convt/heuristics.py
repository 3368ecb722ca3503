"""The rules that prefer native code or ATen. Pure: the same problem, the same answer.

The one for CPUs was read off a sweep of more than 300 layers by three operators (docs/tuning.md: the machine, the
protocol, what the rule wins). It names native code only where that won with a margin, because ATen's speed depends on
the machine as well: on dense float32 and bfloat16 layers ATen runs close to the machine's peak.
"""

from __future__ import annotations

import math

import torch

from .problem import Problem

# Products below which a call costs more than its arithmetic: ATen's own autograd node is then the cheapest to record.
_SMALL_MACS = 65536
# Products below which ATen's setup alone takes longer than native code.
_LIGHT_MACS = 32768


def is_small(problem: Problem, dtype: torch.dtype) -> bool:
    """Whether a call that records gradients is cheapest through ATen's small-problem operator."""
    results = problem.out_channels * math.prod(problem.output)
    # With more images ATen's backward goes through oneDNN, whose setup takes longer than all else.
    return (
        problem.groups == 1
        and problem.batch == 1
        and results <= _SMALL_MACS
        and problem.macs <= _SMALL_MACS
        and dtype in (torch.float32, torch.float64)
    )


def choose(problem: Problem, operator: str, dtype: torch.dtype, channels_last: bool) -> str:
    """The backend expected to be faster on a CPU, "native" or "aten".

    operator is "forward", "grad_input" or "grad_weight"; channels_last tells the layout of the result.
    """
    if problem.macs <= _LIGHT_MACS and not channels_last:
        return "native"
    rule = {"forward": _forward, "grad_input": _grad_input, "grad_weight": _grad_weight}[operator]
    return "native" if dtype is torch.float16 or rule(problem, dtype, channels_last) else "aten"


def choose_cuda(
    problem: Problem,
    operator: str,
    dtype: torch.dtype,
    channels_last: bool,
    precision: str = "tf32",
    bias: bool = False,
) -> str:
    """The backend to prefer on a GPU where both are legal, "native" or "aten".

    operator is "forward", "grad_input" or "grad_weight"; channels_last tells the layout of the result; precision,
    "ieee" or "tf32", counts for float32, bias for the forward alone. Read off the layers of KernelBench and of the zoo,
    145 in all, on an H200 (docs/tuning.md): cuDNN wins strided layers of many channels, and most whose tensors are
    channels_last; those that have a bias it wins seldom. Layers whose step is short are native whole where two
    operators are: kernels of two kinds take longer to lead than to run. Only those whose channels are so few, or whose
    images are single pixels, that one kind takes several times as long as the other, are mixed then as well.
    """
    if problem.groups > 1 or dtype is torch.float64:
        return "native"
    strict = dtype is torch.float32 and precision == "ieee"
    if operator == "forward" and bias and not strict and _adds_bias_in_time(problem, channels_last):
        return "native"
    half = dtype in (torch.bfloat16, torch.float16)
    native = {name: _is_faster(problem, name, strict, half, channels_last) for name in _CUDA_RULES}
    light = not strict and is_light(problem, dtype) and not _is_mixed(problem, half)
    whole = light and sum(native.values()) > 1
    return "native" if whole or native[operator] else "aten"


def is_light(problem: Problem, dtype: torch.dtype) -> bool:
    """Whether a step of training takes a GPU about as long as Python takes to lead it through kernels of two kinds."""
    elements = problem.batch * (
        problem.in_channels * math.prod(problem.input) + problem.out_channels * math.prod(problem.output)
    )
    # Forward and both gradients, at what cuDNN reaches on an H200.
    return 6 * problem.macs / 2e14 + 3 * elements * dtype.itemsize / 3e12 < 150e-6


def is_better_whole(problem: Problem, dtype: torch.dtype, native: int) -> bool:
    """Whether a step of training that is native in part is fastest by ATen's own node.

    native: how many of the three operators are; the sum of a bias' gradient always is.
    """
    # That sum alone is worth 20 to 160 us of a large output (H200), and Python's lead of cuDNN's gradients 60.
    results = problem.batch * problem.out_channels * math.prod(problem.output)
    light = is_light(problem, dtype) and not (native and _is_mixed(problem, dtype.itemsize == 2))
    return light or (native == 0 and results < 12_000_000)


def _is_mixed(problem: Problem, half: bool) -> bool:
    """Whether one operator of a light layer gains so much from native code, and another so little, that they differ."""
    return _is_narrow(problem, half) or (_is_of_pixels(problem) and not half)


def _is_narrow(problem: Problem, half: bool) -> bool:
    """Whether grad_output has so few channels that cuDNN's grad_input takes less time.

    Its time grows with them, ours begins to at 8 or 16 (H200: 1, 2, 3, 4 and 8 channels of four layers of the zoo).
    """
    return problem.out_channels < (3 if half and problem.rank < 3 else 4)


def _is_of_pixels(problem: Problem) -> bool:
    """The first layer of a generator, whose forward cuDNN sees as the matrix product that it is in 16 bits alone."""
    return math.prod(problem.input) == 1


def _channels(problem: Problem) -> tuple[int, int]:
    """The fewer and the more of input and output channels."""
    return min(problem.in_channels, problem.out_channels), max(problem.in_channels, problem.out_channels)


def _adds_bias_in_time(problem: Problem, channels_last: bool) -> bool:
    """Whether native code, which adds a bias on the way out, has done so before ATen.

    ATen's addition passes the output once more, at 0.4e12 elements a second (H200), up to 2.3 times cuDNN's own time.
    """
    return problem.in_channels <= 256 if channels_last else problem.in_channels < 384 or problem.taps <= 16


def _cuda_forward(problem: Problem, strict: bool, half: bool, channels_last: bool) -> bool:
    few, many = _channels(problem)
    scattered = _is_scattered(problem)
    if strict:
        return problem.in_channels <= 192
    if channels_last:
        long = not _is_strided(problem) and problem.taps > 16
        if _is_single(problem) and few <= 64 and (problem.rank == 2 or not half):
            return True
        if half:
            solid = problem.rank == 3 and (not scattered or few <= 32 or problem.taps >= 27)
            return few <= 32 or long or _is_dilated(problem) or solid
        thin = few <= (32 if scattered else 4) or (not _is_strided(problem) and many <= 64)
        if problem.rank == 3 and scattered:
            return problem.in_channels <= 64
        return thin or long or _is_dilated(problem) or (problem.rank == 3 and problem.in_channels <= 64)
    if not scattered:
        return problem.taps > 1
    pixels = problem.batch * _pixels(problem)
    narrow = problem.in_channels <= (128 if pixels >= 1 << 16 else 96)
    # One tap at every output, and the result is what costs: cuDNN turns it to the input's layout once more.
    if _is_single(problem) and problem.in_channels <= 256:
        return True
    if _is_long(problem):
        return True
    if _is_upsampler(problem) and pixels >= 1024 and (not half or pixels < 8192 or problem.in_channels < 768):
        return True
    # Of such cuDNN picks kernels that take two to four times as long as others.
    if not half and problem.rank == 2 and problem.batch > 1 and problem.taps == 16 and problem.in_channels <= 256:
        return True
    if half and problem.rank > 1:
        few_enough = few <= 32 and (problem.rank == 2 or problem.in_channels <= 64)
        return few_enough or (narrow and pixels >= 1 << 16)
    # In 1-D cuDNN has no kernel for tensor cores of some.
    return narrow or (not half and problem.rank == 1 and problem.in_channels >= 1024)


def _is_faster(problem: Problem, operator: str, strict: bool, half: bool, channels_last: bool) -> bool:
    """Whether an operator's kernels are, by themselves."""
    if _is_of_pixels(problem):
        return not half and operator == "forward"
    return _CUDA_RULES[operator](problem, strict, half, channels_last)


def _cuda_grad_input(problem: Problem, strict: bool, half: bool, channels_last: bool) -> bool:
    few, many = _channels(problem)
    if _is_narrow(problem, half) or problem.in_channels <= 4 or (few <= 4 and (strict or channels_last)):
        return False
    if strict:
        return channels_last or not _is_strided(problem) or problem.taps >= 16 or many <= 64
    if channels_last:
        thin = many <= (32 if half else 64)
        if _is_scattered(problem):  # cuDNN takes six times as long for stylegan2's 64 to 32
            return few <= 32 and problem.rank == 2 and not half
        return problem.rank == 3 or problem.taps > 9 or thin
    if not _is_scattered(problem):
        return problem.taps > 1
    if _is_long(problem) or (_is_single(problem) and problem.rank == 2 and (half or problem.in_channels < 512)):
        return True
    if half and _is_upsampler(problem) and problem.batch * _pixels(problem) >= 4096 and problem.in_channels < 1024:
        return True
    solid = problem.rank == 3 and problem.in_channels > 64 and not _is_single(problem)
    return problem.in_channels <= 128 and not (half and solid)


def _cuda_grad_weight(problem: Problem, strict: bool, half: bool, channels_last: bool) -> bool:
    few, _ = _channels(problem)
    strided = _is_strided(problem)
    if strict:
        return few <= 256 and (few > 4 or problem.rank == 3)
    if channels_last:
        # Inputs and outputs that no tap joins are fetched as well.
        if math.prod(problem.stride) > problem.taps:
            return False
        if not strided:
            return few <= 48 or not half
        # Tiles of 128 input channels by 256 pairs of an output channel and a tap have no waste.
        whole = problem.in_channels == 128 and problem.taps * problem.out_channels % 256 == 0
        if half and problem.rank == 2 and whole and problem.out_channels <= 64:
            return True
        return few <= (16 if half else 32) or problem.taps > 100 or (not half and problem.in_channels <= 64)
    if half and (problem.input[-1] % 2 or problem.output[-1] % 2):  # such rows go through registers, or are turned
        return few <= (32 if problem.rank == 1 else 64)
    if half:
        deep = 256 if problem.rank == 3 and _is_single(problem) else 384 if _is_upsampler(problem, 4) else 192
        return problem.in_channels <= deep
    if problem.rank == 2 and few >= 512 and problem.batch * _pixels(problem) >= 1 << 13:
        return False
    return problem.in_channels < 512 or problem.input[-1] % 4 == 0  # else copies of a word each


_CUDA_RULES = {"forward": _cuda_forward, "grad_input": _cuda_grad_input, "grad_weight": _cuda_grad_weight}


def _pixels(problem: Problem) -> int:
    """Input pixels per image: the length that vectors run along."""
    return math.prod(problem.input)


def _pairs(problem: Problem) -> int:
    """Input by output channels of a group."""
    return problem.in_channels // problem.groups * (problem.out_channels // problem.groups)


def _is_long(problem: Problem) -> bool:
    """Many pixels of a signal, and of many channels, which cuDNN turns; phases that leave side by side."""
    pixels = problem.batch * _pixels(problem)
    return problem.rank == 1 and 128 < problem.in_channels <= 384 and pixels >= 1 << 14 and problem.stride[0] % 2 == 0


def _is_single(problem: Problem) -> bool:
    """Whether every output has one tap."""
    return problem.filter == problem.stride and _is_strided(problem)


def _is_upsampler(problem: Problem, stride: int = 1 << 30) -> bool:
    """A signal's, of two taps for every output, by an even factor that is at most `stride`."""
    (factor, *more), (taps, *_) = problem.stride, problem.filter
    return not more and factor % 2 == 0 and factor <= stride and taps == 2 * factor


def _is_strided(problem: Problem) -> bool:
    return max(problem.stride) > 1


def _is_scattered(problem: Problem) -> bool:
    """Whether outputs have phases that all hold taps: dilation leaves some empty, which costs cuDNN as much."""
    return _is_strided(problem) and not _is_dilated(problem)


def _is_dilated(problem: Problem) -> bool:
    return max(problem.dilation) > 1


def _aten_skips_onednn(problem: Problem, dtype: torch.dtype) -> bool:
    """Whether ATen takes its column code, for one small image (ConvParams::use_mkldnn), and native code suits it."""
    filter = (1, *problem.filter)[-2:]
    first_axes = problem.in_channels * math.prod(problem.input[:2])
    small = problem.batch == 1 and problem.groups == 1 and first_axes <= 20480 and min(filter) <= 3
    # Halos that rival the image are native code's worst case.
    axes = zip(problem.input, problem.filter, problem.stride, problem.dilation, strict=True)
    compact = all(2 * d * (k - 1) <= s * i for i, k, s, d in axes)
    return small and compact and problem.taps > 1 and dtype is torch.float32


def _forward(problem: Problem, dtype: torch.dtype, channels_last: bool) -> bool:
    pixels, pairs, widest = _pixels(problem), _pairs(problem), max(problem.filter)
    if dtype is torch.float64:
        return pixels >= 256
    if problem.groups > 1 and pairs == 1:  # depthwise
        if channels_last:
            return False
        if dtype is torch.bfloat16:
            return pixels >= 256 and _is_strided(problem)
        wide = problem.rank == 3 or (problem.rank == 1 and widest <= 5) or (_is_strided(problem) and widest <= 4)
        return wide and pixels >= 1024
    if dtype is torch.bfloat16 or pixels < 256:
        return False
    if _aten_skips_onednn(problem, dtype):
        return True
    if problem.groups > 1:
        if problem.rank == 3:
            return False
        if channels_last:
            return pixels >= 1024 and pairs <= 256 and not _is_dilated(problem)
        return pixels >= 1024 and (_is_strided(problem) or widest <= 3)
    if problem.out_channels <= 4:
        return _is_strided(problem) or not _is_dilated(problem)
    if channels_last:
        return False
    if problem.rank == 1:
        return pairs <= 4096 if _is_strided(problem) else pairs <= 2048 and not _is_dilated(problem)
    if problem.rank == 3:
        return _is_strided(problem) and pixels >= 4096 and widest <= 4
    if _is_strided(problem):
        return pixels >= 1024 or pairs <= 1024
    return pairs <= 256 and not _is_dilated(problem)


def _grad_input(problem: Problem, dtype: torch.dtype, channels_last: bool) -> bool:
    pixels, pairs = _pixels(problem), _pairs(problem)
    if dtype is torch.float64:
        return pixels >= 256
    if dtype is torch.bfloat16 or channels_last or pixels < 256:
        return False
    if _aten_skips_onednn(problem, dtype):
        return True
    if problem.groups > 1:
        if problem.rank == 1:
            return pixels >= 1024 and problem.taps <= 5
        return problem.rank == 2 and pixels >= 1024 and pairs > 1 and _is_dilated(problem)
    if problem.rank == 1:
        return _is_dilated(problem) and pairs <= 2048 and pixels >= 8192
    return problem.rank == 2 and max(problem.stride) >= 4 and _is_dilated(problem) and pixels >= 4096


def _grad_weight(problem: Problem, dtype: torch.dtype, channels_last: bool) -> bool:
    pixels, pairs = _pixels(problem), _pairs(problem)
    if problem.groups > 1 and pairs == 1:  # depthwise: ATen leaves its fast code beyond 3x3
        if dtype is torch.bfloat16 or problem.taps >= 10:
            return pixels * problem.taps >= 512
        return dtype is torch.float64 or (problem.rank == 1 and pixels >= 1024)
    if dtype is torch.float64:
        return pixels >= 256 and pixels * problem.taps >= 2048 and (pairs <= 4096 or problem.groups > 1)
    if dtype is torch.bfloat16 or pixels < 256:
        return False
    if _aten_skips_onednn(problem, dtype) and not channels_last:
        return True
    if problem.groups > 1:
        if problem.rank == 1:
            return pixels >= 1024 and problem.taps <= 5
        return _is_dilated(problem) and not channels_last
    if problem.rank == 1:
        return pairs <= 2048 and problem.taps <= 4
    dilated_and_strided = _is_dilated(problem) and _is_strided(problem)
    return problem.rank == 2 and not channels_last and dilated_and_strided and pixels >= 1024 and pairs <= 2048
