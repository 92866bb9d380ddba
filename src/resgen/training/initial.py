"""Starting a training from the weights of a saved model instead of from scratch: fine-tuning."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resgen.checkpoints.artefacts import SavedTokenizer, check_belongs, generator_config, names_of_classes
from resgen.checkpoints.format import Folder, load_folder, load_tensors
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.tensors import check_match, load_state, module_tensors
from resgen.config import config_to_dict
from resgen.data.announce import announce, listed
from resgen.errors import CheckpointError, ConfigError
from resgen.kinds import ModelConfig, build, kind_of
from resgen.models.base import CodeModel
from resgen.nn.seeding import seeded
from resgen.nn.size import build_within_memory
from resgen.types import CodeSpec

CLASSES = "condition.embedding.weight"
"""How a generator's vectors of classes are called, or their names end: VALL-E's scheme has them twice. They are axis by
axis, and the last one of the first axis stands for no class."""
FEATURES = "features.conv.weight"
"""The same of what takes the text model's hidden states into a generator of speech."""


def check_init(decoder_only: bool, init: str | Path | None) -> None:
    """Refuse to train a decoder for codes of an encoder that was never trained.

    Raises:
        ConfigError: `decoder_only` without a model to start from.
    """
    if decoder_only and init is None:
        raise ConfigError("tokenizer_loss.decoder_only=true needs a trained tokenizer to start from; give --init")


def start_from(module: nn.Module, name_or_path: str | Path, part: str) -> None:
    """Give a new module the weights of a saved one of the same shape.

    Args:
        module: receives the weights.
        name_or_path: model folder or bundled name.
        part: what of it: tokenizer, vocoder or text.

    Raises:
        CheckpointError: there is no such part, it is damaged, or of another type or shape.
    """
    folder = load_folder(resolve_model(name_or_path))
    saved, own = folder.component(part), getattr(module, "component", None)
    if own not in (None, saved.type):
        raise CheckpointError(f"the {part} of '{folder.path}' is of type {saved.type}; --init needs one of type {own}")
    tensors = load_tensors(saved)
    _check_shapes(module, tensors, folder, part, (config_to_dict(module.config), saved.config))
    load_state(module, tensors, str(folder.path))


