"""A training in two processes, replicated or sharded, is that of one process; and it goes on where it was killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from processes import run_processes

WORKER = Path(__file__).with_name("training_worker.py")
LAST = "checkpoints/step_00000006"


def train(processes: int, out: Path, *settings: str) -> list[tuple[int, str]]:
    return run_processes(processes, WORKER, out, *settings)


def curve(run: Path, kind: str, *names: str) -> list[tuple[float, ...]]:
    """Values of all lines of a kind in the log; of a step written twice the last counts."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: tuple(line[name] for name in names) for line in lines if line["kind"] == kind}
    return [steps[step] for step in sorted(steps)]


def check_same(run: Path, reference: Path, tolerance: float) -> None:
    """Losses, gradients, validation and the exported averages agree."""
    for kind, names in (("train", ("loss", "grad_norm")), ("validation", ("val_loss",))):
        actual, expected = (torch.tensor(curve(path, kind, *names), dtype=torch.float64) for path in (run, reference))
        assert expected.numel(), kind
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    models = [load_file(path / "model" / "model.safetensors") for path in (run, reference)]
    torch.testing.assert_close(*models, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training three times: by one process, by two, and divided over two."""
    folder = tmp_path_factory.mktemp("runs")
    for name, processes, settings in (
        ("one", 1, ["accumulate=2"]),
        ("replicated", 2, []),
        ("sharded", 2, ["shard=true"]),
    ):
        for status, errors in train(processes, folder / name, *settings):
            assert status == 0, errors
    return folder


@pytest.mark.parametrize("name", ["replicated", "sharded"])
def test_two_processes_train_as_one(runs: Path, name: str) -> None:
    check_same(runs / name, runs / "one", 1e-4)
    assert (runs / name / "samples" / "step_00000006.png").is_file()


@pytest.mark.parametrize(
    "model", ["residual", *(pytest.param(n, marks=pytest.mark.slow) for n in ("maskgit", "rq_transformer"))]
)
def test_every_kind_can_be_sharded(tmp_path: Path, model: str) -> None:
    for name, processes, settings in (("one", 1, ["accumulate=2"]), ("two", 2, ["shard=true", "recompute=true"])):
        for status, errors in train(processes, tmp_path / name, f"model={model}", *settings):
            assert status == 0, errors
    check_same(tmp_path / "two", tmp_path / "one", 1e-4)


def test_checkpoints_hold_parts(runs: Path) -> None:
    whole, parts = (runs / name / LAST for name in ("one", "sharded"))
    state = json.loads((parts / "state.json").read_text())
    for name in ("model", "optimizer", "ema"):
        files = sorted(file.name for file in (parts / name).iterdir())
        assert len(files) == 2 and sorted(state["files"][name]["parts"]) == files
        sizes = [(parts / name / file).stat().st_size for file in files]
        assert max(sizes) < 0.8 * (whole / f"{name}.safetensors").stat().st_size
    assert not list((runs / "sharded" / "checkpoints").glob(".*"))


def killed(out: Path, *settings: str) -> None:
    """A run whose first process is killed in step 5, when the checkpoint of step 4 is there."""
    results = train(2, out, "kill_at=4", *settings)
    assert results[0][0] == -signal.SIGKILL and results[1][0] != 0
    assert sorted(path.name for path in (out / "checkpoints").glob("step_*"))[-1] == "step_00000004"
    assert not (out / "model").exists()


def test_a_killed_sharded_run_goes_on_exactly(runs: Path, tmp_path: Path) -> None:
    killed(tmp_path / "run", "shard=true")
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    for status, errors in train(2, tmp_path / "run", "shard=true", "resume=true"):
        assert status == 0, errors
    check_same(tmp_path / "run", runs / "sharded", 0.0)
    ((status, errors),) = train(1, tmp_path / "alone", "accumulate=2", "resume=true")
    assert status == 2 and "training.accumulate=1 but this run has training.accumulate=2" in errors
    ((status, errors),) = train(1, tmp_path / "alone", "resume=true")
    assert status == 0 and "number of processes was 2 and is now 1" in errors and "shard: True -> False" in errors
    losses = curve(tmp_path / "alone", "train", "loss")
    assert losses[:4] == curve(runs / "sharded", "train", "loss")[:4] and len(losses) == 6


def test_whole_checkpoints_go_on_sharded(runs: Path, tmp_path: Path) -> None:
    killed(tmp_path / "run")
    for status, errors in train(2, tmp_path / "run", "shard=true", "resume=true"):
        assert status == 0, errors
    check_same(tmp_path / "run", runs / "replicated", 1e-4)


def test_a_damaged_part_is_noticed(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "sharded", tmp_path / "run")
    part = next((tmp_path / "run" / LAST / "ema").iterdir())
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    results = train(2, tmp_path / "run", "shard=true", "resume=true", "num_steps=7")
    assert [status for status, _ in results] == [0, 0]
    assert "checkpoint passed over" in results[0][1] and part.name in results[0][1]
    assert "after step 4" in results[0][1]


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), str(tmp_path / "run"), "shard=true"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and "start them with torchrun" in process.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
