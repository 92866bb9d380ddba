"""`resgen reconstruct`: images or recordings through the tokenizer, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import (
    PICTURE_SUFFIXES,
    Json,
    ask,
    check_out_dir,
    check_out_file,
    message,
    option,
    plain,
    report,
    table,
)
from resgen.files import write_json, write_text


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Encode and decode images or speech, and measure the reconstruction with 1, 2, ... levels.

    Images are measured by PSNR; speech by log-mel distance and, if pystoi is installed, STOI. For example:

        resgen generate image --model avatars64 --class lorelei --out face.png
        resgen reconstruct --tokenizer avatars64 --input face.png --out levels.png
        resgen reconstruct --tokenizer runs/digits-tokenizer/model --input digits --out levels.png
        resgen reconstruct --tokenizer runs/photos-tokenizer/model --input photos --levels 1 2 4 8 16 --out levels.png
        resgen reconstruct --tokenizer fashion-mnist-small --input data/test.parquet --out levels.png --json
        resgen reconstruct --tokenizer runs/mel/model --vocoder runs/vocoder/model --input docs/sounds/digits.wav \\
            --out levels
    """

    tokenizer: Annotated[str, option("DIR_OR_NAME")]
    """Tokenizer or pipeline folder, or a bundled model name."""
    input: Annotated[Path, option("FILE_OR_DATA")]
    """An image or sound file, or data as for training (its test split)."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """Images: file for a sheet of the original and its reconstructions with 1, 2, ... levels. Speech: folder for
    sounds, spectrograms and a report."""
    resize: bool = False
    """Images: crop, resize and convert those of another size or mode instead of rejecting them."""
    levels: Annotated[tuple[int, ...], option("N ...")] = ()
    """Images: only these numbers of levels; by default 1, 2, ... up to all."""
    vocoder: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the mel tokenizer's vocoder, instead of the pipeline's own."""
    num: Annotated[int | None, option("N")] = None
    """Speech: number of utterances from the data, at most 8; 4 by default."""
    as_json: Json = False

    def run(self) -> None:
        from resgen.modalities import of_model

        modality = of_model(self.tokenizer)
        to_file = self.out.suffix.lower() in PICTURE_SUFFIXES
        check_out_file(self.out, sources=(self.input,)) if to_file else check_out_dir(self.out)
        document, rows, notes = ask(modality, "reconstruct", self, f"tokenizer '{self.tokenizer}'", say=message)
        text = "\n".join([table(rows), *notes])
        if self.out.is_dir():
            write_json(self.out / "report.json", plain(document))
            write_text(self.out / "report.txt", text + "\n")
        report(document, as_json=self.as_json, text=text)
