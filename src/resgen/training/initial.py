"""Starting a training from the weights of a saved model instead of from scratch: fine-tuning."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resgen.checkpoints.artefacts import SavedTokenizer, check_belongs, generator_config
from resgen.checkpoints.format import Folder, SavedComponent, load_folder, load_tensors
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.tensors import check_match, load_state, module_tensors
from resgen.config import config_to_dict
from resgen.data.announce import announce
from resgen.errors import CheckpointError, ConfigError
from resgen.kinds import ModelConfig, build, kind_of
from resgen.models.base import CodeModel
from resgen.nn.seeding import seeded
from resgen.nn.size import build_within_memory

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


def check_generator_init(init: str | Path | None, config: ModelConfig, tokenizer: SavedTokenizer) -> None:
    """Refuse to start a generator from one that it cannot start from, before any data is encoded.

    Args:
        init: model folder or bundled name; None starts from scratch.
        config: of the generator to train. Numbers of classes and the width of its features may differ.
        tokenizer: makes its codes.

    Raises:
        CheckpointError: there is no generator, it is of another kind or shape, made for speech instead of classes or
            the other way round, or on another tokenizer's codes.
    """
    if init is None:
        return
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
    settings = config_to_dict(config), config_to_dict(theirs)
    _check_shapes(shapes, load_tensors(saved), folder, "generator", settings)


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
        had = " ".join(f"{name}={ours[name]}" for name in other)
        needed = " ".join(f"{name}={value}" for name, value in other.items())
        raise CheckpointError(
            f"'{folder.path}' has another shape than the {part} to train, with {had}; give --set {needed}"
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
def start_generator_from(generator: CodeModel, name_or_path: str | Path, tokenizer: SavedTokenizer) -> None:
    """`start_from` for a generator; see `check_generator_init` for what it can start from.

    Where the number of classes differs, classes start from scratch and only "no class" keeps its vector. So do those of
    axes that are new, and saying nothing of these starts at zero: unasked, the model begins with what it knew. Where
    the text model has another width, what takes its hidden states in starts from scratch.

    Raises:
        CheckpointError: as `start_from`; or another tokenizer's codes made it.
    """
    folder = load_folder(resolve_model(name_or_path))
    saved = folder.component("generator")
    check_belongs(tokenizer, generator.spec, saved.config.get("codebooks_sha256"), str(folder.path))
    tensors = load_tensors(saved)
    said = []
    for name, fresh in module_tensors(generator).items():
        known = tensors.get(name)
        if known is None or fresh.ndim != known.ndim:
            continue
        if name.endswith(CLASSES) and fresh.shape[1:] == known.shape[1:]:
            tensors[name], line = _classes(generator, fresh.float(), known.float(), saved, str(folder.path))
            said += [line] * bool(line)
        if name.endswith(FEATURES) and fresh.shape[1] != known.shape[1]:
            tensors[name] = fresh
            said.append(f"{FEATURES} starts from scratch: '{folder.path}' has another text model's width")
    for line in dict.fromkeys(said):
        announce(line)
    load_state(generator, tensors, str(folder.path))


def _classes(
    generator: CodeModel, fresh: Tensor, known: Tensor, saved: SavedComponent, where: str
) -> tuple[Float[Tensor, "R O"], str]:
    """The vectors of classes to start from, those of a saved model as far as the axes are the same; and what to say."""
    sizes, config = list(generator.condition.sizes), saved.config.get("model")
    others = config.get("other_axes") if isinstance(config, Mapping) else None
    others = others if isinstance(others, list) else []
    kept = sizes[: len(others) + 1]
    if kept[1:] == others and len(known) == sum(kept) + len(kept):
        new = sizes[len(kept) :]
        line = f"the classes of '{where}' are kept; other axes ({len(new)}) start from scratch" if new else ""
        vectors = torch.cat([known, fresh[len(known) :]])
        starts = list(accumulate((size + 1 for size in new), initial=len(known)))[:-1]
        vectors[starts] = 0.0  # nothing said
        return vectors, line
    first = sizes[0]
    nothing = fresh[first : first + 1] if others else known[-1:]
    saved_sizes = [config.get("num_classes"), *others] if isinstance(config, Mapping) and others else [len(known) - 1]
    counts = [" x ".join(map(str, one)) for one in (saved_sizes, sizes)]
    line = f"classes start from scratch: '{where}' has {counts[0]}, these are {counts[1]}"
    return torch.cat([fresh[:first], nothing, fresh[first + 1 :]]), line


def new_generator(recipe: Any, config: ModelConfig, tokenizer: SavedTokenizer, init: str | Path | None) -> CodeModel:
    """The generator of a recipe for the codes of a tokenizer: with random weights, drawn from the training's seed, or
    those of `init`; see `start_generator_from`."""
    with seeded(recipe.generator_training.seed, "generator"):
        model = build_within_memory(lambda: build(config, tokenizer.spec), "the generator")
        if init is not None:
            start_generator_from(model, init, tokenizer)
    return model
