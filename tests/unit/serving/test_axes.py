"""The server of a model whose classes have several axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from image_parts import save_model
from resgen.data.pictures.grid import png_bytes
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.serving.service import Service
from serving_parts import png, pngs, talk

AXES = {"style": ("Lorelei", "thumbs"), "background": ("blue", "pink", "red")}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"faces": str(save_model(tmp_path_factory.mktemp("served") / "faces", class_axes=AXES))}


def test_requests_by_axis(faces: dict[str, str]) -> None:
    pipe = ImagePipeline.from_pretrained(Path(faces["faces"]), device="cpu", dtype="float32")
    classes = [{"style": "thumbs", "background": "pink"}, "lorelei, red", {"style": 1, "background": None}, {}, 4]

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        models = (await client.get("/v1/models")).json()["models"]
        answer = (await client.post("/v1/images", json={"class_ids": classes, "seed": 3})).json()
        files = {"image": ("a.png", png())}
        form = {"class_id": "style=thumbs, background=pink", "seed": "5", "keep_levels": "1"}
        edited = (await client.post("/v1/images/edit", data=form, files=files)).json()
        return models, answer, edited, (await client.post("/v1/images", json={"seed": 1})).json()

    models, answer, edited, default = talk(faces, ask)
    assert models[0]["classes"] == ["Lorelei", "thumbs"]
    assert models[0]["axes"] == [{"name": axis, "classes": list(names)} for axis, names in AXES.items()]
    assert pngs(answer) == [png_bytes(image) for image in pipe(classes, seed=3).images]
    names = ["thumbs, pink", "Lorelei, red", "thumbs", "any", "thumbs, blue"]
    assert [image["class_name"] for image in answer["images"]] == names
    assert [image["class_id"] for image in answer["images"]] == [7, 9, 1, 2, 4]
    assert edited["images"][0]["class_name"] == "thumbs, pink"
    assert [image["class_name"] for image in default["images"]] == ["Lorelei", "thumbs"], "of the first axis"


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["background=green"], "unknown background 'green'; allowed: blue, pink, red"),
        ([{"colour": "blue"}], "unknown axis of classes 'colour'"),
        ([{"style": "thumbs", "Style": "thumbs"}], "tells style twice"),
        ([{"style": ["thumbs"]}], "class_ids"),
        ([{"style": 1.5}], "class_ids"),
        ([{"style": True}], "class_ids"),
        ([{f"axis{k}": 0 for k in range(65)}], "class_ids"),
        ([12], "unknown class '12'"),
        (["x" * 401], "class_ids"),
    ],
    ids=str,
)
def test_requests_that_are_refused(classes: Any, names: str, faces: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/images", json={"class_ids": classes})

    answer = talk(faces, ask)
    assert answer.status_code == 422 and names in answer.json()["error"] and "\n" not in answer.json()["error"]
