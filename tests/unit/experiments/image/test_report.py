"""What a comparison's report concludes."""

from __future__ import annotations

import math

import pytest

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
