"""Features that come with the package: equal to computed ones, and only of the very images they belong to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from resgen.evaluation.image import shipped as module
from resgen.evaluation.image.evaluate import Subject
from resgen.evaluation.image.extractors import Extractor
from resgen.evaluation.image.metrics import (
    MeanStd,
    PrecisionRecall,
    frechet_distance,
    kernel_distance,
    neighbour_radii,
    precision_recall,
)
from resgen.evaluation.image.reference import (
    Reference,
    neighbours,
    open_reference,
    pixels_sha256,
    reference_features,
)
from resgen.evaluation.image.shipped import ReferenceFeatures, Shipped, shipped_of, write_shipped

SIZE, COUNT, WIDTH, ROWS = 4, 1200, 12, 1000
CLASSES = ("dark", "light")


class Features:
    """Random features of pixels and logits by brightness; counts the images."""

    def __init__(self) -> None:
        self.seen = 0
        self.weights = torch.randn(SIZE * SIZE, WIDTH, generator=torch.Generator().manual_seed(1))

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(pictures)
        x = pictures.float().flatten(1) / 255
        return (x @ self.weights).relu(), torch.stack([0.5 - x.mean(1), x.mean(1) - 0.5], 1)


def make_pictures(count: int = COUNT, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 120, (count, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    return (noise + 130 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def make_reference(pictures: Tensor, labels: Tensor, sha256: str = "d" * 64, **changes: Any) -> Reference:
    values = {
        "name": "toy/train",
        "split": "train",
        "sha256": sha256,
        "class_names": CLASSES,
        "labels": labels,
        "image_size": SIZE,
        "channels": 1,
        "resize": "none",
        "batch": lambda indices: pictures[indices],
    }
    return Reference(**{**values, **changes})


@pytest.fixture
def features() -> Features:
    return Features()


@pytest.fixture
def extractor(features: Features) -> Extractor:
    return Extractor(name="toy", extract=features, sha256="e" * 64, num_features=WIDTH, class_names=CLASSES)


@pytest.fixture
def record(extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shipped features of `make_pictures()`."""
    monkeypatch.setattr(module, "ASSETS", tmp_path / "assets")
    reference = make_reference(*make_pictures())
    real = reference_features(reference, extractor, manifold_size=ROWS)
    assert real.shipped == ""
    shipped = Shipped(
        data="toy/train",
        pixels_sha256=pixels_sha256(reference),
        files_sha256=reference.sha256,
        resize="none",
        count=COUNT,
        image_size=SIZE,
        channels=1,
        class_names=CLASSES,
        extractor="toy",
        extractor_sha256=extractor.sha256,
        manifold_size=ROWS,
        halves_distance=real.halves_distance,
        num_recognised=real.num_recognised,
    )
    path = tmp_path / "assets" / "toy" / "statistics-train.json"
    write_shipped(path, shipped, real)
    return path


def measured(real: ReferenceFeatures, rows: Tensor) -> tuple[float, MeanStd, PrecisionRecall]:
    kernel = kernel_distance(rows, real.rows, num_subsets=10, subset_size=300, stream=torch.Generator().manual_seed(0))
    return frechet_distance(rows, real.statistics), kernel, precision_recall(rows, real.rows)


def test_numbers_are_those_of_the_pictures(extractor: Extractor, features: Features, record: Path) -> None:
    reference = make_reference(*make_pictures())
    expected = reference_features(reference, extractor, manifold_size=ROWS, use_shipped=False)
    features.seen = 0
    real = reference_features(reference, extractor, manifold_size=ROWS)
    assert features.seen == 0 and real.shipped == json.loads(record.read_text())["sha256"]
    assert (real.halves_distance, real.num_recognised) == (expected.halves_distance, expected.num_recognised)
    assert real.statistics.count == COUNT and torch.equal(real.statistics.mean, expected.statistics.mean)
    span = expected.rows.amax(0) - expected.rows.amin(0)
    assert ((real.rows - expected.rows).abs() <= span / 255 * 0.51 + 1e-6).all() and len(real.rows) == ROWS
    rows = features(make_pictures(500, seed=5)[0])[0]
    (distance, kernel, manifold), exact = measured(real, rows), measured(expected, rows)
    assert distance == pytest.approx(exact[0], rel=1e-12)
    assert abs(kernel.mean - exact[1].mean) <= 0.02 * exact[1].std
    assert manifold == pytest.approx(exact[2], abs=0.005) and 0 < manifold.recall < 1


