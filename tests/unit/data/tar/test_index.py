"""Images and recordings in tar shards: found, indexed once, labelled, read by number; and what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from resgen.data import available_splits, load_array, open_images
from resgen.data.pictures.store import PictureStore
from resgen.data.sound.sources import available_splits as speech_splits
from resgen.data.sound.sources import open_speech
from resgen.data.tar import index as shard_index
from resgen.data.tar.paths import shard_splits
from resgen.errors import DataError
from tars import png, write_pictures, write_tar


def values(path: object, split: str = "train") -> list[int]:
    """The grey level of every image of the tests."""
    array, _ = load_array(open_images(path, split=split), size=4, channels=1)  # type: ignore[arg-type]
    return array[:, 0, 0, 0].tolist()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards to train on, and one of a test split."""
    write_pictures(tmp_path / "web" / "toy-train-000000.tar", [10, 11, 12], [0, 1, 2])
    write_pictures(tmp_path / "web" / "toy-train-000001.tar", [13, 14], [2, 0])
    write_pictures(tmp_path / "web" / "toy-test-000000.tar", [20], [1])
    return tmp_path / "web"


def test_a_folder_of_shards(shards: Path) -> None:
    assert available_splits(shards) == ("train", "test")
    source = open_images(shards)
    assert values(shards) == [10, 11, 12, 13, 14] and values(shards, "test") == [20]
    assert source.class_names == ("0", "1", "2") and source.labels.tolist() == [0, 1, 2, 2, 0]
    assert open_images(shards, split="test").class_names == source.class_names
    picture, label = source[3]
    assert picture[0, 0, 0] == 13 and label == 2 and len(source) == 5
    with pytest.raises(IndexError):
        source[5]
    assert "toy-train-000001.tar' sample 0 (at byte 512)" in source.where(3)


def test_other_places(shards: Path, tmp_path: Path) -> None:
    assert values(shards / "toy-train-{000000..000001}.tar") == [10, 11, 12, 13, 14]
    assert values(shards / "toy-train-000001.tar") == [13, 14]
    os.rename(shards, tmp_path / "data")
    assert values(tmp_path) == [10, 11, 12, 13, 14]
    for split, number in (("train", 30), ("test", 40)):
        write_pictures(tmp_path / "split" / split / "0.tar", [number])
    assert available_splits(tmp_path / "split") == ("train", "test") and values(tmp_path / "split", "test") == [40]
    write_pictures(tmp_path / "plain" / "00000.tar", [50])
    assert available_splits(tmp_path / "plain") == ("train",)


def test_splits_of_several_words_are_not_trained_on(tmp_path: Path) -> None:
    names = ("train-clean-000000", "web-000000", "test-clean-000000", "dev-other-0001", "test_unseen-00000-of-00002")
    for number, name in enumerate(names):
        write_pictures(tmp_path / f"{name}.tar", [number])
    assert available_splits(tmp_path) == ("train", "dev-other", "test-clean", "test_unseen")
    assert values(tmp_path) == [0, 1]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("pipe:cat x.tar", "commands and URLs are not opened"),
        ("https://example.org/x.tar", "commands and URLs are not opened"),
        ("gs://bucket/x-{0..9}.tar", "commands and URLs are not opened"),
        ("web/toy-train-{000000..000002}.tar", "toy-train-000002.tar' of .* is missing"),
        ("web/toy-train-{5..1}.tar", "is descending"),
        ("web/{0..999999}-{0..999}.tar", "more than 100000 shards"),
        ("web/nothing.tar", "unknown data"),
    ],
)
def test_what_is_not_opened(shards: Path, monkeypatch: pytest.MonkeyPatch, path: str, named: str) -> None:
    monkeypatch.chdir(shards.parent)
    with pytest.raises(DataError, match=named):
        open_images(path)


