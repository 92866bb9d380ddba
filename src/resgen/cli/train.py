"""`resgen train tokenizer|generator`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resgen.cli.common import ConfigFile, Json, Overrides, check_out_dir, load_recipe, message, option, report
from resgen.errors import ConfigError

if TYPE_CHECKING:
    from resgen.tokenizers.image import ImageTokenizer
    from resgen.training.generator_task import Evaluate

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer:
    """Train the tokenizer, the first stage: pictures to residual codes and back.

    For example:

        resgen train tokenizer --recipe digits --out runs/digits-tokenizer
        resgen train tokenizer --recipe cifar10 --data photos/ --set data.resize=true --max-minutes 60 --out runs/photos
        resgen train tokenizer --recipe digits --out runs/digits-tokenizer --resume
    """

    recipe: str
    """Name of the recipe: digits, fashion_mnist, cifar10, imagenette64 or imagenet256."""
    data: Annotated[str | None, option("PATH")] = None
    """Folder of class folders, parquet file or folder, or 'digits'; without it the recipe's own."""
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
        recipe = load_recipe(self.recipe, self.config, self.overrides)
        from resgen.training.runs import train_tokenizer

        return train(
            lambda: train_tokenizer(
                recipe, data=self.data, out=self.out, max_minutes=self.max_minutes, resume=self.resume
            ),
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
    """

    recipe: str
    """Name of the recipe: digits, fashion_mnist, cifar10, imagenette64 or imagenet256."""
    data: Annotated[str | None, option("PATH")] = None
    """Pictures, or a folder written by `resgen encode`; without it the recipe's own data."""
    tokenizer: Annotated[str, option("DIR")]
    """Folder of the trained tokenizer, or a bundled model's name."""
    kind: Annotated[str | None, option("NAME")] = None
    """resgen, mixture, direct, maskgit, rq_transformer or ar_resgen: another generator with as many parameters."""
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
