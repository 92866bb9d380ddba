"""Metrics file, means, times and the progress shown."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

from resgen import progress
from resgen.errors import WriteError
from resgen.training.log import Log, Pending, rewind_metrics


def test_means_mix_numbers_and_tensors_exactly():
    pending = Pending({"loss": [1.0]})
    pending.add("loss", torch.tensor(0.1))
    pending.add("loss", 3.0)
    pending.add("other", torch.tensor([2.0], dtype=torch.bfloat16))
    assert pending.values() == {"loss": [1.0, float(torch.tensor(0.1)), 3.0], "other": [2.0]}
    assert pending.means()["loss"] == pytest.approx(4.1 / 3)
    assert math.isnan(Pending({"x": [math.inf, -math.inf]}).means()["x"])
    pending.clear()
    assert pending.values() == {}


def test_pending_keeps_no_graph():
    pending = Pending()
    pending.add("loss", torch.ones((), requires_grad=True) * 2)
    assert not pending._values["loss"][0].requires_grad


def test_rewinding_drops_later_final_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "step": s} for s in (1, 2, 3)]
    lines.insert(2, {"kind": "final", "step": 2})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    rewind_metrics(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    rewind_metrics(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_lines_are_json_and_numbers_that_are_not_finite_are_null(tmp_path):
    log = Log(tmp_path, step=0)
    log.write("train", 1, {"loss": 0.5, "bad": math.nan})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "kind": "train",
        "step": 1,
        "loss": 0.5,
        "bad": None,
    }


def test_file_that_cannot_be_written_is_named(tmp_path):
    log = Log(tmp_path, step=0)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(WriteError, match="cannot write .*metrics.jsonl'"):
        log.write("train", 1, {})


def test_lines_without_a_terminal_and_a_bar_with_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.05)
    log = Log(tmp_path, step=0)
    log.start()
    log.progress(1, loss=0.75, steps_per_s=2.0, left_s=65.0)
    time.sleep(0.5)
    log.close()
    assert capsys.readouterr().err == "training: 1 of 131, loss 0.75, 2 steps/s\n"
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    log = Log(tmp_path, step=0)
    log.start()
    log.progress(65, loss=0.25, steps_per_s=2.0, left_s=32.5)
    time.sleep(0.2)
    log.message("a message")
    log.close()
    text = capsys.readouterr().err
    assert all(words in text for words in ("training", "50%", "loss 0.25, 2 steps/s", "a message"))


def test_quiet_log_writes_nothing(tmp_path, capsys):
    log = Log(tmp_path, step=0, quiet=True)
    log.message("x")
    log.write("train", 1, {"loss": 1.0})
    log.start()
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""
