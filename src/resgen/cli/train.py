"""`resgen train tokenizer|vocoder|text|generator`."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resgen.cli.common import (
    ConfigFile,
    Json,
    Overrides,
    check_out_dir,
    is_first_process,
    is_speech,
    load_recipe,
    load_speech_recipe,
    message,
    option,
    report,
)
from resgen.errors import ConfigError

if TYPE_CHECKING:
    from resgen.tokenizers.image import ImageTokenizer
    from resgen.training.generator_task import Evaluate

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """What every training takes."""

    recipe: str
    """spoken_digits, spoken_digits_small, spoken_digits_waveform, sentences, sentences_small, melvae or rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Recordings with texts: parquet, tar shards, or a folder with metadata.csv; without it the recipe's own."""
    config: ConfigFile = None
    overrides: Overrides = ()
    max_minutes: Annotated[float | None, option("N")] = None
    """Stop after this many minutes, with the learning rate's decline fitted to them."""
    out: Annotated[Path, option("DIR")]
    """Folder of the run; what was trained is in its folder 'model'."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    init: Annotated[str | None, option("DIR")] = None
    """Start from the weights of this model, of the same shape, instead of anew (fine-tuning)."""
    skip_unreadable: bool = False
    """Pictures: leave out those that cannot be read, and say how many, instead of refusing the data."""
    as_json: Json = False

    @abstractmethod
    def train(self) -> Mapping[str, Any]:
        """Train, and return the last metrics."""

    @property
    def common(self) -> dict[str, Any]:
        """What all functions that train take."""
        return {
            "data": self.data,
            "out": self.out,
            "max_minutes": self.max_minutes,
            "resume": self.resume,
            "init": self.init,
        }

    @property
    def picture_overrides(self) -> tuple[tuple[str, ...], ...]:
        """`--set`, and the other options of pictures that are part of the recipe."""
        return (*self.overrides, *((("data.skip_unreadable=true",),) if self.skip_unreadable else ()))

    def run(self) -> int:
        """Train and report the last metrics; the message of an interrupted training says how to go on."""
        from resgen.training import Interrupted

        if is_first_process():  # the check makes folders and removes them: not for several processes at once
            check_out_dir(self.out)
        if self.skip_unreadable and is_speech(self.recipe):
            raise ConfigError(f"--skip-unreadable is for pictures; recipe '{self.recipe}' is for speech")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError(f"--max-minutes {self.max_minutes:g} must be greater than 0")
        try:
            metrics = self.train()
        except Interrupted as stop:
            message(str(stop))
            return EXIT_INTERRUPTED
        if is_first_process():
            report({"model": self.out / "model", "metrics": metrics}, as_json=self.as_json)
        return 0


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(Training):
    """Train the tokenizer, the first stage: pictures or speech to residual codes and back.

    For example:

        resgen train tokenizer --recipe digits --out runs/digits-tokenizer
        resgen train tokenizer --recipe cifar10 --data photos/ --set data.resize=true --max-minutes 60 --out runs/photos
        resgen train tokenizer --recipe digits --out runs/digits-tokenizer --resume
        resgen train tokenizer --recipe spoken_digits --data speech/digits --out runs/mel
        resgen train tokenizer --recipe spoken_digits --data speech/more --init runs/mel/model --out runs/better \\
            --set tokenizer_loss.decoder_only=true
    """

    recipe: str
    """Pictures: digits, fashion_mnist, cifar10, cifar10_8x8, avatars64, imagenette64, imagenet256; speech:
    spoken_digits, spoken_digits_small, spoken_digits_waveform, sentences, sentences_small, melvae, rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Pictures: folder of class folders, parquet, tar shards, or 'digits'. Recordings: parquet, tar shards, or a folder
    with metadata.csv. Without it the recipe's own."""

    def train(self) -> Mapping[str, Any]:
        if is_speech(self.recipe):
            speech = load_speech_recipe(self.recipe, self.config, self.overrides)
            from resgen.training.speech.runs import train_sound_tokenizer

            return train_sound_tokenizer(speech, **self.common)
        recipe = load_recipe(self.recipe, self.config, self.picture_overrides)
        from resgen.training.image.runs import train_tokenizer

        return train_tokenizer(recipe, **self.common)


