"""What all tokenizers share."""

from __future__ import annotations

import pytest

from resgen.tokenizers.base import level_counts


@pytest.mark.parametrize(
    ("depth", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])],
)
def test_levels_are_powers_of_two_and_all(depth: int, counts: list[int]) -> None:
    assert level_counts(depth) == counts
