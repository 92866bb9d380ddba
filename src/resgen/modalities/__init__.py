"""Modalities: what the commands need to know of images, of speech, and of further kinds of data.

A modality is one record, registered once: by `register`, or as an entry point of an installed package (`MODALITIES`).
Which one it is follows from a recipe's name (`of_recipe`), from the types of a saved model's components (`of_model`) or
from the columns of encoded data (`of_codes`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Unpack, overload

import torch

from resgen.checkpoints.artefacts import check_belongs
from resgen.checkpoints.format import Folder, load_folder
from resgen.checkpoints.locate import resolve_model
from resgen.config import config_to_dict, load_yaml, parse_overrides, replace_nested
from resgen.data.codes.cache import CodeCache
from resgen.errors import CheckpointError, ConfigError, DataError, unknown
from resgen.evaluation.report import Levels, Report
from resgen.extras import MODALITIES
from resgen.kinds import KINDS, Kind
from resgen.pipelines.base import NoOthers, refuse_others
from resgen.progress import Advance
from resgen.training.encoding import open_encoded
from resgen.training.stages import Run, with_kind

if TYPE_CHECKING:
    from resgen.pipelines.image.pipeline import ImagePipeline
    from resgen.pipelines.speech.pipeline import SpeechPipeline


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
    """An evaluation, as `resgen evaluate` runs it."""

    def run(self, advance: Advance) -> Report:
        """Measure, with progress."""
        ...


@dataclass(frozen=True, kw_only=True)
class Modality:
    """A modality: its recipes, training stages, saved components, pipeline and commands.

    Attributes:
        name: name of the modality.
        noun: what its data is called in messages.
        recipes: recipes by name, created anew for every caller.
        components: types of saved components that belong to this modality only.
        stages: training stages by name.
        kinds: kinds of generators, by name.
        pipeline: `(name or path, *, device, dtype) -> pipeline`, opens a saved model.
        describe: `recipe -> document` of `resgen inspect --recipe`.
        columns: names of the columns stored beside its codes.
        open_splits: data as training and held-out samples, each with a `fingerprint`.
        load_tokenizer: name or path of a saved tokenizer, as (tokenizer, folder).
        encode: encodes data into two caches, from options of `resgen encode` by their names.
        reconstruct: measures levels and writes reconstructions, from options of `resgen reconstruct` by their names
            (and `say`).
        plan: a recipe's training stages as `resgen plan` estimates them, see `training.plan`.
        evaluate: from options of `resgen evaluate` by their names, an object with `run(advance) -> Report`.
        comparison: settings of a comparison, from options of `resgen compare` by their names.
        compare: `(recipe, settings, out, *, resume, say, command) -> files of the report`.
        served: `module:class` of its routes, a `serving.routes.Routes`; imported by servers only (it needs an extra).
        example: last words of a `resgen generate NAME`, ending in the name of a file to write.
        commands: its own, by verb: dataclasses of options, for `tyro`, with a `run()`. The package's modalities have
            theirs in `cli`.

    A field that is None is a feature that the modality lacks: its command says so.
    """

    name: str
    noun: str
    recipes: Mapping[str, Callable[[], Any]]
    components: frozenset[str]
    stages: Mapping[str, Stage] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=lambda: KINDS)
    pipeline: Callable[..., Any] | None = None
    describe: Callable[[Any], dict[str, Any]] = config_to_dict
    columns: Sequence[str] = ()
    open_splits: Callable[[str], tuple[Any, Any]] | None = None
    load_tokenizer: Callable[[str], tuple[Any, Folder]] | None = None
    encode: Callable[..., tuple[CodeCache, CodeCache]] | None = None
    reconstruct: Callable[..., Levels] | None = None
    plan: Callable[[Any], Sequence[Any]] | None = None
    evaluate: Callable[..., Evaluation] | None = None
    comparison: Callable[..., Any] | None = None
    compare: Callable[..., list[Path]] | None = None
    served: str | None = None
    example: tuple[str, ...] = ()
    commands: Mapping[Literal["generate", "edit"], type[Any]] = field(default_factory=dict)

    def has(self, name: str) -> Any:
        """Return the field `name`, which must not be None.

        Raises:
            ConfigError: it is None.
        """
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"there is no '{name}' for {self.noun}: the modality '{self.name}' has none")
        return value

    def train(self, stage: str, recipe: Any, run: Run) -> Mapping[str, float]:
        """Train a stage; returns the final metrics.

        Raises:
            ConfigError: there is no such stage, or a model is missing or unsuitable for it.
        """
        if stage not in self.stages:
            raise ConfigError(
                f"recipe '{recipe.name}' is for {self.noun}; their stages are {', '.join(self.stages)}, not '{stage}'"
            )
        entry, models = self.stages[stage], [name for name, value in run.models.items() if value is not None]
        if missing := [name for name in entry.needs if name not in models]:
            verb = "is" if len(missing) == 1 else "are"
            raise ConfigError(
                f"{_options(missing)} {verb} missing: the {stage} of recipe '{recipe.name}' needs the folder of a "
                "trained one"
            )
        if others := [name for name in models if name not in (*entry.needs, *entry.takes)]:
            raise ConfigError(f"{_options(others)} must be left out: recipe '{recipe.name}' is for {self.noun}")
        return entry.train(recipe, run)


def _options(names: Sequence[str]) -> str:
    return " and ".join(f"--{name}" for name in names)


_BUILT_IN = ("image", "speech")
_registered: dict[str, Modality] = {}


def register(modality: Modality) -> None:
    """Make a modality known to the commands.

    Raises:
        ConfigError: its name is taken, or that of a recipe or a type of component.
    """
    _register_installed()
    _add(modality)


def _add(modality: Modality) -> None:
    if modality.name in (*_BUILT_IN, *_registered):
        raise ConfigError(f"modality '{modality.name}' is there already; choose another name")
    for other in (*_built_in(), *_registered.values()):
        recipes, components = modality.recipes.keys() & other.recipes.keys(), modality.components & other.components
        for what, names in (("recipe", recipes), ("component", components)):
            if names:
                raise ConfigError(
                    f"{what} '{min(names)}' of modality '{modality.name}' is one of '{other.name}'; choose another name"
                )
    _registered[modality.name] = modality


def modalities() -> Iterator[Modality]:
    """All of them; each is imported when it is reached."""
    yield from _built_in()
    yield from registered()


def _built_in() -> Iterator[Modality]:
    for name in _BUILT_IN:
        yield importlib.import_module(f"resgen.modalities.{name}").MODALITY


def registered() -> Iterator[Modality]:
    """Those that `register` was given, and those of installed packages.

    Raises:
        ConfigError: the record of an installed package cannot be imported or registered.
    """
    _register_installed()
    yield from _registered.values()


@functools.cache
def _register_installed() -> None:
    for entry in entry_points(group=MODALITIES):
        try:
            record = entry.load()
        except Exception as error:  # whatever happens in another package
            package = entry.dist.name if entry.dist else entry.value
            raise ConfigError(
                f"modality '{entry.name}' cannot be imported from '{package}' ({error}); update or uninstall it"
            ) from error
        _add(record)


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
    return _of_folder(load_folder(resolve_model(name_or_path), verify=False))


def _of_folder(folder: Folder) -> Modality:
    types = {component.type for component in folder.components.values()}
    for modality in modalities():
        if types & modality.components:
            return modality
    raise CheckpointError(
        f"'{folder.path}' holds {', '.join(sorted(types)) or 'nothing'}: of no modality that is known"
    )


@overload
def load(
    name_or_path: Literal["avatars64", "cifar10-8x8", "fashion-mnist-small"],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = "auto",
) -> ImagePipeline: ...


@overload
def load(
    name_or_path: Literal["english-small", "spoken-digits-small"],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = "auto",
) -> SpeechPipeline: ...


@overload
def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = "auto",
    **others: Unpack[NoOthers],
) -> Any: ...


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = "auto",
    **others: Unpack[NoOthers],
) -> Any:
    """Open a model of any modality, as the pipeline that it is: an `ImagePipeline`, a `SpeechPipeline`, ...

    Args:
        name_or_path: as `ImagePipeline.from_pretrained` takes it.
        device: likewise.
        dtype: likewise.
        others: none.

    Raises:
        CheckpointError: nothing there, damaged, or a part of a model.
        ConfigError: a device or type that cannot be used, or another argument.
    """
    refuse_others(others)
    folder = load_folder(resolve_model(name_or_path), verify=False)
    if "generator" not in folder.components:
        raise CheckpointError(f"'{folder.path}' holds a {folder.kind}, which is a part of a model; give a whole one")
    return _of_folder(folder).has("pipeline")(folder.path, device=device, dtype=dtype)


def load_recipe(
    name: str, config: Path | None = None, overrides: Iterable[str] = (), kind: str | None = None
) -> tuple[Modality, Any]:
    """The recipe `name` and its modality, for a kind of generator, with the values of a YAML file and, over those, of
    overrides such as `data.resize=true`."""
    modality = of_recipe(name)
    recipe = modality.recipes[name]()
    if kind is not None:
        recipe = with_kind(recipe, kind, modality.kinds)
    from_file = {str(key): value for key, value in load_yaml(config).items()} if config else {}
    if from_file:
        recipe = replace_nested(recipe, from_file)
    return modality, replace_nested(recipe, parse_overrides(list(overrides)))


def check_encoded(out: Path, *, tokenizer: str | None = None, data: str | None = None) -> tuple[CodeCache, CodeCache]:
    """Read all that was encoded into a folder and compare it with its hashes; nothing is changed.

    Args:
        out: folder of the two caches.
        tokenizer: if given, what must have made them.
        data: if given, what must have been encoded.

    Raises:
        DataError: something is missing, damaged or made from something else.
    """
    caches = open_encoded(out, verify=True)
    if tokenizer is not None:
        loaded, _ = of_model(tokenizer).has("load_tokenizer")(tokenizer)
        for cache in caches:
            check_belongs(loaded, cache.spec, cache.plan.made_from.get("tokenizer"), str(cache.path))
    if data is not None:
        modality = of_model(tokenizer) if tokenizer is not None else of_codes(caches[0])
        for cache, source in zip(caches, modality.has("open_splits")(data), strict=True):
            cache.require("data", source.fingerprint)
    return caches


def of_codes(codes: CodeCache) -> Modality:
    """The modality of encoded data, by what it has beside the codes.

    Raises:
        DataError: of no modality that is known.
    """
    for modality in modalities():
        if modality.columns and set(modality.columns) <= set(codes.plan.columns):
            return modality
    raise DataError(f"code cache '{codes.path}' is of no modality that is known")
