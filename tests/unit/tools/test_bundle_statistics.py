"""The features that a classifier's own data have, beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_statistics import BundleStatistics
from PIL import Image

from resgen.checkpoints.classifiers import save_classifier
from resgen.evaluation.image import shipped
from resgen.evaluation.image.extractors import load_extractor
from resgen.evaluation.image.protocol import MANIFOLD_SIZE
from resgen.evaluation.image.reference import open_reference, reference_features
from resgen.nn.classifier import Classifier, ClassifierConfig


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "ASSETS", tmp_path / "assets")
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(image_size=8, channels=1, num_classes=2, width=4))
    save_classifier(tmp_path / "assets" / "judge", model, class_names=("a", "b"))
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    for index, picture in enumerate(noise):
        folder = tmp_path / "data" / "train" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index}.png")
    return tmp_path / "assets"


def test_evaluations_find_them(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BundleStatistics(extractor=str(assets / "judge"), data=tmp_path / "data").run()
    assert "judge/statistics-train: 30 images" in capsys.readouterr().out
    reference = open_reference(tmp_path / "data", split="train", image_size=8, channels=1)
    extractor = load_extractor(assets / "judge")
    real = reference_features(reference, extractor, manifold_size=MANIFOLD_SIZE)
    assert real.shipped
    expected = reference_features(reference, extractor, manifold_size=MANIFOLD_SIZE, use_shipped=False)
    assert torch.equal(real.statistics.mean, expected.statistics.mean)
    assert torch.equal(real.statistics.scatter.tril(), expected.statistics.scatter.tril())


def test_other_classes_are_refused(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "train" / "b").rename(tmp_path / "data" / "train" / "c")
    with pytest.raises(SystemExit, match="other classes"):
        BundleStatistics(extractor=str(assets / "judge"), data=tmp_path / "data").run()
    assert not list(assets.rglob("statistics-*"))
