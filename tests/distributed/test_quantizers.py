"""Two processes learn the codebooks of one process on the joint batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from processes import run_processes
from resgen.types import LOCAL

WORKER = Path(__file__).with_name("quantizer_worker.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quantizer_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = _load()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes arrived at."""
    out = tmp_path_factory.mktemp("ranks")
    for status, errors in run_processes(2, WORKER, out):
        assert status == 0, errors
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("kind", worker.KINDS)
@pytest.mark.parametrize("split", worker.SPLITS)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Tensor]], kind: str, split: str) -> None:
    expected = worker.learn(kind, split, LOCAL)
    for rank in ranks:
        joint = {name: rank[f"{kind}/{split}/{name}"] for name in expected}
        torch.testing.assert_close(joint, expected, rtol=1e-5, atol=1e-5)
    assert expected["unchanged"], "a batch without rows leaves the codebooks alone"
    if kind == "ema":
        assert expected["restarted"].sum() > 0, "the case must restart codes"
        assert (expected["start.codebooks"] != worker.learn("probabilistic", split, LOCAL)["start.codebooks"]).any()


@pytest.mark.parametrize("kind", worker.KINDS)
def test_processes_stay_bit_identical(ranks: list[dict[str, Tensor]], kind: str) -> None:
    first, second = ranks
    names = [name for name in first if name.startswith(kind)]
    assert len(names) > 20 and first.keys() == second.keys()
    assert [name for name in names if not torch.equal(first[name], second[name])] == []
