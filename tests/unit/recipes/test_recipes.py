"""Recipes: all build, the paper's has the paper's shapes, the overview counts without memory."""

from __future__ import annotations

import json

import pytest
import torch

from resgen.config import config_from_dict, config_to_dict, replace_nested
from resgen.errors import ConfigError
from resgen.models.resgen import ResGen
from resgen.recipes import get_recipe, recipe_names
from resgen.recipes.describe import count_parameters, describe_recipe
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.recipe import Recipe


def test_names() -> None:
    assert recipe_names() == ["digits", "fashion_mnist", "cifar10", "imagenette64", "imagenet256"]
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        get_recipe("cifar-10")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.name == name
    with torch.device("meta"):
        tokenizer = ImageTokenizer(recipe.tokenizer)
        generator = ResGen(recipe.generator, tokenizer.spec)
        size, channels = recipe.tokenizer.image_size, recipe.tokenizer.channels
        latents = tokenizer.latents(torch.empty(2, channels, size, size))
        assert latents.shape == (2, tokenizer.spec.num_positions, tokenizer.spec.code_dim)
    document = describe_recipe(recipe)
    json.dumps(document)
    assert document["recipe"] == name
    assert document["parameters"]["generator"]["total"] == sum(p.numel() for p in generator.parameters())
    assert document["parameters"]["tokenizer"] == count_parameters(tokenizer)
    assert config_from_dict(Recipe, config_to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("name", "size", "channels", "positions", "depth"),
    [
        ("digits", 8, 1, 16, 4),
        ("fashion_mnist", 28, 1, 16, 8),
        ("cifar10", 32, 3, 16, 16),
        ("imagenette64", 64, 3, 64, 16),
        ("imagenet256", 256, 3, 64, 16),
    ],
)
def test_shapes(name: str, size: int, channels: int, positions: int, depth: int) -> None:
    recipe = get_recipe(name)
    spec = recipe.tokenizer.spec
    assert (recipe.tokenizer.image_size, recipe.tokenizer.channels) == (size, channels)
    assert (spec.num_positions, spec.depth) == (positions, depth)


def test_the_paper_s_recipe() -> None:
    recipe = get_recipe("imagenet256")
    document = describe_recipe(recipe)
    assert document["parameters"]["generator"]["total"] == pytest.approx(576e6, rel=0.01)
    assert document["codes"] == {"depth": 16, "codebook_size": 1024, "code_dim": 64, "shape": [8, 8]}
    shallow = replace_nested(recipe, {"tokenizer.quantizer.depth": 8})
    assert describe_recipe(shallow)["parameters"]["generator"]["total"] == pytest.approx(576e6, rel=0.01)
    assert recipe.generator_loss.mask_schedule == "circle" and recipe.generator.class_dropout == 0.1


def test_only_the_built_in_data_needs_no_path() -> None:
    assert [name for name in recipe_names() if get_recipe(name).data.path] == ["digits"]


def test_parameters_are_counted_by_part() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(3, 1, bias=False)})
    assert count_parameters(module) == {"a": 9, "b": 3, "total": 12}
