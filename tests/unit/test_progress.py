import math
import time

import pytest

from resgen import progress


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal


def test_short_work_shows_nothing(terminal, capsys):
    assert list(progress.show_progress([(1, "a"), (2, "b")], 3, "reading")) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_long_work_shows_a_bar_with_its_title_and_the_time_left(terminal, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    for _ in progress.show_progress([(1, None), (2, None)], 3, "reading"):
        time.sleep(0.2)
    printed = capsys.readouterr()
    assert printed.out == "" and all(word in printed.err for word in ("reading", "left", "100%"))


@pytest.mark.parametrize("off", ["enabled", "rank", "short"])
def test_nothing_is_shown_where_it_is_off_or_soon_done(off, monkeypatch, capsys):
    if off != "short":
        monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    if off == "rank":
        monkeypatch.setenv("RANK", "1")
    with progress.progress_bars(enabled=off != "enabled") as advance:
        for done in range(3):
            advance(done, 2, "reading")
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is_without_a_terminal(monkeypatch, capsys):
    now = iter([0.0, 5.0, 15.0, 25.0, 45.0, 46.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.progress_bars() as advance:
        advance(0, 2000, "samples")
        for done in (500, 1000, 1500):
            advance(done, 2000, "samples")
        advance(0, 10, "another phase")
    assert capsys.readouterr().err == ("samples: 500 of 2,000, 0:30 left\nsamples: 1,500 of 2,000, 0:13 left\n")


def test_an_error_within_ends_the_bar(terminal, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with pytest.raises(KeyError), progress.progress_bars() as advance:
        advance(0, 1, "reading")
        raise KeyError("x")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3723.0, "1:02:03"), (-5.0, "0:00"), (math.inf, "0:00")]
)
def test_times(seconds, text):
    assert progress.format_seconds(seconds) == text
