"""Conditions of a generator: one vector per sample (classes) or per position (features)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.types import SequenceCondition


class ClassCondition(nn.Module):
    """One learned vector per class, and one for "no class" (`null_id`), which guidance and unlabelled data use; with
    several axes, such as style and background, the sum of such a vector of each."""

    def __init__(self, num_classes: int, width: int, other_axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.null_id, self.sizes = num_classes, (num_classes, *other_axes)
        self.embedding = nn.Embedding(sum(self.sizes) + len(self.sizes), width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, class_ids: Int[Tensor, " B"]) -> Float[Tensor, "B O"]:
        starts = accumulate((size + 1 for size in self.sizes[:-1]), initial=0)
        rows = [start + digit for start, digit in zip(starts, class_digits(class_ids, self.sizes), strict=True)]
        return self.embedding(torch.stack(rows)).sum(0)


def class_digits(class_ids: Any, sizes: Sequence[int]) -> list[Any]:
    """What class ids (a number, an array or a tensor) say on each axis, of `sizes` classes, as one digit for each.

    The first axis is the lowest digit: k is class k, its size says nothing. Of the others 0 says nothing, k + 1 is
    class k. So an id of the first axis alone is that of a model with one axis. `ops.axes.join_digits` is the inverse.
    """
    digits = []
    for size in sizes[:-1]:
        digits.append(class_ids % (size + 1))
        class_ids = class_ids // (size + 1)
    return [*digits, class_ids]


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
