"""Speech."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resgen.checkpoints.speech import SOUND_TOKENIZERS, TEXT_MODEL, VOCODER, load_sound_tokenizer, load_text_model
from resgen.config import replace_nested
from resgen.data.codes.cache import CodeCache
from resgen.data.sound.held_out import open_speech_splits
from resgen.errors import ConfigError
from resgen.experiments.speech.compare import SpeechComparison, compare_speech
from resgen.experiments.speech.judge import SpeechEvaluation
from resgen.experiments.speech.reconstruction import reconstruct_speech
from resgen.kinds import SPEECH_KINDS
from resgen.modalities import Modality, Stage, load_recipe
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.recipes.describe import describe_recipe
from resgen.recipes.speech import RECIPES
from resgen.training.speech.product import COLUMNS
from resgen.training.speech.recipe import SpeechRecipe
from resgen.training.speech.runs import (
    encode_speech,
    train_sound_tokenizer,
    train_speech_generator,
    train_text,
    train_vocoder,
)
from resgen.training.stages import Run


def _train_generator(recipe: SpeechRecipe, run: Run) -> dict[str, float]:
    if run.evaluate_on is not None or run.extractor is not None or recipe.generator_training.evaluate_every:
        raise ConfigError("evaluate_every, --evaluate-on and --extractor are for images; speech has resgen evaluate")
    return train_speech_generator(recipe, run)


def encode(
    tokenizer: str,
    data: str,
    out: Path,
    *,
    text: str | None = None,
    recipe: str | None = None,
    config: Path | None = None,
    overrides: Iterable[Iterable[str]] = (),
    skip_unreadable: bool = False,
    device: str = "auto",
    shard_samples: int | None = None,
) -> tuple[CodeCache, CodeCache]:
    """Encode recordings; the arguments are options of `resgen encode`.

    Raises:
        ConfigError: the text model or the recipe is missing, or the recipe is not of speech.
    """
    if text is None or recipe is None:
        raise ConfigError(
            f"--text and --recipe are needed: tokenizer '{tokenizer}' is for speech; texts are aligned by the text "
            "model, recordings prepared as the recipe says"
        )
    modality, settings = load_recipe(recipe, config, [word for group in overrides for word in group])
    if modality is not MODALITY:
        raise ConfigError(f"recipe '{recipe}' is for {modality.noun}, but tokenizer '{tokenizer}' is for speech")
    if skip_unreadable:
        settings = replace_nested(settings, {"data.skip_unreadable": True})
    sound, (words, _, _) = load_sound_tokenizer(tokenizer)[0], load_text_model(text)
    return encode_speech(sound, words, data, out, recipe=settings, device=device, shard_samples=shard_samples)


def plan(recipe: SpeechRecipe) -> Sequence[Any]:
    """The trainings as `resgen plan` counts them."""
    from resgen.training.speech.plan import stages_of

    return stages_of(recipe)


MODALITY = Modality(
    name="speech",
    noun="speech",
    recipes=RECIPES,
    components=frozenset({*SOUND_TOKENIZERS, TEXT_MODEL, VOCODER}),
    stages={
        "tokenizer": Stage(train=train_sound_tokenizer),
        "vocoder": Stage(train=train_vocoder, takes=("tokenizer",)),
        "text": Stage(train=train_text),
        "generator": Stage(train=_train_generator, needs=("tokenizer", "text"), takes=("vocoder",)),
    },
    kinds=SPEECH_KINDS,
    pipeline=SpeechPipeline.from_pretrained,
    describe=describe_recipe,
    columns=tuple(COLUMNS),
    open_splits=open_speech_splits,
    load_tokenizer=load_sound_tokenizer,
    encode=encode,
    reconstruct=reconstruct_speech,
    plan=plan,
    evaluate=SpeechEvaluation,
    comparison=SpeechComparison,
    compare=compare_speech,
    example=("--text", "TEXT", "--out", "sample.wav"),
    served="resgen.serving.speech.routes:SpeechRoutes",
)
