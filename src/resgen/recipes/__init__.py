"""Recipes: presets of everything that a training needs, as functions."""

from __future__ import annotations

import importlib
from typing import Any

from resgen.errors import ConfigError, unknown


def get_recipe(name: str) -> Any:
    """The recipe called `name`.

    Raises:
        ConfigError: there is none.
    """
    names: list[str] = []
    for module in ("images", "speech"):  # the second is imported only if the first does not have it
        recipes = importlib.import_module(f"resgen.recipes.{module}").RECIPES
        if name in recipes:
            return recipes[name]()
        names += recipes
    raise ConfigError(unknown("recipe", name, names))
