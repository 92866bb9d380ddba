"""The toy task of the integration tests, for unit tests as well."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy():
    path = Path(__file__).parents[2] / "integration" / "toy_training.py"
    spec = importlib.util.spec_from_file_location("toy_training", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
