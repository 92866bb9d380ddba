"""Sample sheets: many small images on one, written to disk safely."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from resgen.errors import ConfigError, DataError
from resgen.files import atomic_path

PAD = 2
_MARGIN = 3
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
_MOST_PIXELS = {"JPEG": 65_500, "WEBP": 16_383}


def picture_grid(
    images: UInt8[Tensor, "N C height width"],
    columns: int,
    scale: int = 1,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Lay images out row by row, `PAD` white pixels apart.

    Args:
        images: images in 0..255 with 1 or 3 channels.
        columns: images per row; the last row may be shorter.
        scale: every pixel becomes a `scale` x `scale` block.
        labels: text above the columns, or above every image if there is one for each; cut to its width.
        row_labels: text left of the rows.

    Returns:
        An `RGB` image, or `L` if the images are grey.

    Raises:
        ConfigError: columns or scale below 1, or more labels than columns or rows.
        DataError: no images, or not 1 or 3 channels.
    """
    count, channels, height, width = images.shape
    if columns < 1 or scale < 1:
        raise ConfigError(f"columns={columns} and scale={scale} must be at least 1")
    if count < 1 or channels not in (1, 3):
        raise DataError(f"an image grid needs images of 1 or 3 channels, not the shape {tuple(images.shape)}")
    columns = min(columns, count)
    rows = -(-count // columns)
    each = labels is not None and len(labels) == count
    for name, texts, limit in (("labels", None if each else labels, columns), ("row_labels", row_labels, rows)):
        if texts is not None and len(texts) > limit:
            raise ConfigError(f"{len(texts)} {name} do not fit a grid of {columns} columns and {rows} rows")
    cell_w, cell_h = width * scale, height * scale
    font = ImageFont.load_default()
    above = [_shorten(text, font, cell_w) for text in labels or ()]
    beside = [" ".join(text.split()) for text in row_labels or ()]
    line = sum(font.getbbox("Ag")[1::2]) if above or beside else 0
    heading = int(line) + _MARGIN if above else 0
    top = PAD + heading
    left = PAD + (int(max(font.getlength(text) for text in beside)) + 2 * _MARGIN if beside else 0)
    row_h = cell_h + PAD + (heading if each else 0)
    size = (left + columns * (cell_w + PAD), top + rows * row_h - (heading if each else 0))
    sheet = Image.new("L" if channels == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    for index, array in enumerate(pixels):
        row, column = divmod(index, columns)
        tile = from_array(array).resize((cell_w, cell_h), Image.Resampling.NEAREST)
        sheet.paste(tile, (left + column * (cell_w + PAD), top + row * row_h))
    for number, text in enumerate(above):
        row, column = divmod(number, columns)
        centre = left + column * (cell_w + PAD) + (cell_w - font.getlength(text)) / 2
        draw.text((centre, PAD + row * row_h), text, fill="black", font=font)
    for row, text in enumerate(beside):
        middle = top + row * row_h + (cell_h - line) / 2
        draw.text((_MARGIN, middle), text, fill="black", font=font)
    return sheet


def stacked(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """`RGB` images below each other, with `gap` white pixels below each."""
    height = sum(picture.height + gap for picture in pictures)
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def from_array(array: UInt8[np.ndarray, "height width C"]) -> Image.Image:
    """An image of mode `L` or `RGB`, by its number of channels."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def save_picture(image: Image.Image, path: str | Path) -> Path:
    """Write an image atomically; missing folders are made.

    Raises:
        DataError: unknown suffix, or an image that is too large for the format.
        WriteError: the place cannot be written.
    """
    path = Path(path)
    image_format = _FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise DataError(f"cannot write '{path}': unknown suffix '{path.suffix}'; allowed: {', '.join(_FORMATS)}")
    if max(image.size) > (most := _MOST_PIXELS.get(image_format, math.inf)):
        size = " x ".join(map(str, image.size))
        raise DataError(f"cannot write '{path}': {size} pixels, at most {most} either way; use .png or a smaller image")
    with atomic_path(path, sync=False) as temporary:
        image.save(temporary, format=image_format)
    return path


def png_bytes(image: Image.Image) -> bytes:
    """The content of a PNG file, as `Image.save` would write it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "..") > width:
        text = text[:-1]
    return text.rstrip() + ".." if text else ""
