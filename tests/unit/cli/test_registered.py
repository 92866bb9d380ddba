"""Commands of a modality that another package registers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import resgen
from resgen import modalities
from resgen.cli.main import main
from resgen.extras import MODALITIES
from resgen.modalities import Modality, register


@dataclass(frozen=True, kw_only=True)
class GenerateMotion:
    """Generate new motion."""

    steps: int = 8
    """Network evaluations."""

    def run(self) -> None:
        print("steps", self.steps)


@pytest.fixture(autouse=True)
def motion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modalities, "_registered", {})
    commands = {"generate": GenerateMotion}
    register(Modality(name="motion", noun="motion", recipes={}, components=frozenset(), commands=commands))


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "motion", "--steps", "3"]) == 0
    assert capsys.readouterr().out == "steps 3\n"


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["completion", "bash"]])
def test_help_and_completion_know_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code
    expected = ["'motion'"] if words[0] == "completion" else ["  generate motion ", "Generate new motion."]
    out = capsys.readouterr().out
    assert all(text in out for text in expected)


def test_a_slip_is_met_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "motoin"]) == 2
    assert "unknown generate command 'motoin' (did you mean 'motion'?); allowed: image" in capsys.readouterr().err
    assert main(["generate", "motion", "--steps", "inf"]) == 2
    assert "`resgen generate motion --help` explains all options" in capsys.readouterr().err


def test_one_of_an_installed_package_is_there_without_an_import(tmp_path: Path) -> None:
    """Its entry point names the record; another that is broken is one line."""
    (tmp_path / "walks.py").write_text(
        "from dataclasses import dataclass\n"
        "from resgen.modalities import Modality\n"
        "@dataclass\n"
        "class Generate:\n"
        "    def run(self):\n"
        "        print('a walk')\n"
        "RECORD = Modality(name='walk', noun='walks', recipes={}, components=frozenset(), "
        "commands={'generate': Generate})\n"
    )
    info = tmp_path / "walks-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: walks\nVersion: 1\n")
    run = [sys.executable, "-c", "import sys; from resgen.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    environment = {**os.environ, "PYTHONPATH": f"{Path(resgen.__file__).parents[1]}{os.pathsep}{tmp_path}"}
    for target, code, line in (
        ("walks:RECORD", 0, "a walk"),
        ("strides:RECORD", 2, "modality 'walk' cannot be imported from 'walks' (No module named 'strides')"),
    ):
        (info / "entry_points.txt").write_text(f"[{MODALITIES}]\nwalk = {target}\n")
        result = subprocess.run([*run, "generate", "walk"], env=environment, capture_output=True, text=True)
        assert result.returncode == code and line in result.stdout + result.stderr
