"""Messages on standard error when data is opened, and about files that cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from resgen.errors import DataError
from resgen.progress import is_first_process, printable

MAX_NAMED = 20


def announce(line: str) -> None:
    """One line, from the first of several processes only."""
    if is_first_process():
        print(printable(line), file=sys.stderr, flush=True)


def listed(reasons: Sequence[str]) -> str:
    """The first `MAX_NAMED`, and how many more there are."""
    more = f"; and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
    return "; ".join(reasons[:MAX_NAMED]) + more


def leave_out(bad: Mapping[int, str], total: int, what: str, *, skip: bool) -> None:
    """Say what of some data cannot be read, as an error if it is not to be skipped.

    Args:
        bad: what is wrong with samples, by their numbers.
        total: samples that there are.
        what: what to call them.
        skip: whether they are left out.

    Raises:
        DataError: naming all, or the first `MAX_NAMED` and their number.
    """
    if not bad:
        return
    reasons = [bad[number] for number in sorted(bad)]
    if len(bad) == 1 and not skip:
        raise DataError(f"{reasons[0]}; remove it, or leave it out with --skip-unreadable")
    line = f"{len(bad)} of {total} {what} cannot be read: {listed(reasons)}"
    if not skip:
        raise DataError(f"{line}; remove them, or leave them out with --skip-unreadable")
    announce(f"left out: {line}")
