"""Starting a training from the weights of a saved model instead of from scratch: fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resgen.checkpoints.artefacts import SavedTokenizer, check_belongs
from resgen.checkpoints.format import SavedComponent, load_folder, load_tensors
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.tensors import load_state, module_tensors
from resgen.data.announce import announce
from resgen.errors import ConfigError
from resgen.kinds import ModelConfig, build
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
        part: what of it: tokenizer, vocoder, text or generator.

    Raises:
        CheckpointError: there is no such part, it is damaged, or of another shape.
    """
    folder = load_folder(resolve_model(name_or_path))
    load_state(module, load_tensors(folder.component(part)), str(folder.path))


@torch.no_grad()
def start_generator_from(generator: CodeModel, name_or_path: str | Path, tokenizer: SavedTokenizer) -> None:
    """`start_from` for a generator, which must have been trained on codes of the same tokenizer.

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
