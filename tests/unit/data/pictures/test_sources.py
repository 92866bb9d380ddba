"""Opening and decoding image sets: folders, digits, damaged and hostile files."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resgen.data import available_splits, load_array, open_images, read_image
from resgen.data.pictures import decode as pictures
from resgen.data.pictures import sources
from resgen.errors import ConfigError, DataError
from resgen.extras import MissingExtraError

DATA = Path(os.environ.get("RESGEN_DATA", Path(__file__).resolve().parents[5] / "shared" / "data"))


def save(path: Path, array: np.ndarray | int, size: int = 4) -> Path:
    """Write an array, or an RGB image of one value, as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(array, int):
        array = np.full((size, size, 3), array, np.uint8)
    Image.fromarray(array).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_class_folders_are_sorted_and_labelled(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "1.png", 10)
    save(tmp_path / "cat" / "b.png", 30)
    save(tmp_path / "cat" / "deeper" / "a.BMP", 40)
    save(tmp_path / "cat" / "._a.png", 50)
    (tmp_path / "notes").mkdir()
    (tmp_path / "cat" / "readme.txt").write_text("no image")
    source = open_images(tmp_path)
    assert source.class_names == ("cat", "dog")
    array, labels = load_array(source, size=4, channels=3)
    assert labels.tolist() == [0, 0, 1] and labels.dtype == torch.int64
    assert array.shape == (3, 3, 4, 4) and array[:, 0, 0, 0].tolist() == [30, 40, 10]
    picture, label = source[2]
    assert picture.shape == (4, 4, 3) and picture.dtype == np.uint8 and label == 1
    assert source[-1][1] == 1 and len(list(source)) == 3
    with pytest.raises(IndexError):
        source[3]


def test_flat_folder_has_one_class(tmp_path: Path) -> None:
    save(tmp_path / "b.jpg", 7)
    save(tmp_path / "a.webp", 8)
    source = open_images(str(tmp_path))
    assert source.class_names == ("picture",) and source.labels.tolist() == [0, 0] and len(source) == 2
    assert available_splits(tmp_path) == ("train",)


def test_split_folders_share_their_classes(tmp_path: Path) -> None:
    save(tmp_path / "train" / "ant" / "0.png", 1)
    save(tmp_path / "train" / "bee" / "0.png", 2)
    save(tmp_path / "test" / "bee" / "1.png", 3)
    assert available_splits(tmp_path) == ("train", "test")
    test = open_images(tmp_path, split="test")
    assert test.class_names == ("ant", "bee") and test.labels.tolist() == [1]
    assert "no images of 'ant'" in test.summary() and "no images" not in open_images(tmp_path).summary()
    assert open_images(tmp_path).labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="unknown split 'val'; allowed: train, test"):
        open_images(tmp_path, split="val")


def test_undivided_folder_has_no_test_split(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    with pytest.raises(DataError, match="unknown split 'test'; allowed: train"):
        open_images(tmp_path, split="test")


def test_pictures_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(DataError, match="both images .*'a.png'.* and class folders .*'cat'"):
        open_images(tmp_path)


def test_missing_empty_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        open_images(tmp_path)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=f"no such file or folder: did you mean '{tmp_path}/pictures'"):
        open_images(tmp_path / "picture" / "cats")
    with pytest.raises(DataError, match="unknown data 'digit' .did you mean 'digits'"):
        open_images("digit")
    with pytest.raises(DataError, match="no .parquet or .tar file; give one, or a folder of images"):
        open_images(save(tmp_path / "a.png", 1))


def test_folders_of_other_things_are_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_OTHERS", 10)
    for name in "abc":
        save(tmp_path / "cat" / f"{name}.png", 10)
    for number in range(13):  # one for each image, and the ten
        (tmp_path / "cat" / f"{number}.txt").touch()
    assert len(open_images(tmp_path)) == 3
    (tmp_path / "cat" / "last.txt").touch()
    for search in (open_images, sources.available_splits):
        with pytest.raises(DataError, match=r"more than 10 files that are not images; give the folder of the classes"):
            search(tmp_path)


