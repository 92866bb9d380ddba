"""Recipes: all build, the paper's has the paper's shapes, the overview counts without memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch

from resgen.config import config_from_dict, config_to_dict, replace_nested
from resgen.errors import ConfigError
from resgen.kinds import KINDS, build, kind_of
from resgen.kinds.presets import RESGEN
from resgen.modalities import load_recipe
from resgen.models.resgen import ResGenConfig
from resgen.recipes import images, speech
from resgen.recipes.describe import describe_recipe, parameters_by_part
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.image.recipe import Recipe
from resgen.training.stages import with_kind


def test_names() -> None:
    assert list(images.RECIPES) == [
        "digits",
        "fashion_mnist",
        "cifar10",
        "cifar10_8x8",
        "avatars64",
        "imagenette64",
        "imagenet256",
    ]
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        load_recipe("cifar-10")[1]


@pytest.mark.parametrize("name", images.RECIPES)
def test_every_recipe_builds(name: str) -> None:
    recipe = load_recipe(name)[1]
    assert recipe.name == name
    with torch.device("meta"):
        tokenizer = ImageTokenizer(recipe.tokenizer)
        generator = build(recipe.generator, tokenizer.spec)
        size, channels = recipe.tokenizer.image_size, recipe.tokenizer.channels
        latents = tokenizer.latents(torch.empty(2, channels, size, size))
        assert latents.shape == (2, tokenizer.spec.num_positions, tokenizer.spec.code_dim)
    document = describe_recipe(recipe)
    json.dumps(document)
    assert document["recipe"] == name
    assert document["parameters"]["generator"]["total"] == sum(p.numel() for p in generator.parameters())
    assert document["parameters"]["tokenizer"] == parameters_by_part(tokenizer)
    assert config_from_dict(Recipe, config_to_dict(recipe)) == recipe


@dataclass(frozen=True, kw_only=True)
class Headless(ResGenConfig):
    """A configuration that takes neither head of a recipe by default."""

    head: str = "tokens"


@pytest.mark.parametrize("name", [*images.RECIPES, *speech.RECIPES])
def test_every_recipe_states_its_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a configuration or a preset takes by default decides nothing."""
    for module in (images, speech):
        monkeypatch.setattr(module, "ResGenConfig", Headless)
    for size, config in RESGEN.items():
        monkeypatch.setitem(RESGEN, size, replace(config, head="tokens"))
    recipe = load_recipe(name)[1]
    assert kind_of(recipe.generator).name in ("resgen", "residual")


@pytest.mark.parametrize(
    ("name", "size", "channels", "positions", "depth"),
    [
        ("digits", 8, 1, 16, 4),
        ("fashion_mnist", 28, 1, 16, 8),
        ("cifar10", 32, 3, 16, 16),
        ("cifar10_8x8", 32, 3, 64, 8),
        ("avatars64", 64, 3, 64, 12),
        ("imagenette64", 64, 3, 64, 16),
        ("imagenet256", 256, 3, 64, 16),
    ],
)
def test_shapes(name: str, size: int, channels: int, positions: int, depth: int) -> None:
    recipe = load_recipe(name)[1]
    spec = recipe.tokenizer.spec
    assert (recipe.tokenizer.image_size, recipe.tokenizer.channels) == (size, channels)
    assert (spec.num_positions, spec.depth) == (positions, depth)


def test_the_paper_s_recipe() -> None:
    recipe = load_recipe("imagenet256")[1]
    document = describe_recipe(recipe)
    assert document["parameters"]["generator"]["total"] == pytest.approx(576e6, rel=0.01)
    assert document["codes"] == {"depth": 16, "codebook_size": 1024, "code_dim": 64, "shape": [8, 8]}
    shallow = replace_nested(recipe, {"tokenizer.quantizer.depth": 8})
    assert describe_recipe(shallow)["parameters"]["generator"]["total"] == pytest.approx(576e6, rel=0.01)
    assert recipe.generator_loss.mask_schedule == "circle" and recipe.generator.class_dropout == 0.1


def test_only_the_built_in_data_needs_no_path() -> None:
    assert [name for name in images.RECIPES if load_recipe(name)[1].data.path] == ["digits"]


def test_parameters_are_counted_by_part() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(3, 1, bias=False)})
    assert parameters_by_part(module) == {"a": 9, "b": 3, "total": 12}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_of_every_kind_is_read_back(kind: str) -> None:
    recipe = with_kind(load_recipe("digits")[1], kind)
    document = json.loads(json.dumps(config_to_dict(recipe)))
    again = config_from_dict(Recipe, document)
    assert again == recipe and kind_of(again.generator).name == kind
    assert document["generator"]["kind"] == type(recipe.generator).tag
    assert "kind" not in config_to_dict(recipe.generator), "saved models and runs say it elsewhere"
    assert replace_nested(recipe, document) == recipe
    assert replace_nested(recipe, {"generator.width": 96}).generator == replace(recipe.generator, width=96)


def test_wrong_kinds_are_named() -> None:
    recipe = load_recipe("digits")[1]
    document = config_to_dict(recipe)
    with pytest.raises(ConfigError, match="unknown generator.kind 'masgit' .did you mean 'maskgit'"):
        config_from_dict(Recipe, document | {"generator": {"kind": "masgit"}})
    with pytest.raises(ConfigError, match="unknown configuration key 'generator.num_components'"):
        config_from_dict(Recipe, document | {"generator": document["generator"] | {"kind": "maskgit"}})
    with pytest.raises(ConfigError, match="generator.kind=maskgit is not what is configured, unmasking; .* --kind"):
        replace_nested(recipe, {"generator.kind": "maskgit"})
