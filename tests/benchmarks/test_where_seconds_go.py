"""The split of a command's time: nothing is charged twice or lost, and what is watched exists."""

from __future__ import annotations

import importlib
import operator
import time
from pathlib import Path

import pytest
import where_seconds_go
from where_seconds_go import PARTS, PHASES, Phases


def test_a_phase_within_another_is_charged_alone() -> None:
    begin = time.monotonic() - 1.0
    phases = Phases(begin)
    importing = phases.charged("imports", lambda: time.sleep(0.2))
    phases.charged("loading", lambda: (time.sleep(0.05), importing()))()
    phases.settle()
    wall = {name: clocks[0] for name, clocks in phases.seconds.items()}
    assert wall["other"] >= 1.0 and wall["imports"] >= 0.2 and wall["loading"] >= 0.05
    assert 1.25 <= sum(wall.values()) <= time.monotonic() - begin


def test_an_error_ends_its_phase() -> None:
    phases = Phases(time.monotonic())
    with pytest.raises(ZeroDivisionError):
        phases.charged("sampling", lambda: 1 // 0)()
    assert phases._stack == ["other"]


@pytest.mark.parametrize("part", [part for parts in PARTS.values() for part in parts])
def test_what_is_watched_exists(part: str) -> None:
    module, _, path = part.partition(":")
    assert callable(operator.attrgetter(path)(importlib.import_module(module)))


def test_the_phases_of_a_command_add_up(tmp_path: Path) -> None:
    out = tmp_path / "digits.wav"
    argv = ["generate", "speech", "--model", "spoken-digits-small", "--text", "nine", "--steps", "2", "--out", str(out)]
    seconds = where_seconds_go.measured(argv, tmp_path)
    assert out.exists()
    for clock in range(2):
        assert sum(seconds[name][clock] for name in PHASES) == pytest.approx(seconds["whole"][clock])
    assert all(seconds[name][0] > 0 for name in PHASES if name != "measuring") and seconds["measuring"] == [0.0, 0.0]
    text = where_seconds_go.table({"speech": [seconds, seconds]}, 0)
    assert text.count(f"**{seconds['whole'][0]:.2f}**") == 2


def test_a_command_that_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="'resgen generate image --out x.txt' failed: error: "):
        where_seconds_go.measured(["generate", "image", "--out", "x.txt"], tmp_path)
