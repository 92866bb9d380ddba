"""What a comparison's report concludes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from resgen.experiments.image import report
from resgen.experiments.image.report import t_interval, verdicts


def test_intervals_of_few_seeds_are_students() -> None:
    low, high = t_interval([1.0, 2.0, 3.0])
    half = 4.303 * 1.0 / math.sqrt(3)
    assert (low, high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert t_interval([5.0]) == (5.0, 5.0)
    wide, narrow = t_interval([1.0, 3.0]), t_interval([1.0, 3.0, 1.0, 3.0])
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


def line(kind: str, value: float, half: float, seeds: int = 3) -> dict:
    return {
        "kind": kind,
        "budget": "time",
        "seeds": seeds,
        "guided": value,
        "guided_interval": (value - half, value + half),
    }


@pytest.mark.parametrize(
    ("ours", "other", "words"),
    [
        (line("resgen", 1, 0.1), line("direct", 2, 0.1), "better"),
        (line("resgen", 2, 0.1), line("direct", 1, 0.1), "worse"),
        (line("resgen", 1, 0.6), line("direct", 2, 0.6), "no significant difference"),
        (line("resgen", 1, 0, seeds=1), line("direct", 2, 0, seeds=1), "lower distance (one seed)"),
        (line("resgen", 2, 0.1), line("direct", 1, 0, seeds=1), "higher distance (one seed)"),
    ],
)
def test_verdicts_say_what_the_intervals_allow(ours: dict, other: dict, words: str) -> None:
    assert verdicts([ours, other]) == [{"kind": "resgen", "against": "direct", "guided": words}]


def test_the_residual_head_is_judged_as_well() -> None:
    lines = [line("direct", 3, 0.1), line("residual", 1, 0.1), line("resgen", 2, 0.1)]
    rows = [(row["kind"], row["against"], row["guided"]) for row in verdicts(lines)]
    assert rows == [
        ("resgen", "direct", "better"),
        ("resgen", "residual", "worse"),
        ("residual", "direct", "better"),
    ]
    assert len(verdicts(lines[:2])) == 1


def test_without_either_there_is_no_verdict() -> None:
    assert verdicts([line("direct", 1, 0.1), line("maskgit", 2, 0.1)]) == []
    steps = {**line("direct", 1, 0.1), "budget": "steps"}
    assert verdicts([line("resgen", 1, 0.1), steps]) == []


def unguided(kind: str) -> dict:
    return {"kind": kind, "budget": "time", "seeds": 3, "unguided": 4.0, "unguided_interval": (3.5, 4.5)}


@pytest.mark.parametrize(
    ("lines", "setting", "kinds"),
    [
        ([line("resgen", 2, 0.1), unguided("direct")], "guided", ["ResGen"]),
        ([unguided("resgen"), unguided("direct")], "unguided", ["ResGen", "direct tokens"]),
    ],
)
def test_the_figure_of_time_shows_kinds_with_the_setting_that_it_names(
    lines: list[dict], setting: str, kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    monkeypatch.setattr(report, "save_figure", lambda draw, path, size: draw(figure))
    speed = {kind: {"1": 0.1, "64": 0.01} for kind in ("resgen", "direct")}
    report._draw_time(tmp_path, lines, speed, "FD-x")
    for axis in figure.axes:
        assert axis.get_ylabel() == f"FD-x, {setting}"
        assert axis.get_legend_handles_labels()[1] == kinds
