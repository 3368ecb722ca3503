"""KernelBench level 1, 79: 1-D, filter 3, stride 2, padding 1, dilation 2, 32 -> 64 channels.

No tap reaches half of the outputs.
"""

import torch
from torch import Tensor, nn

import convt


class Model(nn.Module):
    layer: type[nn.ConvTranspose1d] = nn.ConvTranspose1d

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
        self.conv1d_transpose = self.layer(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv1d_transpose(x)
        return output


class ModelNew(Model):
    layer = convt.nn.ConvTranspose1d


batch_size = 16
in_channels = 32
out_channels = 64
kernel_size = 3
length = 131072
stride = 2
padding = 1
dilation = 2

reduced = {"batch_size": 2, "spatial": (65536,)}


def get_inputs(batch_size: int = batch_size, spatial: tuple[int, ...] = (length,)) -> list[Tensor]:
    return [torch.rand(batch_size, in_channels, *spatial)]


def get_init_inputs() -> list[int]:
    return [in_channels, out_channels, kernel_size, stride, padding, dilation]
