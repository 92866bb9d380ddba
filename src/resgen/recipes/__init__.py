"""Recipes: presets of everything that a training needs, as functions."""

from __future__ import annotations

from resgen.errors import ConfigError, unknown
from resgen.recipes.images import cifar10, digits, fashion_mnist, imagenet256, imagenette64
from resgen.training.recipe import Recipe

_RECIPES = {recipe.__name__: recipe for recipe in (digits, fashion_mnist, cifar10, imagenette64, imagenet256)}


def recipe_names() -> list[str]:
    """Names that `get_recipe` knows."""
    return list(_RECIPES)


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _RECIPES:
        raise ConfigError(unknown("recipe", name, _RECIPES))
    return _RECIPES[name]()
