"""Classes on several axes at once, such as a style and a background, as one whole number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MOST_IDS = 1 << 31


def join_digits(digits: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Class ids from their digits; the inverse of `models.conditions.class_digits`, which says what digits mean.

    Args:
        digits: of each axis, whole numbers, arrays or tensors alike, from 0 to the axis's size.
        sizes: classes of each axis.
    """
    class_ids = digits[-1]
    for digit, size in reversed(list(zip(digits[:-1], sizes[:-1], strict=True))):
        class_ids = class_ids * (size + 1) + digit
    return class_ids


def count_ids(sizes: Sequence[int]) -> int:
    """How many class ids there are: on every axis one of its classes, or nothing."""
    return math.prod(size + 1 for size in sizes)
