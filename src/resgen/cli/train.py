"""`resgen train tokenizer|vocoder|text|generator`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from resgen.cli.common import (
    ConfigFile,
    Json,
    Overrides,
    check_out_dir,
    flatten,
    load_recipe,
    message,
    option,
    report,
    with_data_options,
)
from resgen.errors import ConfigError
from resgen.progress import is_first_process

if TYPE_CHECKING:
    from resgen.modalities import Modality

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training takes."""

    recipe: str
    """spoken_digits, spoken_digits_small, spoken_digits_waveform, sentences, sentences_small, melvae or rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Recordings with texts: parquet, tar shards, or a folder with metadata.csv; by default the recipe's own."""
    config: ConfigFile = None
    overrides: Overrides = ()
    max_minutes: Annotated[float | None, option("N")] = None
    """Stop after this many minutes; the learning rate decays to fit."""
    out: Annotated[Path, option("DIR")]
    """Run folder; the trained model is in its subfolder 'model'."""
    resume: bool = False
    """Continue from the latest checkpoint in --out."""
    init: Annotated[str | None, option("DIR")] = None
    """Start from the weights of this model, of the same shape, instead of from scratch (fine-tuning)."""
    skip_unreadable: bool = False
    """Skip unreadable images and recordings, and list them, instead of rejecting the data."""
    as_json: Json = False

    stage: ClassVar[str]
    models: ClassVar[tuple[str, ...]] = ()
    """Options that name other models."""

    def run(self) -> int:
        """Train, and report what came of it and what comes next, or how to go on with what was interrupted."""
        from resgen.checkpoints.quality import quality
        from resgen.training import Interrupted, Run

        if is_first_process():  # the check makes folders and removes them: not for several processes at once
            check_out_dir(self.out)
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError(f"--max-minutes {self.max_minutes:g} must be greater than 0")
        modality, recipe = load_recipe(self.recipe, self.config, self.overrides, getattr(self, "kind", None))
        recipe = with_data_options(recipe, self, f"recipe '{self.recipe}' is for {modality.noun}")
        options: dict[str, Any] = {
            "out": self.out,
            "data": self.data,
            "max_minutes": self.max_minutes,
            "resume": self.resume,
            "init": self.init,
            "models": {name: getattr(self, name) for name in self.models if getattr(self, name) is not None},
            **{name: getattr(self, name, None) for name in ("evaluate_on", "extractor")},
        }
        try:
            metrics = modality.train(self.stage, recipe, Run(**options))
        except Interrupted as stop:
            message(str(stop))
            return EXIT_INTERRUPTED
        if is_first_process():
            lines = [
                f"model: {self.out / 'model'}",
                f"quality: {quality(metrics) or 'not measured'}",
                f"samples: {self.out / 'samples'}",
                f"healthy? {shlex.join(['resgen', 'doctor', str(self.out)])}",
                f"next: {shlex.join(self.next_command(modality, recipe))}",
            ]
            document = {"model": self.out / "model", "metrics": metrics}
            report(document, as_json=self.as_json, text="\n".join(lines))
        return 0

    def next_command(self, modality: Modality, recipe: Any) -> list[str]:
        """The words of the command that trains the next stage, or that makes something with the finished model; of a
        decoder trained alone, that puts it into a model."""
        model = str(self.out / "model")
        if self.stage == "tokenizer" and getattr(getattr(recipe, "tokenizer_loss", None), "decoder_only", False):
            return ["resgen", "export", "RUN", "--replace", f"tokenizer={model}", "--out", "DIR"]
        of_waveforms = not hasattr(getattr(recipe, "tokenizer", None), "mel")
        stages = [name for name in modality.stages if not (name == "vocoder" and of_waveforms)]
        later = stages[stages.index(self.stage) + 1 :] if self.stage in stages else []
        if not later:
            if not modality.example:
                return ["resgen", "inspect", model]
            *words, file = modality.example
            return ["resgen", "generate", modality.name, "--model", model, *words, str(self.out / file)]
        stage = later[0]
        words = ["resgen", "train", stage, "--recipe", self.recipe]
        words += ["--data", self.data] if self.data is not None else []
        models = {name: str(value) for name in self.models if (value := getattr(self, name)) is not None}
        models[self.stage] = model
        needs = modality.stages[stage].needs
        for name in (*needs, *modality.stages[stage].takes):
            words += [f"--{name}", models.get(name, "DIR")] if name in needs or name in models else []
        words += ["--resize"] if getattr(self, "resize", False) else []
        words += ["--config", str(self.config)] if self.config is not None else []
        own = (f"{self.stage}_loss.", f"{self.stage}_training.")
        settings = [setting for setting in flatten(self.overrides or ()) if not setting.startswith(own)]
        words += ["--set", *settings] if settings else []
        out = self.out if self.out.name not in ("", "..") else self.out.resolve()
        return [*words, "--out", str(out.with_name(f"{out.name.removesuffix(f'-{self.stage}')}-{stage}"))]


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(Training):
    """Train the tokenizer (first stage), which encodes images or speech into residual codes and decodes them.

    For example:

        resgen train tokenizer --recipe digits --out runs/digits-tokenizer
        resgen train tokenizer --recipe cifar10 --data photos/ --resize --max-minutes 60 --out runs/photos
        resgen train tokenizer --recipe digits --out runs/digits-tokenizer --resume
        resgen train tokenizer --recipe spoken_digits --data speech/digits --out runs/mel
        resgen train tokenizer --recipe spoken_digits --data speech/more --init runs/mel/model --out runs/better \\
            --set tokenizer_loss.decoder_only=true
    """

    stage: ClassVar[str] = "tokenizer"
    recipe: str
    """Images: digits, fashion_mnist, cifar10, cifar10_8x8, avatars64, imagenette64, imagenet256; speech:
    spoken_digits, spoken_digits_small, spoken_digits_waveform, sentences, sentences_small, melvae, rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Images: folder of class folders, parquet, tar shards, or 'digits'. Recordings: parquet, tar shards, or a folder
    with metadata.csv. By default the recipe's own."""
    resize: bool = False
    """Images: crop, resize and convert those of another size or mode instead of rejecting them."""


