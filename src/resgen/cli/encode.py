"""`resgen encode`: a data set as a cache of codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import Json, check_out_dir, option, report


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Encode a data set once, so that the generator trains without the encoder.

    For example:

        resgen encode --tokenizer runs/digits-tokenizer/model --data digits --out codes/digits
    """

    tokenizer: Annotated[str, option("DIR")]
    """Folder of the trained tokenizer, or a bundled model's name."""
    data: Annotated[str, option("PATH")]
    """Folder of class folders, parquet file or folder, or 'digits'."""
    out: Annotated[Path, option("DIR")]
    """Folder of the cache."""
    flip: bool = False
    """Encode every training picture mirrored as well."""
    resize: bool = False
    """Cut out, resize and convert pictures of another size or mode, instead of refusing them."""
    device: str = "auto"
    """auto, cpu or cuda."""
    as_json: Json = False

    def run(self) -> None:
        check_out_dir(self.out)
        from resgen.training.runs import encode_data

        train, held_out = encode_data(
            self.tokenizer, self.data, self.out, flip=self.flip, resize=self.resize, device=self.device
        )
        document = {
            "out": self.out,
            "num_samples": {"train": len(train), "held_out": len(held_out)},
            "spec": train.spec,
            "class_names": train.class_names,
        }
        shape = "x".join(map(str, train.spec.shape))
        counts = f"{len(train)} samples to train on and {len(held_out)} held out"
        text = f"{counts}, each of {shape} positions and {train.spec.depth} levels, are in {self.out}"
        report(document, as_json=self.as_json, text=text)
