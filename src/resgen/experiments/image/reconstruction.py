"""`resgen reconstruct` for pictures: what every level of a tokenizer brings, measured and written."""

from __future__ import annotations

import math
from pathlib import Path

from resgen.errors import ConfigError
from resgen.evaluation.report import Levels
from resgen.pipelines.image.reconstruct import reconstruct

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NOTABLE_FALL_DB = 0.1
"""Of the PSNR with more levels; less is the rounding of pixels and codes, no sign of a tokenizer trained too little."""


def reconstruct_pictures(tokenizer: str, input: Path, out: Path, *, resize: bool = False) -> Levels:
    """The PSNR by level, and a picture of the first reconstructions; the arguments are options.

    Raises:
        ConfigError: `out` names no picture.
    """
    if out.suffix.lower() not in PICTURES:
        raise ConfigError(f"--out '{out}' must end in {', '.join(PICTURES)}")
    result = reconstruct(tokenizer, input, out, resize=resize)
    document = {
        "file": out,
        "psnr_db": result.psnr_db,
        "num_pictures": result.num_pictures,
        "seconds": result.seconds,
    }
    rows = [("levels", "PSNR [dB]"), *((i + 1, f"{psnr:.2f}") for i, psnr in enumerate(result.psnr_db))]
    notes = []
    best = max(range(len(result.psnr_db)), key=result.psnr_db.__getitem__) + 1
    if result.psnr_db[best - 1] - min(result.psnr_db[best:], default=math.inf) >= NOTABLE_FALL_DB:
        notes = [
            f"the PSNR falls after {best} levels: deeper ones do not help these pictures; train the tokenizer longer, "
            "or on pictures like these"
        ]
    number = f"{result.num_pictures} picture{'s' * (result.num_pictures != 1)}"
    return Levels(document, rows, [*notes, f"{number} in {result.seconds:.1f} s; written to {out}"])
