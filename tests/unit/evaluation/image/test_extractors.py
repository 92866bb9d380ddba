"""Extractors by name, folder, file and function, and what they refuse."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from resgen.checkpoints.classifiers import save_classifier
from resgen.checkpoints.tensors import sha256_file
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.evaluation.image import extractors, metrics
from resgen.evaluation.image.extractors import (
    Extractor,
    bundled_classifiers,
    default_extractor,
    load_extractor,
)
from resgen.evaluation.image.protocol import INCEPTION_SHA256, distance_name
from resgen.extras import MissingExtraError
from resgen.nn.classifier import Classifier, ClassifierConfig
from resgen.ops.images import from_uint8

PICTURES = torch.randint(0, 256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _classifier() -> Classifier:
    model = Classifier(ClassifierConfig(image_size=8, channels=1, num_classes=3, width=4))
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_classifier(tmp_path / "judge", _classifier(), class_names=["a", "b", "c"])
    return tmp_path / "judge"


def test_a_classifier(folder: Path) -> None:
    extractor = load_extractor(folder)
    output = extractor(PICTURES)
    model = _classifier()
    features = model.features(from_uint8(PICTURES)).detach()
    assert torch.equal(output.features, features) and output.features.dtype == torch.float32
    assert output.logits is not None and torch.equal(output.logits, model.out(features).detach())
    assert extractor.num_features == 32 and extractor.class_names == ("a", "b", "c")
    assert extractor.name == "judge"
    assert extractor.sha256 == sha256_file(folder / "classifier.safetensors")
    assert load_extractor(folder.parent / "judge", expected_sha256=extractor.sha256[:8].upper()).name == "judge"


def test_batches_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = load_extractor(folder)
    whole = extractor(PICTURES)
    monkeypatch.setattr(extractors, "BATCH", 2)
    parts = extractor(PICTURES)
    assert torch.allclose(parts.features, whole.features, atol=1e-6) and parts.logits is not None
    assert len(parts.logits) == 7


def test_the_run_folder_of_a_classifier_names_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "model")
    assert load_extractor(tmp_path / "run").name == "run"


def test_another_hash(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'.*judge'.* have SHA-256 [0-9a-f]{12}\.\.\., expected is 00000000"):
        load_extractor(folder, expected_sha256="0" * 64)
    with pytest.raises(ConfigError, match="at least 8"):
        load_extractor(folder, expected_sha256="")


def test_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown extractor 'nothing'.*inception.*folder of a classifier"):
        load_extractor("nothing")
    weights = folder / "classifier.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(CheckpointError, match="damaged"):
        load_extractor(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_extractor(folder)


def test_a_model_is_no_extractor() -> None:
    with pytest.raises(CheckpointError, match="holds a pipeline; an extractor is a classifier"):
        load_extractor("fashion-mnist-small")


def test_pictures_of_another_shape(folder: Path) -> None:
    extractor = load_extractor(folder)
    for shape in ((2, 3, 8, 8), (2, 1, 16, 16)):
        with pytest.raises(ConfigError, match=r"takes images of 1 x 8 x 8, not \d x \d"):
            extractor(torch.zeros(shape, dtype=torch.uint8))


def _of_function(name: str, extract: Any, num_features: int = 64) -> Extractor:
    return Extractor(name=name, sha256="ab", num_features=num_features, extract=extract)


def test_a_function() -> None:
    def function(pictures: Tensor) -> Tensor:
        return pictures.flatten(1).double()

    extractor = _of_function("pixels", function)
    output = extractor(PICTURES)
    assert torch.equal(output.features, PICTURES.flatten(1).float()) and output.logits is None
    with pytest.raises(DataError, match=r"shape \(7, 64\) for 7 images; \(7, 65\) is expected"):
        _of_function("pixels", function, num_features=65)(PICTURES)
    with pytest.raises(DataError, match=r"\(1, 64\)"):
        _of_function("one", lambda pictures: function(pictures)[:1])(PICTURES)
    pair = _of_function("pair", lambda pictures: (function(pictures), function(pictures)[:, :2]))(PICTURES)
    assert pair.logits is not None and pair.logits.shape == (7, 2)


def test_features_that_are_not_finite() -> None:
    def spoiled(pictures: Tensor) -> tuple[Tensor, Tensor]:
        rows = pictures.flatten(1).float()
        logits = rows[:, :2].clone()
        logits[3, 1] = math.inf
        return rows, logits

    with pytest.raises(DataError, match="1 of 7 rows of logits of extractor 'bad'"):
        _of_function("bad", spoiled)(PICTURES)
    with pytest.raises(DataError, match="7 of 7 rows of features of extractor 'bad' hold NaN"):
        _of_function("bad", lambda pictures: pictures.flatten(1) * math.nan)(PICTURES)


@pytest.mark.parametrize("name", ["inception", "Inception", "FID"])
def test_nothing_else_is_called_inception(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="another name"):
        load_extractor(folder.rename(folder.parent / name))


def test_the_default_knows_the_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "list_bundled", lambda: ["fashion-mnist-small", "judge"])
    known = extractors.resolve_model
    monkeypatch.setattr(extractors, "resolve_model", lambda name: folder if name == "judge" else known(name))
    assert bundled_classifiers() == ["judge"]
    assert default_extractor(("a", "b", "c"), 8, 1) == "judge"
    for names, size, channels in ((("a", "b"), 8, 1), (("a", "b", "c"), 9, 1), (("a", "b", "c"), 8, 3)):
        with pytest.raises(ConfigError, match="--extractor runs/judge, or give another one: judge, inception") as error:
            default_extractor(names, size, channels)
        assert f"tools/train_classifier.py --data DATA --image-size {size} --channels {channels} " in str(error.value)


def test_bundled_classifiers_load() -> None:
    for name in bundled_classifiers():
        extractor = load_extractor(name)
        assert extractor.image_size is not None and extractor.channels is not None
        shape = (2, extractor.channels, extractor.image_size, extractor.image_size)
        output = extractor(torch.zeros(shape, dtype=torch.uint8))
        assert output.logits is not None and output.logits.shape == (2, len(extractor.class_names))
        assert default_extractor(extractor.class_names, extractor.image_size, extractor.channels) == name


def test_inception_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.delenv(extractors.WEIGHTS_VARIABLE, raising=False)
    with pytest.raises(MissingExtraError, match=r"torch-fidelity.*\[fid\]"):
        load_extractor("inception")


def test_inception_takes_the_standard_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is not even opened by torch before its hash is known to be right."""
    file = tmp_path / "weights.pth"
    file.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"weights\.pth.*expected is 6726825d"):
        load_extractor(file)
    monkeypatch.setenv(extractors.WEIGHTS_VARIABLE, str(file))
    with pytest.raises(CheckpointError, match=r"weights\.pth.*expected is 6726825d"):
        load_extractor("inception")
    monkeypatch.setenv(extractors.WEIGHTS_VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match=r"none\.pth.*cannot be read"):
        load_extractor("inception")


