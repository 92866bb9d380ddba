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


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_shown_without_a_terminal_or_where_it_is_off(enabled, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    if not enabled:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress_bars(enabled=enabled) as advance:
        for done in range(3):
            advance(done, 2, "reading")
            time.sleep(0.1)
    assert capsys.readouterr().err.strip() == ""


def test_an_error_within_ends_the_bar(terminal, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with pytest.raises(KeyError), progress.progress_bars() as advance:
        advance(0, 1, "reading")
        raise KeyError("x")
