"""What is said on standard error about data: one line when it is opened, a bar if work on many files takes long."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
AFTER_S = 2.0


def announce(line: str) -> None:
    """One line, from the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


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
