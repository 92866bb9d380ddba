"""Signals that stop a training after its step."""

from __future__ import annotations

import signal

import pytest

from resgen.training.stop import StopSignals


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_only_a_second_ctrl_c_ends_at_once(first: signal.Signals) -> None:
    stop = StopSignals()
    with stop.listening():
        for number in (first, signal.SIGTERM):  # as from a shell and a supervisor together
            signal.raise_signal(number)
        assert stop.count == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
