"""Reports of evaluations that stay with a model, and the metadata of cards that comes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resgen.checkpoints.card import write_card
from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import ASSETS, resolve_model
from resgen.checkpoints.measured import keep, reports, result_of
from resgen.errors import CheckpointError
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"


def report(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return document


def front_matter(text: str) -> dict[str, Any]:
    """What the hub reads of a card, checked as its own client checks it where that is installed."""
    _, head, _ = text.split("---\n", 2)
    entries: dict[str, Any] = yaml.safe_load(head)
    try:
        from huggingface_hub import ModelCard
    except ImportError:
        return entries
    card = ModelCard(text)
    assert len(card.data.eval_results or []) == sum(
        len(one["metrics"]) for index in entries.get("model-index", []) for one in index["results"]
    )
    return entries


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("fashion-mnist-small"), folder)
    (folder / "README.md").unlink()
    return folder


def test_a_report_of_pictures() -> None:
    document = report("evaluate-fashion-mnist-small.json")
    entry = result_of(document)
    assert entry["dataset"]["name"] == "fashion_mnist" and entry["dataset"]["split"] == "train"
    assert entry["dataset"]["args"] == {"samples": 2000, "seeds": [0], "protocol": document["protocol_id"]}
    metrics = {metric["name"]: (metric["type"], metric["value"]) for metric in entry["metrics"]}
    assert metrics["FD-fashion-mnist-classifier, guided"] == ("fd-fashion-mnist-classifier", 4.7179)
    assert metrics["recognised, unguided"] == ("recognised", 0.7965)


def test_seeds_are_averaged_and_what_is_unknown_left_out() -> None:
    document = report("evaluate-fashion-mnist-small.json")
    guided = document["generation"][0]
    document["generation"] = [{**guided, "distance": d, "recognised": None} for d in (4.0, 5.0)]
    metrics = {metric["name"]: metric["value"] for metric in result_of(document)["metrics"]}
    assert metrics["FD-fashion-mnist-classifier, guided"] == 4.5 and "recognised, guided" not in metrics


def test_reports_of_a_tokenizer_and_of_speech() -> None:
    copies = result_of(report("evaluate-fashion-mnist-tokenizer.json"))
    assert {m["type"]: m["value"] for m in copies["metrics"]} == {
        "rfd-fashion-mnist-classifier": 3.759,
        "psnr": 25.2608,
        "ssim": 0.8467,
        "recognised": 0.8872,
    }
    spoken = result_of(report("speech/spoken-digits-small-test_unseen_synth.json"))
    assert spoken["task"]["type"] == "text-to-speech"
    assert [(m["name"], m["value"]) for m in spoken["metrics"]] == [
        ("word error rate (digit-recognizer)", 0.0194),
        ("prompt's speaker is the nearest (speaker-encoder)", 0.85),
    ]


@pytest.mark.parametrize("document", [{}, {"metric": "x", "protocol": 3}, {"scores": []}, {"scores": [{"name": "x"}]}])
def test_what_is_no_report_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="cannot be kept"):
        result_of(document)


def test_the_card_of_an_evaluated_model_carries_its_numbers(model: Path, tmp_path: Path) -> None:
    document = report("evaluate-fashion-mnist-small.json")
    keep(load_folder(model), document)
    keep(load_folder(model), report("evaluate-fashion-mnist-tokenizer.json"))
    document["generation"][0]["distance"] = 4.25  # measured again: the later report is kept
    keep(load_folder(model), document)
    about = {"tag": ImagePipeline.tag, "usage": ImagePipeline.usage, "license": "mit", "datasets": ["me/clothes"]}
    text = write_card(load_folder(model), tmp_path, name="me/bags", **about).read_text()
    entries = front_matter(text)
    assert entries["license"] == "mit" and entries["datasets"] == ["me/clothes"]
    (index,) = entries["model-index"]
    assert index["name"] == "me/bags" and len(index["results"]) == 2
    for result in index["results"]:
        assert result["source"] == {
            "name": "resgen evaluate",
            "url": "https://huggingface.co/me/bags/blob/main/config.json",
        }
    assert {m["name"]: m["value"] for r in index["results"] for m in r["metrics"]}["PSNR [dB]"] == 25.2608
    assert "| FD-fashion-mnist-classifier, guided | 4.25 | fashion\\_mnist, train | generation |" in text
    assert "**Limits.** Not stated" in text


def test_a_saved_pipeline_takes_its_numbers_along(model: Path, tmp_path: Path) -> None:
    keep(load_folder(model), report("evaluate-fashion-mnist-small.json"))
    pipe = ImagePipeline.from_pretrained(model, device="cpu")
    pipe.save_pretrained(tmp_path / "again")
    assert reports(load_folder(tmp_path / "again")) == reports(load_folder(model)) != []
    pipe.generator.requires_grad_(False)
    next(pipe.generator.parameters()).add_(1.0)
    pipe.save_pretrained(tmp_path / "changed")
    assert reports(load_folder(tmp_path / "changed")) == [], "these are the numbers of other weights"


def test_a_saved_voice_takes_its_numbers_along(tmp_path: Path) -> None:
    folder = tmp_path / "voice"
    shutil.copytree(resolve_model("spoken-digits-small"), folder)
    keep(load_folder(folder), report("speech/spoken-digits-small-test_unseen.json"))
    SpeechPipeline.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "again")
    assert reports(load_folder(tmp_path / "again")) == reports(load_folder(folder)) != []


@pytest.mark.parametrize("name", ["fashion-mnist-small", "english-small"])
def test_a_saved_bundled_model_says_what_it_said(name: str, tmp_path: Path) -> None:
    pipeline = SpeechPipeline if name == "english-small" else ImagePipeline
    pipeline.from_pretrained(name, device="cpu").save_pretrained(tmp_path / "again")
    before, after = (load_folder(folder).extra for folder in (resolve_model(name), tmp_path / "again"))
    assert before.pop("sampling").items() <= after.pop("sampling").items(), "settings of later versions are added"
    assert after == before and "description" in before
    assert {path.name for path in (tmp_path / "again").glob("*.flac")} == {
        entry["file"] for entry in before.get("voices", {}).values()
    }


def test_a_voice_that_was_left_out_is_not_in_the_saved_model(tmp_path: Path) -> None:
    pipe = SpeechPipeline.from_pretrained("spoken-digits-small", device="cpu")
    pipe.voices.clear()
    pipe.save_pretrained(tmp_path / "again")
    again = SpeechPipeline.from_pretrained(tmp_path / "again", device="cpu")
    assert not again.voices and again.parts.folder.extra["sentences"] == pipe.parts.folder.extra["sentences"]


def test_numbers_of_weights_that_were_replaced_meanwhile_are_not_kept(model: Path) -> None:
    evaluated = load_folder(model)
    pipe = ImagePipeline.from_pretrained(model, device="cpu")
    with torch.no_grad():
        next(pipe.generator.parameters()).add_(1.0)
    shutil.rmtree(model)
    pipe.save_pretrained(model)
    with pytest.raises(CheckpointError, match="other weights than when the evaluation began"):
        keep(evaluated, report("evaluate-fashion-mnist-small.json"))
    assert reports(load_folder(model)) == []


def test_speech_under_another_protocol_is_another_report() -> None:
    document = report("speech/spoken-digits-small-test_unseen.json")
    first = result_of(document)
    document["protocol"]["model_sha256"] = "0" * 64
    assert result_of(document) == first, "weights are kept beside it"
    document["protocol"]["sampling"]["num_steps"] += 1
    assert result_of(document)["dataset"] != first["dataset"]


def test_records_of_others_are_no_part_of_a_card(model: Path, tmp_path: Path) -> None:
    keep(load_folder(model), report("evaluate-fashion-mnist-small.json"))
    config = json.loads((model / "config.json").read_text())
    entry = config["history"]["measured"]["reports"][0]
    bad = [3, {}, {**entry, "metrics": 3}, {**entry, "metrics": [{"name": "x", "value": "y"}]}, {**entry, "task": []}]
    bad += [{**entry, "metrics": [{"name": "x", "value": value}]} for value in (10**400, float("nan"))]
    for found in (bad, "x", {}):
        config["history"]["measured"]["reports"] = found
        (model / "config.json").write_text(json.dumps(config))
        text = write_card(load_folder(model), tmp_path, name="x").read_text()
        assert "model-index" not in front_matter(text) and "| measured" not in text


def test_a_model_without_numbers_has_none_on_its_card(model: Path, tmp_path: Path) -> None:
    text = write_card(load_folder(model), tmp_path, name="x").read_text()
    assert front_matter(text).keys() == {"library_name", "tags"} and "**Data, licence, limits.** Not stated" in text


def numbers(value: object) -> set[float]:
    """All numbers of a JSON value, rounded as cards round them."""
    if isinstance(value, dict):
        return set().union(*map(numbers, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers, value))
    return {round(float(value), 4)} if isinstance(value, int | float) else set()


@pytest.mark.parametrize("card", sorted(ASSETS.glob("*/README.md")), ids=lambda card: card.parent.name)
def test_cards_of_bundled_models_carry_metadata(card: Path) -> None:
    """Licence, data and numbers; every number is that of a report in docs/results or of the model's own record."""
    entries = front_matter(card.read_text(encoding="utf-8"))
    assert entries["library_name"] == "resgen" and entries["pipeline_tag"] and entries["datasets"]
    assert entries["license"] != "other" or entries["license_name"] and entries["license_link"]
    (index,) = entries["model-index"]
    assert index["name"] == card.parent.name and index["results"]
    record = numbers(json.loads((card.parent / "config.json").read_text())["history"])
    for result in index["results"]:
        source = result["dataset"].get("args", {}).pop("report", None)
        if source:
            assert result == result_of(json.loads((ROOT / source).read_text()))
        else:
            assert result["metrics"] and all(metric["value"] in record for metric in result["metrics"])