def test_the_index_is_built_once(shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    first = open_images(shards)
    files = sorted((shards / ".resgen").iterdir())
    assert len(files) == 3 and capsys.readouterr().err.count("\n") == 1, "no bar"
    built = []

    def counted(path: Path, suffixes: tuple[str, ...]) -> shard_index.ShardIndex:
        built.append(path.name)
        return real(path, suffixes)

    real = shard_index.build_index
    monkeypatch.setattr(shard_index, "build_index", counted)
    again = open_images(shards)
    assert built == [] and again.fingerprint == first.fingerprint and values(shards) == [10, 11, 12, 13, 14]
    write_pictures(shards / "toy-train-000001.tar", [13, 15], [2, 0])
    changed = open_images(shards)
    assert built == ["toy-train-000001.tar"] and changed.fingerprint != first.fingerprint
    assert values(shards) == [10, 11, 12, 13, 15]


@pytest.mark.parametrize("damage", ["garbage", "rows", "labels", "label type", "format"])
def test_an_index_that_does_not_fit_is_built_anew(shards: Path, damage: str) -> None:
    """It lies beside the data, and may have come with it."""
    expected = values(shards)
    place = next((shards / ".resgen").glob("toy-train-000000*"))
    parts = load_file(place)
    meta = {"format": "resgen-shard-index", "format_version": 1, "sha256": "0", "labelled_by": ".cls"}
    status = (shards / "toy-train-000000.tar").stat()
    meta |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "classes": ["0", "1", "2"]}
    if damage == "rows":
        parts["rows"] = parts["rows"] + np.array([status.st_size, 0, 0, 0, 0, 0])
    elif damage == "labels":
        parts["labels"] = parts["labels"] + np.int32(1)
    elif damage == "label type":
        parts["labels"] = parts["labels"].astype(np.int64)
    elif damage == "format":
        meta["format_version"] = 2
    save_file(parts, place, {"resgen": json.dumps(meta)})
    if damage == "garbage":
        place.write_bytes(b"garbage")
    source = open_images(shards)
    assert values(shards) == expected and source.labels.tolist() == [0, 1, 2, 2, 0]


def test_an_index_where_the_data_cannot_be_written(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / ".resgen").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert values(shards) == [10, 11, 12, 13, 14]
    assert len(list((tmp_path / "cache").glob("resgen/shards/*/*.safetensors"))) == 3
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert values(shards) == [10, 11, 12, 13, 14]


