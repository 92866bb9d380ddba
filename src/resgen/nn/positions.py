"""Positions: fixed 2-D sines and cosines for grids, rotary embeddings for sequences (method defaults; the paper is
silent)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resgen.errors import ConfigError


def sincos_grid(shape: tuple[int, ...], width: int) -> Float[Tensor, "L O"]:
    """Sines and cosines of the row (first half of the width) and the column (second half), row-major.

    Raises:
        ConfigError: `width` is not a multiple of 4.
    """
    if width % 4:
        raise ConfigError(f"width={width} must be a multiple of 4 for two-dimensional positions")
    rows, columns = shape
    row = _sincos(torch.arange(rows), width // 2)
    column = _sincos(torch.arange(columns), width // 2)
    grid = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=-1)
    return grid.reshape(rows * columns, width)


def rotary_angles(length: int, head_width: int) -> Float[Tensor, "L h"]:
    """Angles of rotary embeddings, `position / 10000^(2i / head_width)`, one per pair of channels.

    Raises:
        ConfigError: `head_width` is odd.
    """
    if head_width % 2:
        raise ConfigError(f"width per head {head_width} must be even for rotary positions")
    return torch.outer(torch.arange(length).double(), _frequencies(head_width // 2)).float()


class Positions(nn.Module):
    """Where each position is: added to the input on a grid, turning queries and keys on a sequence.

    Args:
        shape: shape of the positions, `(rows, columns)` or `(positions,)`.
        width: O.
        num_heads: attention heads.
    """

    table: Tensor

    def __init__(self, shape: tuple[int, ...], width: int, num_heads: int) -> None:
        super().__init__()
        self.is_grid = len(shape) == 2
        table = sincos_grid(shape, width) if len(shape) == 2 else rotary_angles(math.prod(shape), width // num_heads)
        self.register_buffer("table", table, persistent=False)

    def add(self, x: Float[Tensor, "B S O"], begin: int = 0) -> Float[Tensor, "B S O"]:
        """Network inputs of the positions from `begin` on, told apart if they are of a grid."""
        return x + self.table[begin : begin + x.shape[1]].to(x.dtype) if self.is_grid else x

    def angles(self, length: int, begin: int = 0) -> Float[Tensor, "S h"] | None:
        """Angles of `length` positions from `begin` on, if they are of a sequence."""
        return None if self.is_grid else self.table[begin : begin + length]


def rotate(x: Float[Tensor, "*batch L E"], angles: Float[Tensor, "L h"]) -> Float[Tensor, "*batch L E"]:
    """Rotate channel pairs (i, i + E/2) of queries or keys by the angles of their position."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _sincos(positions: Tensor, width: int) -> Tensor:
    angles = torch.outer(positions.double(), _frequencies(width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _frequencies(count: int) -> Tensor:
    return 10000.0 ** (-torch.arange(count).double() / count)
