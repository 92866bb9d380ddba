"""Modalities: what the commands know of pictures, of speech, and of what may come after them.

A modality is one record, registered once. A recipe names its modality, and so does a saved model, by the types of its
components; `of_recipe` and `of_model` are the only places where that is decided.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import resolve_model
from resgen.errors import CheckpointError, ConfigError, unknown
from resgen.evaluation.report import Report
from resgen.progress import Advance
from resgen.training.stages import Run


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training.

    Attributes:
        train: `(recipe, run) -> final metrics`; writes `out/model`.
        needs: names of the models that must be given.
        takes: names of those that may be given.
    """

    train: Callable[[Any, Run], Mapping[str, float]]
    needs: Sequence[str] = ()
    takes: Sequence[str] = ()


class Evaluation(Protocol):
    """What `resgen evaluate` runs."""

    def run(self, advance: Advance) -> Report:
        """Measure, with progress."""
        ...


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What the commands know of a modality.

    Attributes:
        name: of the modality.
        noun: what its data is called in messages.
        recipes: recipes by name, each made anew.
        components: types of saved components that are this modality's alone.
        stages: trainings by name.
        with_kind: `(recipe, kind) -> recipe` for another kind of generator.
        describe: `recipe -> document` of `resgen inspect --recipe`.
        is_encoded: whether a folder holds codes of this modality.
        evaluate: makes, from options of `resgen evaluate` by their names, what has a `run(advance) -> Report`.

    A field that is None is what the modality does not have: the command says so.
    """

    name: str
    noun: str
    recipes: Mapping[str, Callable[[], Any]]
    components: frozenset[str]
    stages: Mapping[str, Stage]
    with_kind: Callable[[Any, str], Any]
    describe: Callable[[Any], dict[str, Any]]
    is_encoded: Callable[[str | Path], bool]
    evaluate: Callable[..., Evaluation] | None = None

    def train(self, stage: str, recipe: Any, run: Run) -> Mapping[str, float]:
        """Train a stage; returns the final metrics.

        Raises:
            ConfigError: there is no such stage, or a model is missing or of no use to it.
        """
        if stage not in self.stages:
            raise ConfigError(
                f"recipe '{recipe.name}' is for {self.noun}; their stages are {', '.join(self.stages)}, not '{stage}'"
            )
        chosen, given = self.stages[stage], [name for name, value in run.models.items() if value is not None]
        if missing := [name for name in chosen.needs if name not in given]:
            verb = "is" if len(missing) == 1 else "are"
            raise ConfigError(
                f"{_options(missing)} {verb} missing: the {stage} of recipe '{recipe.name}' needs the folder of a "
                "trained one"
            )
        if others := [name for name in given if name not in (*chosen.needs, *chosen.takes)]:
            raise ConfigError(f"{_options(others)} must be left out: recipe '{recipe.name}' is for {self.noun}")
        return chosen.train(recipe, run)


def _options(names: Sequence[str]) -> str:
    return " and ".join(f"--{name}" for name in names)


_BUILT_IN = ("image", "speech")
_registered: dict[str, Modality] = {}


def register(modality: Modality) -> None:
    """Make a modality known to the commands.

    Raises:
        ConfigError: its name or a recipe's is taken.
    """
    if modality.name in (*_BUILT_IN, *_registered):
        raise ConfigError(f"modality '{modality.name}' is there already; choose another name")
    _registered[modality.name] = modality


def modalities() -> Iterator[Modality]:
    """All of them; each is imported when it is reached."""
    for name in _BUILT_IN:
        yield importlib.import_module(f"resgen.modalities.{name}").MODALITY
    yield from _registered.values()


def of_recipe(name: str) -> Modality:
    """The modality of the recipe called `name`.

    Raises:
        ConfigError: there is no such recipe.
    """
    for modality in modalities():
        if name in modality.recipes:
            return modality
    raise ConfigError(unknown("recipe", name, [recipe for modality in modalities() for recipe in modality.recipes]))


def of_model(name_or_path: str | Path) -> Modality:
    """The modality of a saved tokenizer, pipeline or part of one, by the types of its components; no weights are read.

    Raises:
        CheckpointError: nothing there, damaged, or of no modality that is known.
    """
    folder = load_folder(resolve_model(name_or_path), verify=False)
    types = {component.type for component in folder.components.values()}
    for modality in modalities():
        if types & modality.components:
            return modality
    raise CheckpointError(
        f"'{folder.path}' holds {', '.join(sorted(types)) or 'nothing'}: of no modality that is known"
    )


def of_codes(folder: Path) -> Modality | None:
    """The modality whose codes a folder holds, if it holds any."""
    return next((modality for modality in modalities() if modality.is_encoded(folder)), None)
