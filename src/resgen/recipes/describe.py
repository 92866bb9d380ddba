"""What a recipe would build, as plain data for `resgen inspect --recipe`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from resgen.config import config_to_dict
from resgen.kinds import build
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.recipe import Recipe


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Configuration and parameters by part of a recipe's models, counted on the meta device: no memory is allocated."""
    with torch.device("meta"):
        tokenizer = ImageTokenizer(recipe.tokenizer)
        generator = build(recipe.generator, recipe.tokenizer.spec)
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
