"""Recipes: presets of everything that a training needs, as functions."""

from __future__ import annotations

from resgen.errors import ConfigError, unknown
from resgen.recipes.images import avatars64, cifar10, cifar10_8x8, digits, fashion_mnist, imagenet256, imagenette64
from resgen.recipes.speech import (
    melvae,
    rvqvae,
    sentences,
    sentences_small,
    spoken_digits,
    spoken_digits_small,
    spoken_digits_waveform,
)
from resgen.training.image.recipe import Recipe
from resgen.training.speech.recipe import SpeechRecipe

_IMAGES = {
    recipe.__name__: recipe
    for recipe in (digits, fashion_mnist, cifar10, cifar10_8x8, avatars64, imagenette64, imagenet256)
}
_SPEECH = {
    recipe.__name__: recipe
    for recipe in (
        spoken_digits,
        spoken_digits_small,
        spoken_digits_waveform,
        sentences,
        sentences_small,
        melvae,
        rvqvae,
    )
}


def recipe_names() -> list[str]:
    """Names that `get_recipe` knows: pictures."""
    return list(_IMAGES)


def speech_recipe_names() -> list[str]:
    """Names that `get_speech_recipe` knows."""
    return list(_SPEECH)


def get_recipe(name: str) -> Recipe:
    """The recipe for pictures called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _IMAGES:
        hint = "; this one is for speech" if name in _SPEECH else ""
        raise ConfigError(unknown("recipe", name, _IMAGES) + hint)
    return _IMAGES[name]()


def get_speech_recipe(name: str) -> SpeechRecipe:
    """The recipe for speech called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _SPEECH:
        hint = "; this one is for pictures" if name in _IMAGES else ""
        raise ConfigError(unknown("recipe", name, _SPEECH) + hint)
    return _SPEECH[name]()
