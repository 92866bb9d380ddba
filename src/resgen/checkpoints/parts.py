"""A model with a part of another one: a decoder or a vocoder that was trained further, alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from resgen.checkpoints.format import Component, Folder, load_folder, load_tensors, save_folder
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.measured import HISTORY
from resgen.errors import ConfigError, unknown

REPLACEABLE = ("tokenizer", "vocoder")
CODEBOOKS = "quantizer.codebooks"


def with_part(folder: Folder, name: str, other: Folder) -> Folder:
    """A model with the tokenizer or vocoder of another one, and with the record of its training.

    Raises:
        ConfigError: the part is not one of `REPLACEABLE` that the model has, or does not fit: a tokenizer has the shape
            and the codebooks of the one it replaces, since the generator knows no other codes; a vocoder takes the same
            mels.
        CheckpointError: the other model has no such part.
    """
    if name not in REPLACEABLE or name not in folder.components:
        raise ConfigError(unknown("part", name, [part for part in REPLACEABLE if part in folder.components]))
    old, new = folder.component(name), other.component(name)
    if old.type != new.type:
        raise ConfigError(f"the {name} of '{other.path}' is a {new.type}, that of '{folder.path}' a {old.type}")
    known = old.config.keys() & new.config.keys()  # a version that had fewer settings wrote fewer
    for key in sorted({"mel"} if name == "vocoder" else known - {"quantizer"}):
        if old.config[key] != new.config[key]:
            raise ConfigError(
                f"the {name} of '{other.path}' has {key}={new.config[key]}, that of '{folder.path}' {old.config[key]}; "
                f"train it with --init from the latter"
            )
    if name == "tokenizer" and not torch.equal(*(load_tensors(part)[CODEBOOKS] for part in (old, new))):
        raise ConfigError(
            f"'{other.path}' has other codebooks than the tokenizer of '{folder.path}': its codes mean something else; "
            f"train it with --init and tokenizer_loss.decoder_only=true"
        )
    history = {**folder.extra.get("history", {}), name: other.record(name)}
    return replace(folder, components={**folder.components, name: new}, extra={**folder.extra, "history": history})


def save_with_parts(model: str | Path, parts: Mapping[str, str | Path], out: str | Path) -> None:
    """Write a model with parts of others; what was measured of it is left out, and so is its card.

    Args:
        model: a model folder, a run or a bundled name.
        parts: models to take parts from, by the part's name.
        out: folder for the model.

    Raises:
        ConfigError, CheckpointError: see `with_part`.
    """
    folder = load_folder(resolve_model(model))
    for name, other in parts.items():
        folder = with_part(folder, name, load_folder(resolve_model(other)))
    save_again(folder, out)


def save_again(folder: Folder, out: str | Path, tensors: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
    """Write a saved model to another folder, with its voices; what was measured of it is left out, and so is its card.

    Args:
        folder: the model.
        out: where it goes.
        tensors: parameters and buffers of the parts that get others, by name.
    """
    components = {
        name: Component(type=one.type, config=one.config, tensors=(tensors or {}).get(name) or load_tensors(one))
        for name, one in folder.components.items()
    }
    history = {name: one for name, one in folder.extra.get("history", {}).items() if name != HISTORY}
    sounds = {path.name: path.read_bytes() for path in folder.path.glob("*.flac")}
    save_folder(out, kind=folder.kind, components=components, extra=folder.extra | {"history": history}, files=sounds)
