"""Saving and loading whole models: a tokenizer alone, or a pipeline of tokenizer and generator.

Parameters are published in bfloat16; codebooks and all other buffers keep their type, and so does everything of other
people's codecs, whose codes have to stay theirs. A generator records the
fingerprint of the codebooks that it was trained on, and a pipeline whose tokenizer has others is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from resgen.checkpoints.format import Component, Folder, SavedComponent, load_folder, load_tensors, save_folder
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.tensors import check_match, load_state, module_tensors, sha256_tensor
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError, unknown
from resgen.kinds import KINDS, AnySampling, ModelConfig, build, kind_of
from resgen.models.base import CodeModel
from resgen.nn.size import outlining
from resgen.quantizers.base import Quantizer
from resgen.tokenizers.image import ImageTokenizer
from resgen.types import CodeSpec


class SavedTokenizer(Protocol):
    """A tokenizer that is a network, and how it is saved; its class has `config_class`, for `config_from_dict`."""

    @property
    def component(self) -> str:
        """Its type in `config.json`."""
        ...

    @property
    def config(self) -> Any:
        """What it is built from."""
        ...

    @property
    def quantizer(self) -> Quantizer:
        """With the codebooks."""
        ...

    @property
    def spec(self) -> CodeSpec:
        """The shape of the codes."""
        ...


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A loaded pipeline folder."""

    tokenizer: Any
    generator: CodeModel
    sampling: AnySampling
    class_names: tuple[str, ...]
    class_axes: Mapping[str, tuple[str, ...]]
    folder: Folder


def fingerprint(tokenizer: SavedTokenizer) -> str:
    """SHA-256 of a tokenizer's codebooks, which ties codes and generators to it."""
    return sha256_tensor(tokenizer.quantizer.codebooks)


def save_tokenizer(
    path: str | Path,
    tokenizer: SavedTokenizer,
    *,
    class_names: tuple[str, ...] = (),
    history: Mapping[str, Any] | None = None,
) -> None:
    """Write a tokenizer folder."""
    extra = {"class_names": list(class_names), "history": {"tokenizer": dict(history or {})}}
    save_folder(path, kind="tokenizer", components={"tokenizer": tokenizer_component(tokenizer)}, extra=extra)


def load_tokenizer(name_or_path: str | Path) -> tuple[ImageTokenizer, Folder]:
    """The image tokenizer of a tokenizer or pipeline folder (or bundled model), in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, of another format or another tokenizer, or its tensors do not fit its
            configuration.
    """
    folder = load_folder(resolve_model(name_or_path))
    return cast(ImageTokenizer, tokenizer_of(folder, (ImageTokenizer,))), folder


def load_tokenizer_as(name_or_path: str | Path, classes: Sequence[type[Any]]) -> tuple[Any, Folder]:
    """`load_tokenizer` for tokenizers of other classes."""
    folder = load_folder(resolve_model(name_or_path))
    return tokenizer_of(folder, classes), folder


def tokenizer_of(folder: Folder, classes: Sequence[type[Any]]) -> Any:
    """The tokenizer in a folder, in evaluation mode.

    Args:
        folder: a loaded folder.
        classes: tokenizers that will do.

    Raises:
        CheckpointError: there is none, it is of another type or damaged.
    """
    saved, by_type = folder.component("tokenizer"), {one.component: one for one in classes}
    if saved.type not in by_type:
        raise CheckpointError(f"'{saved.path}': type {saved.type} cannot be used here; allowed: {', '.join(by_type)}")
    network = by_type[saved.type]
    config = config_from_dict(network.config_class, saved.config, where="tokenizer.")
    return restored(lambda: network(config), saved)


