"""Fixed positions of grids and sequences."""

from __future__ import annotations

import pytest
import torch

from resgen.errors import ConfigError
from resgen.nn.positions import rotary_angles, rotate, sincos_grid


def test_grid_positions_are_distinct_and_of_one_norm() -> None:
    grid = sincos_grid((4, 6), 16)
    assert grid.shape == (24, 16) and grid.dtype == torch.float32
    assert torch.allclose(grid.square().sum(1), torch.full((24,), 8.0))
    distance = torch.cdist(grid, grid) + 10 * torch.eye(24)
    assert distance.min() > 0.1


def test_grid_is_row_major() -> None:
    """Rows differ in the first half of the width only, columns in the second."""
    grid = sincos_grid((3, 5), 8).unflatten(0, (3, 5))
    assert torch.equal(grid[:, 0, 4:], grid[:1, 0, 4:].expand(3, -1))
    assert torch.equal(grid[0, :, :4], grid[0, :1, :4].expand(5, -1))
    assert torch.equal(grid[1, 0, :4], grid[0, 1, 4:])
    angles = torch.tensor([2.0, 2.0 / 100])
    assert torch.allclose(grid[2, 0, :4], torch.cat([angles.sin(), angles.cos()]))


def test_widths_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="width=6"):
        sincos_grid((2, 2), 6)
    with pytest.raises(ConfigError, match="head 5"):
        rotary_angles(4, 5)


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    angles = rotary_angles(10, 8)
    assert angles.shape == (10, 4)
    assert torch.allclose(angles[3], 3 * 10000.0 ** (-torch.arange(4) / 4))
    q, k = torch.randn(2, 1, 1, 1, 8)
    q, k = (rotate(x.expand(1, 1, 10, 8), angles)[0, 0] for x in (q, k))
    assert torch.allclose(q.norm(dim=1), q[0].norm().expand(10), atol=1e-5)
    scores = q @ k.T
    for offset in range(-8, 9):
        diagonal = scores.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-4


def test_rotation_keeps_the_type() -> None:
    assert rotate(torch.ones(1, 1, 3, 4, dtype=torch.bfloat16), rotary_angles(3, 4)).dtype == torch.bfloat16
