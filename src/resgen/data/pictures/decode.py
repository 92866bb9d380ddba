"""One image: bytes or a file in, an 8-bit grey or RGB image of the requested size out; every failure is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from resgen.errors import ConfigError, DataError

Picture = Path | memoryview | np.ndarray
"""An image as it is stored: a file, encoded bytes, or an array [rows, columns(, channels)]."""


@runtime_checkable
class Pictures(Protocol):
    """Images by number: a list, or something that reads them on request."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Picture: ...


class ReadPictures:
    """`Pictures` that are read on request.

    Args:
        count: how many there are.
        read: the image of a number from 0 to `count - 1`; called from several threads.
    """

    def __init__(self, count: int, read: Callable[[int], Picture]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> Picture:
        return self._read(range(self._count)[index])


MAX_PIXELS = 1 << 26
MAX_GREY_SPREAD = 8  # between the channels of a grey pixel that was stored as RGB, with lossy compression
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Of GIF and TIFF, the first image is read."""
_MODES = {1: "L", 3: "RGB"}
_KEPT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
REMEDY = "convert it, or have it done (resize=True)"


def decode_picture(source: Picture, where: str, *, size: int | None = None) -> Image.Image:
    """Decode to mode `L` or `RGB`: upright by its EXIF tag; without `size` also 16-bit grey scaled to 8, transparency
    laid over white, other modes converted.

    Args:
        source: the image.
        where: what to call it in an error, a file or a row.
        size: when given, refuse an image that is not `size` x `size`, before it is decoded, or that only a conversion
            with loss would make grey or RGB.

    Raises:
        DataError: missing, not an image of a known format, damaged, more than `MAX_PIXELS`, or of another size or
            mode.
    """
    if isinstance(source, np.ndarray):
        picture = Image.fromarray(source)
        _check_size(picture, where, size)
        return picture
    try:
        with Image.open(io.BytesIO(_read(source)), formats=_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{where} has {file.width}x{file.height} pixels; at most {MAX_PIXELS} are read")
            if file.mode == "F":
                raise DataError(f"{where} holds floating-point numbers of unknown range; save it in 8 bits")
            _check_size(file, where, size)
            if size is not None:
                _check_mode(file, where)
            return _grey_or_rgb(ImageOps.exif_transpose(file))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where} has too many pixels; at most {MAX_PIXELS} are read") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{where} is not an image of a known format ({', '.join(_FORMATS)})") from error
    except Exception as error:  # the decoders raise many types on damaged bytes
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where} cannot be read: {reason}") from error


def picture_array(picture: Image.Image, size: int, channels: int) -> UInt8[np.ndarray, "C S S"]:
    """Convert to 1 or 3 channels and `size` x `size`: a centred square is cut out and resized (Lanczos) if need be."""
    check_shape(size, channels)
    picture = picture if picture.mode == _MODES[channels] else picture.convert(_MODES[channels])
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def pixels(source: Picture, where: str, size: int, channels: int, resize: bool) -> UInt8[np.ndarray, "C S S"]:
    """Decode to `size` x `size` and 1 or 3 channels.

    Args:
        source: the image.
        where: what to call it in an error.
        size: S, side in pixels.
        channels: C, 1 (grey) or 3 (RGB). Grey becomes RGB without loss.
        resize: cut out the centred square, resize and convert it; without it an image of another size or mode, or with
            colours where grey is expected, is an error.

    Raises:
        DataError: see `decode_picture`.
    """
    picture = decode_picture(source, where, size=None if resize else size)
    if not resize and channels == 1 and picture.mode == "RGB":
        array = np.asarray(picture).astype(np.int16)
        if np.ptp(array, axis=2).max() > MAX_GREY_SPREAD:
            raise DataError(f"{where} has colours, but grey images are expected; {REMEDY}")
    return picture_array(picture, size, channels)


def check_shape(size: int, channels: int) -> None:
    """Raise `ConfigError` for a size below 1 or a number of channels other than 1 and 3."""
    if size < 1:
        raise ConfigError(f"size={size} must be at least 1")
    if channels not in _MODES:
        raise ConfigError(f"channels={channels} must be 1 (grey) or 3 (RGB)")


def read_image(path: str | Path, size: int, channels: int, resize: bool = False) -> UInt8[Tensor, "C S S"]:
    """Read one image file.

    Args:
        path: a file of a known format.
        size: S, side in pixels of the result.
        channels: C, 1 (grey) or 3 (RGB).
        resize: see `pixels`.

    Raises:
        DataError: see `decode_picture`.
    """
    check_shape(size, channels)
    return torch.from_numpy(pixels(Path(path), f"image '{path}'", size, channels, resize).copy())


def _read(source: Path | memoryview) -> bytes | memoryview:
    if isinstance(source, memoryview):
        return source
    if source.exists() and not source.is_file():
        raise OSError("it is not a regular file")
    return source.read_bytes()


def _check_size(picture: Image.Image, where: str, size: int | None) -> None:
    if size is not None and picture.size != (size, size):
        raise DataError(f"{where} is {picture.width}x{picture.height} pixels, but {size}x{size} is expected; {REMEDY}")


def _check_mode(picture: Image.Image, where: str) -> None:
    if picture.mode not in _KEPT_MODES:
        raise DataError(f"{where} has mode {picture.mode}, but {' or '.join(_MODES.values())} is expected; {REMEDY}")
    transparent = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
    if transparent and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DataError(f"{where} has transparent pixels; {REMEDY}")


def _grey_or_rgb(picture: Image.Image) -> Image.Image:
    grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips instead of scaling
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    elif picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("L" if grey else "RGB")