def test_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    for copy in ("one", "two"):
        save(tmp_path / copy / "cat" / "a.png", 1)
    one, two = (open_images(tmp_path / copy).fingerprint for copy in ("one", "two"))
    assert one == two and len(one) == 64 and int(one, 16) >= 0
    save(tmp_path / "two" / "cat" / "a.png", 2)
    changed = open_images(tmp_path / "two").fingerprint
    (tmp_path / "one" / "cat" / "a.png").rename(tmp_path / "one" / "cat" / "b.png")
    renamed = open_images(tmp_path / "one").fingerprint
    assert len({one, changed, renamed}) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the names of files are text")
def test_names_of_files_that_are_no_text(tmp_path: Path) -> None:
    save(tmp_path / "\udcff.png", 1)
    assert len(open_images(tmp_path).fingerprint) == 64
    save(tmp_path / "of classes" / "\udcff" / "a.png", 1)
    with pytest.raises(DataError, match=r"a.png' has a class whose name is not text, '\\udcff'; give it another one"):
        open_images(tmp_path / "of classes")


def test_digits_are_split_and_scaled() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = open_images("digits"), open_images("digits", split="test")
    assert available_splits("digits") == ("train", "test")
    assert (len(train), len(test)) == (1618, 179) and train.class_names == tuple("0123456789")
    array, labels = load_array(test, size=8, channels=1)
    assert labels.tolist() == bunch.target[9::10].tolist()
    expected = np.rint(bunch.images[9::10] / 16 * 255)
    assert np.array_equal(array[:, 0].numpy(), expected) and array.max() == 255
    assert train.fingerprint != test.fingerprint == open_images("digits", split="test").fingerprint
    assert load_array(test, size=8, channels=3)[0].shape == (179, 3, 8, 8)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"\[data\]"):
        open_images("digits")


def test_other_size_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((6, 5, 3), np.uint8))
    message = r"a.png' is 5x6 pixels, but 4x4 is expected; convert it, or have it done \(resize=True\)"
    with pytest.raises(DataError, match=message):
        load_array(open_images(tmp_path), size=4, channels=3)
    with pytest.raises(DataError, match=message):
        read_image(path, 4, 3)


def test_resize_cuts_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (10, 20, 30)
    array, _ = load_array(open_images(save(tmp_path / "a.png", wide).parent), size=4, channels=3, resize=True)
    whole = np.asarray(Image.fromarray(wide).resize((12, 4), Image.Resampling.LANCZOS))
    assert torch.equal(array[0], torch.tensor(whole[:, 4:8]).permute(2, 0, 1)) and array[0, 1, 2, 2] == 20
    assert torch.equal(array[0], read_image(tmp_path / "a.png", 4, 3, resize=True))


def test_resize_of_an_extreme_shape_stays_small(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((1, 60_000), 9, np.uint8))
    assert read_image(path, 64, 1, resize=True).unique().tolist() == [9]


@pytest.mark.parametrize(
    ("array", "channels", "expected"),
    [
        (np.full((2, 2), 200, np.uint8), 3, [200, 200, 200]),
        (np.full((2, 2, 3), (255, 0, 0), np.uint8), 1, [76]),
        (np.full((2, 2, 4), (255, 0, 0, 0), np.uint8), 3, [255, 255, 255]),
        (np.full((2, 2, 4), (255, 0, 0, 255), np.uint8), 3, [255, 0, 0]),
        (np.full((2, 2, 2), (40, 255), np.uint8), 1, [40]),
        (np.full((2, 2), 0x8123, np.uint16), 1, [0x81]),
        (np.full((2, 2), True), 1, [255]),
    ],
)
def test_modes_are_converted(tmp_path: Path, array: np.ndarray, channels: int, expected: list[int]) -> None:
    save(tmp_path / "a.png", array)
    assert read_image(tmp_path / "a.png", 2, channels, resize=True)[:, 0, 1].tolist() == expected


@pytest.mark.parametrize(
    ("array", "channels", "message"),
    [
        (np.full((2, 2, 3), (255, 0, 0), np.uint8), 1, "has colours, but grey images are expected"),
        (np.full((2, 2, 4), (255, 0, 0, 254), np.uint8), 3, "has transparent pixels"),
        (np.full((2, 2), 0x8123, np.uint16), 1, "has mode I(;16)?, but L or RGB is expected"),
    ],
)
def test_modes_that_lose_something_are_refused(tmp_path: Path, array: np.ndarray, channels: int, message: str) -> None:
    save(tmp_path / "a.png", array)
    with pytest.raises(DataError, match=f"a.png' {message}.*resize=True"):
        read_image(tmp_path / "a.png", 2, channels)


