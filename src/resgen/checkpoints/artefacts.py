"""Whole models to and from folders: a tokenizer alone, or a pipeline of tokenizer and generator.

Parameters are published in bfloat16; codebooks and all other buffers keep their type. A generator records the
fingerprint of the
codebooks that it was trained on, and a pipeline whose tokenizer has others is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resgen.checkpoints.format import (
    Component,
    Folder,
    SavedComponent,
    load_folder,
    load_tensors,
    resolve_model,
    save_folder,
)
from resgen.checkpoints.tensors import load_state, module_tensors, sha256_tensor
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError, unknown
from resgen.kinds import KINDS, AnySampling, build, kind_of
from resgen.models.base import CodeModel
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.types import CodeSpec

IMAGE_TOKENIZER = "image-tokenizer"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A loaded pipeline folder."""

    tokenizer: ImageTokenizer
    generator: CodeModel
    sampling: AnySampling
    class_names: tuple[str, ...]
    folder: Folder


def fingerprint(tokenizer: ImageTokenizer) -> str:
    """What ties codes and generators to a tokenizer: the SHA-256 of its codebooks."""
    return sha256_tensor(tokenizer.quantizer.codebooks)


def save_tokenizer(
    path: str | Path,
    tokenizer: ImageTokenizer,
    *,
    class_names: tuple[str, ...] = (),
    history: Mapping[str, Any] | None = None,
) -> None:
    """Write a tokenizer folder."""
    extra = {"class_names": list(class_names), "history": {"tokenizer": dict(history or {})}}
    save_folder(path, kind="tokenizer", components={"tokenizer": _tokenizer_component(tokenizer)}, extra=extra)


def load_tokenizer(name_or_path: str | Path) -> tuple[ImageTokenizer, Folder]:
    """The tokenizer of a tokenizer or pipeline folder (or bundled model), in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, of another format, or its tensors do not fit its configuration.
    """
    folder = load_folder(resolve_model(name_or_path))
    return _load_tokenizer(folder.component("tokenizer")), folder


def save_pipeline(
    path: str | Path,
    tokenizer: ImageTokenizer,
    generator: CodeModel,
    *,
    sampling: AnySampling,
    class_names: tuple[str, ...],
    history: Mapping[str, Any] | None = None,
) -> None:
    """Write a pipeline folder."""
    config = {
        "model": config_to_dict(generator.config),
        "spec": config_to_dict(generator.spec),
        "codebooks_sha256": fingerprint(tokenizer),
    }
    components = {
        "tokenizer": _tokenizer_component(tokenizer),
        "generator": Component(type=kind_of(generator.config).name, config=config, tensors=_published(generator)),
    }
    extra = {"sampling": config_to_dict(sampling), "class_names": list(class_names), "history": dict(history or {})}
    save_folder(path, kind="pipeline", components=components, extra=extra)


def load_pipeline(name_or_path: str | Path) -> Pipeline:
    """A pipeline folder (or bundled model), both parts in evaluation mode.

    Raises:
        CheckpointError: as `load_tokenizer`, and where tokenizer and generator do not belong together.
    """
    folder = load_folder(resolve_model(name_or_path))
    tokenizer = _load_tokenizer(folder.component("tokenizer"))
    saved = folder.component("generator")
    if saved.type not in KINDS:
        raise CheckpointError(f"'{folder.path}': {unknown('generator type', saved.type, KINDS)}")
    kind = KINDS[saved.type]
    config = config_from_dict(kind.config, _mapping(saved, "model"), where="generator.model.")
    spec = config_from_dict(CodeSpec, _mapping(saved, "spec"), where="generator.spec.")
    generator = build(config, spec)
    load_state(generator, load_tensors(saved), str(saved.path))
    check_belongs(tokenizer, generator.spec, saved.config.get("codebooks_sha256"), str(folder.path))
    class_names = folder.extra.get("class_names", [])
    if not isinstance(class_names, list) or len(class_names) not in (0, generator.config.num_classes):
        raise CheckpointError(
            f"'{folder.path}': class_names must list the generator's {generator.config.num_classes} classes, "
            f"not {class_names!r}"
        )
    sampling = folder.extra.get("sampling", {})
    if not isinstance(sampling, dict):
        raise CheckpointError(f"'{folder.path}': sampling must be a mapping of settings, not {sampling!r}")
    return Pipeline(
        tokenizer=tokenizer,
        generator=generator.eval().requires_grad_(False),
        sampling=config_from_dict(kind.sampling, sampling, where="sampling."),
        class_names=tuple(str(name) for name in class_names),
        folder=folder,
    )


def check_belongs(tokenizer: ImageTokenizer, spec: CodeSpec, codebooks_sha256: object, where: str) -> None:
    """Refuse a generator (or code cache) that another tokenizer's codes made.

    Raises:
        CheckpointError: the shape of the codes or the codebooks differ.
    """
    if spec != tokenizer.spec:
        raise CheckpointError(f"'{where}': made for {spec}, but the tokenizer has {tokenizer.spec}")
    if codebooks_sha256 != fingerprint(tokenizer):
        raise CheckpointError(
            f"'{where}': tokenizer and generator do not belong together: the generator was trained on codebooks "
            f"{str(codebooks_sha256)[:12]}..., the tokenizer has {fingerprint(tokenizer)[:12]}..."
        )


def _tokenizer_component(tokenizer: ImageTokenizer) -> Component:
    return Component(type=IMAGE_TOKENIZER, config=config_to_dict(tokenizer.config), tensors=_published(tokenizer))


def _load_tokenizer(saved: SavedComponent) -> ImageTokenizer:
    if saved.type != IMAGE_TOKENIZER:
        raise CheckpointError(
            f"'{saved.path}': tokenizer type '{saved.type}' is not known; this version knows '{IMAGE_TOKENIZER}'"
        )
    tokenizer = ImageTokenizer(config_from_dict(ImageTokenizerConfig, saved.config, where="tokenizer."))
    load_state(tokenizer, load_tensors(saved), str(saved.path))
    return tokenizer.eval().requires_grad_(False)


def _published(module: nn.Module) -> dict[str, Tensor]:
    parameters = {name for name, _ in module.named_parameters()}
    return {
        name: tensor.to(torch.bfloat16) if name in parameters else tensor
        for name, tensor in module_tensors(module).items()
    }


def _mapping(saved: SavedComponent, key: str) -> Mapping[str, Any]:
    value = saved.config.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"'{saved.path}': the generator's configuration lacks '{key}'")
    return value
