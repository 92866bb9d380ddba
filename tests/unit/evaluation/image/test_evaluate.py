"""Whole evaluations of stand-ins: numbers, chunks on disk, interruptions, refusals, reports."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resgen.errors import CheckpointError, ConfigError, DataError, WriteError
from resgen.evaluation.image import reference as reference_module
from resgen.evaluation.image.checks import generation_protocol, reconstruction_protocol
from resgen.evaluation.image.evaluate import (
    Subject,
    class_ids_of,
    evaluate_generation,
    evaluate_reconstruction,
)
from resgen.evaluation.image.extractors import Extractor
from resgen.evaluation.image.metrics import frechet_distance, kernel_distance, precision_recall, ssim
from resgen.evaluation.image.protocol import EvaluationProtocol
from resgen.evaluation.image.reference import Reference, choose_split, open_reference, reference_features
from resgen.evaluation.image.report import EvaluationReport, load_report
from resgen.evaluation.report import write_report
from resgen.ops.images import psnr_db

CLASSES = ("dark", "middle", "light")
GUIDED = {"num_steps": 4, "guidance_first": 1.0, "guidance_scale": 2.0}


def _pictures(labels: Tensor, seed: int) -> Tensor:
    """4x4 grey images: the class is the brightness; noise."""
    noise = torch.randint(-40, 41, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    return (60 + 60 * labels.view(-1, 1, 1, 1) + noise).to(torch.uint8)


def make_reference(count: int = 90, **changes: Any) -> Reference:
    labels = torch.arange(count) % 3
    pictures = _pictures(labels, 0)
    values = {
        "name": "toy/train",
        "split": "train",
        "sha256": "d" * 64,
        "class_names": CLASSES,
        "labels": labels,
        "image_size": 4,
        "channels": 1,
        "resize": "none",
        "batch": lambda indices: pictures[indices],
    }
    return Reference(**{**values, **changes})


class Model:
    """Makes the images of the class, noisier without guidance; remembers what it was asked for."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.calls: list[tuple[range, bool, int]] = []
        self.stop_after = stop_after

    def __call__(self, indices: range, class_ids: list[int], guided: bool, seed: int) -> Tensor:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((indices, guided, seed))
        parts = [
            _pictures(torch.tensor([label]), 1000 * seed + index)
            for index, label in zip(indices, class_ids, strict=True)
        ]
        pictures = torch.cat(parts)
        return pictures if guided else pictures // 2 + 40