@pytest.mark.parametrize(
    ("array", "channels"),
    [
        (np.full((2, 2), 200, np.uint8), 3),
        (np.full((2, 2, 3), (90, 96, 92), np.uint8), 1),
        (np.full((2, 2, 4), (255, 0, 0, 255), np.uint8), 3),
        (np.full((2, 2), True), 1),
    ],
)
def test_modes_without_loss_are_converted(tmp_path: Path, array: np.ndarray, channels: int) -> None:
    save(tmp_path / "a.png", array)
    assert torch.equal(
        read_image(tmp_path / "a.png", 2, channels), read_image(tmp_path / "a.png", 2, channels, resize=True)
    )


def test_palette_and_rotation(tmp_path: Path) -> None:
    palette = Image.fromarray(np.full((2, 2, 3), (1, 2, 3), np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", 2, 3)[:, 0, 0].tolist() == [1, 2, 3]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half = np.zeros((2, 2), np.uint8)
    half[0] = 255
    Image.fromarray(half).save(tmp_path / "r.png", exif=exif)
    assert read_image(tmp_path / "r.png", 2, 1)[0].tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_truncated_pictures_name_the_file(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = save(tmp_path / f"bad{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    save(tmp_path / f"aaa{suffix}", noise)
    with pytest.raises(DataError, match=f"bad{suffix}' (cannot be read|is not an image)") as caught:
        load_array(open_images(tmp_path), size=32, channels=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe\n", b"GIF89a" + bytes(50)])
def test_files_that_are_no_pictures_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="a.png' is not an image of a known format"):
        read_image(tmp_path / "a.png", 4, 3)


@pytest.mark.parametrize("kind", ["ICO", "EPS"])
def test_formats_beyond_the_list_are_refused(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format=kind)
    with pytest.raises(
        DataError, match="a.png' is not an image of a known format .PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM."
    ):
        read_image(tmp_path / "a.png", 4, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bombs_are_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=f"a.png' has .*at most {pictures.MAX_PIXELS} are read"):
        read_image(tmp_path / "a.png", 4, 3, resize=True)


def test_read_image_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing.png' cannot be read: No such file"):
        read_image(tmp_path / "nothing.png", 4, 3)
    with pytest.raises(DataError, match="not a regular file"):
        read_image(tmp_path, 4, 3)
    with pytest.raises(ConfigError, match="channels=2"):
        read_image(tmp_path, 4, 2)
    with pytest.raises(ConfigError, match="size=0"):
        read_image(tmp_path, 0, 3)


def test_the_first_bad_picture_is_named(tmp_path: Path) -> None:
    for number in range(300):
        save(tmp_path / f"{number:03d}.png", 0, size=1)
    for number in (150, 290):
        save(tmp_path / f"{number:03d}.png", 0, size=2)
    with pytest.raises(DataError, match="150.png"):
        load_array(open_images(tmp_path), size=1, channels=1)


def test_order_is_kept_over_threads_and_chunks(tmp_path: Path) -> None:
    for number in range(200):
        save(tmp_path / f"{number:03d}.png", number, size=1)
    array, _ = load_array(open_images(tmp_path), size=1, channels=1)
    assert array.flatten().tolist() == list(range(200))


def test_progress_only_when_slow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_images(save(tmp_path / "set" / "a.png", 0).parent)
    assert capsys.readouterr() == ("", "data 'set': 1 image, no classes\n")
    load_array(source, size=4, channels=1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "split", "size", "channels", "count"),
    [("cifar10", "test", 32, 3, 5000), ("fashion_mnist", "test", 28, 1, 5000), ("imagenette64", "test", 64, 3, 1959)],
)
def test_real_data(name: str, split: str, size: int, channels: int, count: int) -> None:
    pytest.importorskip("pyarrow")
    folder = DATA / "images" / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set RESGEN_DATA)")
    source = open_images(folder, split=split)
    array, labels = load_array(source, size=size, channels=channels)
    assert array.shape == (count, channels, size, size) and len(source.class_names) == 10
    assert labels.bincount(minlength=10).min() > count / 20
    assert 60 < array.float().mean() < 140
