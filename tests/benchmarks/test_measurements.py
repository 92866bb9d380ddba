"""Small versions of the measurements: what is counted and compared is right; times themselves are not judged."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import depth
import mixture_memory
import pytest
import quantizer
import torch

from resgen.errors import ConfigError
from resgen.evaluation.bench.memory import extra_peak_bytes
from resgen.extras import MissingExtraError

SMALL = {"num_vectors": 8192, "code_dim": 8, "codebook_size": 64, "depth": 3, "repetitions": 2}


@pytest.mark.parametrize("script", sorted(path.stem for path in Path(depth.__file__).parent.glob("*.py")))
def test_every_script_finds_what_it_imports(script: str) -> None:
    importlib.import_module(script)


def _printed(main: Any, capsys: pytest.CaptureFixture[str], **settings: Any) -> dict[str, Any]:
    main(**settings, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_quantizer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    monkeypatch.setattr(quantizer, "extra_peak_bytes", lambda _, which, **sizes: {"ours": 30, "peer": 60}[which])
    result = _printed(quantizer.main, capsys, **SMALL)
    assert result["agreement"] == 1 and result["codes_equal"] > 0.999
    assert result["speedup"] > 0 and result["seconds"].keys() == {"ours", "peer"}
    assert result["extra_memory_bytes"] == {"ours": 30, "peer": 60} and result["memory_ratio"] == 0.5
    assert result["settings"]["num_vectors"] == 8192 and result["settings"]["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_memory_of_the_quantizer(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    memory = _printed(quantizer.main, capsys, **SMALL)["extra_memory_bytes"]
    assert 8192 * 3 * 8 <= memory["ours"] < memory["peer"]  # at least the codes themselves


def test_quantizer_without_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(MissingExtraError, match="vector-quantize-pytorch"):
        quantizer.main(num_vectors=8, code_dim=2, codebook_size=4, depth=1)


def test_compare_codes_tells_ties_from_errors() -> None:
    codebooks = torch.tensor([[[0.0], [2.0], [5.0]], [[0.0], [1.0], [-1.0]]])
    vectors = torch.tensor([[1.0], [0.0], [0.1]])
    first = torch.tensor([[0, 1], [0, 0], [0, 0]])
    # Row 0: 1.0 lies between 0 and 2, so code 1 on level 0 is as good; row 1 agrees; row 2: an error on level 1.
    second = torch.tensor([[1, 2], [0, 0], [0, 1]])
    result = quantizer.compare_codes(vectors, codebooks, first, second)
    assert result == pytest.approx({"agreement": 2 / 3, "ties": 1, "codes_equal": 3 / 6})
    # The residual counts, not the vector: after 2.0, code 2 (-1.0) is right for 1.0 and code 0 is not.
    third = torch.tensor([[1, 0], [0, 0], [0, 0]])
    assert quantizer.compare_codes(vectors, codebooks, second, third)["ties"] == 0


def test_depth(capsys: pytest.CaptureFixture[str]) -> None:
    result = _printed(depth.main, capsys, shape="tiny", num_steps=5, batch_size=2, repetitions=2, depths=(1, 2, 3))
    assert result["passes"] == {"1": 10, "2": 10, "3": 10}
    assert result["seconds"].keys() == result["passes"].keys()
    assert result["ratio_3_over_2"] > 0
    low, high = result["spread"]["3"]
    assert 0 < low <= result["seconds"]["3"] <= high
    assert result["settings"]["positions"] == 16 and result["settings"]["num_components"] == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 17}, r"steps=17 must lie in 1\.\.16"),
        ({"repetitions": 0}, "repetitions=0"),
        ({"depths": (2, 1)}, r"depths=\(2, 1\) must be two or more rising numbers"),
    ],
)
def test_depth_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        depth.main(shape="tiny", **settings)


def test_mixture_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    growth = {"plain": 100, "chunked": 10}
    monkeypatch.setattr(
        mixture_memory, "extra_peak_bytes", lambda _, version, rows, **sizes: 1000 + growth[version] * rows
    )
    sizes = {"rows": (32, 64), "num_components": 32, "code_dim": 16, "width": 8, "repetitions": 1}
    result = _printed(mixture_memory.main, capsys, **sizes)
    for key in ("seconds", "speedup", "extra_memory_bytes", "memory_ratio"):
        assert result[key].keys() == {"32", "64"}
    assert all(value > 0 for value in result["speedup"].values())
    assert result["bytes_per_row"] == growth and result["memory_ratio"]["64"] == 1640 / 7400
    mixture_memory.main(**sizes)
    assert "| 64 | 0 | 0 | 0.22 |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="rising"):
        mixture_memory.main(rows=(64, 64))


@pytest.mark.parametrize("version", ["chunked", "plain"])
def test_mixture_versions_compute_the_same(version: str) -> None:
    sizes = {"num_components": 8, "code_dim": 4, "width": 16, "dtype": "float32", "seed": 0}
    _, reference = mixture_memory.mixture_work(version="plain", rows=100, **sizes)
    _, work = mixture_memory.mixture_work(version=version, rows=100, **sizes)
    assert work() == pytest.approx(reference(), rel=1e-5)


@pytest.mark.slow
def test_memory_is_that_of_the_work() -> None:
    sizes = {"num_components": 64, "code_dim": 32, "width": 16, "dtype": "float32", "seed": 0}
    means = 8192 * 64 * 32 * 4  # 64 MiB, all means of all rows
    plain = extra_peak_bytes(mixture_memory.mixture_work, version="plain", rows=8192, **sizes)
    chunked = extra_peak_bytes(mixture_memory.mixture_work, version="chunked", rows=8192, **sizes)
    assert means <= plain < 8 * means
    assert chunked < 0.75 * plain
