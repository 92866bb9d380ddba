"""Folders of the networks that judge speech: our own format, and that of the `transformers` library."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from torch import nn

from resgen.checkpoints.format import (
    CONFIG_NAME,
    FORMAT,
    Component,
    Folder,
    load_folder,
    load_tensors,
    read_json,
    resgen_version,
    save_folder,
)
from resgen.checkpoints.locate import list_bundled, resolve_model
from resgen.checkpoints.tensors import load_state, module_tensors, sha256_file
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError, unknown
from resgen.extras import import_extra

BUILT_IN = "built-in"
"""Instead of a hash, for weights that come with another package: its version names them."""

_UNUSED = "masked_spec_embed"  # of training only; many published models lack it


class SoundJudge(Protocol):
    """Properties of every judge of speech.

    Attributes:
        name: in reports.
        version: version of the software.
        sha256: SHA-256 of the weights, or `built-in`.
        sample_rate_hz: that the sounds must have.
    """

    name: str
    version: str
    sha256: str
    sample_rate_hz: int


class JudgeNetwork(nn.Module):
    """A network that judges speech.

    Attributes:
        kind: kind of its component and its folder.
        config_type: the class of its configuration.
        config: what it was made with.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[Any]]
    config: Any


Network = TypeVar("Network", bound=JudgeNetwork)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformersFolder:
    """A model of the `transformers` library in memory.

    Attributes:
        name: name of its folder.
        version: the library's version.
        sha256: SHA-256 of the weights' file; of the files' hashes in the order of their names, where there are several.
        sample_rate_hz: that its sounds must have.
        model: in evaluation mode.
        processor: what makes its inputs.
    """

    name: str
    version: str
    sha256: str
    sample_rate_hz: int
    model: Any
    processor: Any


def save_judge(path: str | Path, model: JudgeNetwork, *, history: Mapping[str, Any] | None = None) -> None:
    """Write the folder of a network, with one component; matrices in bfloat16, vectors as they are.

    Raises:
        CheckpointError: the place holds something else or cannot be written.
    """
    tensors = {name: x.bfloat16() if x.ndim > 1 else x for name, x in module_tensors(model).items()}
    part = Component(type=model.kind, config=config_to_dict(model.config), tensors=tensors)
    save_folder(path, kind=model.kind, components={model.kind: part}, extra={"history": dict(history or {})})


def load_judge(path: str | Path, network: type[Network]) -> tuple[Network, Folder]:
    """The network of a folder, in evaluation mode; its file is compared with its hash.

    Raises:
        CheckpointError: nothing there, damaged, or of another kind.
    """
    folder, kind = load_folder(path), network.kind
    saved = folder.component(kind)
    if saved.type != kind:
        raise CheckpointError(f"'{saved.path}': type '{saved.type}' is not known; this version knows '{kind}'")
    model = network(config_from_dict(network.config_type, saved.config, where=f"{kind}."))
    load_state(model, load_tensors(saved), str(saved.path))
    return model.eval().requires_grad_(False), folder


def names_of(folder: Folder) -> tuple[str, str, str]:
    """How reports identify a judge in a folder: name, version of the software and hash of the weights."""
    return folder.path.resolve().name, f"resgen {resgen_version()}", folder.component(folder.kind).sha256


def bundled_judges(kind: str) -> list[str]:
    """Names of the networks of a kind that come with the package."""
    return [name for name in list_bundled() if load_folder(resolve_model(name), verify=False).kind == kind]


def find_judge(name_or_folder: str | Path, kind: str, names: Sequence[str]) -> tuple[Path, bool]:
    """The folder of a network, and whether it is of our format.

    Args:
        name_or_folder: a bundled network's name or a folder.
        kind: kind of our networks.
        names: other names that are allowed, for the message.

    Raises:
        CheckpointError: nothing of that name, or a folder of ours that holds something else.
    """
    try:
        folder = resolve_model(name_or_folder)
    except CheckpointError as error:
        allowed = [*names, *bundled_judges(kind)]
        raise CheckpointError(f"{unknown(kind, name_or_folder, allowed)}, or the path of a folder") from error
    if read_json(folder / CONFIG_NAME).get("format") != FORMAT:
        return folder, False
    actual = load_folder(folder, verify=False).kind
    if actual != kind:
        raise CheckpointError(f"'{folder}' holds a {actual}; a {kind} is needed")
    return folder, True


def open_transformers(folder: str | Path, model_class: str, processor_class: str) -> TransformersFolder:
    """Read a model with its processor from local safetensors files; nothing is downloaded, no code of the folder runs.

    Args:
        folder: as `save_pretrained` writes it.
        model_class: name of an `Auto` class of the library.
        processor_class: likewise.

    Raises:
        CheckpointError: no safetensors weights there, weights without the head that is needed, or unreadable.
        MissingExtraError: transformers is not installed.
    """
    path = Path(folder)
    transformers = import_extra("transformers", "pretrained")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"'{path}' holds no *.safetensors file; save the model with safe serialization")
    try:
        model, info = getattr(transformers, model_class).from_pretrained(
            path, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        processor = getattr(transformers, processor_class).from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"'{path}' cannot be read as {model_class}: {reason}") from error
    missing = sorted(name for name in info["missing_keys"] if _UNUSED not in name)
    if missing:
        raise CheckpointError(
            f"'{path}' lacks {len(missing)} tensors of {model_class}, '{missing[0]}' first; take a model made for this"
        )
    return TransformersFolder(
        name=path.resolve().name,
        version=f"transformers {transformers.__version__}",
        sha256=sha256_of_all(files),
        sample_rate_hz=int(getattr(processor, "feature_extractor", processor).sampling_rate),
        model=model.eval().requires_grad_(False),
        processor=processor,
    )


def sha256_of_all(files: Sequence[Path]) -> str:
    """The hash of a file; of several, that of their hashes in the order given."""
    hashes = [sha256_file(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
