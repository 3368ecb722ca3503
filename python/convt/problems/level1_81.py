"""KernelBench level 1, 81: 2-D, filter 3 x 3, stride 5, padding 1, dilation 2, 32 -> 64 channels.

No tap reaches 64 % of the outputs.
"""

import torch
from torch import Tensor, nn

import convt


class Model(nn.Module):
    layer: type[nn.ConvTranspose2d] = nn.ConvTranspose2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv_transpose2d = self.layer(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv_transpose2d(x)
        return output


class ModelNew(Model):
    layer = convt.nn.ConvTranspose2d


batch_size = 16
in_channels = 32
out_channels = 64
kernel_size = 3
height = 64
width = 128
stride = 5
padding = 1
dilation = 2

reduced = {"batch_size": 2, "spatial": (64, 64)}


def get_inputs(batch_size: int = batch_size, spatial: tuple[int, ...] = (height, width)) -> list[Tensor]:
    return [torch.rand(batch_size, in_channels, *spatial)]


def get_init_inputs() -> list[int]:
    return [in_channels, out_channels, kernel_size, stride, padding, dilation]
