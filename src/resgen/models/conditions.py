"""Conditions: what a generator is asked for, as one vector per sample (classes) or per position (features)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.types import SequenceCondition


class ClassCondition(nn.Module):
    """One learned vector per class, and one for "no class" (`null_id`), which guidance and unlabelled data use."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.null_id = num_classes
        self.embedding = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, class_ids: Int[Tensor, " B"]) -> Float[Tensor, "B O"]:
        return self.embedding(class_ids)


class FeatureInput(nn.Module):
    """One vector per position from features at `stride` rows per position, by a strided convolution without overlap
    (Sec. A.1, the expanded text); a learned vector stands for "none", which guidance uses."""

    def __init__(self, feature_width: int, stride: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(feature_width, width, kernel_size=stride, stride=stride)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, sequence: SequenceCondition) -> Float[Tensor, "B L O"]:
        """The vectors, `null` for the samples that are not kept.

        Raises:
            ConfigError: the features do not have `stride` rows per position, or another width.
        """
        expected = (sequence.valid.shape[1] * self.conv.stride[0], self.conv.in_channels)
        actual = None if sequence.features is None else tuple(sequence.features.shape[1:])
        if sequence.features is None or actual != expected:
            raise ConfigError(f"features of shape {actual} given, {expected} expected (rows, feature_width)")
        features = sequence.features.to(self.conv.weight.dtype)
        x = self.conv(features.transpose(1, 2)).transpose(1, 2)
        if sequence.keep is None:
            return x
        return torch.where(sequence.keep[:, None, None], x, self.null.to(x.dtype))
