"""Images beyond 64 pixels: what holds no gradients takes as many at a time as fit where the training step does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resgen.evaluation.image.classifier import classify
from resgen.nn.classifier import Classifier, ClassifierConfig
from resgen.ops.images import from_uint8
from resgen.pipelines.image.reconstruct import reconstruct
from resgen.quantizers import QuantizerConfig
from resgen.recipes.images import RECIPES
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.training.image.recipe import Recipe
from resgen.training.image.runs import encode_data, train_tokenizer
from resgen.training.image.tokenizer_task import TokenizerLossConfig
from resgen.training.interface import TrainerConfig
from resgen.training.stages import Run

SIDE, COUNT = 256, 40


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for index in range(COUNT):
            path = tmp_path / "data" / split / "class" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((SIDE, SIDE)).save(path)
    return tmp_path / "data"


@pytest.fixture
def recipe() -> Recipe:
    return replace(
        RECIPES["digits"](),
        tokenizer=ImageTokenizerConfig(
            image_size=SIDE,
            channels=1,
            patch_size=8,
            width=4,
            multipliers=(1, 1),
            num_res_blocks=1,
            code_dim=4,
            quantizer=QuantizerConfig(depth=2, codebook_size=4),
        ),
        tokenizer_loss=TokenizerLossConfig(perceptual_weight=0.0, adversarial_weight=0.0),
        tokenizer_training=TrainerConfig(num_steps=1, batch_size=2, ema_decay=0.0, loggers=()),
    )


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Images at a time, by what was called."""
    seen: dict[str, list[int]] = {}

    def spy(owner: type, name: str) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(method)
        def counted(self: object, batch: Any, *arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, []).append(len(batch))
            return method(self, batch, *arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    spy(ImageTokenizer, "latents")
    spy(ImageTokenizer, "decode")
    spy(Classifier, "features")
    return seen


def test_no_more_pixels_at_a_time_than_of_small_pictures(
    data: Path, recipe: Recipe, sizes: dict[str, list[int]], tmp_path: Path
) -> None:
    train_tokenizer(recipe, Run(out=tmp_path / "run", data=str(data)))
    whole, half = [16, 16, 8], [32, 8]
    assert sizes["latents"] == [*half, 2, *whole, 8], "start, training, validation, samples"
    assert sizes["decode"][:6] == [16, 16, 16, 16, 8, 8], "one level, then two"
    sizes.clear()
    encode_data(tmp_path / "run" / "model", data, tmp_path / "codes")
    assert sizes["latents"] == [*whole, *whole]
    sizes.clear()
    assert reconstruct(tmp_path / "run" / "model", data, tmp_path / "levels.png").num_pictures == COUNT
    assert sizes["latents"] == whole


def test_so_does_the_judge(sizes: dict[str, list[int]]) -> None:
    judge = Classifier(ClassifierConfig(image_size=SIDE, channels=1, num_classes=2, width=1)).eval()
    pictures = torch.randint(0, 256, (COUNT, 1, SIDE, SIDE), dtype=torch.uint8)
    logits = classify(judge, pictures)
    assert sizes["features"] == [16, 16, 8]
    assert torch.allclose(logits, judge(from_uint8(pictures)), atol=0.1)
