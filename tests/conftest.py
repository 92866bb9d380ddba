"""Settings of every test: signatures are checked, and parallel test processes do not fight for the cores."""

from __future__ import annotations

import os

if not os.environ.get("RESGEN_NO_TYPECHECK"):
    from jaxtyping import install_import_hook

    install_import_hook("resgen", "typecheck.check")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # for subprocesses that a test starts

    import torch

    torch.set_num_threads(1)
