"""KernelBench level 1, 68: 3-D, filter 3 x 5 x 5, stride 1, 32 -> 64 channels."""

import torch
from torch import Tensor, nn

import convt

Triple = tuple[int, int, int]


class Model(nn.Module):
    layer: type[nn.ConvTranspose3d] = nn.ConvTranspose3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = (1, 1, 1),
        padding: Triple = (0, 0, 0),
        output_padding: Triple = (0, 0, 0),
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv_transpose3d = self.layer(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv_transpose3d(x)
        return output


class ModelNew(Model):
    layer = convt.nn.ConvTranspose3d


batch_size = 16
in_channels = 32
out_channels = 64
kernel_size = (3, 5, 5)
depth = height = width = 64

reduced = {"batch_size": 2, "spatial": (24, 32, 32)}


def get_inputs(batch_size: int = batch_size, spatial: tuple[int, ...] = (depth, height, width)) -> list[Tensor]:
    return [torch.rand(batch_size, in_channels, *spatial)]


def get_init_inputs() -> list[int | Triple]:
    return [in_channels, out_channels, kernel_size]
