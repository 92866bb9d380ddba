"""The classifier that judges whether generated images show the requested class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from resgen.devices import has_bfloat16
from resgen.errors import DataError
from resgen.nn.classifier import Classifier
from resgen.ops.images import at_once, from_uint8

BATCH = 256


@torch.no_grad()
def classify(model: Classifier, pictures: UInt8[Tensor, "N C S S"]) -> Float[Tensor, "N classes"]:
    """Logits of images in 0..255.

    Raises:
        DataError: images of another shape than the classifier's.
    """
    return torch.cat([model.out(part) for part in features(model, pictures).split(BATCH)])


@torch.no_grad()
def features(model: Classifier, pictures: UInt8[Tensor, "N C S S"]) -> Float[Tensor, "N F"]:
    """Input of the last layer, for images in 0..255.

    Raises:
        DataError: images of another shape than the classifier's.
    """
    config, device = model.config, model.out.weight.device
    expected = (config.channels, config.image_size, config.image_size)
    if tuple(pictures.shape[1:]) != expected or not len(pictures):
        raise DataError(f"images of shape {tuple(pictures.shape)}; the classifier takes one or more of {expected}")
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        parts = pictures.split(at_once(config.image_size, BATCH))
        return torch.cat([model.features(from_uint8(part.to(device))) for part in parts])


def accuracy(model: Classifier, pictures: UInt8[Tensor, "N C S S"], labels: Int[Tensor, " N"]) -> float:
    """Share of the images whose most likely class is their label."""
    return float((classify(model, pictures).argmax(1).cpu() == labels.cpu()).double().mean())