class Counted:
    """Features: a few sums of pixels; logits: nearness to the brightness of the classes."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(pictures)
        x = pictures.float().flatten(1)
        rows = torch.stack([x.mean(1), x[:, :8].mean(1), x[:, ::2].mean(1), x.std(1)], dim=1)
        middles = torch.tensor([60.0, 120.0, 180.0])
        return rows, -((x.mean(1, keepdim=True) - middles) ** 2) / 100


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def extractor(counted: Counted) -> Extractor:
    return Extractor(name="toy", extract=counted, sha256="e" * 64, num_features=4, class_names=CLASSES)


def make_protocol(extractor: Extractor, reference: Reference, **changes: Any) -> EvaluationProtocol:
    settings = {"num_samples": 60, "sampling": GUIDED, "kid_subsets": 5, "bootstrap": 10}
    return generation_protocol(extractor, reference, **{**settings, **changes})


def generation(extractor: Extractor, model: Model | None = None, **changes: Any) -> EvaluationReport:
    options = {name: changes.pop(name) for name in ("cache_dir", "chunk_size", "advance") if name in changes}
    sha256 = changes.pop("model_sha256", "f" * 64)
    reference = changes.pop("reference", make_reference())
    protocol = changes.pop("protocol", None) or make_protocol(extractor, reference, **changes)
    return evaluate_generation(
        model or Model(), protocol, extractor, reference, Subject(name="toy", sha256=sha256), **options
    )


def _plain(report: EvaluationReport) -> EvaluationReport:
    """Without the only number that may differ."""
    return dataclasses.replace(report, generation=tuple(dataclasses.replace(r, seconds=0.0) for r in report.generation))


def test_numbers(extractor: Extractor, counted: Counted) -> None:
    report = generation(extractor, seeds=(0, 7))
    assert [(r.setting, r.seed) for r in report.generation] == [
        ("guided", 0),
        ("guided", 7),
        ("unguided", 0),
        ("unguided", 7),
    ]
    real = counted(make_reference().batch(torch.arange(90)))[0]
    for result in report.generation:
        pictures = Model()(range(60), [k % 3 for k in range(60)], result.setting == "guided", result.seed)
        rows, logits = counted(pictures)
        assert result.distance == pytest.approx(frechet_distance(rows, real), rel=1e-6)
        low, high = result.distance_interval
        assert 0 <= low < result.distance < high
        assert (result.precision, result.recall) == precision_recall(rows, real)
        share = float((logits.argmax(1) == torch.arange(60) % 3).double().mean())
        assert result.recognised == pytest.approx(share)
        assert result.recognised_interval is not None
        assert result.recognised_interval[0] < share < result.recognised_interval[1] + 1e-9
        assert result.inception_score is not None and 1 <= result.inception_score <= 3.0001
        assert result.seconds > 0
    guided, unguided = report.generation[0], report.generation[2]
    assert guided.distance < unguided.distance and guided.kernel_distance < unguided.kernel_distance
    assert report.over_seeds("guided", "distance") == pytest.approx(
        (
            (report.generation[0].distance + report.generation[1].distance) / 2,
            abs(report.generation[0].distance - report.generation[1].distance) / math.sqrt(2),
        )
    )
    assert 0 < report.floor.halves_distance < unguided.distance and report.floor.num_per_half == 45
    assert report.floor.recognised == 1.0


def test_kernel_distance_is_that_of_the_function(extractor: Extractor, counted: Counted) -> None:
    report = generation(extractor, kid_subsets=1, kid_subset_size=60, manifold_size=90)
    rows = counted(Model()(range(60), [k % 3 for k in range(60)], True, 0))[0]
    real = counted(make_reference(60).batch(torch.arange(60)))[0]
    same = generation(extractor, kid_subsets=1, kid_subset_size=60, reference=make_reference(60))
    expected = kernel_distance(rows, real, num_subsets=1, subset_size=60, stream=torch.Generator())
    assert same.generation[0].kernel_distance == pytest.approx(expected.mean)
    assert report.generation[0].kernel_distance != same.generation[0].kernel_distance


def test_without_guidance_there_is_one_setting(extractor: Extractor) -> None:
    model = Model()
    report = generation(extractor, model, sampling={"num_steps": 4, "guidance_scale": 0.0})
    assert report.settings == ("unguided",) and not any(guided for _, guided, _ in model.calls)


def test_chunks_change_nothing(extractor: Extractor) -> None:
    whole = generation(extractor)
    for size in (1, 7, 60):
        assert _plain(generation(extractor, chunk_size=size)) == _plain(whole)


@pytest.mark.parametrize("stop_after", [0, 3, 7])
def test_an_interrupted_evaluation_goes_on(
    extractor: Extractor, counted: Counted, tmp_path: Path, stop_after: int
) -> None:
    whole = generation(extractor, chunk_size=13)
    first, second, third = Model(stop_after=stop_after), Model(), Model()
    with pytest.raises(KeyboardInterrupt):
        generation(extractor, first, chunk_size=13, cache_dir=tmp_path)
    assert len(first.calls) == stop_after
    counted.seen = 0
    report = generation(extractor, second, chunk_size=13, cache_dir=tmp_path)
    assert len(second.calls) == 10 - stop_after, "five chunks for each of two settings"
    assert not set(map(str, first.calls)) & set(map(str, second.calls)), "no chunk is made twice"
    assert counted.seen == sum(len(indices) for indices, _, _ in second.calls), "nor is the reference"
    assert _plain(report) == _plain(whole)
    counted.seen = 0
    again = generation(extractor, third, chunk_size=13, cache_dir=tmp_path)
    assert third.calls == [] and counted.seen == 0
    assert again == report, "even the seconds are those of the samples"
    assert not list(tmp_path.rglob("*.tmp*"))


def test_an_interrupted_reference_goes_on(
    extractor: Extractor, counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "CHUNK", 10)
    monkeypatch.setattr(reference_module, "SAVE_EVERY", 2)
    whole = reference_features(make_reference(), extractor, manifold_size=50)
    full = make_reference()

    def until_55(indices: Tensor) -> Tensor:
        if int(indices.max()) > 55:
            raise KeyboardInterrupt
        return full.batch(indices)

    with pytest.raises(KeyboardInterrupt):
        reference_features(make_reference(batch=until_55), extractor, manifold_size=50, cache_dir=tmp_path)
    counted.seen = 0
    result = reference_features(full, extractor, manifold_size=50, cache_dir=tmp_path)
    assert counted.seen == 50, "40 of 90 were done and written"
    assert torch.equal(result.rows, whole.rows) and len(result.rows) == 50
    assert torch.equal(result.statistics.scatter, whole.statistics.scatter) and result.statistics.count == 90
    assert result[2:] == whole[2:]


def test_the_cache_is_of_one_model_setting_and_seed(extractor: Extractor, tmp_path: Path) -> None:
    generation(extractor, cache_dir=tmp_path)
    for changes in ({"model_sha256": "0" * 64}, {"sampling": {**GUIDED, "num_steps": 5}}, {"seeds": (1,)}):
        model = Model()
        generation(extractor, model, cache_dir=tmp_path, **changes)
        assert len(model.calls) == 2, changes
    model = Model()
    generation(extractor, model, cache_dir=tmp_path, sampling={**GUIDED, "guidance_scale": 3.0})
    assert [guided for _, guided, _ in model.calls] == [True], "unguided samples do not depend on the guidance"
    model = Model()
    generation(extractor, model, cache_dir=tmp_path, class_balance="data", reference=make_reference(89))
    assert len(model.calls) == 2, "other classes"
    model = Model()
    generation(extractor, model, cache_dir=tmp_path, bootstrap=5, kid_subsets=3)
    assert model.calls == [], "the measures alone changed"


def test_more_samples_take_up_finished_chunks(extractor: Extractor, tmp_path: Path) -> None:
    generation(extractor, cache_dir=tmp_path, num_samples=40, chunk_size=20)
    model = Model()
    report = generation(extractor, model, cache_dir=tmp_path, num_samples=70, chunk_size=20)
    assert [indices for indices, _, _ in model.calls] == 2 * [range(40, 60), range(60, 70)]
    assert _plain(report) == _plain(generation(extractor, num_samples=70))


def test_a_chunk_of_other_classes_is_made_again(extractor: Extractor, tmp_path: Path) -> None:
    other = make_reference(labels=torch.tensor([0] * 60 + [1] * 20 + [2] * 10), sha256="1" * 64)
    generation(extractor, cache_dir=tmp_path, class_balance="data")
    report = generation(extractor, cache_dir=tmp_path, class_balance="data", reference=other)
    assert _plain(report) == _plain(generation(extractor, class_balance="data", reference=other))


def test_a_damaged_chunk_is_made_again(extractor: Extractor, tmp_path: Path) -> None:
    expected = generation(extractor, cache_dir=tmp_path, chunk_size=20)
    damaged = sorted(tmp_path.rglob("chunk-*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    model = Model()
    assert _plain(generation(extractor, model, cache_dir=tmp_path, chunk_size=20)) == _plain(expected)
    assert len(model.calls) == 1


def test_what_cannot_be_identified_is_not_kept(extractor: Extractor, tmp_path: Path) -> None:
    generation(extractor, cache_dir=tmp_path, model_sha256="")
    assert not list(tmp_path.glob("samples-*"))
    anonymous = dataclasses.replace(extractor, sha256="")
    report = generation(anonymous, cache_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert any("has no hash" in warning for warning in report.warnings)


def test_a_cache_that_cannot_be_written(extractor: Extractor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        generation(extractor, cache_dir=tmp_path / "file")


def test_classes_of_the_samples(extractor: Extractor) -> None:
    reference = make_reference(labels=torch.tensor([0] * 60 + [1] * 20 + [2] * 10))
    equal = class_ids_of(make_protocol(extractor, reference, num_samples=8), reference)
    assert equal == [0, 1, 2, 0, 1, 2, 0, 1]
    data = class_ids_of(make_protocol(extractor, reference, num_samples=20, class_balance="data"), reference)
    assert [data.count(c) for c in range(3)] == [13, 5, 2] and data != sorted(data)
    assert class_ids_of(make_protocol(extractor, reference, num_samples=9, class_balance="none"), reference) == [0] * 9


def test_warnings(extractor: Extractor) -> None:
    result = generation(extractor).warnings
    assert len(result) == 1 and "60 samples are fewer than 10,000" in result[0]
    few = generation(extractor, num_samples=4, kid_subset_size=2, is_splits=1)
    assert "the covariance of 4 samples in 4 features is singular" in few.warnings[1] and len(few.warnings) == 2
    small = make_reference(4)
    result = generation(extractor, reference=small, kid_subset_size=2).warnings
    assert "4 reference images in 4 features" in result[1]


def test_nan_features_are_refused_and_not_kept(counted: Counted, tmp_path: Path) -> None:
    def spoiled(pictures: Tensor) -> Tensor:
        rows = counted(pictures)[0]
        rows[-1] = math.nan
        return rows

    extractor = Extractor(name="bad", extract=spoiled, sha256="9" * 64, num_features=4)
    with pytest.raises(DataError, match="1 of 90 rows of features of extractor 'bad' hold NaN"):
        generation(extractor, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_not_the_protocol_s_is_refused(extractor: Extractor) -> None:
    protocol = make_protocol(extractor, make_reference())
    for changes, named in (
        ({"sha256": "0" * 64}, "reference_sha256"),
        ({"split": "test"}, "reference_split"),
        ({"resize": "lanczos"}, "resize='none'"),
    ):
        with pytest.raises(ConfigError, match=named):
            generation(extractor, protocol=protocol, reference=make_reference(**changes))
    with pytest.raises(ConfigError, match="extractor_sha256"):
        generation(dataclasses.replace(extractor, sha256="0" * 64), protocol=protocol)
    with pytest.raises(ConfigError, match="purpose='generation'"):
        evaluate_reconstruction(
            lambda p: (p, None), protocol, extractor, make_reference(), Subject(name="m", sha256=""), codebook_size=4
        )
    with pytest.raises(DataError, match="needs labels"):
        generation(extractor, reference=make_reference(class_names=("picture",)))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(59, 1, 4, 4).byte(), torch.zeros(60, 3, 4, 4).byte(), torch.zeros(60, 1, 4, 4)]
)
def test_samples_of_another_shape(extractor: Extractor, wrong: Tensor) -> None:
    reference = make_reference()
    with pytest.raises(DataError, match="the protocol wants"):
        evaluate_generation(
            lambda *_: wrong, make_protocol(extractor, reference), extractor, reference, Subject(name="m", sha256="")
        )


def test_progress(extractor: Extractor) -> None:
    seen: list[tuple[int, int, str]] = []
    generation(extractor, chunk_size=25, advance=lambda *values: seen.append(values))
    assert [done for done, total, title in seen if title == "guided, seed 0" and total == 60] == [0, 25, 50, 60]
    assert {title for *_, title in seen} >= {"reference", "unguided, seed 0"}
    assert seen[0] == (0, 90, "reference")


def _blur(pictures: Tensor) -> tuple[Tensor, Tensor]:
    codes = (pictures.long().flatten(1)[:, :2, None] // 64).repeat(1, 1, 2)
    codes[..., 1] = 0
    return (pictures // 16 * 16 + 8), codes


def reconstruction(extractor: Extractor, reconstruct: Any = _blur, **changes: Any) -> EvaluationReport:
    reference = changes.pop("reference", make_reference(split="test"))
    cache, chunk = changes.pop("cache_dir", None), changes.pop("chunk_size", 500)
    protocol = reconstruction_protocol(extractor, reference, bootstrap=10, **changes)
    return evaluate_reconstruction(
        reconstruct,
        protocol,
        extractor,
        reference,
        Subject(name="toy-tokenizer", sha256="a" * 64),
        codebook_size=4,
        cache_dir=cache,
        chunk_size=chunk,
    )


def test_reconstruction(extractor: Extractor, counted: Counted) -> None:
    report = reconstruction(extractor)
    result = report.reconstruction
    assert result is not None and report.protocol.metric_name == "rFD-toy"
    pictures = make_reference().batch(torch.arange(90))
    outputs, codes = _blur(pictures)
    assert result.psnr_db == pytest.approx(float(psnr_db(outputs, pictures).mean()))
    assert result.psnr_db_std == pytest.approx(float(psnr_db(outputs, pictures).std()))
    assert result.ssim == pytest.approx(float(ssim(outputs, pictures).mean()))
    assert result.distance == pytest.approx(frechet_distance(counted(outputs)[0], counted(pictures)[0]), rel=1e-6)
    assert result.recognised == report.floor.recognised == 1.0
    share = torch.bincount(codes[..., 0].flatten(), minlength=4).double() / 180
    entropy = -torch.special.xlogy(share, share).sum()
    assert result.usage == pytest.approx((float((share > 0).double().mean()), 0.25))
    assert result.perplexity == pytest.approx((float(entropy.exp()), 1.0))
    perfect = reconstruction(extractor, lambda p: (p, None)).reconstruction
    assert perfect is not None and perfect.distance == pytest.approx(0, abs=1e-6)
    assert (perfect.psnr_db, perfect.ssim, perfect.usage) == (100.0, pytest.approx(1.0), ())


def test_reconstruction_goes_on(extractor: Extractor, tmp_path: Path) -> None:
    calls: list[int] = []

    def reconstruct(pictures: Tensor) -> tuple[Tensor, Tensor]:
        if len(calls) == 2:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(len(pictures))
        return _blur(pictures)

    with pytest.raises(KeyboardInterrupt):
        reconstruction(extractor, reconstruct, cache_dir=tmp_path, chunk_size=25)
    report = reconstruction(extractor, reconstruct, cache_dir=tmp_path, chunk_size=25)
    assert calls == [25, 25, 0, 25, 15]
    whole = reconstruction(extractor)
    assert report.reconstruction is not None and whole.reconstruction is not None
    assert report.reconstruction.usage == whole.reconstruction.usage
    assert report.reconstruction.distance == whole.reconstruction.distance
    part = reconstruction(extractor, reconstruct, cache_dir=tmp_path, num_samples=30)
    assert calls[-1] == 30 and part.reconstruction is not None, "a choice of the reference"


def test_reconstruction_refuses(extractor: Extractor) -> None:
    with pytest.raises(ConfigError, match="num_samples=91 must be at most 90"):
        reconstruction(extractor, num_samples=91)
    with pytest.raises(DataError, match="reconstructions are torch.float32"):
        reconstruction(extractor, lambda p: (p.float(), None))


def test_report_files(extractor: Extractor, tmp_path: Path) -> None:
    for name, report in (
        ("one", generation(extractor)),
        ("seeds", generation(extractor, seeds=(0, 1))),
        ("tokenizer", reconstruction(extractor)),
    ):
        write_report(report, tmp_path / f"{name}.json")
        assert load_report(tmp_path / f"{name}.json") == report
        text = (tmp_path / f"{name}.md").read_text()
        assert text == report.markdown()
        protocol = report.protocol
        for said in (protocol.protocol_id, protocol.extractor_sha256, protocol.metric_name, "Floor", "fewer than"):
            assert said in text, said
        assert "FID" not in text, "the extractor is not Inception"
    assert "over 2 seeds" in (tmp_path / "seeds.md").read_text()
    assert "| guided |" in (tmp_path / "one.md").read_text() and "| unguided |" in (tmp_path / "one.md").read_text()
    assert "perplexity" in (tmp_path / "tokenizer.md").read_text()


def test_no_report_without_its_protocol(extractor: Extractor, tmp_path: Path) -> None:
    report = generation(extractor)
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    del values["protocol"]
    with pytest.raises(TypeError, match="protocol"):
        EvaluationReport(**values)
    with pytest.raises(ConfigError, match="protocol for generation cannot hold numbers of reconstruction"):
        dataclasses.replace(report, generation=(), reconstruction=reconstruction(extractor).reconstruction)
    with pytest.raises(ConfigError, match="cannot hold"):
        dataclasses.replace(report, generation=())
    write_report(report, tmp_path / "a.json")
    good = json.loads((tmp_path / "a.json").read_text())
    for changes, error in (
        ({"protocol": None}, ConfigError),
        ({"format": "other"}, CheckpointError),
        ({"format_version": 2}, CheckpointError),
        ({"metric": "FID"}, CheckpointError),
        ({"protocol": {**good["protocol"], "num_samples": 50_000}}, CheckpointError),
    ):
        (tmp_path / "b.json").write_text(json.dumps({**good, **changes}))
        with pytest.raises(error):
            load_report(tmp_path / "b.json")


def test_opening_a_reference(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert choose_split("digits", "test") == "test" and choose_split("digits", "validation") == "train"
    result = open_reference("digits", split="test", image_size=8, channels=1)
    assert len(result) == 179 and result.class_names == tuple("0123456789") and result.is_labelled
    assert result.batch(torch.tensor([3])).shape == (1, 1, 8, 8) and result.resize == "none"
    assert len(result.sha256) == 64
    with pytest.raises(DataError, match="8x8 pixels, but 16x16 is expected.*resize=True"):
        open_reference("digits", split="test", image_size=16, channels=1)
    resized = open_reference("digits", split="test", image_size=16, channels=1, resize=True)
    assert resized.resize == "lanczos" and resized.batch(torch.tensor([0])).shape == (1, 1, 16, 16)


def test_classes_of_the_reference() -> None:
    reference = make_reference()
    reference.check_classes(CLASSES, 3)
    reference.check_classes((), 3)
    reference.check_classes((), 0)
    make_reference(class_names=("picture",)).check_classes((), 0)
    with pytest.raises(DataError, match="has no labels, but the model generates 3 classes"):
        make_reference(class_names=("picture",)).check_classes(CLASSES, 3)
    with pytest.raises(DataError, match="dark, middle, light; the model has light, middle, dark"):
        reference.check_classes(("light", "middle", "dark"), 3)
    with pytest.raises(DataError, match="class 3"):
        reference.check_classes((), 4)
