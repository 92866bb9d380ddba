"""Pictures of numbers, by matplotlib without its global state."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resgen.errors import MissingExtraError


def save_figure(draw: Callable[[Any], None], path: Path, *, size: tuple[float, float]) -> None:
    """Draw a figure and write it atomically as PNG.

    Args:
        draw: fills an empty `matplotlib.figure.Figure`.
        path: file to write; its folder is made.
        size: in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
