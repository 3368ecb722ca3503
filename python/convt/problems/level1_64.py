"""KernelBench level 1, 64: 1-D, filter 3, stride 1, 128 -> 128 channels."""

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
        output_padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv1d_transpose = self.layer(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv1d_transpose(x)
        return output


class ModelNew(Model):
    layer = convt.nn.ConvTranspose1d


batch_size = 64
in_channels = 128
out_channels = 128
kernel_size = 3
length = 65536

reduced = {"batch_size": 2, "spatial": (32768,)}


def get_inputs(batch_size: int = batch_size, spatial: tuple[int, ...] = (length,)) -> list[Tensor]:
    return [torch.rand(batch_size, in_channels, *spatial)]


def get_init_inputs() -> list[int]:
    return [in_channels, out_channels, kernel_size]
