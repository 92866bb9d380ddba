"""`resgen encode`: encode a data set into a cache of codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resgen.cli.common import (
    ConfigFile,
    Json,
    Overrides,
    ask,
    check_out_dir,
    option,
    positive,
    refuse_options,
    report,
)
from resgen.errors import ConfigError
from resgen.progress import is_first_process

if TYPE_CHECKING:
    from resgen.data.codes.cache import CodeCache


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Encode images or speech once, so that the generator trains without the encoder.

    Codes are written in shards, which several processes share. After an interruption, or if shards are damaged, the
    same command writes only the missing or damaged ones. For example:

        resgen encode --tokenizer runs/digits-tokenizer/model --data digits --out codes/digits
        torchrun --nproc-per-node 8 $(which resgen) encode --tokenizer runs/tokenizer/model --data imagenet --out codes
        resgen encode --tokenizer runs/tokenizer/model --data 'web/train-{000000..000127}.tar' --resize --out codes
        resgen encode --verify --out codes
        resgen encode --tokenizer runs/mel/model --text runs/text/model --recipe spoken_digits \\
            --data speech/digits --out codes/speech
    """

    tokenizer: Annotated[str | None, option("DIR")] = None
    """Tokenizer folder or bundled model name. Required except with --verify."""
    data: Annotated[str | None, option("PATH")] = None
    """Images: folder of class folders, parquet file or folder, tar shards, or 'digits'. Recordings: parquet, tar
    shards, or a folder with metadata.csv. Required except with --verify."""
    out: Annotated[Path, option("DIR")]
    """Folder for the codes."""
    flip: bool = False
    """Images: also encode every training image mirrored."""
    resize: bool = False
    """Images: crop, resize and convert those of another size or mode instead of rejecting them."""
    skip_unreadable: bool = False
    """Skip unreadable images and recordings, and list them, instead of rejecting the data."""
    class_columns: Annotated[tuple[str, ...], option("COLUMN ...")] = ()
    """Images in parquet files: columns to use as class axes, most informative first; NAME=COLUMN renames an axis. By
    default the label column."""
    shard_samples: Annotated[int | None, option("N")] = None
    """Maximum samples per shard; by default 16384 images or 2048 recordings. An existing cache keeps its own number."""
    verify: bool = False
    """Only check the codes in --out against their hashes and, if given, --tokenizer and --data."""
    text: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the trained text model, which aligns the texts."""
    recipe: Annotated[str | None, option("NAME")] = None
    """Speech: recipe that defines how recordings are prepared; use the one for training."""
    config: ConfigFile = None
    overrides: Overrides = ()
    device: str = "auto"
    """auto, cpu or cuda."""
    as_json: Json = False

    def run(self) -> None:
        if self.shard_samples is not None:
            positive("--shard-samples", self.shard_samples)
        if self.verify:
            return self.run_verify()
        if self.tokenizer is None or self.data is None:
            raise ConfigError("--tokenizer and --data are required (except with --verify)")
        if is_first_process():  # the check makes folders and removes them: not for several processes at once
            check_out_dir(self.out)
        from resgen.modalities import of_model

        caches = ask(of_model(self.tokenizer), "encode", self, f"tokenizer '{self.tokenizer}'", out=self.out)
        if is_first_process():
            self.report_caches(*caches)

    def run_verify(self) -> None:
        """Check what is there."""
        names = "text recipe config overrides flip resize skip_unreadable class_columns shard_samples".split()
        refuse_options(self, names, "--verify only reads the codes in --out")
        from resgen.modalities import check_encoded

        self.report_caches(*check_encoded(self.out, tokenizer=self.tokenizer, data=self.data))

    def report_caches(self, train: CodeCache, held_out: CodeCache) -> None:
        """Say what is in `--out`."""
        document: dict[str, Any] = {
            "out": self.out,
            "num_samples": {"train": len(train), "held_out": len(held_out)},
            "spec": train.spec,
        }
        noun, positions = "samples", f"each of {'x'.join(map(str, train.spec.shape))} positions"
        if train.plan.ragged:
            noun, positions = "sequences", f"of {int(train.lengths.min())} to {int(train.lengths.max())} positions"
            document["num_positions"] = {"train": train.lengths.sum(), "held_out": held_out.lengths.sum()}
            document["columns"] = sorted(train.plan.columns)
            if "speakers" in train.plan.columns:
                noun, document["speakers"] = "utterances", sorted(set(train.texts("speakers")))
        else:
            document["class_names"] = train.plan.class_names
            document |= {"class_axes": dict(train.plan.class_axes)} if train.plan.class_axes else {}
        counts = f"{len(train)} {noun} for training and {len(held_out)} held out"
        text = f"{counts}, {positions} and {train.spec.depth} levels, are in {self.out}"
        report(document, as_json=self.as_json, text=text)
