"""A small run of every measurement with a floor: what is compared is right; times themselves are not judged."""

from __future__ import annotations

import json
from typing import Any

import floors
import pytest
import torch
from floors import TARGETS, report_markdown
from torch.nn import functional

from resgen.errors import ConfigError
from resgen.evaluation.bench.cases import Case, random_network
from resgen.evaluation.bench.products import record_products
from resgen.models.token_head import TokenHead

RECORDER = floors.TrainingRecorder
SMALL: dict[str, Any] = {
    "shape": "tiny",
    "batch_size": 2,
    "num_steps": 3,
    "training_batch": 4,
    "mixture_rows": 32,
    "repetitions": 2,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("floors") / "new" / "floors.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floors, "ENCODED", 32)
        patch.setattr(floors, "extra_peak_bytes", lambda _, **given: 1000 * given.get("batch_size", given.get("rows")))
        floors.main(**SMALL, dtype="float32", out=out)
    result: dict[str, Any] = json.loads(out.read_text())
    assert out.with_suffix(".md").read_text() == report_markdown(result) + "\n"
    return result


def test_everything_has_its_floor(report: dict[str, Any]) -> None:
    rows = report["rows"]
    assert len(rows) == 10 and {row["what"] for row in rows} == TARGETS.keys()
    for row in rows:
        ratio = row["ratio"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"] and row["target"] == TARGETS[row["what"]]
        assert row["seconds"] > 0 and row["floor_seconds"] > 0
    reading = next(row for row in rows if row["what"].startswith("reading"))
    step = next(row for row in rows if row["what"].startswith("training"))
    assert reading["floor_seconds"] == step["seconds"] and reading["ratio"]["max"] < 1


def test_memory(report: dict[str, Any]) -> None:
    kinds, mixture = report["memory"][:-1], report["memory"][-1]
    assert [row["what"] for row in kinds] == ["sampling, resgen", "sampling, direct", "sampling, rq_transformer"]
    for row in kinds:
        assert row["bytes_per_image"] == 1000 and row["peak_bytes"] == row["weight_bytes"] + 3000
        assert row["largest_batch"] == (8 * 10**9 - row["weight_bytes"]) // 1000
    assert mixture["bytes_per_position"] == 1000 and mixture["bytes_of_a_positions_means"] == 4 * 64 * 16


def test_report(report: dict[str, Any]) -> None:
    text = report_markdown(report)
    assert text.count("| sampling over its products | resgen, depth 8, batch 2 |") == 1
    assert "| 1.35 |" in text and "largest batch in 8 GB" in text and "shape tiny" in text
    assert "1 kB per position more" in text
    assert "largest batch" not in report_markdown({**report, "memory": []})


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="mixture_rows=0 must be at least 1"):
        floors.main(**{**SMALL, "mixture_rows": 0})


def test_products_of_a_training_step() -> None:
    """Three products of every one in the forward pass, of the shapes that the gradients have."""
    layer = torch.nn.Linear(6, 4)
    x = torch.randn(5, 3, 6)
    products = record_products(layer, lambda: layer(x), recorder=RECORDER)
    assert [call().shape for call in products.calls] == [(15, 4), (15, 6), (4, 6)]
    assert products.multiply_adds == 3 * 15 * 6 * 4
    head = TokenHead(6, 3, 5, 2)
    products = record_products(head, lambda: head(torch.randn(7, 6), torch.randn(7, 3, 2)), recorder=RECORDER)
    assert [call().shape for call in products.calls[3:]] == [(3, 7, 5), (3, 7, 2), (3, 2, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        products = record_products(layer, lambda: functional.linear(x, layer.weight, layer.bias), recorder=RECORDER)
    assert {call().dtype for call in products.calls} == {torch.bfloat16}


def test_network_passes_see_what_sampling_saw() -> None:
    case = Case(
        shape="tiny",
        kind="resgen",
        iterations=None,
        depth=2,
        batch_size=2,
        num_steps=3,
        guidance=False,
        dtype="float32",
        seed=0,
    )
    network = random_network(case.config, case.spec, torch.device("cpu"), torch.float32)
    seen: list[torch.Tensor] = []
    with floors._network_inputs(network) as inputs:
        case.sample(network)
    network.transformer.register_forward_hook(lambda _module, _arguments, out: seen.append(out.clone()))
    floors._passes(network, inputs)
    case.sample(network)
    assert len(inputs) == 3 and all(torch.equal(seen[k], seen[k + 3]) for k in range(3))
