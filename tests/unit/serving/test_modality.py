"""A modality that another package registers is served beside images and speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.responses import Response

from resgen import modalities
from resgen.checkpoints.format import Component, save_folder
from resgen.errors import ConfigError
from resgen.modalities import Modality, register
from resgen.serving.app import create_app
from resgen.serving.config import ServerConfig
from resgen.serving.routes import Routes, as_json
from resgen.serving.service import Service
from serving_parts import talk


class ServedMotion:
    modality = "motion"

    def __init__(self, name: str, source: str, config: ServerConfig, *, device: str | None, dtype: str) -> None:
        self.name, self.description, self.folder = name, "walks", Path(source).name

    def describe(self) -> dict[str, Any]:
        return {"joints": 6}


class MotionRoutes(Routes):
    served = ServedMotion

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.router.get("/motion")(self.motion)

    async def motion(self) -> Response:
        return as_json({"folder": self.service.find(None, ServedMotion).folder})


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A saved model of motion."""
    monkeypatch.setattr(modalities, "_registered", {})
    component = Component(type="joints", config={}, tensors={})
    save_folder(tmp_path / "walk", kind="pipeline", components={"tokenizer": component})
    return {"walk": str(tmp_path / "walk")}


def motion(served: str | None) -> Modality:
    return Modality(name="motion", noun="motion", recipes={}, components=frozenset({"joints"}), served=served)


def test_its_routes_answer(walk: dict[str, str], clothes: dict[str, str]) -> None:
    register(motion(f"{__name__}:MotionRoutes"))

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return [(await client.get(f"/v1/{path}")).json() for path in ("motion", "models")]

    answer, listed = talk(walk | clothes, ask)
    assert answer == {"folder": "walk"}
    assert [(one["name"], one["modality"]) for one in listed["models"]] == [("walk", "motion"), ("clothes", "image")]
    assert listed["models"][0]["joints"] == 6 and listed["models"][0]["description"] == "walks"


def test_without_routes_one_line_says_so(walk: dict[str, str]) -> None:
    register(motion(None))
    with pytest.raises(ConfigError, match="^model 'walk' is for motion, which is not served$"):
        Service(walk, ServerConfig())


def test_routes_of_pictures_and_speech_are_always_there(clothes: dict[str, str]) -> None:
    app: Any = create_app(Service(clothes, ServerConfig()))
    paths = app.app.openapi()["paths"]
    assert {"/v1/images", "/v1/images/edit", "/v1/speech", "/v1/models"} <= paths.keys() and "/v1/motion" not in paths
