"""Speech."""

from __future__ import annotations

from resgen.checkpoints.speech import SOUND_TOKENIZERS, TEXT_MODEL, VOCODER
from resgen.errors import ConfigError
from resgen.experiments.speech_judge import SpeechEvaluation
from resgen.modalities import Modality, Stage
from resgen.recipes.describe import describe_recipe
from resgen.recipes.speech import RECIPES
from resgen.training.speech.recipe import SpeechRecipe, with_speech_kind
from resgen.training.speech.runs import (
    is_encoded_speech,
    train_sound_tokenizer,
    train_speech_generator,
    train_text,
    train_vocoder,
)
from resgen.training.stages import Run


def _train_generator(recipe: SpeechRecipe, run: Run) -> dict[str, float]:
    if run.evaluate_on is not None or recipe.generator_training.evaluate_every:
        raise ConfigError("evaluate_every and --evaluate-on are for pictures; use resgen evaluate for speech")
    return train_speech_generator(recipe, run)


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
    with_kind=with_speech_kind,
    describe=describe_recipe,
    is_encoded=is_encoded_speech,
    evaluate=SpeechEvaluation,
)
