"""What is inside a saved model or a recipe, as plain data for `resgen inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from resgen.checkpoints.format import load_folder, resolve_model
from resgen.config import config_to_dict
from resgen.models.resgen import ResGen
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.recipe import Recipe


def describe_artefact(name_or_path: str | Path) -> dict[str, Any]:
    """Configuration, parameters by part, hashes and training history of a saved model; hashes are verified."""
    folder = load_folder(resolve_model(name_or_path))
    components = {}
    for name, saved in folder.components.items():
        parts: dict[str, int] = {}
        with safe_open(str(saved.path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                count = 1
                for size in file.get_slice(key).get_shape():
                    count *= size
                part = key.partition(".")[0]
                parts[part] = parts.get(part, 0) + count
        components[name] = {
            "type": saved.type,
            "file": saved.path.name,
            "sha256": saved.sha256,
            "bytes": saved.path.stat().st_size,
            "numbers_by_part": parts,
            "numbers": sum(parts.values()),
            "config": saved.config,
        }
    return {
        "path": str(folder.path),
        "kind": folder.kind,
        "resgen_version": folder.resgen_version,
        "components": components,
        **folder.extra,
    }


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Configuration and parameters by part of a recipe's models, counted on the meta device: no memory is allocated."""
    with torch.device("meta"):
        tokenizer = ImageTokenizer(recipe.tokenizer)
        generator = ResGen(recipe.generator, recipe.tokenizer.spec)
    return {
        "recipe": recipe.name,
        "codes": config_to_dict(recipe.tokenizer.spec),
        "parameters": {"tokenizer": count_parameters(tokenizer), "generator": count_parameters(generator)},
        "config": config_to_dict(recipe),
    }


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Parameters by direct child, and `total`; buffers are not counted."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    return {**parts, "total": sum(p.numel() for p in module.parameters())}
