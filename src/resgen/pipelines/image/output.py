"""The output of `ImagePipeline`, and sheets of PIL images."""

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
from resgen.errors import ConfigError
from resgen.pipelines.base import check_whole, some_of
from resgen.samplers.records import StepRecord

SHEET_CELL = 128
"""Pixels: smaller images are magnified to nearly this side on a sheet."""
MAX_SCALE = 64
_ROW = 10  # images of different classes in one row, at most


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageOutput:
    """Generated images; a notebook shows them as a sheet.

    Attributes:
        images: PIL images, `L` or `RGB`.
        codes: `Int64[B, L, D]`, from which they were decoded.
        steps: one record per network evaluation and batch.
        class_ids: the class of each image; 0 for a model without classes.
        class_names: its name, or its number where classes have no names; none for a model without classes. With several
            axes the value on each.
        seed: image k was drawn from the stream (seed, k).
    """

    images: list[Image.Image]
    codes: Int[Tensor, "B L D"]
    steps: list[StepRecord]
    class_ids: list[int]
    class_names: list[str]
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]

    def save(self, path: str | Path, *, scale: int | None = None) -> list[Path]:
        """Write the images; missing folders are created.

        Args:
            path: a file such as `bag.png` for a single image as it is, or several as a `sheet`; a folder, that is a
                path without a suffix, for one file per image: `0000.png`, `0001.png`, ...
            scale: every pixel becomes a block of `scale` x `scale`; 1 by default, larger on a sheet of small images.

        Returns:
            The files.

        Raises:
            DataError: unknown suffix.
            WriteError: the path cannot be written to.
        """
        path = Path(path)
        if path.suffix and not path.is_dir():
            single = len(self.images) == 1
            return [save_picture(enlarged(self.images[0], scale) if single else self.sheet(scale=scale), path)]
        return [
            save_picture(enlarged(image, scale), path / f"{number:04d}.png") for number, image in enumerate(self.images)
        ]

    def sheet(self, *, scale: int | None = None) -> Image.Image:
        """All images on one sheet with the names of their classes; one row per class if it has several images.

        Without a `scale` small images are magnified.
        """
        return sheet_of(self.images, self.class_names, scale=scale)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.sheet())

    def __repr__(self) -> str:
        names = some_of(list(dict.fromkeys(self.class_names)))
        what = f"{len(self.images)} of {names}" if names else str(len(self.images))
        return f"{type(self).__name__}({what}, seed {self.seed})"


def sheet_of(images: Sequence[Image.Image], class_names: Sequence[str], *, scale: int | None = None) -> Image.Image:
    """See `ImageOutput.sheet`; `class_names` holds one name for each image, or none."""
    runs = [(name, len(list(run))) for name, run in groupby(class_names)]
    names, lengths = [name for name, _ in runs], {length for _, length in runs}
    if len(lengths) == 1 and lengths != {1}:
        return tile_grid(images, lengths.pop(), row_labels=names, scale=scale)
    columns = len(images) if len(images) <= _ROW else math.ceil(math.sqrt(len(images)))
    return tile_grid(images, columns, labels=class_names or None, scale=scale)


def tile_grid(
    tiles: Sequence[Image.Image],
    columns: int,
    *,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """`picture_grid` of PIL images of one size in any mode, magnified towards `SHEET_CELL` pixels or by `scale`;
    always `RGB`."""
    check_scale(scale)
    arrays = np.stack([np.asarray(tile.convert("RGB")) for tile in tiles])
    stacked = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    scale = scale or max(1, SHEET_CELL // tiles[0].width)
    return picture_grid(stacked, columns, scale=scale, labels=labels, row_labels=row_labels)


def check_scale(scale: int | None) -> None:
    """Reject a factor by which no image can be enlarged.

    Raises:
        ConfigError: it is no whole number of 1 to `MAX_SCALE`.
    """
    if scale is not None:
        check_whole(1, scale=scale)
        if scale > MAX_SCALE:
            raise ConfigError(f"scale={scale} must be at most {MAX_SCALE}")


def enlarged(image: Image.Image, scale: int | None) -> Image.Image:
    """Every pixel as a block of `scale` x `scale`.

    Raises:
        ConfigError: see `check_scale`.
    """
    check_scale(scale)
    size = image.width * (scale or 1), image.height * (scale or 1)
    return image if image.size == size else image.resize(size, Image.Resampling.NEAREST)