def save_pipeline(
    path: str | Path,
    tokenizer: SavedTokenizer,
    generator: CodeModel,
    *,
    sampling: AnySampling,
    class_names: tuple[str, ...],
    class_axes: Mapping[str, Sequence[str]] | None = None,
    history: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a pipeline folder.

    Args:
        path: of the folder.
        tokenizer: its codes are the generator's.
        generator: of any kind.
        sampling: settings of its sampler.
        class_names: of the classes; with several axes, of the first.
        class_axes: names on every axis, by its name, where the classes have named axes.
        history: how the parts were trained.
        extra: what else the folder says, such as a `description`.
        files: content of other files of it, such as its card, by name.

    Raises:
        CheckpointError: the generator has the codebooks of another tokenizer.
    """
    components = {
        "tokenizer": tokenizer_component(tokenizer),
        "generator": generator_component(generator, tokenizer),
    }
    own = {"sampling": config_to_dict(sampling), "class_names": list(class_names)}
    own |= {"class_axes": {axis: list(names) for axis, names in class_axes.items()}} if class_axes else {}
    others = {"history": dict(history or {}), **(extra or {})}
    save_folder(path, kind="pipeline", components=components, extra={**others, **own}, files=files)


def load_pipeline(name_or_path: str | Path, tokenizers: Sequence[type[Any]] = (ImageTokenizer,)) -> Pipeline:
    """A pipeline folder (or bundled model) with one of some tokenizers, both parts in evaluation mode.

    Raises:
        CheckpointError: as `load_tokenizer`, and where tokenizer and generator do not belong together.
    """
    folder = load_folder(resolve_model(name_or_path))
    if folder.kind == "speech-pipeline":
        raise CheckpointError(f"'{folder.path}' is a model of speech; open it with SpeechPipeline")
    tokenizer = tokenizer_of(folder, tokenizers)
    generator, sampling = generator_of(folder, tokenizer)
    class_names, class_axes = names_of_classes(folder, generator.condition.sizes)
    return Pipeline(
        tokenizer=tokenizer,
        generator=generator,
        sampling=sampling,
        class_names=class_names,
        class_axes=class_axes,
        folder=folder,
    )


def names_of_classes(folder: Folder, axis_sizes: Sequence[int]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Names of the classes of a generator in a folder, and those on each of its axes; none where they have no names.

    Args:
        folder: of a pipeline.
        axis_sizes: the number of classes on each axis.

    Raises:
        CheckpointError: there are more names or fewer.
    """
    class_names, sizes = folder.extra.get("class_names", []), list(axis_sizes)
    if len(class_names) not in (0, sizes[0]):
        raise CheckpointError(
            f"'{folder.path}': class_names must list the generator's {sizes[0]} classes, not {class_names!r}"
        )
    axes = folder.extra.get("class_axes", {})
    lists = list(axes.values()) if isinstance(axes, Mapping) else [axes]
    named = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
    if not named or (lists and ([len(names) for names in lists] != sizes or lists[0] != class_names)):
        raise CheckpointError(f"'{folder.path}': class_axes must name {sizes} classes, the first as class_names does")
    return tuple(class_names), {axis: tuple(names) for axis, names in axes.items()}


def generator_of(folder: Folder, tokenizer: SavedTokenizer) -> tuple[CodeModel, AnySampling]:
    """The generator in a pipeline folder, in evaluation mode, and its sampling settings.

    Raises:
        CheckpointError: there is none, it is damaged, or another tokenizer's codes made it.
    """
    config, spec = generator_config(folder)
    saved, kind = folder.component("generator"), kind_of(config)
    generator = restored(lambda: build(config, spec), saved)
    check_belongs(tokenizer, generator.spec, saved.config.get("codebooks_sha256"), str(folder.path))
    sampling = folder.extra.get("sampling", {})
    if not isinstance(sampling, dict):
        raise CheckpointError(f"'{folder.path}': sampling must be a mapping of settings, not {sampling!r}")
    return generator, config_from_dict(kind.sampling, sampling, where="sampling.")


def generator_config(folder: Folder) -> tuple[ModelConfig, CodeSpec]:
    """What the generator in a pipeline folder is built from: its configuration and the shape of its codes.

    Raises:
        CheckpointError: there is none, or it is of an unknown kind.
        ConfigError: its configuration is not one of that kind.
    """
    saved = folder.component("generator")
    if saved.type not in KINDS:
        raise CheckpointError(f"'{folder.path}': {unknown('generator type', saved.type, KINDS)}")
    kind = KINDS[saved.type]
    config = config_from_dict(kind.config, _mapping(saved, "model"), where="generator.model.")
    if kind_of(config) is not kind:
        raise CheckpointError(
            f"'{folder.path}': the generator is of type '{kind.name}', its configuration of '{kind_of(config).name}'"
        )
    return config, config_from_dict(CodeSpec, _mapping(saved, "spec"), where="generator.spec.")


def check_belongs(tokenizer: SavedTokenizer, spec: CodeSpec, codebooks_sha256: object, where: str) -> None:
    """Reject a generator (or code cache) that another tokenizer's codes made.

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


def tokenizer_component(tokenizer: SavedTokenizer) -> Component:
    """A tokenizer, to be saved."""
    module, exactly = cast(nn.Module, tokenizer), getattr(tokenizer, "published_exactly", False)
    tensors = module_tensors(module) if exactly else published(module)
    return Component(type=tokenizer.component, config=config_to_dict(tokenizer.config), tensors=tensors)


def generator_component(generator: CodeModel, tokenizer: SavedTokenizer) -> Component:
    """A generator, to be saved, with the fingerprint of the codebooks that it was trained on.

    Raises:
        CheckpointError: it has the codebooks of another tokenizer.
    """
    codebooks = tokenizer.quantizer.codebooks.float().to(generator.codebooks)
    fits = generator.spec == tokenizer.spec
    if not fits or (
        generator.codebooks.any() and not torch.allclose(generator.codebooks, codebooks * generator.latent_scale)
    ):
        raise CheckpointError("tokenizer and generator do not belong together: the generator has other codebooks")
    config = {
        "model": config_to_dict(generator.config),
        "spec": config_to_dict(generator.spec),
        "codebooks_sha256": fingerprint(tokenizer),
    }
    return Component(type=kind_of(generator.config).name, config=config, tensors=published(generator))


def restored(build: Callable[[], M], saved: SavedComponent) -> M:
    """A new module with the saved tensors, in evaluation mode; it takes no memory before these are known to fit.

    Raises:
        CheckpointError: the tensors do not fit, or are not finite.
        ConfigError: the module cannot be built, or is larger than its file.
    """
    tensors, where = load_tensors(saved), str(saved.path)
    values = sum(tensor.numel() for tensor in tensors.values())
    with outlining(f"the {saved.name} of '{saved.path.parent}'", tensors=len(tensors), values=values):
        shapes = build()
    check_match(module_tensors(shapes), tensors, where)
    module = build()
    load_state(module, tensors, where)
    return module.eval().requires_grad_(False)


def published(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors: parameters in bfloat16, buffers as they are."""
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
