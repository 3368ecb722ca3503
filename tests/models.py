"""Small models of the kinds that live on transposed convolutions, with synthetic data that they can learn.

Their activations are smooth: at a kink one rounding becomes a jump, and curves that part there tell nothing about
roundings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

Step = Callable[[nn.Module, tuple[Tensor, ...]], dict[str, Tensor]]


class UNet(nn.Module):
    """Segmentation: two levels down and, by k2 s2 transposed convolutions, up again."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(self.block(i, o) for i, o in ((1, width), (width, 2 * width)))
        self.middle = self.block(2 * width, 4 * width)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in (2 * width, width))
        self.decoder = nn.ModuleList(self.block(2 * c, c) for c in (2 * width, width))
        self.head = nn.Conv2d(width, 1, 1)

    @staticmethod
    def block(channels: int, out_channels: int) -> nn.Module:
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.GroupNorm(4, out_channels), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)

    @staticmethod
    def batches(count: int, size: int = 4) -> Iterator[tuple[Tensor, ...]]:
        """Noisy discs, and where they are."""
        axis = torch.linspace(-1, 1, 32, dtype=torch.float64)
        for _ in range(count):
            x, y = (torch.rand(2, size, 1, 1, 1, dtype=torch.float64) - 0.5).unbind()
            radius = 0.2 + 0.3 * torch.rand(size, 1, 1, 1, dtype=torch.float64)
            mask = ((axis - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2).double()
            yield mask + 0.5 * torch.randn(mask.shape, dtype=torch.float64), mask

    @staticmethod
    def step(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        image, mask = batch
        return {"loss": F.binary_cross_entropy_with_logits(model(image), mask)}


class DCGAN(nn.Module):
    """The k4 s2 p1 generator with batch norm, paired with its images, and a discriminator that learns beside it."""

    def __init__(self, latent: int = 16, width: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out_channels, stride, padding in (
            (latent, 4 * width, 1, 0),
            (4 * width, 2 * width, 2, 1),
            (2 * width, width, 2, 1),
        ):
            layers.append(nn.ConvTranspose2d(channels, out_channels, 4, stride, padding, bias=False))
            layers += [nn.BatchNorm2d(out_channels), nn.SiLU()]
        self.generator = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(2 * width, 1, 8),
        )  # fmt: skip

    @staticmethod
    def batches(count: int, size: int = 8, latent: int = 16) -> Iterator[tuple[Tensor, ...]]:
        """Waves whose frequencies and phases are a linear function of the latents."""
        axis = math.pi * torch.linspace(-1, 1, 32, dtype=torch.float64)
        mix = torch.randn(latent, 9, dtype=torch.float64) / latent**0.5
        for _ in range(count):
            z = torch.randn(size, latent, 1, 1, dtype=torch.float64)
            u, v, shift = (z.flatten(1) @ mix).unflatten(1, (3, 3, 1, 1)).unbind(1)
            yield z, 0.8 * torch.sin((1 + 0.3 * u) * axis + (1 + 0.3 * v) * axis[:, None] + 0.3 * shift)

    @staticmethod
    def step(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        latent, image = batch
        assert isinstance(model, DCGAN)
        made = model.generator(latent)
        # One sum, two players: the discriminator sees a detached image, the generator a frozen discriminator.
        real, fake = model.discriminator(image), model.discriminator(made.detach())
        against = F.softplus(-real).mean() + F.softplus(fake).mean()
        frozen = {name: value.detach() for name, value in model.discriminator.named_parameters()}
        fooled = F.softplus(-torch.func.functional_call(model.discriminator, frozen, made)).mean()
        return {"loss": F.mse_loss(made, image), "adversarial": 0.02 * fooled, "discriminator": against}


class HiFiGAN(nn.Module):
    """A vocoder's generator: k16 s8, k8 s4 and k4 s2 with weight norm, residual blocks between them."""

    def __init__(self, bands: int = 12, width: int = 32) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv1d(bands, width, 7, padding=3))
        self.up, self.blocks = nn.ModuleList(), nn.ModuleList()
        for filter, stride in ((16, 8), (8, 4), (4, 2)):
            up = nn.ConvTranspose1d(width, width // 2, filter, stride, padding=(filter - stride) // 2)
            self.up.append(weight_norm(up))
            width //= 2
            self.blocks.append(weight_norm(nn.Conv1d(width, width, 3, padding=3, dilation=3)))
        self.last = weight_norm(nn.Conv1d(width, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, block in zip(self.up, self.blocks, strict=True):
            x = up(F.silu(x))
            x = x + block(F.silu(x))
        return torch.tanh(self.last(F.silu(x)))

    @staticmethod
    def batches(count: int, size: int = 4, frames: int = 12, bands: int = 12) -> Iterator[tuple[Tensor, ...]]:
        """Sums of sines, one per band, and the loudness of each band in each frame."""
        time = torch.arange(64 * frames, dtype=torch.float64) / 64
        pitch = 0.25 * torch.arange(1, bands + 1, dtype=torch.float64)[:, None]
        for _ in range(count):
            loudness = torch.rand(size, bands, 1, dtype=torch.float64).expand(-1, -1, frames) / 6
            swell = loudness * (1 + 0.5 * torch.sin(torch.arange(frames) + 6 * torch.rand(size, bands, 1)))
            phase = 2 * math.pi * pitch * time
            wave = (swell.repeat_interleave(64, 2) * torch.sin(phase)).sum(1, keepdim=True)
            carrier = torch.sin(phase[:, ::64] + 0.3)  # where in its period a frame begins
            yield 6 * swell * (1 + carrier), wave

    @staticmethod
    def step(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        mel, wave = batch
        made = model(mel)
        return {"loss": F.mse_loss(made.float() if made.dtype != torch.float64 else made, wave)}


def _adam(rate: float, eps: float = 1e-8) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.9), eps=eps)


@dataclass(frozen=True)
class Task:
    """A model, how it learns, and the share of its first loss that 50 steps have to leave at most.

    Adam by itself does not see a gradient that is wrong by a factor: SGD does, a large eps helps, and so does weight
    norm, which mixes the gradients of a filter's taps.
    """

    model: type[nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    remains: float


TASKS = {
    "unet": Task(UNet, lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9), 0.2),
    "dcgan": Task(DCGAN, _adam(4e-3, eps=1e-3), 0.4),
    "hifigan": Task(HiFiGAN, _adam(4e-3), 0.4),
}
