"""`resgen doctor`: output, exit codes, image."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import tyro
import yaml
from make_reference_curves import reference_from_runs, save_reference

from resgen.cli.doctor import Doctor
from resgen.cli.main import guard
from resgen.experiments.reference_curves import read_run
from resgen.extras import install_command


def write_run(path: Path, *, spoiled: bool = False) -> Path:
    path.mkdir()
    training = {"num_steps": 800, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 20, "decay_fraction": 0.2}
    (path / "config.yaml").write_text(
        yaml.safe_dump({"stage": "generator", "kind": "direct", "recipe": "digits", "training": training})
    )
    lines = []
    for step in range(50, 801, 50):
        loss = 4 + math.exp(-step / 200) + (step / 400 if spoiled else 0)
        lines.append({"kind": "train", "step": step, "loss": loss, "learning_rate": 1e-3 * (1 - step / 800)})
    lines.append({"kind": "validation", "step": 800, "val_loss": loss})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def doctor(*arguments: object) -> int:
    options = (tyro.conf.FlagCreatePairsOff,)
    return guard(lambda: tyro.cli(Doctor, args=[str(a) for a in arguments], config=options).run())


def test_healthy_and_spoiled_runs_differ_in_exit_code_and_verdict(tmp_path, capsys):
    assert doctor(write_run(tmp_path / "a")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("verdict: healthy") and "step 800" in lines[0]
    assert doctor(write_run(tmp_path / "b", spoiled=True)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("problem") and lines[-1].startswith("verdict: not healthy")


def test_json_and_a_given_reference(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    save_reference(reference_from_runs([read_run(run)], "mine"), tmp_path / "mine.json")
    assert doctor(run, "--reference", tmp_path / "mine.json", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] and document["reference"] == "mine" and document["differences"] == []
    assert any("reference 4." in f["normal"] for f in document["findings"])


def test_unreadable_input_is_one_line(tmp_path, capsys):
    assert doctor(tmp_path / "none") == 2
    assert doctor(write_run(tmp_path / "a"), "--reference", tmp_path / "none.json") == 2
    assert doctor(tmp_path / "a", "--out", tmp_path / "x.gif") == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_a_folder_of_runs_is_no_run(tmp_path, capsys):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    assert doctor(tmp_path) == 2
    runs = f"{tmp_path / 'a'}; {tmp_path / 'b'}"
    assert f"'{tmp_path}' is not a run but holds 2; give the folder of one: {runs}" in capsys.readouterr().err


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "a")
    save_reference(reference_from_runs([read_run(run)], "mine"), tmp_path / "mine.json")
    assert doctor(run, "--reference", tmp_path / "mine.json", "--out", tmp_path / "x.png") == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_picture_without_matplotlib_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert doctor(write_run(tmp_path / "a"), "--out", tmp_path / "x.png") == 2
    assert install_command("train") in capsys.readouterr().err
