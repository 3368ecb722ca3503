"""KernelBench level 1, 71: 2-D, filter 3 x 3, stride 1, 32 -> 32 channels, asymmetric input."""

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
        output_padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv_transpose2d = self.layer(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv_transpose2d(x)
        return output


class ModelNew(Model):
    layer = convt.nn.ConvTranspose2d


batch_size = 8
in_channels = 32
out_channels = 32
kernel_size = 3
height = 512
width = 1024

reduced = {"batch_size": 2, "spatial": (256, 512)}


def get_inputs(batch_size: int = batch_size, spatial: tuple[int, ...] = (height, width)) -> list[Tensor]:
    return [torch.rand(batch_size, in_channels, *spatial)]


def get_init_inputs() -> list[int]:
    return [in_channels, out_channels, kernel_size]
