"""What every hostile input must end in: a result, or one line and exit code 2, soon and in little memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Sequence

import pytest

from resgen.cli.main import main

MAX_SECONDS, MAX_KILOBYTES = 10, 1 << 20


def check(words: Sequence[str], capsys: pytest.CaptureFixture[str], codes: Collection[int] = (0, 2)) -> int:
    """Run a command in this process; its exit code.

    Args:
        words: the command and its options.
        capsys: what it writes.
        codes: the exit codes that it may have.
    """
    case = [word[:60] for word in words]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        code = main(words)
    except SystemExit as stop:  # after help
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code in codes, (case, error[:500])
    errors = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code == 2), (case, error[:2000])
    assert len(error) < 9000, case
    assert time.process_time() - began < MAX_SECONDS, case
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_KILOBYTES, case
    return code
