"""Images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.errors import ConfigError
from resgen.experiments.image.compare import Comparison, Study, compare
from resgen.experiments.image.evaluation import PictureEvaluation
from resgen.experiments.image.judge import evaluator
from resgen.experiments.image.reconstruction import reconstruct_pictures
from resgen.experiments.image.report import write_comparison
from resgen.modalities import Modality, Stage
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.recipes.images import RECIPES
from resgen.training.encoding import is_encoded
from resgen.training.image.recipe import Recipe
from resgen.training.image.runs import encode_data, open_splits, train_generator, train_tokenizer
from resgen.training.stages import Run


def describe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe would build."""
    from resgen.recipes.describe import describe_recipe

    return describe_recipe(recipe)


def _train_generator(recipe: Recipe, run: Run) -> dict[str, float]:
    """With the distance to the images of `evaluate_on` every `evaluate_every` steps."""
    if not recipe.generator_training.evaluate_every:
        for option, value in (("--evaluate-on", run.evaluate_on), ("--extractor", run.extractor)):
            if value is not None:
                raise ConfigError(f"{option} needs evaluations: --set generator_training.evaluate_every=N")
        return train_generator(recipe, run)
    path = run.evaluate_on or run.data or recipe.data.path
    if path is None or is_encoded(path):
        raise ConfigError("evaluate_every needs images; name them with --evaluate-on PATH")
    return train_generator(recipe, run, evaluator(path, resize=recipe.data.resize, extractor=run.extractor))


def plan(recipe: Recipe) -> Sequence[Any]:
    """The trainings as `resgen plan` counts them."""
    from resgen.training.image.plan import stages_of

    return stages_of(recipe)


def compare_pictures(
    recipe: Recipe, comparison: Comparison, out: Path, *, resume: bool, say: Callable[[str], None], command: str
) -> list[Path]:
    """Train, search, evaluate and report; what is finished in `out` is not done again."""
    study = Study(out, recipe, comparison)
    with study.claimed(resume=resume):
        compare(study, say)
        return write_comparison(study, command)


MODALITY = Modality(
    name="image",
    noun="images",
    recipes=RECIPES,
    components=frozenset({"image-tokenizer"}),
    stages={
        "tokenizer": Stage(train=train_tokenizer),
        "generator": Stage(train=_train_generator, needs=("tokenizer",)),
    },
    pipeline=ImagePipeline.from_pretrained,
    describe=describe,
    columns=("labels",),
    open_splits=open_splits,
    load_tokenizer=load_tokenizer,
    encode=encode_data,
    reconstruct=reconstruct_pictures,
    plan=plan,
    evaluate=PictureEvaluation,
    comparison=Comparison,
    compare=compare_pictures,
    example=("--num-samples", "8", "--out", "samples.png"),
    served="resgen.serving.image.routes:ImageRoutes",
)
