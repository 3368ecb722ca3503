"""Epilogues on a GPU: every configuration and family, against the definition and against PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adversarial import grouped, hopper
from convt import _C
from convt.problem import Problem
from direct import laid_out, problem
from programs import OPERANDS, SMOOTH, Step, composed, operand, pointers
from reference import conv_transpose

pytestmark = pytest.mark.cuda
NONE, NAN = None, float("nan")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "sliced")
DENSE = {
    "direct": problem(3, 40, 36, (19, 21), 3, 1, 1),
    "phases": problem(2, 33, 17, (13, 15), 4, 2, 1),
    "empty-phases": problem(2, 24, 11, (7, 9), 2, 3, 1, (2, 1)),
    "cut-phases": problem(1, 5, 2, (23,), 640, 320, 160),
    "split": problem(1, 1030, 24, (3, 3), 3, 1, 1),
    "3d-groups": problem(2, 12, 38, (5, 6, 7), (2, 3, 2), (1, 2, 2), groups=2),
}
DEPTHWISE = {
    "bilinear": problem(2, 48, 48, (19, 23), 4, 2, 1, groups=48),
    "folded": problem(1, 3, 3, (4001,), 5, 3, 2, 2, groups=3),
    "multiplier": problem(2, 5, 15, (16, 17), 4, 2, 1, groups=5),
}
KERNELS = [("simt", name) for name in DENSE] + [("depthwise", name) for name in DEPTHWISE]
KERNELS += [(config, name) for config in _C.cuda_configs() for name in DENSE]


def run(kernel: str, p: Problem, tensors: list[Tensor], layout: str, steps: list[Step], precision: str) -> Tensor:
    """Plans and runs a forward into NaN; skips what a kernel says it cannot compute."""
    input, weight, bias = tensors
    strides = laid_out(torch.empty(p.output_size), layout).stride()
    output = torch.empty_strided(p.output_size, strides, dtype=input.dtype, device="cuda").fill_(NAN)
    dtype = str(input.dtype).removeprefix("torch.")
    stride, padding, output_padding, groups, dilation = p.geometry
    plan = _C.cuda_plan(
        "forward", p.input_size, input.stride(), p.weight_size, weight.stride(), bias.stride(0), strides, dtype,
        precision, stride, padding, output_padding, groups, dilation, _C.cuda_devices()[0], kernel,
    )  # fmt: skip
    workspace = torch.full((max(plan.workspace_bytes, 1),), 0xFF, dtype=torch.uint8, device="cuda")
    _C.cuda_run(
        plan, input.data_ptr(), weight.data_ptr(), bias.data_ptr(), output.data_ptr(), workspace.data_ptr(),
        torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream, pointers(steps),
    )  # fmt: skip
    torch.cuda.synchronize()
    return output


def eighths(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Exact in every dtype, and so are sums of their products in float32."""
    return (torch.randint(-8, 9, shape) / 8).to("cuda", dtype)


def on_gpu(kind: str, size: tuple[int, ...], dtype: torch.dtype, values: Tensor) -> Tensor:
    """An operand on the GPU, with the strides that it has here."""
    made = operand(kind, size, dtype, values)
    stored = made[tuple(slice(0, 1 if stride == 0 else None) for stride in made.stride())]
    there = torch.empty_strided(stored.shape, stored.stride(), dtype=dtype, device="cuda").copy_(stored)
    return there.expand(made.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "name"), KERNELS)
def test_exact_programs_are_exact(kernel, name, layout):
    p = DEPTHWISE[name] if kernel == "depthwise" else DENSE[name]
    for number, dtype in enumerate(DTYPES):
        tensors = [eighths(size, dtype) for size in (p.input_size, p.weight_size, (p.out_channels,))]
        definition = conv_transpose(*tensors, *p.geometry)
        size = p.output_size
        values = torch.randint(-16, 17, (61,)) / 8
        steps = [
            ("mul", 0.0, 0.0, on_gpu("channel", size, torch.float32, torch.tensor([0.5, 1.0, -1.0]))),
            ("add", 0.0, 0.0, on_gpu(OPERANDS[number + 1], size, dtype, values)),
            ("leaky_relu", 0.5, 0.0, NONE),
            ("sub", 0.0, 0.0, on_gpu(OPERANDS[number], size, torch.float32, values)),
            ("clamp", -1.5, 6.25, NONE),
            ("div", 2.0, 0.0, NONE),
        ]
        expected = composed(steps, definition).to(dtype)
        for precision in ("ieee", "tf32") if dtype == torch.float32 else ("ieee",):
            try:
                actual = run(kernel, p, tensors, layout, steps, precision)
            except ValueError as error:  # this kernel does not multiply the dtype
                assert "cannot compute this problem" in str(error)
                multiplied = dtype not in (torch.float32, torch.float64) or precision == "tf32"
                assert not (grouped(kernel) and hopper() and multiplied), error
                continue
            assert torch.equal(actual, expected), (dtype, precision)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("kernel", ("simt", "64x256p4w1x4", "64x256p4g1", "128x256p8g2", "depthwise"))
def test_smooth_operations_are_as_accurate_as_pytorch(kernel, name):
    """float64 against PyTorch on a CPU: its hardswish on a GPU multiplies by a sixth that is rounded to float32."""
    p = DEPTHWISE["bilinear"] if kernel == "depthwise" else DENSE["phases"]
    for dtype in DTYPES:
        generator = torch.Generator("cuda").manual_seed(0)
        sizes = p.input_size, p.weight_size, (p.out_channels,)
        tensors = [torch.randn(size, generator=generator, device="cuda").to(dtype) for size in sizes]
        for layout in LAYOUTS[:2]:
            steps = [(name, 0.0, 0.0, NONE)]
            try:
                plain = run(kernel, p, tensors, layout, [], "ieee")
            except ValueError as error:
                assert "cannot compute this problem" in str(error)
                continue
            # Rounded once against rounded twice, from the same accumulators.
            actual = run(kernel, p, tensors, layout, steps, "ieee")
            exact = composed(steps, conv_transpose(*tensors, *p.geometry).cpu()).cuda()
            rival = composed(steps, plain.cpu() if dtype == torch.float64 else plain).cuda()
            error, rivals = ((result.double() - exact).square().mean().sqrt() for result in (actual, rival))
            assert error <= 1.1 * rivals + (4e-16 if dtype == torch.float64 else 0) * exact.abs().max()


def test_inf_and_nan_as_pytorch():
    values = torch.tensor([float("inf"), -float("inf"), NAN, 0.0, 1.0, -2.0, 600.0] * 24)
    p = problem(1, 8, 8, (3, 7), 1, groups=8)
    input, weight, bias = values.reshape(1, 8, 3, 7).cuda(), torch.ones(8, 1, 1, 1).cuda(), torch.zeros(8).cuda()
    for step in [("relu", 0.0, 0.0), ("leaky_relu", 0.25, 0.0), ("clamp", -1.0, 1.0), ("clamp", 2.0, -2.0)] + [
        (name, 0.0, 0.0) for name in SMOOTH
    ]:
        for kernel in ("simt", "depthwise"):
            actual = run(kernel, p, [input, weight, bias], "contiguous", [(*step, NONE)], "ieee")
            expected = composed([(*step, NONE)], input.cpu().double()).cuda()
            assert torch.equal(actual.isnan(), expected.isnan()), step
            assert torch.equal(actual.isinf(), expected.isinf()), step
