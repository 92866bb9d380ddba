"""The nearest training images, against brute force."""

from __future__ import annotations

import pytest
import torch
from class_accuracy import nearest_neighbours

from resgen.errors import DataError


def _stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_nearest_neighbours_brute_force(chunk_size: int) -> None:
    pictures = torch.randint(0, 256, (6, 3, 4, 4), generator=_stream(), dtype=torch.uint8)
    reference = torch.randint(0, 256, (40, 3, 4, 4), generator=_stream().manual_seed(1), dtype=torch.uint8)
    reference[17] = pictures[2]
    neighbours = nearest_neighbours(pictures, reference, 3, chunk_size=chunk_size)
    squares = (pictures[:, None].double() - reference.double()).square().flatten(2).mean(2)
    expected, order = squares.sqrt().sort(dim=1)
    assert torch.equal(neighbours.indices, order[:, :3])
    assert torch.allclose(neighbours.distances.double(), expected[:, :3], atol=1e-4)
    assert neighbours.indices[2, 0] == 17 and neighbours.distances[2, 0] == 0


def test_nearest_neighbours_refuses() -> None:
    pictures = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="2 neighbours"):
        nearest_neighbours(pictures, pictures[:1], 2)
    with pytest.raises(DataError, match="shape"):
        nearest_neighbours(pictures, torch.zeros(5, 1, 3, 3, dtype=torch.uint8), 2)
