"""Bars with the time left on standard error, for work that takes over two seconds; none where it is not a terminal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
QUIET_SECONDS = 2.0


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, done: int | float, total: int | float, title: str, note: str = "") -> None:
        """Move the bar of that title, which the first call makes; `note` stands behind it."""
        ...


def no_progress(done: int | float, total: int | float, title: str, note: str = "") -> None:
    """Shows nothing."""


def is_terminal() -> bool:
    """Whether standard error is one, so that bars are shown."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextlib.contextmanager
def progress_bars(*, enabled: bool = True) -> Iterator[Advance]:
    """Bars while the block runs; yields what moves them."""
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
    disable = not (enabled and is_terminal())
    progress = Progress(*columns, console=console, disable=disable, speed_estimate_period=3600.0)
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
