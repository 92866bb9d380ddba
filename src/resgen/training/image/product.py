"""Generated images as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from resgen.data.pictures.grid import picture_grid, save_picture
from resgen.ops.images import to_uint8
from resgen.training.classes import SAMPLES_PER_CLASS


def save_sheet(path: Path, images: Tensor, names: Sequence[str]) -> None:
    """A sheet of samples, one class a row; see `training.classes.Show`."""
    pictures = to_uint8(images)
    scale = max(1, 64 // pictures.shape[-1])
    save_picture(picture_grid(pictures, SAMPLES_PER_CLASS, scale=scale, row_labels=list(names) or None), path)
