"""Layers with long sums, and what is measured on them: errors against float64, beside PyTorch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from reference import case

THEIRS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
LAYERS = (
    case("1d-k3", (2, 128, 999), (128, 64, 3), padding=1),
    case("2d-k4s2p1", (2, 64, 32, 32), (64, 64, 4, 4), stride=2, padding=1),
    case("2d-k3-long", (1, 512, 17, 16), (512, 48, 3, 3), padding=1),
    case("2d-k2s2", (2, 96, 24, 24), (96, 64, 2, 2), stride=2),
    case("2d-pixel", (4, 2048, 1, 1), (2048, 32, 4, 4)),
    case("2d-groups", (2, 64, 32, 32), (64, 16, 3, 3), stride=2, padding=1, output_padding=1, groups=4),
    case("2d-few-outputs", (1, 64, 48, 48), (64, 3, 9, 9), stride=4, padding=4, output_padding=3),
    case("2d-depthwise", (2, 64, 40, 40), (64, 1, 4, 4), stride=2, padding=1, groups=64),
    case("3d-k3", (1, 48, 10, 11, 12), (48, 32, 3, 3, 3), padding=1),
)


def error(actual, exact):
    """Root mean square of the differences to float64, and the largest one."""
    difference = actual.double() - exact
    return difference.square().mean().sqrt().item(), difference.abs().max().item()


def operands(layer, dtype, device, offset):
    """Normally distributed; with an offset all products add up, and rounding errors with them."""
    generator = torch.Generator().manual_seed(1)
    shapes = layer.input, layer.weight, (layer.out_channels,)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[0] += offset
    tensors[1] += offset
    return [tensor.to(device, dtype) for tensor in tensors]
