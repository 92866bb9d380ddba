"""A training's step beside its products: convolutions are counted with both gradients, and the training ends."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from recipe_throughput import StepRecorder, watch
from torch import nn

from resgen.cli.main import main as resgen
from resgen.evaluation.bench.products import record_products
from resgen.evaluation.bench.speed import EnoughError
from resgen.training.trainer import Trainer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 8, 8)),
        (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, output_padding=1), (2, 4, 9)),
        (nn.Linear(4, 6), (2, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_is_its_products(layer: nn.Module, shape: tuple[int, ...]) -> None:
    given = torch.ones(shape, requires_grad=True)
    products = record_products(layer, partial(layer, given), recorder=StepRecorder)
    results = [call() for call in products.calls]
    results = [one for result in results for one in (result if isinstance(result, tuple) else (result,))]
    shapes = [tuple(one.shape) for one in results if one is not None]
    assert shapes[0] == tuple(layer(given).shape)
    assert {tuple(given.shape), tuple(layer.weight.shape)} <= set(shapes[1:])


def test_a_training_is_watched_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(Trainer, "_train_step", Trainer._train_step)  # put back afterwards
    times = watch(2)
    with pytest.raises(EnoughError):
        resgen(["train", "tokenizer", "--recipe", "digits", "--out", str(tmp_path / "run")])
    assert len(times["step"]) == len(times["products"]) == 2
    assert 0 < min(times["products"]) < min(times["step"])
