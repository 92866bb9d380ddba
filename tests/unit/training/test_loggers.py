"""Loggers: what each is told, runs that go on, packages that are missing, and failures that stop no training."""

from __future__ import annotations

import errno
import importlib.machinery
import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from resgen.config import parse_overrides, replace_nested
from resgen.data.sound.decode import write_sound
from resgen.errors import ConfigError
from resgen.extras import MissingExtraError, install_command
from resgen.training import Trainer, TrainerConfig
from resgen.training.log import Log
from resgen.training.loggers import LOGGERS, RUNS_NAME


class FakeWandb(ModuleType):
    """Weights & Biases that writes nothing."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.defined: list[tuple] = []
        self.exit_codes: list[int] = []
        self.fail_at: str | None = None

    def init(self, **options: Any) -> Any:
        if self.fail_at == "init":
            raise RuntimeError("no\nnetwork")
        self.started.append(options)
        return self

    def log(self, values: dict[str, Any]) -> None:
        if self.fail_at in values:
            raise ConnectionError("gone")
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def Image(self, path: str) -> tuple[str, str]:
        return "image", path

    def Audio(self, path: str) -> tuple[str, str]:
        return "audio", path


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    """A sample image with two sounds beside it, and one of another step."""
    path = tmp_path / "samples" / "step_00000004.png"
    path.parent.mkdir()
    Image.new("L", (6, 4), 128).save(path)
    for name in ("step_00000004_1", "step_00000004_2_real", "step_00000002_1"):
        write_sound(torch.linspace(-1, 1, 80), 8000, path.with_name(f"{name}.wav"))
    return path


def names(samples: Path) -> dict[str, str]:
    return {name: str(samples.with_name(f"step_00000004_{name}.wav")) for name in ("1", "2_real")}


def test_wandb(wandb: FakeWandb, tmp_path: Path, sheet: Path) -> None:
    log = Log(tmp_path, step=0, loggers=("wandb",), config={"a": {"b": 1}})
    log.write("train", 4, {"loss": 0.5})
    log.samples(4, sheet)
    log.close()
    (started,) = wandb.started
    run_id = json.loads((tmp_path / RUNS_NAME).read_text())["wandb"]
    assert (started["id"], started["resume"], started["project"]) == (run_id, "allow", "resgen")
    assert started["dir"] == str(tmp_path) and started["name"] == tmp_path.name
    assert started["config"] == {"a": {"b": 1}}
    assert wandb.defined == [("step", None), ("*", "step")]
    assert wandb.logged[0] == {"step": 4, "train/loss": 0.5}
    sounds = {f"samples/{name}": ("audio", path) for name, path in names(sheet).items()}
    assert wandb.logged[1] == {"step": 4, "samples": ("image", str(sheet)), **sounds}
    assert wandb.exit_codes == [1], "the training has not come to its end"
    log = Log(tmp_path, step=4, loggers=("wandb",))
    log.write("final", 8, {"loss": 0.25})
    log.close()
    assert wandb.started[1]["id"] == run_id and wandb.exit_codes == [1, 0]


def test_wandb_project_of_the_environment(wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    Log(tmp_path, step=0, loggers=("wandb",)).close()
    assert wandb.started[0]["project"] == "mine"


def test_tensorboard(tmp_path: Path, sheet: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra train)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, step=0, loggers=("tensorboard",))
    log.write("train", 4, {"loss": 0.5})
    log.samples(4, sheet)
    log.close()
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0, "audio": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["scalars"] == ["train/loss"] and events.Scalars("train/loss")[0].value == 0.5
    assert tags["images"] == ["samples"] and events.Images("samples")[0].step == 4
    assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == (6, 4)
    assert sorted(tags["audio"]) == ["samples/1", "samples/2_real"]
    sound = events.Audio("samples/1")[0]
    assert (sound.sample_rate, sound.length_frames) == (8000, 80)
    assert not (tmp_path / RUNS_NAME).exists(), "nothing has to be found again"


def test_a_full_disk_stops_tensorboard_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its thread writes, keeps what fails for the next call, and would also print a traceback."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra train)")
    from tensorboard.summary.writer.record_writer import RecordWriter

    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(str(failure.exc_value)))
    log = Log(tmp_path, step=0, loggers=("tensorboard",))

    def write(self: Any, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", write)
    for step in range(200):
        log.write("train", step, {"loss": 0.5})
        time.sleep(0.01)
    other = threading.Thread(target=lambda: 1 / 0)
    other.start()
    other.join()
    log.close()
    said = "logger 'tensorboard' is off, training goes on without it: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == said
    assert told == ["division by zero"], "of other threads it is told as ever"


@pytest.mark.parametrize("fail_at", ["init", "train/loss", "samples"])
def test_a_failure_is_one_message_and_stops_nothing(
    fail_at: str, wandb: FakeWandb, tmp_path: Path, sheet: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    other = Mock(run_id="7")
    monkeypatch.setitem(LOGGERS, "other", lambda run: other)
    wandb.fail_at = fail_at
    log = Log(tmp_path, step=0, loggers=("wandb", "other"))
    for step in (4, 5):
        log.write("train", step, {"loss": 0.5})
        log.samples(step, sheet)
    log.close()
    said = capsys.readouterr().err
    reason = "no network" if fail_at == "init" else "gone"
    assert said == f"logger 'wandb' is off, training goes on without it: {reason}\n"
    assert other.metrics.call_count == other.samples.call_count == 2, "the others go on"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert ("wandb" in json.loads((tmp_path / RUNS_NAME).read_text())) == (fail_at != "init")


def test_a_missing_tensorboard_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = Log(tmp_path, step=0, loggers=("tensorboard",))
    log.write("train", 1, {"loss": 0.5})
    log.close()
    assert install_command("train") in capsys.readouterr().err and not (tmp_path / "tb").exists()


def test_a_missing_package_is_one_line_before_anything_is_written(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"'wandb' is not installed; .*\[wandb\]'"):
        Trainer(toy.ToyTask(), toy.toy_config(loggers=("tensorboard", "wandb")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_identifiers_survive_damage(wandb: FakeWandb, tmp_path: Path) -> None:
    (tmp_path / RUNS_NAME).write_text("{")
    Log(tmp_path, step=0, loggers=("wandb",)).close()
    assert json.loads((tmp_path / RUNS_NAME).read_text())["wandb"] == wandb.started[0]["id"]


def test_only_the_first_process_has_loggers(wandb: FakeWandb, tmp_path: Path, sheet: Path) -> None:
    log = Log(tmp_path, step=0, loggers=("wandb",), quiet=True)
    log.samples(4, sheet)
    log.close()
    assert not wandb.started


def test_settings() -> None:
    assert TrainerConfig().loggers == ("tensorboard",)
    changed = replace_nested(TrainerConfig(), parse_overrides(["loggers=[tensorboard,wandb]"]))
    assert changed.loggers == ("tensorboard", "wandb")
    assert replace_nested(TrainerConfig(), parse_overrides(["loggers=[]"])).loggers == ()
    with pytest.raises(ConfigError, match="unknown logger 'tensorbord' .did you mean 'tensorboard'"):
        TrainerConfig(loggers=("tensorbord",))
    with pytest.raises(ConfigError, match="must name each logger once"):
        TrainerConfig(loggers=("wandb", "wandb"))


def test_a_training_tells_its_loggers(toy: Any, wandb: FakeWandb, tmp_path: Path) -> None:
    """Metrics, validation and the last sample sheet; a resumed run with other loggers is the same run."""
    task = toy.ToyTask()
    Trainer(task, toy.toy_config(num_steps=12, loggers=("wandb",)), tmp_path).run()
    keys = {key for values in wandb.logged for key in values}
    assert {"train/loss", "validation/val_loss", "final/seconds"} <= keys and wandb.exit_codes == [0]
    assert wandb.started[0]["config"]["task"] == task.name
    Trainer(toy.ToyTask(), toy.toy_config(num_steps=14, loggers=()), tmp_path, resume=True).run()
    Trainer(toy.ToyTask(), toy.toy_config(num_steps=16, loggers=("wandb",)), tmp_path, resume=True).run()
    assert len(wandb.started) == 2 and wandb.started[0]["id"] == wandb.started[1]["id"]


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path: Path, sheet: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (0, 4):
        log = Log(tmp_path, step=step, loggers=("wandb",), config={"a": 1})
        log.write("train", 4 + step, {"loss": 0.5, "bad": float("nan")})
        log.samples(4 + step, sheet)
        log.close()
    assert "is off" not in capsys.readouterr().err
    run_id = json.loads((tmp_path / RUNS_NAME).read_text())["wandb"]
    folders = sorted(path for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(path.name.endswith(f"-{run_id}") for path in folders)
    assert len(list(folders[0].rglob("*.png"))) == 1 and len(list(folders[0].rglob("*.wav"))) == 2