def test_a_report_says_so(extractor: Extractor, record: Path) -> None:
    reference, subject = make_reference(*make_pictures()), Subject(name="m", sha256="")
    real = reference_features(reference, extractor, manifold_size=ROWS)
    assert subject.entries(real)["environment"]["shipped_reference"] == real.shipped != ""
    computed = reference_features(reference, extractor, manifold_size=ROWS, use_shipped=False)
    assert "shipped_reference" not in subject.entries(computed)["environment"]


def test_neighbours_are_those_of_the_rows_and_kept(
    extractor: Extractor, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make_reference(*make_pictures())
    real = reference_features(reference, extractor, manifold_size=ROWS)
    radii = neighbours(real, reference, extractor, 3, cache_dir=tmp_path / "cache")
    assert torch.equal(radii, neighbour_radii(real.rows, 3))
    computed = reference_features(reference, extractor, manifold_size=ROWS, use_shipped=False)
    assert torch.equal(
        neighbours(computed, reference, extractor, 3, cache_dir=tmp_path / "cache"), neighbour_radii(computed.rows, 3)
    ), "those of the exact rows are others"
    monkeypatch.setattr("resgen.evaluation.image.reference.neighbour_radii", lambda rows, k: rows[:, 0])
    assert torch.equal(neighbours(real, reference, extractor, 3, cache_dir=tmp_path / "cache"), radii)
    assert torch.equal(neighbours(real, reference, extractor, 4, cache_dir=tmp_path / "cache"), real.rows[:, 0])


def test_files_that_are_known_are_not_even_decoded(extractor: Extractor, record: Path) -> None:
    def never(indices: Tensor) -> Tensor:
        raise AssertionError("decoded")

    real = reference_features(make_reference(*make_pictures(), batch=never), extractor, manifold_size=ROWS)
    assert real.shipped


def test_the_same_pictures_in_other_files_and_order(
    extractor: Extractor, features: Features, record: Path, tmp_path: Path
) -> None:
    pictures, labels = make_pictures()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    calls: list[int] = []

    def batch(indices: Tensor) -> Tensor:
        calls.append(len(indices))
        return pictures[order][indices]

    other = make_reference(pictures, labels[order], sha256="0" * 64, batch=batch)
    features.seen = 0
    cache = tmp_path / "cache"
    for again in (False, True):
        assert reference_features(other, extractor, manifold_size=ROWS, cache_dir=cache).shipped
        assert features.seen == 0 and sum(calls) == COUNT, "decoded for the hash, once" + " more" * again


def _other_pixel() -> Reference:
    pictures, labels = make_pictures()
    pictures[7, 0, 1, 2] += 1
    return make_reference(pictures, labels, sha256="1" * 64)


def _other_label() -> Reference:
    pictures, labels = make_pictures()
    labels[[0, 1]] = labels[[1, 0]]
    return make_reference(pictures, labels, sha256="2" * 64)


def _one_twice() -> Reference:
    pictures, labels = make_pictures()
    pictures[2] = pictures[0]
    return make_reference(pictures, labels, sha256="3" * 64)


@pytest.mark.parametrize(
    "reference",
    [
        _other_pixel(),
        _other_label(),
        _one_twice(),
        make_reference(*make_pictures(COUNT - 2)),
        make_reference(*make_pictures(), class_names=("light", "dark")),
        make_reference(*make_pictures(seed=1), resize="lanczos"),
    ],
    ids=["pixel", "label", "twice", "fewer", "classes", "resized"],
)
def test_other_pictures_are_computed(
    extractor: Extractor, features: Features, record: Path, tmp_path: Path, reference: Reference
) -> None:
    features.seen = 0
    real = reference_features(reference, extractor, manifold_size=ROWS, cache_dir=tmp_path / "cache")
    assert real.shipped == "" and features.seen == len(reference)


def test_other_weights_rows_versions_and_damage_are_computed(
    extractor: Extractor, features: Features, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make_reference(*make_pictures())

    def computed(extractor: Extractor = extractor, rows: int = ROWS) -> bool:
        features.seen = 0
        real = reference_features(reference, extractor, manifold_size=rows)
        assert features.seen == (0 if real.shipped else COUNT)
        return not real.shipped

    assert not computed()
    assert computed(dataclasses.replace(extractor, sha256="0" * 64))
    assert computed(dataclasses.replace(extractor, sha256=""))
    assert computed(rows=ROWS - 1)
    good = json.loads(record.read_text())
    for wrong in ({"metrics_version": 99}, {"sha256": "0" * 64}, {"nonsense": 1}, {"count": "many"}):
        record.write_text(json.dumps({**good, **wrong}))
        assert computed(), wrong
    record.write_text("{")
    assert computed()
    record.write_text(json.dumps(good))
    assert not computed()
    numbers = record.with_suffix(".safetensors")
    content = bytearray(numbers.read_bytes())
    content[-1] ^= 1
    numbers.write_bytes(content)
    assert computed(), "a bit has changed"
    numbers.unlink()
    assert computed()


def test_an_interrupted_cache_does_not_keep_what_is_shipped_away(
    extractor: Extractor, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resgen.evaluation.image.reference.CHUNK", 100)
    monkeypatch.setattr("resgen.evaluation.image.reference.SAVE_EVERY", 1)
    pictures, labels = make_pictures()

    def batch(indices: Tensor) -> Tensor:
        if int(indices.max()) >= 500:
            raise KeyboardInterrupt
        return pictures[indices]

    stopped = make_reference(pictures, labels, batch=batch)
    with pytest.raises(KeyboardInterrupt):
        reference_features(stopped, extractor, manifold_size=ROWS, cache_dir=tmp_path / "cache", use_shipped=False)
    assert reference_features(stopped, extractor, manifold_size=ROWS, cache_dir=tmp_path / "cache").shipped


def test_the_hash_is_of_pixels_not_of_files(tmp_path: Path) -> None:
    pictures, labels = make_pictures(6)
    for suffix in ("png", "bmp"):
        for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            folder = tmp_path / suffix / CLASSES[int(label)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(picture[0])).save(folder / f"{suffix}{-index % 6}.{suffix}")
    first, second = (
        open_reference(tmp_path / suffix, split="train", image_size=SIZE, channels=1) for suffix in ("png", "bmp")
    )
    assert first.sha256 != second.sha256
    assert pixels_sha256(first) == pixels_sha256(second) == pixels_sha256(make_reference(pictures, labels))


def test_bundled_records_belong_to_bundled_classifiers() -> None:
    from resgen.checkpoints.locate import ASSETS
    from resgen.evaluation.image.extractors import load_extractor

    records = sorted(ASSETS.glob("*/statistics-*.json"))
    assert {path.parent.name for path in records} >= {"fashion-mnist-classifier", "cifar10-classifier"}
    for path in records:
        extractor = load_extractor(path.parent.name)
        found = dict(shipped_of(extractor.sha256))
        assert found[path].class_names == extractor.class_names and found[path].extractor == extractor.name
        assert (found[path].image_size, found[path].channels) == (extractor.image_size, extractor.channels)
        real = module.read_shipped(path, found[path])
        assert real is not None and real.statistics.count == found[path].count
        assert len(real.rows) == min(found[path].manifold_size, found[path].count)
        assert real.num_recognised is not None and real.num_recognised / real.statistics.count > 0.9
        # the rows are a random choice of what the statistics are of
        gap = (real.rows.double().mean(0) - real.statistics.mean) / real.statistics.covariance.diagonal().sqrt()
        assert gap.abs().max() < 5 / len(real.rows) ** 0.5
        assert path.with_suffix(".safetensors").stat().st_size < 3_500_000
