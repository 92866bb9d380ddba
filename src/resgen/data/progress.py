"""A progress bar for work on many files, which appears only if that takes long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
AFTER_S = 2.0


def show_progress(items: Iterable[tuple[int, T]], total: int, title: str) -> Iterator[T]:
    """The second entry of every item; the first says how much of `total` it is.

    The bar is on standard error, and appears after two seconds.
    """
    begin = time.monotonic()
    progress = Progress(console=Console(stderr=True))
    task = progress.add_task(title, total=total)
    try:
        for count, item in items:
            yield item
            progress.advance(task, count)
            if not progress.live.is_started and time.monotonic() - begin > AFTER_S:
                progress.start()
    finally:
        if progress.live.is_started:
            progress.stop()
