"""Orderly stops: a signal requests one, and the trainer stops after the current step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from resgen.errors import ResGenError


class Interrupted(ResGenError):
    """Training was stopped by a signal after a checkpoint.

    Attributes:
        step: steps done.
    """

    def __init__(self, step: int, out_dir: Path | None = None) -> None:
        where = f" in '{out_dir}'" if out_dir is not None else ""
        super().__init__(f"interrupted after step {step}; a checkpoint was written{where}, continue with --resume")
        self.step = step


class StopSignals:
    """Counts SIGINT and SIGTERM while `listening`; a SIGINT after another raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals within the block; outside the main thread, where Python allows no handlers, do nothing."""
        self.count = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
