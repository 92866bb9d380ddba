"""`resgen reconstruct` for images: what each level of a tokenizer adds, measured and written to files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from resgen.errors import ConfigError
from resgen.evaluation.report import Levels
from resgen.pipelines.image.reconstruct import reconstruct

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NOTABLE_FALL_DB = 0.1
"""Of the PSNR with more levels; less is the rounding of pixels and codes, no sign of a tokenizer trained too little."""
ENOUGH_PICTURES = 16
"""To tell that; single images differ."""


def reconstruct_pictures(
    tokenizer: str, input: Path, out: Path, *, resize: bool = False, levels: Sequence[int] = ()
) -> Levels:
    """The PSNR by level, and an image of the first reconstructions; the arguments are options.

    Raises:
        ConfigError: `out` names no image, or levels that the tokenizer does not have.
    """
    if out.suffix.lower() not in PICTURES:
        raise ConfigError(f"--out '{out}' must end in {', '.join(PICTURES)}")
    result = reconstruct(tokenizer, input, out, resize=resize, levels=levels)
    document = {
        "file": out,
        "levels": result.levels,
        "psnr_db": result.psnr_db,
        "num_pictures": result.num_pictures,
        "seconds": result.seconds,
    }
    by_level = zip(result.levels, result.psnr_db, strict=True)
    rows = [("levels", "PSNR [dB]"), *((count, f"{psnr:.2f}") for count, psnr in by_level)]
    notes = []
    best = max(range(len(result.levels)), key=result.psnr_db.__getitem__)
    fall = result.psnr_db[best] - min(result.psnr_db[best + 1 :], default=math.inf)
    if result.num_pictures >= ENOUGH_PICTURES and fall >= NOTABLE_FALL_DB:
        notes = [
            f"the PSNR falls after {result.levels[best]} levels: deeper ones do not help these images; train the "
            "tokenizer longer, or on images like these"
        ]
    number = f"{result.num_pictures} image{'s' * (result.num_pictures != 1)}"
    return Levels(document, rows, [*notes, f"{number} in {result.seconds:.1f} s; written to {out}"])
