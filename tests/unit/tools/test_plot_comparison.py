"""The figure of the comparisons is drawn from the measurements, and says which points are one training."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
import plot_comparison  # noqa: E402 (needs matplotlib)


def test_points_are_those_of_the_measurements() -> None:
    points = plot_comparison.points()
    assert set(points) == set(plot_comparison.LINES)
    assert [len(points["residual"][n]) for n in (609, 1000, 3000)] == [1, 1, 4]
    assert [len(points["fixed"][n]) for n in (1000, 3000, 10000)] == [1, 4, 3]
    assert sorted(points["rq_transformer"]) == [618, 3000, 10000] and len(points["rq_transformer"][3000]) == 3
    assert points["fixed"][10000][0] == 4.82 and points["maskgit"][10000] == [pytest.approx(6.79, abs=0.01)]
    best = min(distance for lengths in points.values() for found in lengths.values() for distance in found)
    assert plot_comparison.floor() < best, "nothing is better than what the tokenizer can show"


def test_a_picture_is_written(tmp_path: Path) -> None:
    for name, draw in (("out.png", plot_comparison.draw), ("bits.png", plot_comparison.draw_bits)):
        draw(tmp_path / name)
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
