"""Estimates of the training stages of an image recipe; see `training.plan`."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from resgen.data.pictures.store import PictureStore
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.image.recipe import Recipe
from resgen.training.image.tokenizer_task import TokenizerTask
from resgen.training.plan import Stage, generator_stage, task_stage, task_step
from resgen.training.tracing import Step


def stages_of(recipe: Recipe) -> list[Stage]:
    """The trainings in their order."""
    spec = recipe.tokenizer.spec
    step = partial(tokenizer_step, recipe)
    tokenizer = task_stage(
        "tokenizer", recipe.tokenizer_training, step, spec.num_positions, spec.num_positions * spec.depth
    )
    return [tokenizer, generator_stage(recipe, spec.num_positions, {}, before=[tokenizer])]


def tokenizer_step(recipe: Recipe) -> Step:
    """Reconstruction, commitment and adversarial losses; a perceptual network is not counted."""
    config = recipe.tokenizer
    store = _Pictures((config.channels, config.image_size, config.image_size))
    task = TokenizerTask(ImageTokenizer(config), recipe.tokenizer_loss, store, store.batch(torch.arange(1)))
    return task_step(task, recipe.tokenizer_loss.adversarial_start)


class _Pictures(PictureStore):
    """Black images."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def batch(self, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        return torch.zeros(len(indices), *self.shape, dtype=torch.uint8)
