"""The classifier's features, and what is saved of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resgen.checkpoints.classifiers import load_classifier, save_classifier
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.evaluation.image.classifier import classify, features
from resgen.nn.classifier import Classifier, ClassifierConfig


def _bars(count: int, seed: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy images with a horizontal bar, a vertical bar or none, anywhere."""
    stream = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 90, (count, channels, 12, 12), generator=stream, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=stream)
    where = torch.randint(2, 10, (count,), generator=stream)
    for picture, label, place in zip(pictures, labels.tolist(), where.tolist(), strict=True):
        if label == 0:
            picture[:, place] = 220
        if label == 1:
            picture[:, :, place] = 220
    return pictures, labels


def test_features_and_logits_belong_together() -> None:
    pictures, _ = _bars(300, 0, channels=3)
    model = Classifier(ClassifierConfig(image_size=12, channels=3, num_classes=5, width=4)).eval()
    inner = features(model, pictures)
    assert inner.shape == (300, 32) and inner.dtype == torch.float32
    assert torch.allclose(classify(model, pictures), model.out(inner), atol=1e-6)
    assert torch.allclose(classify(model, pictures[290:]), classify(model, pictures)[290:], atol=0.05)
    assert classify(model, pictures).std(0).min() > 0


def test_save_and_load(tmp_path: Path) -> None:
    pictures, _ = _bars(40, 0)
    model = Classifier(ClassifierConfig(image_size=12, channels=1, num_classes=3, width=4))
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.train()(pictures.float())  # norms that are not the initial ones
    model.eval()
    save_classifier(tmp_path / "c", model, class_names=("a", "b", "c"), history={"test_accuracy": 0.5})
    loaded, folder = load_classifier(tmp_path / "c")
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(classify(loaded, pictures), classify(model, pictures))
    assert folder.extra == {"class_names": ["a", "b", "c"], "history": {"test_accuracy": 0.5}}
    file = next((tmp_path / "c").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_classifier(tmp_path / "c")
    with pytest.raises(CheckpointError, match="folder"):
        load_classifier(tmp_path / "none")


def test_refuses() -> None:
    pictures, _ = _bars(10, 0)
    model = Classifier(ClassifierConfig(image_size=12, channels=1, num_classes=3, width=4)).eval()
    with pytest.raises(DataError, match=r"\(1, 12, 12\)"):
        classify(model, pictures[:, :, :8, :8])
    for wrong in ({"channels": 2}, {"image_size": 4}, {"num_classes": 1}, {"width": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ClassifierConfig(**{"image_size": 12, "channels": 1, "num_classes": 3, **wrong})
