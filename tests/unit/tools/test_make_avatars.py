"""The tool that draws avatars: what it asks for, what it reads from the answers, what it writes."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import make_avatars
import numpy as np
import pyarrow.parquet
import pytest
from make_avatars import AXES, BACKGROUNDS, PACKAGES, STYLES, Artist, MakeAvatars, draw_options, draw_split
from PIL import Image

from resgen.data.pictures.sources import open_images
from resgen.errors import DataError
from resgen.models.conditions import class_digits

PACKAGES_VARIABLE = "RESGEN_AVATAR_PACKAGES"


def _png(colour: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


class _FewDrawings:
    """Draws only so many images of each style."""

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, style: str, options: dict[str, Any], size: int) -> dict[str, Any]:
        number = int(options["seed"], 16) % self.count
        return {"png": _png((number, 0, 0)), "drawing": f"{style} {number}", "attributes": {"mouth": "sad01"}}


def test_options_are_drawn_from_the_palettes() -> None:
    options, traits = draw_options("micah", random.Random(3))
    assert options["backgroundColor"] == [BACKGROUNDS[traits["background"]]]
    assert options["baseColor"] == [make_avatars.SKIN[traits["skin"]]], "micah calls the skin its base"
    assert (options, traits) == draw_options("micah", random.Random(3)) != draw_options("micah", random.Random(4))
    options, traits = draw_options("thumbs", random.Random(0))
    assert options.keys() == {"seed", "backgroundColor"} and traits["hair"] is traits["skin"] is None


@pytest.mark.parametrize(
    ("attributes", "classes"),
    [
        ({"mouth": "happy12", "glasses": "dark03", "glassesColor": "#191919"}, ("glasses", "none", "happy")),
        ({"mouth": "sad02", "glassesColor": "#191919", "hairColor": "#000000"}, ("none", "none", "unhappy")),
        ({"mood": "superHappy", "facialHair": "default"}, ("none", "beard", "happy")),
        ({"mouth": "openSad", "accessories": "sunglasses"}, ("glasses", "none", "unhappy")),
        ({"features": "mustache", "mouth": "variant03"}, ("none", "beard", None)),
        ({"face": "smileLOL", "accessories": "eyepatch"}, ("none", "none", "happy")),
    ],
)
def test_attributes_of_all_styles_are_read_alike(attributes: dict[str, str], classes: tuple[str, ...]) -> None:
    assert make_avatars.read_attributes(attributes) == dict(zip(("glasses", "beard", "mood"), classes, strict=True))


def test_no_drawing_occurs_twice() -> None:
    drawn: set[str] = set()
    artist: Any = _FewDrawings(10)
    rows = [
        row
        for split in ("test", "train")
        for row in draw_split(artist, split, 4 * len(STYLES), 8, seed=0, drawings=drawn)
    ]
    pictures = [(row["label"], row["image"]["bytes"]) for row in rows]
    assert len(set(pictures)) == len(pictures) == 8 * len(STYLES)
    assert {row["mood"] for row in rows} == {AXES["mood"].index("unhappy")}
    with pytest.raises(DataError, match="'adventurer' has too few drawings for 36 images in 'train'"):
        list(draw_split(artist, "train", 3 * len(STYLES), 8, seed=1, drawings=drawn))


def test_written_pictures_are_read_with_their_styles(tmp_path: Path) -> None:
    artist: Any = _FewDrawings(200)
    rows = list(draw_split(artist, "train", 2 * len(STYLES), 8, seed=0, drawings=set()))
    pyarrow.parquet.write_table(make_avatars.make_table(rows), tmp_path / "train.parquet")
    source = open_images(tmp_path)
    assert source.class_names == tuple(STYLES) and source.labels.tolist() == list(range(len(STYLES))) * 2
    picture, _ = source[3]
    assert np.array_equal(picture, np.asarray(Image.open(io.BytesIO(rows[3]["image"]["bytes"]))))
    schema = pyarrow.parquet.read_schema(tmp_path / "train.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert {name: tuple(features[name]["names"]) for name in AXES} == AXES
    source = open_images(tmp_path, class_columns=["style=label", "background", "hair", "glasses", "mood"])
    assert source.class_axes["style"] == tuple(STYLES) and source.class_axes["mood"] == ("happy", "unhappy")
    digits = class_digits(source.labels, [len(names) for names in source.class_axes.values()])
    thumbs = list(STYLES).index("thumbs")
    assert digits[2][thumbs] == 0 and (digits[4] == 2).all(), "no hair is told as nothing; all are unhappy"
    assert digits[1].tolist() == [row["background"] + 1 for row in rows]


def test_pixels_stay_what_they_are() -> None:
    written = Image.open(io.BytesIO(make_avatars.to_webp(_png((7, 130, 255, 255)))))
    assert written.mode == "RGB" and set(written.get_flattened_data()) == {(7, 130, 255)}


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="size=8 must be from 16 to 1024"):
        MakeAvatars(packages=tmp_path, out=tmp_path / "out", size=8)
    with pytest.raises(DataError, match="test=3 must be at least 12"):
        MakeAvatars(packages=tmp_path, out=tmp_path / "out", test=3)
    with pytest.raises(DataError, match="is there already"):
        MakeAvatars(packages=tmp_path, out=tmp_path).write()
    monkeypatch.setattr("shutil.which", lambda _: "node")
    with pytest.raises(DataError, match="lacks @dicebear/core; npm install .*@resvg/resvg-js@2.6.2"):
        Artist(tmp_path)
    for name in PACKAGES:
        file = tmp_path / "node_modules" / name / "package.json"
        file.parent.mkdir(parents=True)
        file.write_text('{"version": "8.0.0"}')
    with pytest.raises(DataError, match="holds @dicebear/core 8.0.0; the drawings are those of 9.4.3"):
        Artist(tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(DataError, match="'node' is not installed"):
        Artist(tmp_path)


def test_real_drawings(tmp_path: Path) -> None:
    packages = os.environ.get(PACKAGES_VARIABLE)
    if not packages:
        pytest.skip(f"set {PACKAGES_VARIABLE} to a folder with {', '.join(PACKAGES)}")
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        MakeAvatars(packages=Path(packages), out=folder, train=24, test=12, size=32).write()
    assert (folders[0] / "train.parquet").read_bytes() == (folders[1] / "train.parquet").read_bytes()
    rows = pyarrow.parquet.read_table(folders[0] / "train.parquet").to_pylist()
    for row in rows:
        picture = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        background = bytes(picture[0, -1]).hex()
        styles = list(STYLES)
        assert picture.shape == (32, 32, 3)
        if styles[row["label"]] in ("dylan", "lorelei", "notionists", "miniavs"):  # whose hair leaves the corner free
            assert background == list(BACKGROUNDS.values())[row["background"]]
    assert "| lorelei | Lisa Wischofsky |" in (folders[0] / "CREDITS.md").read_text()
    with Artist(Path(packages)) as artist, pytest.raises(DataError, match="style 'dylan' cannot be drawn: .*Error"):
        artist.draw("dylan", {"seed": "0", "backgroundColor": 3}, 32)
