"""Optional perceptual losses: LPIPS's distance of the features of VGG-16, or of a classifier of the same images.

The project ships no VGG weights; without a network the loss is off and the trainer says so. Any callable of two batches
of images in [-1, 1] that returns a scalar can stand in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import CheckpointError
from resgen.nn.classifier import Classifier

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGGPerceptualLoss(nn.Module):
    """Mean squared distance of unit-normalised VGG-16 features at the five stages (LPIPS without its learned
    weights, unless given).

    Args:
        path: safetensors with `features.N.weight|bias` as in the common VGG-16 layout, and optionally `linK.weight`
            `[1, C, 1, 1]` (K = 0..4), LPIPS's learned channel weights.

    Raises:
        CheckpointError: the file is missing, unreadable or lacks a tensor.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            tensors = load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"perceptual weights '{path}' cannot be read: {error}") from error
        self.stages = nn.ModuleList()
        index, channels = 0, 3
        for width, count in _STAGES:
            layers: list[nn.Module] = []
            for _ in range(count):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                for part in ("weight", "bias"):
                    name = f"features.{index}.{part}"
                    target = getattr(conv, part)
                    if name not in tensors or tensors[name].shape != target.shape:
                        raise CheckpointError(
                            f"perceptual weights '{path}' hold no '{name}' of shape {tuple(target.shape)}"
                        )
                    target.data.copy_(tensors[name])
                layers += [conv, nn.ReLU()]
                index, channels = index + 2, width
            index += 1  # the pooling layer has a number of its own
            self.stages.append(nn.Sequential(*layers))
        for stage, (width, _) in enumerate(_STAGES):
            weight = tensors.get(f"lin{stage}.weight", torch.full((1, width, 1, 1), 1.0 / width))
            self.register_buffer(f"lin{stage}", weight.reshape(1, width, 1, 1).float())
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B C Y X"], targets: Float[Tensor, "B C Y X"]) -> Float[Tensor, ""]:
        """Mean distance of two batches of images in [-1, 1]; grey images are repeated to three channels."""
        x, y = (self._normalise(pictures) for pictures in (images, targets))
        total = x.new_zeros(())
        for number, stage in enumerate(self.stages):
            if number:
                x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
            x, y = stage(x), stage(y)
            total = total + (_difference(x, y) * getattr(self, f"lin{number}")).sum(1).mean()
        return total

    def _normalise(self, pictures: Tensor) -> Tensor:
        rgb = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures
        return ((rgb + 1) / 2 - self.mean) / self.std


class ClassifierPerceptualLoss(nn.Module):
    """Mean squared distance of a classifier's unit-normalised feature maps, summed over its stages.

    Args:
        classifier: trained on such images; it is not trained further.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "B C S S"], targets: Float[Tensor, "B C S S"]) -> Float[Tensor, ""]:
        """Mean distance of two batches of images in [-1, 1]."""
        pairs = zip(self.classifier.maps(images), self.classifier.maps(targets), strict=True)
        return torch.stack([_difference(x, y).mean() for x, y in pairs]).sum()


def _difference(x: Float[Tensor, "B C Y X"], y: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
    """Squares of the differences of features that are normalised at each position."""
    return (F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)).square()
