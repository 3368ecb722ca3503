"""torch.nn's ConvTranspose modules, computed by convt. Same constructor, parameters, repr and state_dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from .functional import conv_transpose1d, conv_transpose2d, conv_transpose3d

__all__ = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


def _output_padding(module: _ConvTransposeNd, input: Tensor, output_size: list[int] | None) -> Sequence[int]:
    """The module's own output_padding, or the one that reaches output_size; ValueError when there is none."""
    if output_size is None:
        return module.output_padding
    shared: Any = module.stride, module.padding, module.kernel_size, len(module.kernel_size), module.dilation
    return module._output_padding(input, output_size, *shared)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d, computed by convt."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(batch, in_channels, length) or unbatched -> (batch, out_channels, length'); see convt.conv_transpose1d."""
        output_padding = _output_padding(self, input, output_size)
        padding: Any = self.padding  # torch.nn's annotation has a str for the convolutions' "same"
        return conv_transpose1d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, computed by convt."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(batch, in_channels, height, width) or unbatched -> (batch, out_channels, height', width')."""
        output_padding = _output_padding(self, input, output_size)
        padding: Any = self.padding  # torch.nn's annotation has a str for the convolutions' "same"
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d, computed by convt."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(batch, in_channels, depth, height, width) or unbatched -> (batch, out_channels, depth', height', width')."""
        output_padding = _output_padding(self, input, output_size)
        padding: Any = self.padding  # torch.nn's annotation has a str for the convolutions' "same"
        return conv_transpose3d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )
