import math
import time

import pytest

from resgen import progress


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal


def test_what_would_steer_a_terminal_is_escaped():
    name = "\x1b[31mred\x1b]0;title\x07 a\rb \u202egnp.exe \x9b2J"
    assert progress.printable(name) == r"\x1b[31mred\x1b]0;title\x07 a\rb \u202egnp.exe \x9b2J"
    assert progress.printable("日本語 ☃\t\n") == "日本語 ☃\t\n"


def test_short_work_shows_nothing(terminal, capsys):
    assert list(progress.show_progress([(1, "a"), (2, "b")], 3, "reading")) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_long_work_shows_a_bar_with_its_title_and_the_time_left(terminal, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    for _ in progress.show_progress([(1, None), (2, None)], 3, "reading"):
        time.sleep(0.2)
    printed = capsys.readouterr()
    assert printed.out == "" and all(word in printed.err for word in ("reading", "left", "100%"))


@pytest.mark.parametrize("off", ["enabled", "rank", "short", "untold"])
def test_nothing_is_shown_where_it_is_off_or_soon_done(off, monkeypatch, capsys):
    if off != "short":
        monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.01)
    if off == "rank":
        monkeypatch.setenv("RANK", "1")
    with progress.progress_bars(enabled=off != "enabled") as advance:
        if off != "untold":
            advance(1, 2, "reading")
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_long_work_says_at_intervals_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    with progress.progress_bars() as advance:
        advance(0, 2000, "samples", "seed 0")
        printed = ""
        while printed.count("\n") < 2:  # though nothing moves
            time.sleep(0.01)
            printed += capsys.readouterr().err
    assert set(printed.splitlines()) == {"samples: 0 of 2,000, seed 0"}


def test_a_line_has_the_time_that_is_left(monkeypatch, capsys):
    now = iter([5.0, 15.0, 25.0, 45.0, 46.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    lines = progress._Lines()
    lines(500, 2500, "samples")
    lines(1000, 2500, "samples")
    lines.say()
    lines(0, 1, "another phase")
    lines.say()
    assert capsys.readouterr().err == "samples: 1,000 of 2,500, 1:00 left\nanother phase: 0 of 1\n"


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


def test_a_block_within_another_joins_it(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress, "LINE_SECONDS", 60.0)
    with progress.progress_bars() as outer:
        outer(0, 5, "reference")
        for _ in progress.show_progress([(1, None)], 3, "decoding"):
            time.sleep(0.3)
        with progress.progress_bars() as inner, progress.progress_bars(enabled=False) as off:
            assert inner is outer and off is progress.no_progress
    assert capsys.readouterr().err == "decoding: 0 of 3\n", "one display, which says what is done now"
    with progress.progress_bars() as another:
        assert another is not outer
