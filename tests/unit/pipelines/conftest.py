"""A small untrained pipeline on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_parts import save_model


@pytest.fixture(scope="session")
def make_pipeline():
    """`make_pipeline(path, channels=1, num_classes=3, class_names=())` writes a pipeline folder, returns its path."""
    return save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("pipeline") / "model", class_names=("T-shirt/top", "Bag", "1"))
