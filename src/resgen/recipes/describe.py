"""What a recipe would build, as plain data for `resgen inspect --recipe`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from torch import nn

from resgen.config import config_to_dict
from resgen.kinds import build
from resgen.models.text import TextModel
from resgen.nn.size import outlining
from resgen.pipelines.describe import describe_sound_codes, describe_vocoder
from resgen.tokenizers.image import ImageTokenizer
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.vocoder import Vocoder
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.training.image.recipe import Recipe
from resgen.training.speech.recipe import SpeechRecipe, mel_of


def describe_recipe(recipe: Recipe | SpeechRecipe) -> dict[str, Any]:
    """Configuration and parameters by part of a recipe's models, counted on the meta device, without their memory."""
    if isinstance(recipe, SpeechRecipe):
        return _describe_speech_recipe(recipe)
    with outlining("a network of this recipe"):
        tokenizer = ImageTokenizer(recipe.tokenizer)
        generator = build(recipe.generator, recipe.tokenizer.spec)
    return {
        "recipe": recipe.name,
        "codes": config_to_dict(recipe.tokenizer.spec),
        "parameters": {"tokenizer": parameters_by_part(tokenizer), "generator": parameters_by_part(generator)},
        "config": config_to_dict(recipe),
    }


def parameters_by_part(module: nn.Module) -> dict[str, int]:
    """Parameters by direct child, and `total`; buffers are not counted."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    return {**parts, "total": sum(p.numel() for p in module.parameters())}


def _describe_speech_recipe(recipe: SpeechRecipe) -> dict[str, Any]:
    """The generator is the one that training builds, with the text model's features; a pretrained ByT5 is not counted.

    A tokenizer of waveforms has no vocoder.
    """
    codes = describe_sound_codes(recipe.tokenizer)
    stride = codes["samples_per_position"] // mel_of(recipe).hop_size
    generator = replace(recipe.generator, feature_width=recipe.text.width, feature_stride=stride)
    speech: dict[str, Any] = {"codes": codes}
    modules: dict[str, nn.Module] = {}
    with outlining("a network of this recipe"):
        if isinstance(recipe.tokenizer, MelTokenizerConfig):
            modules["tokenizer"] = MelTokenizer(recipe.tokenizer)
            modules["vocoder"] = Vocoder(recipe.vocoder)
            speech["vocoder"] = describe_vocoder(recipe.vocoder)
        else:
            modules["tokenizer"] = WaveformTokenizer(recipe.tokenizer)
        modules["generator"] = build(generator, recipe.tokenizer.spec)
    pretrained = recipe.text.byt5_folder is not None  # ByT5 is read from its files
    with contextlib.nullcontext() if pretrained else outlining("the text model"):
        modules["text"] = TextModel(recipe.text)
    speech["text"] = {"max_tokens": recipe.text.max_tokens}
    return {
        "recipe": recipe.name,
        "codes": config_to_dict(recipe.tokenizer.spec),
        "speech": speech,
        "parameters": {name: parameters_by_part(module) for name, module in modules.items()},
        "config": config_to_dict(recipe),
    }
