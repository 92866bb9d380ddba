"""Settings of every test: signatures are checked, nothing depends on a machine's speed, and parallel test processes do
not fight for the cores."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy one takes ten times as long
settings.load_profile("any machine")

if not os.environ.get("RESGEN_NO_TYPECHECK"):
    from jaxtyping import install_import_hook

    install_import_hook("resgen", "typecheck.check")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # for subprocesses that a test starts

    import torch

    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line when the browser's tests were skipped, with what to install."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "chromium" in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} browser tests were skipped: install Chromium and its driver, "
            "on Debian `apt install chromium chromium-driver`"
        )
