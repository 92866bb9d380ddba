"""What workers of a comparison do in its tests, in place of trainings."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from resgen.experiments.image import actions


def kill(action: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Nothing but an end without a word, as when the memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hold(action: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`actions.do` with a training that ends at once if its `seconds` are 0; `log` notes begins and interruptions."""

    def train(name: str, seconds: float, log: str) -> dict[str, Any]:
        note(log, f"begin {name}")
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                time.sleep(0.01)
        except KeyboardInterrupt:
            note(log, f"stop {name}")
            raise
        return {}

    actions.train = train  # type: ignore[assignment]
    return actions.do("train", arguments)


def note(log: str, line: str) -> None:
    with Path(log).open("a") as file:
        file.write(f"{line}\n")
