"""A small convolutional classifier of images: the judge of samples, and the features of a perceptual loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import ConfigError, check_range

MIN_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of the classifier; the default has about 1.2M parameters.

    Attributes:
        image_size: side of the square images in pixels, at least 8.
        channels: 3 (RGB) or 1 (grey).
        num_classes: classes told apart.
        width: channels of the first convolution; the last stage has 8 times as many.
    """

    image_size: int
    channels: int
    num_classes: int
    width: int = 32

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels={self.channels} must be 1 (grey) or 3 (RGB)")
        if self.image_size < MIN_SIZE:
            raise ConfigError(f"image_size={self.image_size} must be at least {MIN_SIZE}")
        check_range(self, 2, "num_classes")
        check_range(self, 1, "width")


class _Stage(nn.Module):
    """Half the resolution and other channels, then a residual convolution. Pooling first leaves the norm less to do."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(width)
        self.refine = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.refine_norm = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B W y x"]:
        x = F.relu(self.widen_norm(F.max_pool2d(self.widen(x), 2)))
        return x + F.relu(self.refine_norm(self.refine(x)))


class Classifier(nn.Module):
    """Three stages over a first convolution, the largest response of each channel, one linear layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(config.channels, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(*(_Stage(width * 2**i, width * 2 ** (i + 1)) for i in range(3)))
        self.out = nn.Linear(8 * width, config.num_classes)

    def maps(self, pictures: Float[Tensor, "B C S S"]) -> list[Float[Tensor, "B W y x"]]:
        """What the first convolution and each stage make of images in [-1, 1]."""
        x = pictures.contiguous(memory_format=torch.channels_last)
        maps = [F.relu(self.stem_norm(self.stem(x)))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def features(self, pictures: Float[Tensor, "B C S S"]) -> Float[Tensor, "B F"]:
        """What the last layer sees, of images in [-1, 1]."""
        return self.maps(pictures)[-1].amax((2, 3)).float()

    def forward(self, pictures: Float[Tensor, "B C S S"]) -> Float[Tensor, "B classes"]:
        """Logits of images in [-1, 1]."""
        return self.out(self.features(pictures)).float()

    @torch.no_grad()
    def reset_parameters(self, stream: torch.Generator) -> None:
        """Draw the weights of all convolutions (He) and of the last layer from `stream`."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
                module.weight.normal_(std=math.sqrt(gain / fan_in), generator=stream)
        self.out.bias.zero_()
