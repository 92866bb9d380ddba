"""`resgen reconstruct`: pictures through the tokenizer, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import Json, check_out_file, option, report, table


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Encode and decode pictures, level by level, and measure the PSNR of every level.

    For example:

        resgen reconstruct --tokenizer runs/digits-tokenizer/model --input picture.png --out levels.png
        resgen reconstruct --tokenizer fashion-mnist-small --input data/test.parquet --out levels.png --json
    """

    tokenizer: Annotated[str, option("DIR_OR_NAME")]
    """Folder of a tokenizer or pipeline, or a bundled name."""
    input: Annotated[Path, option("IMAGE_OR_DATA")]
    """A picture, a folder of pictures or a parquet file."""
    out: Annotated[Path, option("FILE")]
    """Picture to write: the original and its reconstruction with 1, 2, ... levels."""
    resize: bool = False
    """Cut out, resize and convert pictures of another size or mode, instead of refusing them."""
    as_json: Json = False

    def run(self) -> None:
        check_out_file(self.out)
        from resgen.pipelines.reconstruct import reconstruct

        result = reconstruct(self.tokenizer, self.input, self.out, resize=self.resize)
        document = {
            "file": self.out,
            "psnr_db": result.psnr_db,
            "num_pictures": result.num_pictures,
            "seconds": result.seconds,
        }
        rows = [("levels", "PSNR [dB]"), *((i + 1, f"{psnr:.2f}") for i, psnr in enumerate(result.psnr_db))]
        text = f"{table(rows)}\n{result.num_pictures} pictures in {result.seconds:.1f} s; written to {self.out}"
        report(document, as_json=self.as_json, text=text)
