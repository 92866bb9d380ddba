"""Figures of numbers, by matplotlib without its global state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from resgen.extras import import_extra
from resgen.files import atomic_path


def save_figure(draw: Callable[[Any], None], path: Path, *, size: tuple[float, float]) -> None:
    """Draw a figure and write it atomically as PNG.

    Args:
        draw: fills an empty `matplotlib.figure.Figure`.
        path: file to write; its folder is made.
        size: in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    Figure = import_extra("matplotlib.figure", "train").Figure
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    with atomic_path(path, sync=False) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
