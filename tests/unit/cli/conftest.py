"""Stand-ins for the modules that the commands call, so that these tests load no model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from resgen.errors import ConfigError
from resgen.pipelines.image.output import ImageOutput
from resgen.samplers.records import StepRecord


class FakePipeline:
    """Remembers how it was called; every image is grey, its class in the brightness."""

    class_names: tuple[str, ...] = ("zero", "one", "T-shirt/top")
    calls: list[dict[str, Any]]

    def __init__(self) -> None:
        self.calls = []

    def class_id(self, name: str) -> int:
        if name.isdigit() and int(name) < len(self.class_names):
            return int(name)
        if name not in self.class_names:
            raise ConfigError(f"unknown class '{name}'")
        return self.class_names.index(name)

    def class_name(self, class_id: int) -> str:
        return self.class_names[class_id]

    def __call__(self, *, class_ids=None, num_samples=1, callback=None, **settings):
        self.calls.append({"class_ids": class_ids, "num_samples": num_samples, **settings})
        count = len(class_ids) if class_ids else num_samples
        steps = [StepRecord(0, 3, 0.0, 5, 5, 0.1, 1), StepRecord(2, 3, 1.5, 5, 10, 0.1, 2)]
        for record in steps:
            callback(record, None, None)
        images = [Image.new("L", (4, 4), 10 * k) for k in range(count)]
        return ImageOutput(
            images=images,
            codes=torch.zeros(count, 4, 8, dtype=torch.int64),
            steps=steps,
            class_ids=class_ids or [0] * count,
            class_names=[self.class_names[c] for c in class_ids or ()],
            seed=0,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`fake("resgen.training.image.runs", encode_data=...)` puts a module of these names in place."""

    def install(name: str, **members: Any) -> None:
        module = ModuleType(name)
        nothing = {"registered": tuple} if name == "resgen.modalities" else {}  # every command asks for it
        for key, value in (nothing | members).items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.fixture
def pipeline(fake: Callable[..., None]) -> FakePipeline:
    """The pipeline that every model name and folder gives."""
    pipe = FakePipeline()

    def from_pretrained(name: str, device: str | None = None, dtype: str = "auto") -> FakePipeline:
        pipe.calls.append({"model": name, "device": device, "dtype": dtype})
        return pipe

    fake("resgen.pipelines.image.pipeline", ImagePipeline=SimpleNamespace(from_pretrained=from_pretrained))
    return pipe


@pytest.fixture
def bundled(fake: Callable[..., None], tmp_path: Path) -> Callable[..., None]:
    """`bundled(name="kind", ...)` puts models in place, each with a file of 2,000,000 bytes."""

    def install(**kinds: str) -> None:
        def resolve_model(name: str) -> Path:
            folder = tmp_path / "assets" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights.safetensors").write_bytes(bytes(2_000_000))
            return folder

        def load_folder(path: Path, *, verify: bool) -> SimpleNamespace:
            assert not verify, "a list of names should not read all weights"
            return SimpleNamespace(path=path, kind=kinds[path.name.replace("-", "_")], extra={"description": "clothes"})

        names = [name.replace("_", "-") for name in kinds]
        fake("resgen.checkpoints.locate", list_bundled=lambda: names, resolve_model=resolve_model)
        fake("resgen.checkpoints.format", load_folder=load_folder)

    return install
