"""Images that a pipeline returns: files, sheets, what a notebook shows."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resgen.errors import ConfigError, DataError
from resgen.pipelines.image.output import SHEET_CELL
from resgen.pipelines.image.pipeline import ImagePipeline


@pytest.fixture(scope="module")
def pipe(model: Path) -> ImagePipeline:
    pipe = ImagePipeline.from_pretrained(model, device="cpu", dtype="float32")
    pipe.sampling = pipe.sampling_with(num_steps=1)
    return pipe


def test_one_picture_is_saved_as_it_is(pipe: ImagePipeline, tmp_path: Path) -> None:
    output = pipe("Bag")
    assert output.save(tmp_path / "new" / "bag.png") == [tmp_path / "new" / "bag.png"]
    saved = Image.open(tmp_path / "new" / "bag.png")
    assert saved.size == (8, 8) and saved.tobytes() == output.images[0].tobytes()


def test_several_pictures_are_saved_as_a_sheet_or_a_folder(pipe: ImagePipeline, tmp_path: Path) -> None:
    output = pipe(["Bag", 0], num_samples=2)
    (file,) = output.save(str(tmp_path / "sheet.png"))
    assert Image.open(file).tobytes() == output.sheet().tobytes()
    files = output.save(tmp_path / "folder")
    assert [file.name for file in files] == ["0000.png", "0001.png", "0002.png", "0003.png"]
    for file, image in zip(files, output.images, strict=True):
        assert Image.open(file).tobytes() == image.tobytes()
    with pytest.raises(DataError, match=r"unknown suffix '\.txt'"):
        output.save(tmp_path / "a.txt")


def test_a_folder_whose_name_has_a_point(pipe: ImagePipeline, tmp_path: Path) -> None:
    (tmp_path / "v1.0").mkdir()
    assert pipe("Bag").save(tmp_path / "v1.0") == [tmp_path / "v1.0" / "0000.png"]


@pytest.mark.parametrize(
    ("classes", "num_samples", "columns", "rows"),
    [
        ("Bag", 1, 1, 1),
        ("Bag", 4, 4, 1),
        ([0, 1], 4, 4, 2),
        (None, 1, 3, 1),
        ([0, 1] * 6, 1, 4, 3),
        ([0, 0, 1], 1, 3, 1),
    ],
)
def test_sheet(pipe: ImagePipeline, classes, num_samples: int, columns: int, rows: int) -> None:
    width, height = pipe(classes, num_samples=num_samples).sheet().size
    assert columns == pytest.approx(width / SHEET_CELL, abs=0.9)
    assert rows == pytest.approx(height / SHEET_CELL, abs=0.7), "with the names of classes"


def test_a_sheet_names_classes(pipe: ImagePipeline) -> None:
    named, other = pipe([0, 1], num_samples=2), pipe([0, 2], num_samples=2)
    assert named.class_names == ["T-shirt/top"] * 2 + ["Bag"] * 2
    left = [np.asarray(output.sheet())[-SHEET_CELL:, :20] for output in (named, other)]
    assert (left[0] < 100).any() and not np.array_equal(*left)


def test_every_picture_of_a_large_sheet_has_its_name(pipe: ImagePipeline) -> None:
    output = pipe([0, 1] * 6)
    for scale in (0, 65, 100_000):
        with pytest.raises(ConfigError, match=f"scale={scale} must be a"):
            output.sheet(scale=scale)
    named, unnamed = output.sheet(scale=2), replace(output, class_names=[]).sheet(scale=2)
    line = (named.height - unnamed.height) // 3
    assert 8 < line < 30 and named.width == unnamed.width
    for row in range(3):
        top = row * (line + 16 + 2)
        assert np.asarray(named)[top : top + line].min() < 100, "text"


def test_what_a_notebook_shows(pipe: ImagePipeline) -> None:
    output = pipe("Bag", num_samples=3, seed=5)
    assert Image.open(io.BytesIO(output._repr_png_())).tobytes() == output.sheet().tobytes()
    assert repr(output) == "ImageOutput(3 of Bag, seed 5)"
    edited = pipe.edit(output.images[0], keep_levels=1, class_id="Bag")
    assert Image.open(io.BytesIO(edited._repr_png_())).tobytes() == edited.sheet().tobytes()
    assert repr(edited) == "EditOutput(1 of Bag, seed 0)"


def test_a_model_without_classes(make_pipeline, tmp_path: Path) -> None:
    pipe = ImagePipeline.from_pretrained(make_pipeline(tmp_path / "m", num_classes=0), device="cpu")
    output = pipe(num_samples=2, num_steps=1)
    assert output.class_names == [] and repr(output) == "ImageOutput(2, seed 0)"
    assert output.sheet().width > output.sheet().height
