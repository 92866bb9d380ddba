"""A small run of every measurement with a floor: what is compared is right; times themselves are not judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch.nn import functional

from resgen.cli.bench import BenchAll
from resgen.errors import ConfigError
from resgen.evaluation.products import record_products
from resgen.evaluation.speed_cases import Case
from resgen.experiments import floors
from resgen.experiments.floors import TARGETS, bench_all, report_markdown
from resgen.models.token_head import TokenHead

SMALL: dict[str, Any] = {
    "shape": "tiny",
    "batch_size": 2,
    "num_steps": 3,
    "training_batch": 4,
    "mixture_rows": 32,
    "repetitions": 2,
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floors, "ENCODED", 32)
        patch.setattr(floors, "extra_peak_bytes", lambda _, **given: 1000 * given.get("batch_size", given.get("rows")))
        return bench_all(**SMALL, dtype="float32")


def test_everything_has_its_floor(found: dict[str, Any]) -> None:
    rows = found["rows"]
    assert len(rows) == 10 and {row["what"] for row in rows} == TARGETS.keys()
    for row in rows:
        ratio = row["ratio"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"] and row["target"] == TARGETS[row["what"]]
        assert row["seconds"] > 0 and row["floor_seconds"] > 0
    reading = next(row for row in rows if row["what"].startswith("reading"))
    step = next(row for row in rows if row["what"].startswith("training"))
    assert reading["floor_seconds"] == step["seconds"] and reading["ratio"]["max"] < 1


def test_memory(found: dict[str, Any]) -> None:
    kinds, mixture = found["memory"][:-1], found["memory"][-1]
    assert [row["what"] for row in kinds] == ["sampling, resgen", "sampling, direct", "sampling, rq_transformer"]
    for row in kinds:
        assert row["bytes_per_image"] == 1000 and row["peak_bytes"] == row["weight_bytes"] + 3000
        assert row["largest_batch"] == (8 * 10**9 - row["weight_bytes"]) // 1000
    assert mixture["bytes_per_position"] == 1000 and mixture["bytes_of_a_positions_means"] == 4 * 64 * 16


def test_report(found: dict[str, Any]) -> None:
    text = report_markdown(found)
    assert text.count("| sampling over its products | resgen, depth 8, batch 2 |") == 1
    assert "| 1.35 |" in text and "largest batch in 8 GB" in text and "shape tiny" in text
    assert "1 kB per position more" in text
    assert "largest batch" not in report_markdown({**found, "memory": []})


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {}

    def fake(**given: Any) -> dict[str, Any]:
        seen.update(given)
        return {"rows": [], "memory": [], "settings": {"shape": given["shape"]}}

    monkeypatch.setattr(floors, "bench_all", fake)
    options = "--shape tiny --batch-size 5 --steps 6 --training-batch 7 --mixture-rows 8 --repetitions 9"
    words = [
        *options.split(),
        "--compiled",
        "--no-memory",
        "--dtype",
        "float32",
        "--out",
        str(tmp_path / "a" / "b.json"),
    ]
    tyro.cli(BenchAll, args=words, config=(tyro.conf.FlagCreatePairsOff,)).run()
    wanted = {"shape": "tiny", "batch_size": 5, "num_steps": 6, "training_batch": 7, "mixture_rows": 8}
    wanted |= {"repetitions": 9, "memory": False, "dtype": "float32", "compiled": True}
    assert {name: seen[name] for name in wanted} == wanted
    assert json.loads((tmp_path / "a" / "b.json").read_text())["settings"] == {"shape": "tiny"}
    assert (tmp_path / "a" / "b.md").read_text() == capsys.readouterr().out


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="mixture_rows=0 must be at least 1"):
        bench_all(**{**SMALL, "mixture_rows": 0})


def test_products_of_a_training_step() -> None:
    """Three products of every one in the forward pass, of the shapes that the gradients have."""
    layer = torch.nn.Linear(6, 4)
    x = torch.randn(5, 3, 6)
    found = record_products(layer, lambda: layer(x), gradients=True)
    assert [call().shape for call in found.calls] == [(15, 4), (15, 6), (4, 6)]
    assert found.multiply_adds == 3 * 15 * 6 * 4
    head = TokenHead(6, 3, 5, 2)
    found = record_products(head, lambda: head(torch.randn(7, 6), torch.randn(7, 3, 2)), gradients=True)
    assert [call().shape for call in found.calls[3:]] == [(3, 7, 5), (3, 7, 2), (3, 2, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        found = record_products(layer, lambda: functional.linear(x, layer.weight, layer.bias), gradients=True)
    assert {call().dtype for call in found.calls} == {torch.bfloat16}


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
    network = floors.random_network(case.config, case.spec, torch.device("cpu"), torch.float32)
    seen: list[torch.Tensor] = []
    with floors._network_inputs(network) as inputs:
        case.sample(network)
    network.transformer.register_forward_hook(lambda _module, _arguments, out: seen.append(out.clone()))
    floors._passes(network, inputs)
    case.sample(network)
    assert len(inputs) == 3 and all(torch.equal(seen[k], seen[k + 3]) for k in range(3))