def test_nobody_has_a_home(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user without HOME and without an entry in the list of users."""

    def unknown(_: object) -> None:
        raise KeyError("no such user")

    (shards / ".resgen").write_text("in the way")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert values(shards) == [10, 11, 12, 13, 14]
    assert [path.name for path in tmp_path.iterdir()] == [shards.name], "nothing called '~'"


@pytest.mark.parametrize(
    ("notes", "names", "labels"),
    [
        ([{}, {}], ("picture",), [0, 0]),
        ([{".cls": "1"}, {".cls": "0\n"}], ("0", "1"), [1, 0]),
        ([{".json": '{"label": 1}'}, {".json": '{"label": 0}'}], ("0", "1"), [1, 0]),
        ([{".json": '{"class": "owl"}'}, {".json": '{"class": "cat"}'}], ("cat", "owl"), [1, 0]),
        ([{".json": '{"url": "x"}'}, {".json": "{}"}], ("picture",), [0, 0]),
        ([{".txt": "owl"}, {".txt": "cat"}] * 2, ("cat", "owl"), [1, 0, 1, 0]),
        ([{".txt": "a big owl"}, {".txt": "a cat"}, {".txt": "a cat asleep"}], ("picture",), [0, 0, 0]),
        ([{".txt": "3"}, {".txt": "0"}], ("0", "1", "2", "3"), [3, 0]),
        ([{".txt": "one\ntwo"}] * 3, ("picture",), [0, 0, 0]),
        ([{".txt": "x" * 1000}] * 3, ("picture",), [0, 0, 0]),
        ([{".cls": "1", ".json": '{"label": 7}', ".txt": "words"}] * 2, ("0", "1"), [1, 1]),
    ],
)
def test_labels(tmp_path: Path, notes: list[dict[str, str]], names: tuple[str, ...], labels: list[int]) -> None:
    files = {}
    for number, note in enumerate(notes):
        files |= {f"d/{number}.PNG": png(number)} | {f"d/{number}{suffix}": text for suffix, text in note.items()}
    write_tar(tmp_path / "0.tar", {"README": "no sample", "d/._0.png": b"", **files})
    source = open_images(tmp_path)
    assert source.class_names == names and source.labels.tolist() == labels
    assert values(tmp_path) == list(range(len(notes)))


def test_names_of_classes(shards: Path) -> None:
    (shards / "classnames.txt").write_text("ant\nbee\ncat\ndog\n")
    assert open_images(shards).class_names == ("ant", "bee", "cat", "dog")
    (shards / "classnames.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match="has label 2, but 2 class names"):
        open_images(shards)
    (shards / "classnames.txt").write_text("ant\nant\n")
    with pytest.raises(DataError, match="a name twice"):
        open_images(shards)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"a.txt": "x"}, "sample 'a' must hold one file of .png .*; it has: .txt"),
        ({"a.png": b"", "a.jpg": b""}, "must hold one file of"),
        ({"a.png": b"", "./a.PNG": b""}, "sample 'a' with two files .png"),
        ({"a.png": b"", "a.cls": "one"}, "sample 'a' has .cls 'one'; allowed: a whole number"),
        ({"a.png": b"", "a.cls": "-1"}, "allowed: a whole number"),
        ({"a.png": b"", "a.json": "{"}, "sample 'a' .json is not valid JSON"),
        ({"a.png": b"", "a.json": "[]"}, "must hold a JSON object, not list"),
        ({"a.png": b"", "a.json": "[" * 100_000}, "not valid JSON"),
        ({"a.png": b"", "a.json": r'{"text": "a\ud800"}'}, "sample 'a' .json is not valid JSON"),
        ({"a.png": b"", "a.json": " " * (1 << 20) + "{}"}, "at most 1048576 are read"),
        ({"a.png": b"", "a.txt": b"\xff"}, "not UTF-8 text; byte 0"),
        ({"a.png": b"", "a.cls": "1", "b.png": b""}, "labelled in different ways"),
        ({"a.png": b"", "a.cls": "100000"}, "no class names; at most 99999"),
        ({"README": "x"}, "holds no samples"),
    ],
)
def test_wrong_samples(tmp_path: Path, files: dict[str, bytes | str], named: str) -> None:
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(DataError, match=named) as caught:
        open_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_shard_that_changes_while_it_is_read(shards: Path) -> None:
    source = open_images(shards)
    store = PictureStore(source, size=4, channels=1, max_bytes=0)
    assert store.batch(torch.tensor([4, 0]))[:, 0, 0, 0].tolist() == [14, 10]
    whole = (shards / "toy-train-000001.tar").read_bytes()
    (shards / "toy-train-000001.tar").write_bytes(whole[:560])
    with pytest.raises(DataError, match="toy-train-000001.tar' sample 0 is cut short: 48 of"):
        store.batch(torch.tensor([3]))
    with pytest.raises(DataError, match="toy-train-000001.tar' is cut short"):
        open_images(shards)
    (shards / "toy-train-000001.tar").unlink()
    with pytest.raises(DataError, match="toy-train-000001.tar' sample 1 cannot be read: No such file"):
        store.batch(torch.tensor([4]))
    assert store.batch(torch.tensor([2]))[0, 0, 0, 0] == 12


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": png(1), "b.png": png(1)[:50]})
    with pytest.raises(DataError, match="shard '.*0.tar' sample 1 .at byte 1536. cannot be read"):
        values(tmp_path)


def test_parquet_files_come_first(shards: Path) -> None:
    (shards / "train.parquet").write_bytes(b"")
    assert shard_splits(shards) and available_splits(shards) == ("train",)
    with pytest.raises(DataError, match="parquet"):
        open_images(shards)


def test_batches_ahead_are_those_asked_for(shards: Path) -> None:
    store = PictureStore(open_images(shards), size=4, channels=1, max_bytes=0)
    store.prefetch(torch.tensor([0, 3, 3]))
    store.prefetch(torch.tensor([3, 1]))
    for expected in ([0, 3, 3], [3, 1], [4, 4, 2]):
        assert (store.batch(torch.tensor(expected))[:, 0, 0, 0] - 10).tolist() == expected
    assert not store._ahead


def test_a_part_of_the_pictures(shards: Path) -> None:
    part = open_images(shards).subset(np.array([1, 4]))
    array, labels = load_array(part, size=4, channels=1)
    assert array[:, 0, 0, 0].tolist() == [11, 14] and labels.tolist() == [1, 0] and len(part) == 2
    assert "000001.tar' sample 1" in part.where(1) and part.fingerprint == open_images(shards).fingerprint


def test_recordings(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    import io

    def wav(level: float) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, np.full(1600, level), 16_000, format="WAV")
        return file.getvalue()

    about = json.dumps({"text": "from json", "speaker_id": 7})
    write_tar(tmp_path / "train-0.tar", {"a.wav": wav(0.25), "a.txt": "hello\n", "b.wav": wav(0.5), "b.json": about})
    write_tar(tmp_path / "train-1.tar", {"c.flac": wav(-0.5), "c.txt": "there", "c.json": '{"speaker": "zoe"}'})
    write_tar(tmp_path / "test-0.tar", {"d.wav": wav(0.1)})
    assert speech_splits(tmp_path) == ["train", "test"]
    source = open_speech(tmp_path, "train")
    assert source.texts == ("hello", "from json", "there") and source.speakers == ("speaker", "7", "zoe")
    assert source.ids == ("train-0-000000", "train-0-000001", "train-1-000000")
    assert [round(float(source.read(index, 16_000)[0]), 2) for index in range(3)] == [0.25, 0.5, -0.5]
    before = source.fingerprint
    write_tar(tmp_path / "train-1.tar", {"c.flac": wav(-0.5), "c.txt": "where", "c.json": '{"speaker": "zoe"}'})
    assert open_speech(tmp_path, "train").fingerprint != before
    with pytest.raises(DataError, match="sample 0 has no text; give KEY.txt"):
        open_speech(tmp_path, "test")
    write_tar(tmp_path / "test-0.tar", {"d.wav": wav(0.1), "d.json": '{"text": "x", "speaker_id": []}'})
    with pytest.raises(DataError, match="has speaker"):
        open_speech(tmp_path, "test")
