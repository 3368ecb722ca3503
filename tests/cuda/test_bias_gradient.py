"""The gradient of a bias on a GPU: exact sums of integers in every layout, and the same bits every time."""

from __future__ import annotations

import pytest
import torch

import convt
from convt import operators, plan
from convt.problem import operand

pytestmark = pytest.mark.cuda

DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
SIZES = (
    (64, 512, 8, 8), (8, 64, 257, 257), (3, 7, 1000), (2, 40, 24, 40, 24), (256, 256, 14, 14), (1, 1, 1 << 20),
    (5, 2000, 3), (4, 3, 511, 13), (70000, 24, 1),
)  # fmt: skip
LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "channels_last": lambda tensor: tensor.movedim(1, -1).contiguous().movedim(-1, 1),
    "of wider images": lambda tensor: torch.cat([tensor, tensor], 1)[:, : tensor.shape[1]],
    "offset": lambda tensor: torch.cat([tensor.new_zeros(3), tensor.flatten()])[3:].view(tensor.shape),
    "every other pixel": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "expanded": lambda tensor: tensor[:1].expand_as(tensor),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_are_exact_and_repeat(gpu, size, dtype, layout):
    generator = torch.Generator(gpu).manual_seed(1)
    values = torch.randint(-1, 2, size, generator=generator, device=gpu).to(dtype)
    grad_output = LAYOUTS[layout](values)
    exact = grad_output.double().sum((0, *range(2, len(size))))
    summed = operators.grad_bias(grad_output)
    # float16 has no integers above 2048 but even ones; what is summed in float32 is rounded once.
    assert torch.equal(summed, exact.to(dtype))
    assert all(torch.equal(operators.grad_bias(grad_output), summed) for _ in range(5))
    if layout not in ("every other pixel", "expanded"):
        assert plan.channel_sum(operand(grad_output), "auto") is not None


def test_sums_in_a_graph_and_on_a_stream(gpu):
    grad_output = torch.randn(64, 96, 33, 31, device=gpu)
    expected = operators.grad_bias(grad_output)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operators.grad_bias(grad_output)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)
    stream = torch.cuda.Stream(gpu)
    stream.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(stream):
        beside = operators.grad_bias(grad_output)
    stream.synchronize()
    assert torch.equal(beside, expected)


def test_a_step_sums_natively(gpu):
    """From C as from Python: PyTorch's sum is never asked."""
    layer = convt.nn.ConvTranspose2d(32, 48, 3, 2, device=gpu)
    input = torch.randn(16, 32, 40, 40, device=gpu)
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            layer(input).backward(torch.ones(16, 48, 81, 81, device=gpu))
            torch.cuda.synchronize()
        assert any("ChannelSum" in event.name for event in profile.events())
        torch.testing.assert_close(layer.bias.grad, torch.full((48,), 16.0 * 81 * 81, device=gpu))
        layer.zero_grad()
