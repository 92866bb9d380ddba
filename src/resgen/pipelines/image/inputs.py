"""Images as arguments: PIL images, arrays, tensors, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from resgen.data.pictures.decode import Picture
from resgen.data.pictures.grid import png_bytes
from resgen.errors import DataError, WrongTypeError
from resgen.pipelines.image.output import ImageOutput

PictureLike = Image.Image | str | Path | bytes | memoryview | np.ndarray | Tensor | ImageOutput
"""A PIL image, a file, its content, numbers, or a single image that a pipeline drew. Numbers are an array or a tensor
of rows and columns, with channels last or first (where both could be meant, last in an array, first in a tensor), or a
batch of one; whole in 0..255 or of floating point in [0, 1]."""
CHANNELS = (1, 3, 4)
MaskLike = PictureLike | tuple[int, int, int, int] | list[int]


def stored_picture(image: Any, what: str) -> tuple[Picture, str]:
    """An image as `data.pictures.decode` takes it, and what to call it in an error.

    Args:
        image: a `PictureLike`.
        what: `image` or `mask`.

    Raises:
        WrongTypeError: something else.
        DataError: numbers out of range, or of a shape that no image has.
    """
    where = f"the {what}"
    if isinstance(image, ImageOutput) and len(image) == 1:
        image = image[0]
    if isinstance(image, bytes | memoryview):
        return memoryview(image), where
    if isinstance(image, str | Path):
        return Path(image), f"{what} '{image}'"
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = _from_numbers((image.float() if image.is_floating_point() else image).numpy(), where, first=True)
    elif isinstance(image, np.ndarray):
        image = _from_numbers(image, where, first=False)
    if not isinstance(image, Image.Image):
        raise WrongTypeError(
            f"{where} is {' '.join(repr(image).split()):.80} ({type(image).__name__}); give a PIL image, an array, "
            "a tensor or a file"
        )
    try:
        return memoryview(png_bytes(image)), where
    except OSError as error:
        raise DataError(f"{where} has mode {image.mode}; convert it to L or RGB") from error


def _from_numbers(numbers: np.ndarray, where: str, *, first: bool) -> Image.Image:
    """An image; `first` says where its channels are if both ends could be them."""
    values = numbers[0] if numbers.ndim == 4 and len(numbers) == 1 else numbers
    if values.ndim == 3 and values.shape[0] in CHANNELS and (first or values.shape[-1] not in CHANNELS):
        values = np.moveaxis(values, 0, -1)
    if not values.size or not (values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in CHANNELS)):
        raise DataError(
            f"{where} has the shape {numbers.shape}; an image has rows, columns and 1, 3 or 4 channels, first or last"
        )
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {values.dtype}, not numbers")
    top = 1 if values.dtype.kind in "bf" else 255
    if not (values.min() >= 0 and values.max() <= top):
        raise DataError(
            f"{where} holds {values.dtype} from {values.min():g} to {values.max():g}; whole numbers must lie in "
            "0..255, others in [0, 1]"
        )
    return Image.fromarray(np.round(values.astype(np.float64) * (255 // top)).astype(np.uint8))
