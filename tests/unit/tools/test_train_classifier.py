"""The classifier learns and is reproducible."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from train_classifier import augment, command, main, train_classifier

from resgen.checkpoints.classifiers import load_classifier
from resgen.errors import ConfigError, DataError
from resgen.evaluation.image.classifier import accuracy, classify


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


def test_learns() -> None:
    pictures, labels = _bars(300, 0)
    seen: list[tuple[int, float, float]] = []
    model = train_classifier(
        pictures,
        labels,
        num_classes=3,
        num_steps=60,
        width=8,
        batch_size=32,
        flip=True,
        report=lambda *values: seen.append(values),
    )
    test, test_labels = _bars(200, 1)
    assert accuracy(model, test, test_labels) > 0.95
    assert accuracy(model, test, (test_labels + 1) % 3) < 0.1
    assert [step for step, _, _ in seen] == list(range(1, 61))
    assert seen[-1][1] == 1 and seen[29][1] == 0.5
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_reproducible() -> None:
    pictures, labels = _bars(40, 0)

    def logits(seed: int) -> Tensor:
        model = train_classifier(
            pictures, labels, num_classes=3, num_steps=3, width=4, batch_size=16, flip=True, seed=seed
        )
        return classify(model, pictures)

    first = logits(0)
    torch.rand(3)  # the global stream has no part in it
    assert torch.equal(first, logits(0))
    assert not torch.equal(first, logits(1))


def test_time_budget() -> None:
    pictures, labels = _bars(40, 0)
    seen: list[float] = []
    begin = time.monotonic()
    train_classifier(
        pictures,
        labels,
        num_classes=3,
        max_minutes=1 / 60,
        width=4,
        batch_size=16,
        report=lambda step, share, loss: seen.append(share),
    )
    assert 0.5 < time.monotonic() - begin < 2.5
    assert len(seen) > 3 and seen == sorted(seen) and seen[-1] <= 1


def test_augment_is_a_crop_of_the_reflected_picture() -> None:
    pictures = torch.arange(256, dtype=torch.uint8).view(2, 2, 8, 8)[:1].expand(200, 2, 8, 8)
    padded = F.pad(pictures[:1].float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)[0]
    crops = {bytes(padded[:, y : y + 8, x : x + 8].numpy().tobytes()): (y, x) for y in range(5) for x in range(5)}
    labels = {crops[picture.numpy().tobytes()] for picture in augment(pictures, 2, False, torch.Generator())}
    assert len(labels) == 25
    mirrored = augment(pictures, 2, True, torch.Generator())
    plain = [picture.numpy().tobytes() in crops for picture in mirrored]
    flipped = [picture.flip(2).contiguous().numpy().tobytes() in crops for picture in mirrored]
    assert 60 < sum(plain) < 140
    assert all(a != b for a, b in zip(plain, flipped, strict=True))


def test_refuses() -> None:
    pictures, labels = _bars(10, 0)
    with pytest.raises(ConfigError, match="max_minutes"):
        train_classifier(pictures, labels, num_classes=3)
    with pytest.raises(ConfigError, match="num_steps=0"):
        train_classifier(pictures, labels, num_classes=3, num_steps=0)
    with pytest.raises(DataError, match=r"labels span 0\.\.2; allowed: 0\.\.1"):
        train_classifier(pictures, labels.clamp(0, 2), num_classes=2, num_steps=1)
    with pytest.raises(DataError, match="one label"):
        train_classifier(pictures, labels[:5], num_classes=3, num_steps=1)


def test_folders_without_a_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, labels = _bars(60, 0)
    for number, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
        folder = tmp_path / "data" / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(folder / f"{number}.png")
    main(str(tmp_path / "data"), 12, 1, tmp_path / "judge", num_steps=2, width=4, batch_size=8, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["train_pictures"], said["test_pictures"]) == (57, 3)
    assert load_classifier(tmp_path / "judge")[1].extra["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("size", "options", "said"),
    [
        (12, ["--num-steps", "0"], "--num-steps=0"),
        (8, [], r"or have it done \(--resize\); .* --set tokenizer\.image_size=N$"),
    ],
)
def test_errors_name_options(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    options: list[str],
    said: str,
) -> None:
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (12, 12), number).save(tmp_path / "data" / name / f"{number}.png")
    line = f"tool --data {tmp_path / 'data'} --image-size {size} --channels 1 --out {tmp_path / 'judge'}"
    monkeypatch.setattr(sys, "argv", [*line.split(), *options])
    assert command() == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and re.search(said, last)
    assert not (tmp_path / "judge").exists()
