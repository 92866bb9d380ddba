"""Signals that stop a training after its step."""

from __future__ import annotations

import signal

import pytest

from resgen.training.stop import StopSignals


def test_only_a_second_ctrl_c_ends_at_once() -> None:
    stop = StopSignals()
    with stop.listening():
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.count == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_that_a_supervisor_passes_on_as_sigterm_counts_and_loses_nothing() -> None:
    stop = StopSignals()
    with stop.listening():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.count == 2
