"""How many rows to compute at once, and which of them at each level."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.types import LevelWalk

CPU_BLOCK = 1 << 20
DEVICE_BLOCK = 1 << 25


def rows_per_block(elements: int, device: torch.device) -> int:
    """Rows of `elements` numbers each that stay in a processor's cache, or small against a device's memory."""
    return max(1, (CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK) // max(1, elements))


def walk_levels(start: Int[Tensor, " N"], end: Int[Tensor, " N"]) -> LevelWalk:
    """The walk over the levels `start..end - 1` of every row, coarse to fine, a block of rows at a time."""

    def walk(scores: Float[Tensor, "N D"], elements: int) -> Iterator[tuple[int, Int[Tensor, " M"]]]:
        size = rows_per_block(elements, start.device)
        for level in range(scores.shape[1]):
            rows = ((start <= level) & (level < end)).nonzero().squeeze(1)
            yield from ((level, part) for part in rows.split(size) if len(part))

    return walk


def masked_blocks(
    visible: Int[Tensor, " N"], depth: int, elements: int
) -> tuple[Int[Tensor, " N"], Iterator[tuple[int, slice]]]:
    """Blocks of the rows in which each level is masked, coarse to fine.

    Args:
        visible: first masked level of each row, 0..D.
        depth: D.
        elements: numbers of a row and level, see `rows_per_block`.

    Returns:
        An order of the rows by their first masked level, under which the rows of a level are the first ones; and pairs
        of a level and a slice of the ordered rows.
    """
    size = rows_per_block(elements, visible.device)
    active = torch.bincount(visible, minlength=depth + 1).cumsum(0).tolist()
    blocks = (
        (level, slice(begin, min(begin + size, active[level])))
        for level in range(depth)
        for begin in range(0, active[level], size)
    )
    return visible.argsort(stable=True), blocks
