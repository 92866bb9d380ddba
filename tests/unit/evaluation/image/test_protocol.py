"""The protocol names what a number depends on, survives a file, and refuses comparisons that mean nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from resgen.config import config_to_dict
from resgen.errors import CheckpointError, ConfigError
from resgen.evaluation.image.protocol import (
    EvaluationProtocol,
    check_comparable,
    distance_name,
    load_protocol,
)
from resgen.files import write_json

SETTINGS: dict[str, Any] = {
    "purpose": "generation",
    "extractor": "digits-classifier",
    "extractor_sha256": "a" * 64,
    "reference": "digits/train",
    "reference_split": "train",
    "reference_sha256": "b" * 64,
    "num_reference": 1600,
    "num_samples": 500,
    "class_balance": "equal",
    "image_size": 8,
    "channels": 1,
    "sampling": {"num_steps": 8, "guidance_scale": 2.0, "mask_schedule": "circle"},
    "kid_subset_size": 100,
}
CHANGES: dict[str, Any] = {
    "extractor": "other",
    "extractor_sha256": "c" * 64,
    "reference_split": "test",
    "reference_sha256": "c" * 64,
    "num_reference": 1601,
    "num_samples": 501,
    "class_balance": "data",
    "image_size": 16,
    "channels": 3,
    "resize": "lanczos",
    "sampling": {"num_steps": 9, "guidance_scale": 2.0, "mask_schedule": "circle"},
    "seeds": (0, 1),
    "kid_subsets": 50,
    "kid_subset_size": 99,
    "is_splits": 5,
    "pr_k": 5,
    "manifold_size": 200,
    "bootstrap": 20,
    "metrics_version": 2,
    "purpose": "reconstruction",
}


def make(**changes: Any) -> EvaluationProtocol:
    return EvaluationProtocol(**{**SETTINGS, **changes})


def test_file(tmp_path: Path) -> None:
    protocol = make(seeds=(3, 1))
    write_json(tmp_path / "protocol.json", config_to_dict(protocol))
    assert load_protocol(tmp_path / "protocol.json") == protocol
    (tmp_path / "report.json").write_text(json.dumps({"format": "x", "protocol": json.loads(_text(tmp_path))}))
    assert load_protocol(tmp_path / "report.json") == protocol, "the protocol of a report"


def _text(folder: Path) -> str:
    return (folder / "protocol.json").read_text()


def test_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "protocol.json"
    write_json(path, config_to_dict(make()))
    good = json.loads(path.read_text())
    for changes, named in (({"num_sample": 5}, "num_samples"), ({"num_samples": "5"}, "num_samples")):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(ConfigError, match=named):
            load_protocol(path)
    del good["extractor_sha256"]
    path.write_text(json.dumps(good))
    with pytest.raises(ConfigError, match="extractor_sha256"):
        load_protocol(path)
    with pytest.raises(CheckpointError, match="missing"):
        load_protocol(tmp_path / "none.json")


def test_identity() -> None:
    assert make().protocol_id == make().protocol_id and len(make().protocol_id) == 12
    seen = {make(**{name: value}).protocol_id for name, value in CHANGES.items()}
    assert len(seen) == len(CHANGES) and make().protocol_id not in seen
    names = {field.name for field in dataclasses.fields(EvaluationProtocol)}
    assert names == {*CHANGES, "reference"}, "this test knows every field"


@pytest.mark.parametrize("name", CHANGES)
def test_a_difference_is_refused(name: str) -> None:
    first, second = make(), make(**{name: CHANGES[name]})
    check_comparable(first, first)
    message = "num_steps is 8 and 9" if name == "sampling" else f"{name} is "
    for pair in ((first, second), (second, first)):
        with pytest.raises(ConfigError, match="cannot be compared") as caught:
            check_comparable(*pair)
    assert message.replace("8 and 9", "9 and 8") in str(caught.value)
    assert ";" in str(caught.value), "the reason"


def test_generation_and_reconstruction_are_refused_for_their_own_reason() -> None:
    with pytest.raises(ConfigError, match="near copies"):
        check_comparable(make(), make(purpose="reconstruction"))


def test_the_same_pictures_under_another_name_may_be_compared() -> None:
    check_comparable(make(), make(reference="elsewhere"))


def test_the_settings_of_the_sampler_may_be_what_is_compared() -> None:
    first = make()
    check_comparable(first, make(sampling={"top_k": 3}), any_sampling=True)
    with pytest.raises(ConfigError, match="guidance_scale is None and 2.0"):
        check_comparable(make(sampling={}), first)
    with pytest.raises(ConfigError, match="seeds"):
        check_comparable(first, make(seeds=(5,)), any_sampling=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"purpose": "speed"}, "generation, reconstruction"),
        ({"class_balance": "some"}, "equal, data, none"),
        ({"resize": "nearest"}, "none, lanczos"),
        ({"extractor": ""}, "extractor=''"),
        ({"reference_sha256": ""}, "reference_sha256=''"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "different"),
        ({"seeds": (-1,)}, "at least 0"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"bootstrap": 1}, "bootstrap=1"),
        ({"pr_k": 0}, "pr_k=0"),
        ({"num_samples": 99}, "num_samples=99 .* too few for kid_subset_size=100"),
        ({"num_reference": 50}, "num_reference=50 are too few"),
        ({"num_samples": 3, "kid_subset_size": 2}, "too few for pr_k=3"),
        ({"is_splits": 501}, "too few for is_splits=501"),
        ({"sampling": {"x": object()}}, "plain values"),
        ({"sampling": {"x": float("nan")}}, "plain values"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(**changes)


def test_names_of_the_distance() -> None:
    standard = "6726825d" + "0" * 56
    assert distance_name("inception", standard) == "FID"
    assert distance_name("inception", "1" * 64) == "FD-inception", "other weights give other numbers"
    assert distance_name("inception-v4", standard) == "FD-inception-v4"
    assert make().metric_name == "FD-digits-classifier"
    assert make(purpose="reconstruction").metric_name == "rFD-digits-classifier"
    names = {"extractor": "inception", "extractor_sha256": standard}
    assert make(**names).metric_name == "FID" and make(**names, purpose="reconstruction").metric_name == "rFID"


def test_guidance() -> None:
    assert make().guided
    assert not make(sampling={"guidance_scale": 0.0}).guided and not make(sampling={}).guided
