"""What comes out of `ImagePipeline`, and sheets of PIL pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from resgen.data.pictures.grid import picture_grid, png_bytes, save_picture
from resgen.pipelines.base import some_of
from resgen.samplers.records import StepRecord

SHEET_CELL = 96
"""Pixels: smaller pictures are magnified to nearly this side on a sheet."""
_ROW = 10  # pictures of different classes in one row, at most


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageOutput:
    """Generated pictures; a notebook shows them as a sheet.

    Attributes:
        images: PIL pictures, `L` or `RGB`.
        codes: `Int64[B, L, D]`, what they were decoded from.
        steps: one record per network evaluation and batch.
        class_ids: the class of each picture; 0 for a model without classes.
        class_names: its name, or its number where classes have no names; none for a model without classes.
        seed: picture k was drawn from the stream (seed, k).
    """

    images: list[Image.Image]
    codes: Int[Tensor, "B L D"]
    steps: list[StepRecord]
    class_ids: list[int]
    class_names: list[str]
    seed: int

    def save(self, path: str | Path) -> list[Path]:
        """Write the pictures; missing folders are made.

        Args:
            path: a file such as `bag.png` takes a single picture as it is, and several as `sheet`; a folder, which is
                a path without a suffix, takes a file each: `0000.png`, `0001.png`, ...

        Returns:
            The files.

        Raises:
            DataError: unknown suffix.
            WriteError: the place cannot be written.
        """
        path = Path(path)
        if path.suffix and not path.is_dir():
            return [save_picture(self.images[0] if len(self.images) == 1 else self.sheet(), path)]
        return [save_picture(image, path / f"{number:04d}.png") for number, image in enumerate(self.images)]

    def sheet(self) -> Image.Image:
        """All pictures on one, magnified if they are small, with the names of their classes: a row for each class of
        several pictures."""
        runs = [(name, len(list(run))) for name, run in groupby(self.class_names)]
        names, lengths = [name for name, _ in runs], {length for _, length in runs}
        if len(lengths) == 1 and lengths != {1}:
            return tile_grid(self.images, lengths.pop(), row_labels=names)
        if 0 < len(self.images) <= _ROW:
            return tile_grid(self.images, len(self.images), labels=self.class_names or None)
        return tile_grid(self.images, math.ceil(math.sqrt(len(self.images))))

    def _repr_png_(self) -> bytes:
        return png_bytes(self.sheet())

    def __repr__(self) -> str:
        names = some_of(list(dict.fromkeys(self.class_names)))
        what = f"{len(self.images)} of {names}" if names else str(len(self.images))
        return f"{type(self).__name__}({what}, seed {self.seed})"


def tile_grid(
    tiles: Sequence[Image.Image],
    columns: int,
    *,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """`picture_grid` of PIL pictures of one size in any mode, magnified towards `SHEET_CELL` pixels; always `RGB`."""
    arrays = np.stack([np.asarray(tile.convert("RGB")) for tile in tiles])
    stacked = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    scale = max(1, SHEET_CELL // tiles[0].width)
    return picture_grid(stacked, columns, scale=scale, labels=labels, row_labels=row_labels)