@dataclass(frozen=True, kw_only=True)
class TrainVocoder(Training):
    """Train a vocoder, which turns the mels of a mel tokenizer into sound.

    For example:

        resgen train vocoder --recipe spoken_digits --data speech/digits --tokenizer runs/mel/model --out runs/vocoder
    """

    tokenizer: Annotated[str | None, option("DIR")] = None
    """Folder of the mel tokenizer, whose reconstructions are learned from besides real mels."""

    def train(self) -> Mapping[str, Any]:
        recipe = load_speech_recipe(self.recipe, self.config, self.overrides)
        from resgen.training.speech.runs import train_vocoder

        return train_vocoder(recipe, tokenizer=self.tokenizer, **self.common)


@dataclass(frozen=True, kw_only=True)
class TrainText(Training):
    """Train a text model: which frames every letter becomes, and how long they take.

    For example:

        resgen train text --recipe spoken_digits --data speech/digits --out runs/text
    """

    def train(self) -> Mapping[str, Any]:
        recipe = load_speech_recipe(self.recipe, self.config, self.overrides)
        from resgen.training.speech.runs import train_text

        return train_text(recipe, **self.common)


@dataclass(frozen=True, kw_only=True)
class TrainGenerator(Training):
    """Train the generator, the second stage, on the codes of a trained tokenizer.

    For example:

        resgen train generator --recipe digits --tokenizer runs/digits-tokenizer/model --out runs/digits
        resgen train generator --recipe digits --tokenizer fashion-mnist-small --data codes/ --out runs/new
        resgen train generator --kind rq_transformer --recipe digits --tokenizer runs/digits-tokenizer/model --out rq
        resgen train generator --recipe spoken_digits --data speech/digits --tokenizer runs/mel/model \\
            --text runs/text/model --vocoder runs/vocoder/model --out runs/voice
        resgen train generator --init runs/digits/model --recipe digits --tokenizer runs/digits/model --data mine/ \\
            --out runs/tuned
    """

    recipe: str
    """Pictures: digits, fashion_mnist, cifar10, cifar10_8x8, avatars64, imagenette64, imagenet256; speech:
    spoken_digits, spoken_digits_small, spoken_digits_waveform, sentences, sentences_small, melvae, rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Pictures or recordings, or a folder written by `resgen encode`; without it the recipe's own data."""
    tokenizer: Annotated[str, option("DIR")]
    """Folder of the trained tokenizer, or a bundled model's name."""
    kind: Annotated[str | None, option("NAME")] = None
    """resgen, residual, direct, maskgit, rq_transformer, ar_resgen, valle or (speech) clam_tts: another generator with
    as many parameters."""
    text: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the trained text model."""
    vocoder: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the vocoder of a mel tokenizer, which becomes part of the model."""
    evaluate_on: Annotated[str | None, option("PATH")] = None
    """Pictures to compare 1,000 samples with every generator_training.evaluate_every steps; --data if left out."""

    def train(self) -> Mapping[str, Any]:
        if is_speech(self.recipe):
            return self.train_speech()
        if self.text is not None or self.vocoder is not None:
            raise ConfigError(f"--text and --vocoder are for speech; recipe '{self.recipe}' is for pictures")
        recipe = load_recipe(self.recipe, self.config, self.picture_overrides, self.kind)
        from resgen.training.image.runs import train_generator

        evaluator = None
        if recipe.generator_training.evaluate_every:
            from resgen.training.image.runs import is_encoded

            path = self.evaluate_on or self.data or recipe.data.path
            if path is None or is_encoded(path):
                raise ConfigError("evaluate_every needs pictures; name them with --evaluate-on PATH")
            evaluator = functools.partial(in_training, path=path, resize=recipe.data.resize)
        return train_generator(recipe, tokenizer=self.tokenizer, evaluator=evaluator, **self.common)

    def train_speech(self) -> Mapping[str, Any]:
        """The same for a recipe of speech."""
        if self.text is None:
            raise ConfigError("--text is missing: a speech generator needs the folder of a trained text model")
        recipe = load_speech_recipe(self.recipe, self.config, self.overrides, self.kind)
        if self.evaluate_on is not None or recipe.generator_training.evaluate_every:
            raise ConfigError("evaluate_every and --evaluate-on are for pictures; use resgen evaluate for speech")
        from resgen.training.speech.runs import train_speech_generator

        return train_speech_generator(
            recipe, tokenizer=self.tokenizer, text=self.text, vocoder=self.vocoder, **self.common
        )


def in_training(tokenizer: ImageTokenizer, path: str, resize: bool) -> Evaluate:
    """What measures a generator in training against the pictures in `path`."""
    from resgen.experiments.judge import Judge

    config = tokenizer.config
    judge = Judge(path, image_size=config.image_size, channels=config.channels, resize=resize)
    return judge.in_training(tokenizer)
