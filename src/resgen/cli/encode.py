"""`resgen encode`: a data set as a cache of codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import ConfigFile, Json, Overrides, check_out_dir, load_speech_recipe, option, report
from resgen.cli.reconstruct import of_sound
from resgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Encode pictures or speech once, so that the generator trains without the encoder.

    The tokenizer says which. For example:

        resgen encode --tokenizer runs/digits-tokenizer/model --data digits --out codes/digits
        resgen encode --tokenizer runs/mel/model --text runs/text/model --recipe spoken_digits \
            --data speech/digits --out codes/speech
    """

    tokenizer: Annotated[str, option("DIR")]
    """Folder of the trained tokenizer, or a bundled model's name."""
    data: Annotated[str, option("PATH")]
    """Pictures: folder of class folders, parquet file or folder, or 'digits'. Recordings: parquet, or a folder with
    metadata.csv."""
    out: Annotated[Path, option("DIR")]
    """Folder of the cache."""
    flip: bool = False
    """Pictures: encode every training picture mirrored as well."""
    resize: bool = False
    """Pictures: cut out, resize and convert those of another size or mode, instead of refusing them."""
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
        given = {"--text": self.text, "--recipe": self.recipe, "--config": self.config, "--set": self.overrides}
        named = [name for name, value in given.items() if value]
        check_out_dir(self.out)
        if of_sound(self.tokenizer, likely=bool(named)):
            return self.run_speech()
        if named:
            raise ConfigError(f"{' and '.join(named)} must be left out: tokenizer '{self.tokenizer}' is of pictures")
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

    def run_speech(self) -> None:
        """The same for a tokenizer of sound."""
        if self.flip or self.resize:
            raise ConfigError(f"--flip and --resize are for pictures; tokenizer '{self.tokenizer}' is of sound")
        if self.text is None or self.recipe is None:
            raise ConfigError(
                f"--text and --recipe are needed: tokenizer '{self.tokenizer}' is of sound; texts are aligned by "
                "the text model, recordings prepared as the recipe says"
            )
        recipe = load_speech_recipe(self.recipe, self.config, self.overrides)
        from resgen.checkpoints.speech import load_sound_tokenizer, load_text_model
        from resgen.training.speech_runs import encode_speech

        tokenizer, _ = load_sound_tokenizer(self.tokenizer)
        text_model, _, _ = load_text_model(self.text)
        train, held_out = encode_speech(tokenizer, text_model, self.data, self.out, recipe=recipe, device=self.device)
        document = {
            "out": self.out,
            "num_samples": {"train": len(train), "held_out": len(held_out)},
            "num_positions": {"train": train.lengths.sum(), "held_out": held_out.lengths.sum()},
            "spec": train.spec,
            "speakers": train.speaker_names,
        }
        counts = f"{len(train)} utterances to train on and {len(held_out)} held out"
        positions = f"{int(train.lengths.min())} to {int(train.lengths.max())} positions"
        text = f"{counts}, of {positions} and {train.spec.depth} levels, are in {self.out}"
        report(document, as_json=self.as_json, text=text)
