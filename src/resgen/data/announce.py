"""What is said on standard error when data is opened."""

from __future__ import annotations

import os
import sys


def announce(line: str) -> None:
    """One line, from the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
