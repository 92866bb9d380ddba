"""`resgen train tokenizer|vocoder|text|generator`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resgen.cli.common import (
    ConfigFile,
    Json,
    Overrides,
    check_out_dir,
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
class TrainTokenizer:
    """Train the tokenizer, the first stage: pictures or speech to residual codes and back.

    For example:

        resgen train tokenizer --recipe digits --out runs/digits-tokenizer
        resgen train tokenizer --recipe cifar10 --data photos/ --set data.resize=true --max-minutes 60 --out runs/photos
        resgen train tokenizer --recipe digits --out runs/digits-tokenizer --resume
        resgen train tokenizer --recipe spoken_digits --data speech/digits --out runs/mel
    """

    recipe: str
    """Pictures: digits, fashion_mnist, cifar10, imagenette64, imagenet256; speech: spoken_digits, spoken_digits_small,
    sentences, melvae, rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Pictures: folder of class folders, parquet, or 'digits'. Recordings: parquet, or a folder with metadata.csv.
    Without it the recipe's own."""
    config: ConfigFile = None
    overrides: Overrides = ()
    max_minutes: Annotated[float | None, option("N")] = None
    """Stop after this many minutes, with the learning rate's decline fitted to them."""
    out: Annotated[Path, option("DIR")]
    """Folder of the run; the finished model is in its folder 'model'."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    as_json: Json = False

    def run(self) -> int:
        check_run(self.out, self.max_minutes)
        common: dict[str, Any] = {
            "data": self.data,
            "out": self.out,
            "max_minutes": self.max_minutes,
            "resume": self.resume,
        }
        if is_speech(self.recipe):
            speech = load_speech_recipe(self.recipe, self.config, self.overrides)
            from resgen.training.speech_runs import train_sound_tokenizer

            return train(lambda: train_sound_tokenizer(speech, **common), self.out, as_json=self.as_json)
        recipe = load_recipe(self.recipe, self.config, self.overrides)
        from resgen.training.runs import train_tokenizer

        return train(lambda: train_tokenizer(recipe, **common), self.out, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class TrainVocoder:
    """Train a vocoder, which turns the mels of a mel tokenizer into sound.

    For example:

        resgen train vocoder --recipe spoken_digits --data speech/digits --tokenizer runs/mel/model --out runs/vocoder
    """

    recipe: str
    """spoken_digits, spoken_digits_small, sentences, melvae or rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Recordings: parquet, or a folder with metadata.csv; without it the recipe's own."""
    tokenizer: Annotated[str | None, option("DIR")] = None
    """Folder of the mel tokenizer, whose reconstructions are learned from besides real mels."""
    config: ConfigFile = None
    overrides: Overrides = ()
    max_minutes: Annotated[float | None, option("N")] = None
    """Stop after this many minutes, with the learning rate's decline fitted to them."""
    out: Annotated[Path, option("DIR")]
    """Folder of the run; the finished vocoder is in its folder 'model'."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    as_json: Json = False

    def run(self) -> int:
        check_run(self.out, self.max_minutes)
        recipe = load_speech_recipe(self.recipe, self.config, self.overrides)
        from resgen.training.speech_runs import train_vocoder

        return train(
            lambda: train_vocoder(
                recipe,
                data=self.data,
                tokenizer=self.tokenizer,
                out=self.out,
                max_minutes=self.max_minutes,
                resume=self.resume,
            ),
            self.out,
            as_json=self.as_json,
        )


@dataclass(frozen=True, kw_only=True)
class TrainText:
    """Train a text model: which frames every letter becomes, and how long they take.

    For example:

        resgen train text --recipe spoken_digits --data speech/digits --out runs/text
    """

    recipe: str
    """spoken_digits, spoken_digits_small, sentences, melvae or rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Recordings with texts: parquet, or a folder with metadata.csv; without it the recipe's own."""
    config: ConfigFile = None
    overrides: Overrides = ()
    max_minutes: Annotated[float | None, option("N")] = None
    """Stop after this many minutes, with the learning rate's decline fitted to them."""
    out: Annotated[Path, option("DIR")]
    """Folder of the run; the finished text model is in its folder 'model'."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    as_json: Json = False

    def run(self) -> int:
        check_run(self.out, self.max_minutes)
        recipe = load_speech_recipe(self.recipe, self.config, self.overrides)
        from resgen.training.speech_runs import train_text

        return train(
            lambda: train_text(recipe, data=self.data, out=self.out, max_minutes=self.max_minutes, resume=self.resume),
            self.out,
            as_json=self.as_json,
        )


@dataclass(frozen=True, kw_only=True)
class TrainGenerator:
    """Train the generator, the second stage, on the codes of a trained tokenizer.

    For example:

        resgen train generator --recipe digits --tokenizer runs/digits-tokenizer/model --out runs/digits
        resgen train generator --recipe digits --tokenizer fashion-mnist-small --data codes/ --out runs/new
        resgen train generator --kind rq_transformer --recipe digits --tokenizer runs/digits-tokenizer/model --out rq
        resgen train generator --recipe spoken_digits --data speech/digits --tokenizer runs/mel/model --text \
            runs/text/model --vocoder runs/vocoder/model --out runs/voice
    """

    recipe: str
    """Pictures: digits, fashion_mnist, cifar10, imagenette64, imagenet256; speech: spoken_digits, spoken_digits_small,
    sentences, melvae, rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Pictures or recordings, or a folder written by `resgen encode`; without it the recipe's own data."""
    tokenizer: Annotated[str, option("DIR")]
    """Folder of the trained tokenizer, or a bundled model's name."""
    kind: Annotated[str | None, option("NAME")] = None
    """resgen, mixture, direct, maskgit, rq_transformer, ar_resgen, valle or (speech) clam_tts: another generator with
    as many parameters."""
    text: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the trained text model."""
    vocoder: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the vocoder of a mel tokenizer, which becomes part of the model."""
    evaluate_on: Annotated[str | None, option("PATH")] = None
    """Pictures to compare 1,000 samples with every generator_training.evaluate_every steps; --data if left out."""
    config: ConfigFile = None
    overrides: Overrides = ()
    max_minutes: Annotated[float | None, option("N")] = None
    """Stop after this many minutes, with the learning rate's decline fitted to them."""
    out: Annotated[Path, option("DIR")]
    """Folder of the run; the finished pipeline is in its folder 'model'."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    as_json: Json = False

    def run(self) -> int:
        check_run(self.out, self.max_minutes)
        if is_speech(self.recipe):
            return self.run_speech()
        if self.text is not None or self.vocoder is not None:
            raise ConfigError(f"--text and --vocoder are for speech; recipe '{self.recipe}' is for pictures")
        recipe = load_recipe(self.recipe, self.config, self.overrides, self.kind)
        from resgen.training.runs import train_generator

        evaluator = None
        if recipe.generator_training.evaluate_every:
            from resgen.training.runs import is_encoded

            path = self.evaluate_on or self.data or recipe.data.path
            if path is None or is_encoded(path):
                raise ConfigError("evaluate_every needs pictures; name them with --evaluate-on PATH")
            evaluator = functools.partial(in_training, path=path, resize=recipe.data.resize)
        return train(
            lambda: train_generator(
                recipe,
                data=self.data,
                tokenizer=self.tokenizer,
                out=self.out,
                max_minutes=self.max_minutes,
                resume=self.resume,
                evaluator=evaluator,
            ),
            self.out,
            as_json=self.as_json,
        )

    def run_speech(self) -> int:
        """The same for a recipe of speech."""
        if self.text is None:
            raise ConfigError("--text is missing: a speech generator needs the folder of a trained text model")
        recipe = load_speech_recipe(self.recipe, self.config, self.overrides, self.kind)
        if self.evaluate_on is not None or recipe.generator_training.evaluate_every:
            raise ConfigError("evaluate_every and --evaluate-on are for pictures; use resgen evaluate for speech")
        from resgen.training.speech_runs import train_speech_generator

        return train(
            lambda: train_speech_generator(
                recipe,
                data=self.data,
                tokenizer=self.tokenizer,
                text=str(self.text),
                vocoder=self.vocoder,
                out=self.out,
                max_minutes=self.max_minutes,
                resume=self.resume,
            ),
            self.out,
            as_json=self.as_json,
        )


def in_training(tokenizer: ImageTokenizer, path: str, resize: bool) -> Evaluate:
    """What measures a generator in training against the pictures in `path`."""
    from resgen.experiments.judge import Judge

    config = tokenizer.config
    judge = Judge(path, image_size=config.image_size, channels=config.channels, resize=resize)
    return judge.in_training(tokenizer)


def check_run(out: Path, max_minutes: float | None) -> None:
    """Refuse a run folder that cannot be written, or a budget that is none."""
    check_out_dir(out)
    if max_minutes is not None and not max_minutes > 0:
        raise ConfigError(f"--max-minutes {max_minutes:g} must be greater than 0")


def train(run: Callable[[], Mapping[str, Any] | None], out: Path, *, as_json: bool) -> int:
    """Run a training and report its last metrics; the message of an interrupted one says how to go on."""
    from resgen.training import Interrupted

    try:
        metrics = run()
    except Interrupted as stop:
        message(str(stop))
        return EXIT_INTERRUPTED
    model = out / "model"
    report({"model": model, "metrics": metrics or {}}, as_json=as_json)
    return 0
