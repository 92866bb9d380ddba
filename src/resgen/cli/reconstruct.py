"""`resgen reconstruct`: pictures or recordings through the tokenizer, level by level."""

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
    """Encode and decode pictures or speech, level by level, and measure what every level brings.

    The tokenizer says which: of pictures the PSNR is measured, of speech the distance of log-mels and, where pystoi
    is installed, STOI. For example:

        resgen generate image --model avatars64 --class lorelei --out face.png
        resgen reconstruct --tokenizer avatars64 --input face.png --out levels.png
        resgen reconstruct --tokenizer runs/digits-tokenizer/model --input digits --out levels.png
        resgen reconstruct --tokenizer runs/photos-tokenizer/model --input photos --levels 1 2 4 8 16 --out levels.png
        resgen reconstruct --tokenizer fashion-mnist-small --input data/test.parquet --out levels.png --json
        resgen reconstruct --tokenizer runs/mel/model --vocoder runs/vocoder/model --input docs/sounds/digits.wav \\
            --out levels
    """

    tokenizer: Annotated[str, option("DIR_OR_NAME")]
    """Folder of a tokenizer or pipeline, or a bundled name."""
    input: Annotated[Path, option("FILE_OR_DATA")]
    """A picture or sound file, or data as for training (its test split)."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """Pictures: the picture to write, the original and its reconstruction with 1, 2, ... levels. Speech: a folder for
    sounds, spectrograms and report."""
    resize: bool = False
    """Pictures: cut out, resize and convert those of another size or mode, instead of refusing them."""
    levels: Annotated[tuple[int, ...], option("N ...")] = ()
    """Pictures: only these numbers of levels; 1, 2, ... all of them if left out."""
    vocoder: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the vocoder of a mel tokenizer, in place of the pipeline's own."""
    num: Annotated[int | None, option("N")] = None
    """Speech: utterances of the data, 8 at most; 4 if left out."""
    as_json: Json = False

    def run(self) -> None:
        from resgen.modalities import of_model

        modality = of_model(self.tokenizer)
        check_out_file(self.out) if self.out.suffix.lower() in PICTURE_SUFFIXES else check_out_dir(self.out)
        document, rows, notes = ask(modality, "reconstruct", self, f"tokenizer '{self.tokenizer}'", say=message)
        text = "\n".join([table(rows), *notes])
        if self.out.is_dir():
            write_json(self.out / "report.json", plain(document))
            write_text(self.out / "report.txt", text + "\n")
        report(document, as_json=self.as_json, text=text)
