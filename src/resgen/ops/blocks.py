"""How many rows to compute at once, and which of them at each level."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.types import LevelWalk

CPU_BLOCK = ContextVar("CPU_BLOCK", default=1 << 20)
"""A variable, for computations that stand for those of another device."""
DEVICE_BLOCK = 1 << 25


def rows_per_block(elements: int, device: torch.device) -> int:
    """Rows of `elements` numbers each that stay in a processor's cache, or small against a device's memory."""
    return max(1, (CPU_BLOCK.get() if device.type == "cpu" else DEVICE_BLOCK) // max(1, elements))


def walk_levels(start: Int[Tensor, " N"], end: Int[Tensor, " N"]) -> LevelWalk:
    """The walk over the levels `start..end - 1` of every row, coarse to fine, a block of rows at a time."""

    def walk(scores: Float[Tensor, "N D"], elements: int) -> Iterator[tuple[int, Int[Tensor, " M"]]]:
        for level in range(scores.shape[1]):
            rows = ((start <= level) & (level < end)).nonzero().squeeze(1)
            yield from ((level, part) for part in rows.split(rows_per_block(elements, start.device)) if len(part))

    return walk
