"""Progress on standard error: bars on a terminal, for work of over two seconds, and elsewhere a line at intervals."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
QUIET_SECONDS = 2.0
FIRST_LINE_SECONDS, LINE_SECONDS = 10.0, 30.0
"""Until the first line where there is no terminal, and from one to the next."""
_shown: Advance | None = None  # of the block that runs: two displays would draw over each other
_STEERING = (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_ESCAPED = {code: ascii(chr(code))[1:-1] for code in _STEERING if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """The text with escapes for what would steer a terminal or reverse letters: names in foreign data may hold it."""
    return text.translate(_ESCAPED)


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, done: int | float, total: int | float, title: str, note: str = "") -> None:
        """Move the bar of that title, which the first call makes; `note` stands behind it."""
        ...


def no_progress(done: int | float, total: int | float, title: str, note: str = "") -> None:
    """Shows nothing."""


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def format_seconds(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    whole = max(0, round(seconds)) if math.isfinite(seconds) else 0
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Lines:
    """Says at intervals how far the work is, moving or not, with the time that is left at the speed so far."""

    def __init__(self) -> None:
        self._begins: dict[str, tuple[float, int | float]] = {}
        self._last: tuple[int | float, int | float, str, str] | None = None

    def __call__(self, done: int | float, total: int | float, title: str, note: str = "") -> None:
        self._begins.setdefault(title, (time.monotonic(), done))
        self._last = done, total, title, note

    def say(self) -> None:
        """One line, once there is something to say."""
        if self._last is None:
            return
        done, total, title, note = self._last
        begin, before = self._begins[title]
        left = (total - done) * (time.monotonic() - begin) / (done - before) if done > before else None
        parts = (f"{done:,.0f} of {total:,.0f}", left is not None and f"{format_seconds(left)} left", note)
        print(f"{title}: {', '.join(part for part in parts if part)}", file=sys.stderr, flush=True)

    def repeat(self, stop: threading.Event) -> None:
        """Until `stop`."""
        wait = FIRST_LINE_SECONDS
        while not stop.wait(wait):
            self.say()
            wait = LINE_SECONDS


@contextlib.contextmanager
def progress_bars(*, enabled: bool = True) -> Iterator[Advance]:
    """Progress while the block runs, of the first process; yields what tells it. A block within another joins it."""
    global _shown
    if not (enabled and is_first_process()):
        yield no_progress
    elif _shown is not None:
        yield _shown
    else:
        with _display() as advance:
            _shown = advance
            try:
                yield advance
            finally:
                _shown = None


@contextlib.contextmanager
def _display() -> Iterator[Advance]:
    from rich.console import Console  # not before something is shown: commands start faster
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    if not console.is_terminal:
        lines, stop = _Lines(), threading.Event()
        speaker = threading.Thread(target=lines.repeat, args=(stop,), daemon=True)
        speaker.start()
        try:
            yield lines
        finally:
            stop.set()
            speaker.join()
        return
    progress = Progress(*columns, console=console, speed_estimate_period=3600.0)
    tasks: dict[str, Any] = {}

    def advance(done: int | float, total: int | float, title: str, note: str = "") -> None:
        if title not in tasks:
            tasks[title] = progress.add_task(title, total=total, note=note)
        progress.update(tasks[title], completed=done, total=total, note=note)

    later = threading.Timer(QUIET_SECONDS, progress.start)
    later.daemon = True
    later.start()
    try:
        yield advance
    finally:
        later.cancel()
        later.join()
        if progress.live.is_started:  # else Rich 13 ends a line that it has not begun
            progress.stop()


def show_progress(items: Iterable[tuple[int, T]], total: int, title: str) -> Iterator[T]:
    """The second entry of every item, with a bar; the first says how much of `total` it is."""
    done = 0
    with progress_bars() as advance:
        advance(0, total, title)
        for count, item in items:
            yield item
            done += count
            advance(done, total, title)
