"""Numbers that stay with a model: reports of its evaluation in its record, and as the `model-index` of its card."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from resgen.checkpoints.format import CONFIG_NAME, Folder, load_folder, read_json
from resgen.errors import CheckpointError
from resgen.files import write_json

HISTORY = "measured"
"""Where the history of a model's `config.json` keeps what was measured."""
_GENERATED = {"recognised": "recognised", "precision": "precision", "recall": "recall"}
_COPIED = {"psnr_db": "PSNR [dB]", "ssim": "SSIM", "recognised": "recognised"}
_SPEECH = {"wer": "word error rate", "nearest": "prompt's speaker is the nearest"}
_KEYS = ("task", "dataset", "metrics")
Result = dict[str, Any]
"""One entry of a `model-index`: task, dataset, metrics."""


def result_of(document: Mapping[str, Any]) -> Result:
    """The entry of a `model-index` that the report of `resgen evaluate` gives.

    Args:
        document: the report's JSON: of images, of a tokenizer's reconstructions, or of speech.

    Returns:
        `task`, `dataset` and `metrics`; every metric has its type, name and value, rates and shares from 0 to 1.
        Numbers of several seeds are their mean.

    Raises:
        CheckpointError: it is no such report.
    """
    try:
        return _speech(document) if "scores" in document else _pictures(document)
    except (KeyError, TypeError, IndexError, StopIteration, AttributeError) as error:
        raise CheckpointError("a report with these keys cannot be kept with a model or put on a card") from error


def _pictures(document: Mapping[str, Any]) -> Result:
    protocol, metric = document["protocol"], str(document["metric"])
    reference = str(protocol["reference"]).split("/")[0]
    metrics = []
    if document.get("reconstruction"):
        numbers = document["reconstruction"]
        metrics = [_metric(metric, metric, numbers["distance"])]
        metrics += [_metric(key.removesuffix("_db"), label, numbers[key]) for key, label in _COPIED.items()]
        task = ("image-to-image", "reconstruction by the tokenizer")
    else:
        task = ("unconditional-image-generation", "generation")
        for setting in dict.fromkeys(row["setting"] for row in document["generation"]):
            rows = [row for row in document["generation"] if row["setting"] == setting]
            for key, label in {"distance": metric, **_GENERATED}.items():
                values = [row[key] for row in rows if row[key] is not None]
                if values:
                    name = metric if key == "distance" else key
                    metrics.append(_metric(name, f"{label}, {setting}", statistics.fmean(values)))
    return _result(task, reference, protocol["reference_split"], document, metrics, str(document["protocol_id"]))


def _speech(document: Mapping[str, Any]) -> Result:
    protocol = document["protocol"]
    generated = next(row for row in document["scores"] if row["name"] == "generated")
    judges = {"wer": protocol["transcriber"]["name"], "nearest": protocol["speaker_encoder"]["name"]}
    metrics = [_metric(k, f"{label} ({judges[k]})", generated[k]["value"]) for k, label in _SPEECH.items()]
    task = ("text-to-speech", f"text to speech, {protocol['task']}")
    about = {key: value for key, value in protocol.items() if key != "model_sha256"}
    protocol_id = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return _result(task, protocol["data"], protocol["split"], document, metrics, protocol_id)


def _metric(name: str, label: str, value: float | None) -> dict[str, Any]:
    return {"type": name.lower(), "name": label, "value": None if value is None else round(float(value), 4)}


def _result(
    task: tuple[str, str],
    data: str,
    split: str,
    document: Mapping[str, Any],
    metrics: Iterable[dict[str, Any]],
    protocol_id: str,
) -> Result:
    known = [metric for metric in metrics if metric["value"] is not None]
    samples = document["protocol"].get("num_samples") or document["protocol"]["num_trials"]
    seeds = list(document["protocol"].get("seeds", ()))
    return {
        "task": {"type": task[0], "name": task[1]},
        "dataset": {
            "type": re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "data",
            "name": data,
            "split": split,
            "args": {"samples": samples, "seeds": seeds, "protocol": protocol_id},
        },
        "metrics": known,
    }


def keep(evaluated: Folder, document: Mapping[str, Any]) -> None:
    """Write what a report says into the record of the model that it is of; an earlier report under the same protocol
    is replaced.

    Args:
        evaluated: the model, as it was when the evaluation began.
        document: see `result_of`.

    Raises:
        CheckpointError: the folder holds other weights by now, it is no such report, or it cannot be written.
    """
    saved = load_folder(evaluated.path)
    entry, weights = result_of(document), _weights(saved)
    if weights != _weights(evaluated):
        raise CheckpointError(
            f"'{saved.path}' has other weights than when the evaluation began: its numbers are not kept; evaluate again"
        )
    data = read_json(saved.path / CONFIG_NAME)
    same = [entry["task"], entry["dataset"]]
    others = [one for one in reports(saved) if [one.get("task"), one.get("dataset")] != same]
    data["history"] = {**data.get("history", {}), HISTORY: {"reports": [*others, {**entry, "weights": weights}]}}
    write_json(saved.path / CONFIG_NAME, data)


def reports(folder: Folder) -> list[Result]:
    """What `keep` has written of exactly these weights."""
    found = folder.record(HISTORY).get("reports")
    entries = found if isinstance(found, list) else []
    return [one for one in entries if _is_result(one) and one.get("weights") == _weights(folder)]


def is_number(value: object) -> bool:
    """Whether a value of a JSON file can be shown: files from elsewhere may hold integers beyond any float."""
    return isinstance(value, int | float) and -1e300 < value < 1e300


def _weights(folder: Folder) -> dict[str, str]:
    return {name: component.sha256 for name, component in folder.components.items()}


def _is_result(entry: object) -> bool:
    """Whether something that a file holds has what a card needs."""
    if not isinstance(entry, dict) or not isinstance(entry.get("metrics"), list):
        return False
    named = [entry.get("task"), entry.get("dataset"), *entry["metrics"]]
    return all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in named) and all(
        is_number(one.get("value")) for one in entry["metrics"]
    )


def model_index(folder: Folder, name: str, source: str) -> list[dict[str, Any]]:
    """The `model-index` of a card, as the Hugging Face hub reads it; empty where nothing was measured.

    Args:
        folder: the saved model.
        name: name of the model.
        source: address where the numbers stand with their protocol; without one the hub shows none.
    """
    where = {"source": {"name": "resgen evaluate", "url": source}} if source else {}
    results = [{key: one[key] for key in _KEYS} | where for one in reports(folder)]
    return [{"name": name, "results": results}] if results else []
