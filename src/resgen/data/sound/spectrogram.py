"""Spectrograms as images: one colour map, one scale, low frequencies at the bottom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from resgen.data.pictures.grid import picture_grid
from resgen.errors import ConfigError, DataError

LOWEST, HIGHEST = -11.5, 1.5  # natural logs: the floor of a log-mel, and the loudest bands of speech at -23 LUFS

# Every 16th colour of matplotlib's perceptually uniform map "magma" (CC0); straight lines between them differ from it
# by less than 3 of 255.
_COLOURS = np.array(
    [
        *((0, 0, 4), (10, 8, 34), (29, 17, 71), (54, 16, 107), (81, 18, 124), (106, 28, 129), (131, 38, 129)),
        *((156, 46, 127), (183, 55, 121), (208, 65, 111), (231, 82, 99), (245, 107, 92), (252, 137, 97)),
        *((254, 167, 114), (254, 196, 136), (253, 226, 163), (252, 253, 191)),
    ],
    dtype=np.float64,
)


def spectrogram_colours(mel: Float[Tensor, "F T"]) -> UInt8[Tensor, "3 F T"]:
    """Colours of a natural-log mel, band 0 in the last row: black from `LOWEST` down, the lightest from `HIGHEST` up.

    Raises:
        DataError: the mel is empty.
    """
    if not mel.numel():
        raise DataError(f"a spectrogram needs bands and frames, not the shape {tuple(mel.shape)}")
    values = torch.nan_to_num(mel.detach().cpu().double(), nan=LOWEST).flip(0).numpy()
    place = ((values - LOWEST) / (HIGHEST - LOWEST)).clip(0, 1) * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    channels = [np.interp(place, stops, _COLOURS[:, channel]).round() for channel in range(3)]
    return torch.from_numpy(np.stack(channels).astype(np.uint8))


def spectrogram_picture(mel: Float[Tensor, "F T"], *, scale: int = 1) -> Image.Image:
    """One log-mel as an `RGB` image, `scale` pixels per band and frame."""
    if scale < 1:
        raise ConfigError(f"scale={scale} must be at least 1")
    picture = Image.fromarray(spectrogram_colours(mel).permute(1, 2, 0).contiguous().numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def spectrogram_sheet(
    rows: Sequence[Sequence[Float[Tensor, "_ _"]]],
    *,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Log-mels side by side, all in one scale; what is shorter than the longest ends in white.

    Args:
        rows: equally many mels in each row (one sound in several versions, say), all with the same bands.
        labels: text above the columns.
        row_labels: text left of the rows.
        scale: pixels per band and frame.

    Raises:
        ConfigError: as `picture_grid`.
        DataError: no mels, rows of different lengths, or mels of different bands.
    """
    counts, bands = {len(row) for row in rows}, {mel.shape[0] for row in rows for mel in row}
    if len(counts) != 1 or len(bands) != 1:
        raise DataError(
            f"a sheet of spectrograms needs rows of equally many mels with the same bands, "
            f"not {sorted(counts)} mels per row and {sorted(bands)} bands"
        )
    width = max(mel.shape[1] for row in rows for mel in row)
    tiles = []
    for mel in (mel for row in rows for mel in row):
        tile = torch.full((3, max(bands), width), 255, dtype=torch.uint8)
        tile[..., : mel.shape[1]] = spectrogram_colours(mel)
        tiles.append(tile)
    return picture_grid(torch.stack(tiles), max(counts), scale, labels=labels, row_labels=row_labels)
