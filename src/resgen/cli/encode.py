"""`resgen encode`: a data set as a cache of codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from resgen.cli.common import (
    ConfigFile,
    Json,
    Overrides,
    check_out_dir,
    choose,
    is_first_process,
    load_recipe,
    option,
    positive,
    refuse_options,
    report,
)
from resgen.errors import ConfigError

if TYPE_CHECKING:
    from resgen.data.codes.cache import CodeCache


OF_PICTURES, OF_SPEECH = ("flip", "resize", "skip_unreadable"), ("text", "recipe", "config", "overrides")
"""Options that are for one modality."""


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Encode pictures or speech once, so that the generator trains without the encoder.

    The tokenizer says which. Both are encoded in shards: interrupted, the same command goes on where it stopped;
    of a damaged cache it makes only what is damaged; several processes share the shards. For example:

        resgen encode --tokenizer runs/digits-tokenizer/model --data digits --out codes/digits
        torchrun --nproc-per-node 8 $(which resgen) encode --tokenizer runs/tokenizer/model --data imagenet --out codes
        resgen encode --tokenizer runs/tokenizer/model --data 'web/train-{000000..000127}.tar' --resize --out codes
        resgen encode --verify --out codes
        resgen encode --tokenizer runs/mel/model --text runs/text/model --recipe spoken_digits \\
            --data speech/digits --out codes/speech
    """

    tokenizer: Annotated[str | None, option("DIR")] = None
    """Folder of the trained tokenizer, or a bundled model's name. Needed, but for --verify."""
    data: Annotated[str | None, option("PATH")] = None
    """Pictures: folder of class folders, parquet file or folder, tar shards, or 'digits'. Recordings: parquet, tar
    shards, or a folder with metadata.csv. Needed, but for --verify."""
    out: Annotated[Path, option("DIR")]
    """Folder of the cache."""
    flip: bool = False
    """Pictures: encode every training picture mirrored as well."""
    resize: bool = False
    """Pictures: cut out, resize and convert those of another size or mode, instead of refusing them."""
    skip_unreadable: bool = False
    """Pictures: leave out those that cannot be read, and say how many, instead of refusing the data."""
    shard_samples: Annotated[int | None, option("N")] = None
    """The most samples of a file of codes: 262144 pictures or 2048 recordings if left out; what was begun keeps its own
    number."""
    verify: bool = False
    """Only read the cache in --out and compare it with its hashes and, if given, --tokenizer and --data."""
    text: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the trained text model, which aligns the texts."""
    recipe: Annotated[str | None, option("NAME")] = None
    """Speech: the recipe that says how recordings are prepared; that of the training."""
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
            raise ConfigError("--tokenizer and --data are needed (but for --verify): what encodes, and what is encoded")
        if is_first_process():  # the check makes folders and removes them: not for several processes at once
            check_out_dir(self.out)
        from resgen.modalities import of_model

        runs = {"image": self.run_pictures, "speech": self.run_speech}
        choose(of_model(self.tokenizer), runs, "encode")(self.tokenizer, self.data)

    def run_pictures(self, tokenizer: str, data: str) -> None:
        """For a tokenizer of pictures."""
        refuse_options(self, OF_SPEECH, f"tokenizer '{tokenizer}' is of pictures")
        from resgen.training.image.runs import encode_data

        caches = encode_data(
            tokenizer,
            data,
            self.out,
            flip=self.flip,
            resize=self.resize,
            skip_unreadable=self.skip_unreadable,
            device=self.device,
            shard_samples=self.shard_samples,
        )
        if is_first_process():
            self.report_caches(*caches)

    def run_verify(self) -> None:
        """Check what is there."""
        names = (*OF_SPEECH, *OF_PICTURES, "shard_samples")
        refuse_options(self, names, "--verify only reads the codes in --out")
        from resgen.training.speech.runs import check_encoded_speech, is_encoded_speech

        if is_encoded_speech(self.out):
            return self.report_speech(*check_encoded_speech(self.out, tokenizer=self.tokenizer, data=self.data))
        from resgen.training.image.runs import check_encoded

        self.report_caches(*check_encoded(self.out, tokenizer=self.tokenizer, data=self.data))

    def report_caches(self, train: CodeCache, held_out: CodeCache) -> None:
        """Say what is in `--out`."""
        document = {
            "out": self.out,
            "num_samples": {"train": len(train), "held_out": len(held_out)},
            "spec": train.spec,
            "class_names": train.plan.class_names,
        }
        shape = "x".join(map(str, train.spec.shape))
        counts = f"{len(train)} samples to train on and {len(held_out)} held out"
        text = f"{counts}, each of {shape} positions and {train.spec.depth} levels, are in {self.out}"
        report(document, as_json=self.as_json, text=text)

    def run_speech(self, sound_tokenizer: str, data: str) -> None:
        """The same for a tokenizer of sound."""
        refuse_options(self, OF_PICTURES, f"tokenizer '{sound_tokenizer}' is of sound")
        if self.text is None or self.recipe is None:
            raise ConfigError(
                f"--text and --recipe are needed: tokenizer '{sound_tokenizer}' is of sound; texts are aligned by "
                "the text model, recordings prepared as the recipe says"
            )
        modality, recipe = load_recipe(self.recipe, self.config, self.overrides)
        if modality.name != "speech":
            raise ConfigError(
                f"recipe '{self.recipe}' is for {modality.noun}, but tokenizer '{sound_tokenizer}' is of sound"
            )
        from resgen.checkpoints.speech import load_sound_tokenizer, load_text_model
        from resgen.training.speech.runs import encode_speech

        tokenizer, _ = load_sound_tokenizer(sound_tokenizer)
        text_model, _, _ = load_text_model(self.text)
        caches = encode_speech(
            tokenizer,
            text_model,
            data,
            self.out,
            recipe=recipe,
            device=self.device,
            shard_samples=self.shard_samples,
        )
        if is_first_process():
            self.report_speech(*caches)

    def report_speech(self, train: CodeCache, held_out: CodeCache) -> None:
        """Say what is in `--out`."""
        document = {
            "out": self.out,
            "num_samples": {"train": len(train), "held_out": len(held_out)},
            "num_positions": {"train": train.lengths.sum(), "held_out": held_out.lengths.sum()},
            "spec": train.spec,
            "speakers": sorted(set(train.texts("speakers"))),
        }
        counts = f"{len(train)} utterances to train on and {len(held_out)} held out"
        positions = f"{int(train.lengths.min())} to {int(train.lengths.max())} positions"
        text = f"{counts}, of {positions} and {train.spec.depth} levels, are in {self.out}"
        report(document, as_json=self.as_json, text=text)