def test_inception_with_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to torch-fidelity, and what is made of its answer."""
    calls = []

    class StandIn(nn.Module):
        def __init__(self, name: str, features_list: list[str], weights: str) -> None:
            super().__init__()
            calls.append((name, features_list, weights))

        def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
            assert pictures.dtype == torch.uint8 and pictures.shape[1] == 3
            return torch.ones(len(pictures), 2048), torch.zeros(len(pictures), 1008)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3, module.URL_INCEPTION_V3 = StandIn, "https://nowhere.invalid/weights.pth"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"the standard weights")
    monkeypatch.setattr(extractors, "sha256_file", lambda path: INCEPTION_SHA256 + "0" * 56)
    extractor = load_extractor(file)
    assert calls == [("inception", ["2048", "logits_unbiased"], str(file))]
    assert (extractor.name, extractor.num_features) == ("inception", 2048)
    assert extractor(PICTURES).features.shape == (7, 2048), "grey images become RGB"


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_inception() -> None:
    try:
        extractor = load_extractor("inception")
    except CheckpointError as error:
        pytest.skip(f"no weights: {error}")
    pictures = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    output = extractor(pictures)
    assert output.features.shape == (4, 2048) and (output.features >= 0).all()
    assert output.logits is not None and output.logits.shape == (4, 1008)
    assert distance_name("inception", extractor.sha256) == "FID" and extractor.sha256.startswith(INCEPTION_SHA256)


class _Pictures(Dataset[Tensor]):
    """What torch-fidelity takes for a set of images: a tensor is none."""

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return self.pictures[index]


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_metrics_are_those_of_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard network, with random weights, on the same images: FID, KID, Inception score, precision, recall."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    def randomize(network: nn.Module, _: dict[str, Tensor]) -> None:
        stream = torch.Generator().manual_seed(0)
        for name, value in network.state_dict().items():
            if value.ndim > 1:
                value.normal_(0, math.sqrt(2 / value[0].numel()), generator=stream)
            elif "running" not in name:
                value.copy_(torch.full_like(value, float("weight" in name)))

    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", randomize)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: {})
    monkeypatch.setattr(extractors, "sha256_file", lambda path: INCEPTION_SHA256 + "0" * 56)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"the standard weights")
    stream = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (2, 24, 3, 32, 32), generator=stream, dtype=torch.uint8)
    first, second = (noise * torch.linspace(0.3, 1, 24)[:, None, None, None]).to(torch.uint8)
    second = second // 8 * 7
    extractor = load_extractor(file)
    ours, theirs = extractor(first), extractor(second)
    assert ours.logits is not None
    expected = torch_fidelity.calculate_metrics(
        input1=_Pictures(first), input2=_Pictures(second), fid=True, kid=True, isc=True, prc=True, isc_splits=1,
        kid_subsets=1, kid_subset_size=24, feature_extractor="inception-v3-compat", cuda=False, cache=False,
        feature_extractor_weights_path=str(file), batch_size=8, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert expected["frechet_inception_distance"] > 0 and 0 < expected["precision"] < 1
    distance = metrics.frechet_distance(ours.features, theirs.features)
    assert distance == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    kernel = metrics.kernel_distance(ours.features, theirs.features, num_subsets=1, subset_size=24, stream=stream)
    assert kernel.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    score = metrics.inception_score(ours.logits, splits=1, stream=stream)
    assert score.mean - 1 == pytest.approx(expected["inception_score_mean"] - 1, rel=1e-2)
    manifold = metrics.precision_recall(ours.features, theirs.features)
    assert manifold == pytest.approx((expected["precision"], expected["recall"]))
