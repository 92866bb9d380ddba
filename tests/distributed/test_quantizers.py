"""Two processes learn the codebooks of one process on the joint batch."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from resgen.types import LOCAL

WORKER = Path(__file__).with_name("quantizer_worker.py")
TIMEOUT_S = 120


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quantizer_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = _load()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes arrived at; fails, and ends both, if they wait for each other for ever."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), str(out)], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
    except subprocess.TimeoutExpired:
        pytest.fail(f"the processes did not finish within {TIMEOUT_S} s")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("kind", worker.KINDS)
@pytest.mark.parametrize("split", worker.SPLITS)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Tensor]], kind: str, split: str) -> None:
    wanted = worker.learn(kind, split, LOCAL)
    for rank in ranks:
        found = {name: rank[f"{kind}/{split}/{name}"] for name in wanted}
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert wanted["unchanged"], "a batch without rows leaves the codebooks alone"
    if kind == "ema":
        assert wanted["restarted"].sum() > 0, "the case must restart codes"
        assert (wanted["start.codebooks"] != worker.learn("probabilistic", split, LOCAL)["start.codebooks"]).any()


@pytest.mark.parametrize("kind", worker.KINDS)
def test_processes_stay_bit_identical(ranks: list[dict[str, Tensor]], kind: str) -> None:
    first, second = ranks
    names = [name for name in first if name.startswith(kind)]
    assert len(names) > 20 and first.keys() == second.keys()
    assert [name for name in names if not torch.equal(first[name], second[name])] == []