@dataclass(frozen=True)
class GeneratorInit:
    """A saved generator that another one can start from.

    Attributes:
        path: its folder.
        tensors: its weights, by canonical name.
        class_axes: names of its classes on each axis, by the name of the axis; numbers where they have no names.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    class_axes: Mapping[str, Sequence[str]]


def read_generator_init(
    init: str | Path | None, config: ModelConfig, tokenizer: SavedTokenizer
) -> GeneratorInit | None:
    """The generator to start from, refused before any data is encoded if a generator cannot start from it.

    Args:
        init: model folder or bundled name; None starts from scratch.
        config: of the generator to train. Numbers of classes and the width of its features may differ.
        tokenizer: makes its codes.

    Raises:
        CheckpointError: there is no generator, it is damaged, of another kind or shape, made for speech instead of
            classes or the other way round, or on another tokenizer's codes.
    """
    if init is None:
        return None
    folder = load_folder(resolve_model(init))
    theirs, spec = generator_config(folder)
    saved, kinds = folder.component("generator"), (kind_of(theirs).name, kind_of(config).name)
    nouns = [("images", "speech")[one.feature_width > 0] for one in (theirs, config)]
    if nouns[0] != nouns[1]:
        raise CheckpointError(f"'{folder.path}' generates {nouns[0]}; --init needs a model that generates {nouns[1]}")
    try:
        check_belongs(tokenizer, spec, saved.config.get("codebooks_sha256"), str(folder.path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give --tokenizer '{init}', or another --init") from error
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"'{folder.path}' is of kind '{kinds[0]}', the generator to train of kind '{kinds[1]}'; give "
            f"--kind {kinds[0]}, or --init with a model of kind '{kinds[1]}'"
        )
    known = {name: getattr(theirs, name) for name in ("num_classes", "other_axes", "feature_width")}
    config = replace(config, **known)
    with torch.device("meta"):
        shapes = build(config, spec)
    settings, tensors = (config_to_dict(config), config_to_dict(theirs)), load_tensors(saved)
    _check_shapes(shapes, tensors, folder, "generator", settings)
    sizes = (theirs.num_classes, *theirs.other_axes)
    names, axes = names_of_classes(folder, sizes)
    unnamed = {str(number): _numbers(size) for number, size in enumerate(sizes)}
    return GeneratorInit(folder.path, tensors, axes or unnamed | ({"0": names} if names else {}))


def _check_shapes(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    folder: Folder,
    part: str,
    settings: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    """`check_match`, whose error names the settings that differ, ours and those of the folder."""
    try:
        check_match(module_tensors(module), tensors, str(folder.path))
    except CheckpointError as error:
        ours, theirs = (_flat_values(one, f"{part}.") for one in settings)
        same = {name for name in theirs if name.endswith("dropout") or ours.get(name) in (None, theirs[name])}
        other = {name: value for name, value in theirs.items() if name not in same}  # dropout changes no shape
        if not other:
            raise
        noun = "text model" if part == "text" else part
        had = " ".join(f"{name}={ours[name]}" for name in other)
        needed = " ".join(f"{name}={value}" for name, value in other.items())
        raise CheckpointError(
            f"'{folder.path}' has another shape than the {noun} to train, with {had}; give --set {needed}"
        ) from error


def _flat_values(settings: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Settings by dotted key, each as `--set` takes it."""
    values: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= _flat_values(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            values[f"{prefix}{name}"] = shlex.quote(text)
    return values


@torch.no_grad()
def start_generator_from(
    generator: CodeModel, init: GeneratorInit, class_axes: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Give a new generator the weights of a saved one, and say what starts from scratch.

    A class starts from the one of the same name on the same axis (on the first axis, whatever its name); by number
    where either has only numbers. Other classes start from scratch, and saying nothing of a new axis at zero: unasked,
    the model begins with what it knew. Where the text model has another width, what takes its hidden states in starts
    from scratch.

    Args:
        generator: receives the weights.
        init: what it starts from.
        class_axes: names of its classes on each axis, by the name of the axis; None without classes.
    """
    tensors, said = dict(init.tensors), []
    for name, fresh in module_tensors(generator).items():
        if name.endswith(CLASSES):
            tensors[name], lines = _classes(fresh.float(), tensors[name].float(), class_axes or {"": ()}, init)
            said += lines
        if name.endswith(FEATURES) and fresh.shape[1] != tensors[name].shape[1]:
            tensors[name] = fresh
            said.append(f"{FEATURES} starts from scratch: '{init.path}' has another text model's width")
    for line in dict.fromkeys(said):
        announce(line)
    load_state(generator, tensors, str(init.path))


def _classes(
    fresh: Tensor, known: Tensor, class_axes: Mapping[str, Sequence[str]], init: GeneratorInit
) -> tuple[Float[Tensor, "R O"], list[str]]:
    """The vectors of classes to start from, and what to say of them."""
    ours, theirs = (
        {axis if k else "": one[axis] for k, axis in enumerate(one)} for one in (class_axes, init.class_axes)
    )
    vectors, lines, new = fresh.clone(), [], []
    parts, known_parts = _by_axis(vectors, ours), _by_axis(known, theirs)
    for axis, names in ours.items():
        nothing, begin = (0, 1) if axis else (-1, 0)
        parts[axis][nothing] = known_parts[axis][nothing] if axis in theirs else 0.0
        known_names = tuple(theirs.get(axis, ()))
        if names and known_names and (_are_numbers(names) != _are_numbers(known_names)):
            lines.append(f"classes start by number: '{names[0]}' from '{known_names[0]}' of '{init.path}', and so on")
            known_names = (*names[: len(known_names)], *known_names[len(names) :])
        for number, name in enumerate(names):
            if name in known_names:
                same = number if known_names[number : number + 1] == (name,) else known_names.index(name)
                parts[axis][begin + number] = known_parts[axis][begin + same]
            else:
                new.append(f"{axis}={name}" if axis else name)
    for axis in theirs.keys() - ours.keys():
        parts[""] += known_parts[axis][0]  # of this axis the model has been told nothing
    if new:
        total = sum(map(len, ours.values()))
        lines.append(f"{len(new)} of {total} classes start from scratch: '{init.path}' does not have {listed(new)}")
    return vectors, lines


def _by_axis(vectors: Tensor, class_axes: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Views of each axis's vectors."""
    return dict(zip(class_axes, vectors.split([len(names) + 1 for names in class_axes.values()]), strict=True))


def _are_numbers(names: Sequence[str]) -> bool:
    return tuple(names) == _numbers(len(names))


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def new_generator(
    recipe: Any,
    config: ModelConfig,
    spec: CodeSpec,
    init: GeneratorInit | None,
    class_axes: Mapping[str, Sequence[str]] | None = None,
) -> CodeModel:
    """The generator of a recipe: with random weights, drawn from the training's seed, or those of `init`; see
    `start_generator_from`."""
    with seeded(recipe.generator_training.seed, "generator"):
        model = build_within_memory(lambda: build(config, spec), "the generator")
        if init is not None:
            start_generator_from(model, init, class_axes)
    return model
