"""Sample sheets: places, labels, safe writing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resgen.data import picture_grid, save_picture
from resgen.data.pictures.grid import PAD, stacked
from resgen.errors import ConfigError, DataError, WriteError


def numbered(count: int, channels: int = 3, size: int = 4) -> torch.Tensor:
    values = torch.arange(1, count + 1, dtype=torch.uint8) * 10
    return values[:, None, None, None].expand(count, channels, size, size).clone()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("scale", [1, 3])
def test_pictures_lie_row_by_row(channels: int, mode: str, scale: int) -> None:
    sheet = picture_grid(numbered(5, channels), 3, scale)
    cell = 4 * scale
    assert sheet.mode == mode and sheet.size == (PAD + 3 * (cell + PAD), PAD + 2 * (cell + PAD))
    array = np.asarray(sheet.convert("L"))
    for index in range(5):
        top, left = (PAD + place * (cell + PAD) for place in divmod(index, 3))
        assert (array[top : top + cell, left : left + cell] == (index + 1) * 10).all()
        array = array.copy()
        array[top : top + cell, left : left + cell] = 255
    assert (array == 255).all()


def test_scale_repeats_pixels() -> None:
    images = torch.tensor([[[[0, 100], [200, 255]]]], dtype=torch.uint8)
    array = np.asarray(picture_grid(images, 1, 2))[PAD:-PAD, PAD:-PAD]
    assert array.tolist() == [[0, 0, 100, 100], [0, 0, 100, 100], [200, 200, 255, 255], [200, 200, 255, 255]]


def test_labels_take_their_own_room() -> None:
    images = torch.full((4, 3, 30, 30), 128, dtype=torch.uint8)
    plain = picture_grid(images, 2)
    sheet = picture_grid(images, 2, labels=["cat", "a very long\nname indeed"], row_labels=["row one", "2"])
    assert sheet.width > plain.width and sheet.height > plain.height
    left, top = sheet.width - plain.width, sheet.height - plain.height
    array = np.asarray(sheet.convert("L"))
    assert np.array_equal(array[top:, left:], np.asarray(plain.convert("L")))
    for column in range(2):
        begin = left + PAD + column * (30 + PAD)
        assert array[:top, begin : begin + 30].min() < 100
    for row in range(2):
        begin = top + PAD + row * (30 + PAD)
        assert array[begin : begin + 30, :left].min() < 100
    assert array[:top, :left].min() == 255 and (array[:top, left + PAD + 30 : left + 2 * PAD + 30] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": 0}, "columns=0"),
        ({"columns": 2, "scale": 0}, "scale=0"),
        ({"columns": 2, "labels": ["a", "b", "c"]}, "3 labels do not fit"),
        ({"columns": 2, "row_labels": ["a", "b", "c"]}, "3 row_labels do not fit"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        picture_grid(numbered(4), **arguments)


def test_nothing_to_show() -> None:
    with pytest.raises(DataError, match="1 or 3 channels"):
        picture_grid(numbered(2, channels=2), 1)
    with pytest.raises(DataError, match="needs images"):
        picture_grid(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), 1)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".bmp"])
def test_save(tmp_path: Path, suffix: str) -> None:
    path = save_picture(picture_grid(numbered(2), 2), tmp_path / "new" / f"sheet{suffix}")
    assert [p.name for p in path.parent.iterdir()] == [f"sheet{suffix}"]
    with Image.open(path) as picture:
        assert picture.size == (PAD + 2 * (4 + PAD), 2 * PAD + 4)


def test_save_errors_leave_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = picture_grid(numbered(2), 2)
    path = save_picture(sheet, tmp_path / "sheet.png")
    content = path.read_bytes()

    def full(self: Image.Image, target: Path, format: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WriteError, match="cannot write .*sheet.png': No space left on device"):
        save_picture(sheet, path)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(("suffix", "most"), [("webp", 16_383), ("jpg", 65_500)])
def test_an_image_too_large_for_its_format_is_one_line_and_no_file(suffix: str, most: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{most + 1} x 1 pixels, at most {most} either way; use .png or a smaller"):
        save_picture(Image.new("L", (most + 1, 1)), tmp_path / f"wide.{suffix}")
    assert not list(tmp_path.iterdir())
    save_picture(Image.new("L", (most, 1)), tmp_path / f"wide.{suffix}")


def test_save_refuses_bad_places(tmp_path: Path) -> None:
    sheet = picture_grid(numbered(1), 1)
    for name in ("sheet", "sheet.gif", "sheet.npy"):
        with pytest.raises(DataError, match="unknown suffix .*allowed: .png"):
            save_picture(sheet, tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        save_picture(sheet, tmp_path / "file" / "sheet.png")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(WriteError, match="cannot write"):
        save_picture(sheet, tmp_path / "dir.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.png", "file"]


def test_pictures_are_stacked_with_gaps() -> None:
    sheet = stacked([Image.new("L", (4, 2), 7), Image.new("RGB", (6, 3), "red")], 5)
    assert sheet.mode == "RGB" and sheet.size == (6, 2 + 5 + 3 + 5)
    pixels = [sheet.getpixel(place) for place in ((3, 1), (4, 1), (0, 2), (0, 7), (5, 9), (0, 10))]
    assert pixels == [(7, 7, 7), (255, 255, 255), (255, 255, 255), (255, 0, 0), (255, 0, 0), (255, 255, 255)]
