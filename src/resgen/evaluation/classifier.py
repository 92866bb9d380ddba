"""A small convolutional classifier: the judge of whether generated pictures show the class that was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.checkpoints.format import Component, Folder, load_folder, load_tensors, save_folder
from resgen.checkpoints.tensors import load_state, module_tensors
from resgen.config import config_from_dict, config_to_dict
from resgen.devices import has_bfloat16
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.ops.images import from_uint8

KIND = "classifier"
BATCH = 256
MIN_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of the classifier; the default has about 1.2M parameters.

    Attributes:
        image_size: side of the square pictures in pixels, at least 8.
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
        if self.num_classes < 2:
            raise ConfigError(f"num_classes={self.num_classes} must be at least 2")
        if self.width < 1:
            raise ConfigError(f"width={self.width} must be at least 1")


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

    def features(self, pictures: Float[Tensor, "B C S S"]) -> Float[Tensor, "B F"]:
        """What the last layer sees, of pictures in [-1, 1]."""
        x = pictures.contiguous(memory_format=torch.channels_last)
        return self.stages(F.relu(self.stem_norm(self.stem(x)))).amax((2, 3)).float()

    def forward(self, pictures: Float[Tensor, "B C S S"]) -> Float[Tensor, "B classes"]:
        """Logits of pictures in [-1, 1]."""
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


@torch.no_grad()
def classify(model: Classifier, pictures: UInt8[Tensor, "N C S S"]) -> Float[Tensor, "N classes"]:
    """Logits of pictures in 0..255.

    Raises:
        DataError: pictures of another shape than the classifier's.
    """
    return torch.cat([model.out(part) for part in features(model, pictures).split(BATCH)])


@torch.no_grad()
def features(model: Classifier, pictures: UInt8[Tensor, "N C S S"]) -> Float[Tensor, "N F"]:
    """What the last layer sees, of pictures in 0..255.

    Raises:
        DataError: pictures of another shape than the classifier's.
    """
    config, device = model.config, model.out.weight.device
    expected = (config.channels, config.image_size, config.image_size)
    if tuple(pictures.shape[1:]) != expected or not len(pictures):
        raise DataError(f"pictures of shape {tuple(pictures.shape)}; the classifier takes one or more of {expected}")
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        return torch.cat([model.features(from_uint8(part.to(device))) for part in pictures.split(BATCH)])


def accuracy(model: Classifier, pictures: UInt8[Tensor, "N C S S"], labels: Int[Tensor, " N"]) -> float:
    """Share of the pictures whose most likely class is their label."""
    return float((classify(model, pictures).argmax(1).cpu() == labels.cpu()).double().mean())


def save_classifier(
    path: str | Path, model: Classifier, *, class_names: Sequence[str] = (), history: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier folder.

    Raises:
        CheckpointError: the place holds something else or cannot be written.
    """
    part = Component(type=KIND, config=config_to_dict(model.config), tensors=module_tensors(model))
    extra = {"class_names": list(class_names), "history": dict(history or {})}
    save_folder(path, kind=KIND, components={KIND: part}, extra=extra)


def load_classifier(path: str | Path) -> tuple[Classifier, Folder]:
    """The classifier of a folder, in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, or not a classifier.
    """
    folder = load_folder(path)
    saved = folder.component(KIND)
    if saved.type != KIND:
        raise CheckpointError(f"'{saved.path}': type '{saved.type}' is not known; this version knows '{KIND}'")
    model = Classifier(config_from_dict(ClassifierConfig, saved.config, where="classifier."))
    load_state(model, load_tensors(saved), str(saved.path))
    return model.eval().requires_grad_(False), folder