@dataclass(frozen=True, kw_only=True)
class TrainVocoder(Training):
    """Train a vocoder, which turns the mel spectrograms of a mel tokenizer into sound.

    For example:

        resgen train vocoder --recipe spoken_digits --data speech/digits --tokenizer runs/mel/model --out runs/vocoder
    """

    stage: ClassVar[str] = "vocoder"
    models: ClassVar[tuple[str, ...]] = ("tokenizer",)
    tokenizer: Annotated[str | None, option("DIR")] = None
    """Folder of the mel tokenizer; the vocoder then also trains on its reconstructions."""


@dataclass(frozen=True, kw_only=True)
class TrainText(Training):
    """Train a text model, which aligns letters with audio frames and predicts their durations.

    For example:

        resgen train text --recipe spoken_digits --data speech/digits --out runs/text
    """

    stage: ClassVar[str] = "text"


@dataclass(frozen=True, kw_only=True)
class TrainGenerator(Training):
    """Train the generator (second stage) on the codes of a trained tokenizer.

    For example:

        resgen train generator --recipe digits --tokenizer runs/digits-tokenizer/model --out runs/digits
        resgen train generator --recipe digits --tokenizer fashion-mnist-small --data codes/ --out runs/new
        resgen train generator --kind rq_transformer --recipe digits --tokenizer runs/digits-tokenizer/model --out rq
        resgen train generator --recipe spoken_digits --data speech/digits --tokenizer runs/mel/model \\
            --text runs/text/model --vocoder runs/vocoder/model --out runs/voice
        resgen train generator --init runs/digits/model --recipe digits --tokenizer runs/digits/model --data mine/ \\
            --out runs/tuned
    """

    stage: ClassVar[str] = "generator"
    models: ClassVar[tuple[str, ...]] = ("tokenizer", "text", "vocoder")
    recipe: str
    """Images: digits, fashion_mnist, cifar10, cifar10_8x8, avatars64, imagenette64, imagenet256; speech:
    spoken_digits, spoken_digits_small, spoken_digits_waveform, sentences, sentences_small, melvae, rvqvae."""
    data: Annotated[str | None, option("PATH")] = None
    """Images or recordings, or a folder written by `resgen encode`; by default the recipe's own data."""
    resize: bool = False
    """Images: crop, resize and convert those of another size or mode instead of rejecting them."""
    tokenizer: Annotated[str, option("DIR")]
    """Folder of the trained tokenizer, or a bundled model's name."""
    kind: Annotated[str | None, option("NAME")] = None
    """Kind of generator, sized to the recipe's number of parameters: resgen, residual, direct, maskgit, rq_transformer,
    ar_resgen, valle or (speech) clam_tts."""
    text: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the trained text model."""
    vocoder: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the mel tokenizer's vocoder, which becomes part of the model."""
    evaluate_on: Annotated[str | None, option("PATH")] = None
    """Reference images for 1,000 samples every generator_training.evaluate_every steps; by default --data."""
    extractor: Annotated[str | None, option("NAME_OR_FILE")] = None
    """Network whose features those are compared in; by default the bundled classifier of the same classes."""
