"""Convolutional blocks of the image tokenizer (RQ-VAE's encoder and decoder without attention; App. A.1)."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of at least 4 channels, 32 groups at most."""
    return nn.GroupNorm(math.gcd(32, max(channels // 4, 1)), channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input; the last convolution starts at zero."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B E Y X"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2 and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ConvEncoder(nn.Module):
    """Images to a grid of latents, `patch_size * 2^(stages - 1)` times smaller on each side.

    Args:
        in_channels: number of channels of the images.
        config: `width`, `multipliers` of it by stage, `num_res_blocks` of a stage, `patch_size` and `code_dim`.
    """

    def __init__(self, in_channels: int, config: Any) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch_size),
            nn.Conv2d(in_channels * config.patch_size**2, widths[0], 3, padding=1),
        ]
        current = widths[0]
        for stage, channels in enumerate(widths):
            if stage:
                layers.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
            for _ in range(config.num_res_blocks):
                layers.append(ResBlock(current, channels))
                current = channels
        last = nn.Conv2d(current, config.code_dim, 3, padding=1)
        layers += [ResBlock(current, current), group_norm(current), nn.SiLU(), last]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B H y x"]:
        return self.layers(images)


class ConvDecoder(nn.Module):
    """The encoder's mirror image, with one more residual block per stage (as in RQ-VAE)."""

    def __init__(self, out_channels: int, config: Any) -> None:
        super().__init__()
        widths = [config.width * m for m in reversed(config.multipliers)]
        current = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(config.code_dim, current, 3, padding=1), ResBlock(current, current)]
        for stage, channels in enumerate(widths):
            if stage:
                layers.append(Upsample(current))
            for _ in range(config.num_res_blocks + 1):
                layers.append(ResBlock(current, channels))
                current = channels
        layers += [group_norm(current), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(current, out_channels * config.patch_size**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.patch_size)

    def forward(self, latents: Float[Tensor, "B H y x"]) -> Float[Tensor, "B C Y X"]:
        return self.shuffle(self.out(self.layers(latents)))
