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
        (line("resgen", 1, 0.1), line("direct", 2, 0.1), "ResGen is better: the intervals do not overlap"),
        (line("resgen", 2, 0.1), line("direct", 1, 0.1), "direct tokens is better: the intervals do not overlap"),
        (line("resgen", 1, 0.6), line("direct", 2, 0.6), "no significant difference"),
        (line("resgen", 1, 0, seeds=1), line("direct", 2, 0, seeds=1), "one seed only: lower"),
    ],
)
def test_verdicts_say_what_the_intervals_allow(ours: dict, other: dict, words: str) -> None:
    (sentence,) = verdicts([ours, other])
    assert words in sentence and sentence.startswith("guided, ResGen against direct tokens: ")


def test_the_residual_head_is_judged_as_well() -> None:
    lines = [line("direct", 3, 0.1), line("residual", 1, 0.1), line("resgen", 2, 0.1)]
    assert verdicts(lines) == [
        "guided, ResGen against direct tokens: 2.00 against 3.00; ResGen is better: the intervals do not overlap.",
        "guided, ResGen against residual head (ours): 2.00 against 1.00; residual head (ours) is better: the intervals "
        "do not overlap.",
        "guided, residual head (ours) against direct tokens: 1.00 against 3.00; residual head (ours) is better: the "
        "intervals do not overlap.",
    ]
    assert len(verdicts(lines[:2])) == 1


def test_without_either_there_is_no_verdict() -> None:
    assert verdicts([line("direct", 1, 0.1), line("maskgit", 2, 0.1)]) == []
    steps = {**line("direct", 1, 0.1), "budget": "steps"}
    assert verdicts([line("resgen", 1, 0.1), steps]) == []
