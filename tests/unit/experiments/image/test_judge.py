"""What a judge says while it looks at the reference, which may take minutes, and what it measures."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from resgen import progress
from resgen.evaluation.image.extractors import Extractor
from resgen.evaluation.image.metrics import precision_recall
from resgen.experiments.image import judge
from resgen.progress import Advance


def test_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")

    def slow(*values: Any, advance: Advance, **options: Any) -> str:
        advance(500, 1618, "reference")
        time.sleep(0.3)
        return "features"

    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.05)
    monkeypatch.setattr(judge, "load_extractor", lambda name, device: SimpleNamespace(name=name))
    monkeypatch.setattr(judge, "reference_features", slow)
    assert judge.Judge("digits", image_size=8, channels=1, extractor="toy").real == "features"
    assert "reference: 500 of 1,618" in capsys.readouterr().err.splitlines()


def test_precision_and_recall_are_measured_beside_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    toy = Extractor(
        name="toy", sha256="", num_features=6, extract=lambda pictures: pictures.double().flatten(1)[:, 18:24] / 255
    )
    monkeypatch.setattr(judge, "load_extractor", lambda name, device: toy)
    asked = judge.Judge("digits", image_size=8, channels=1, extractor="toy")
    real = asked.reference.batch(torch.arange(100))

    def typical(class_ids: list[int], first: int) -> Tensor:
        return real[:10].repeat(10, 1, 1, 1)[first : first + len(class_ids)]

    def typical_rows() -> Tensor:
        return toy(typical([0] * 100, 0)).features

    score = asked.score(typical, 0, 100)
    assert (score.precision, score.recall) == precision_recall(typical_rows(), asked.real.rows, k=3)
    assert score.precision == 1 and score.recall is not None and score.recall < 0.1, "ten images, ten times each"
    varied = asked.score(lambda class_ids, first: real[first : first + len(class_ids)], 0, 100)
    assert varied.recall is not None and varied.recall > 2 * score.recall
    few = asked.score(typical, 0, 99)
    assert few.precision is None and few.recall is None, "of so few, nearly everything lies among them"
