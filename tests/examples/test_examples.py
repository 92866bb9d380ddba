"""Every script in examples/ runs, with small settings, and leaves the files that it speaks of."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SMALL = {
    "generate_pictures": (
        ["--num-samples", "2", "--steps", "2", "--classes", "Bag"],
        ["guided.png", "unguided.png"],
        "True",
    ),
    "watch_steps": (["--num-samples", "2", "--steps", "3"], ["steps.gif", "levels.png"], "8.0 of 8 levels"),
    "edit_picture": (
        ["--num-samples", "2", "--steps", "2"],
        ["upper-half.png", "details.png"],
        "50% of the codes were given",
    ),
    "speak_with_prompt": (["--steps", "2", "--texts", "one"], ["own-one.wav", "prompted-one.wav"], "codes ("),
    "train_own_pictures": (["--steps", "2"], ["samples.png", "generator/model/config.json"], "dB"),
    "custom_quantizer": (["--steps", "3"], ["counting/model/config.json", "paper/model/config.json"], "counting"),
    "own_predictor": (
        ["--num-samples", "8", "--steps", "3"],
        ["counted.png", "frequencies.png"],
        "8 samples of 128 codes",
    ),
}


def test_every_script_is_tried():
    assert [path.stem for path in SCRIPTS] == sorted(SMALL)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs(path, tmp_path, monkeypatch, capsys):
    for package in ("sklearn", "soundfile"):
        pytest.importorskip(package)
    options, files, words = SMALL[path.stem]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--out", "out", *options])
    runpy.run_path(str(path), run_name="__main__")
    assert words in capsys.readouterr().out
    for name in files:
        assert (tmp_path / "out" / name).stat().st_size > 0, name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_docstring_says_what_it_shows_and_how_to_run_it(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert "Shows " in text
    assert f"python examples/{path.name} --out " in text
