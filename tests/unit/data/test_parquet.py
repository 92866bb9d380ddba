"""Parquet files in the Hugging Face schema, whole and damaged."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resgen.data import CounterSampler, available_splits, load_array, open_images
from resgen.data.pictures import parquet
from resgen.data.pictures import sources as images
from resgen.data.sound.sources import open_speech
from resgen.errors import ConfigError, DataError
from resgen.extras import MissingExtraError
from resgen.models.conditions import class_digits

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path,
    pictures: list[Any],
    labels: list[Any] | None = None,
    *,
    image: str = "image",
    label: str = "label",
    names: list[str] | None = None,
    struct: bool = True,
    kind: Any = None,
    row_group: int | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if struct:
        column = pa.array(
            [p if isinstance(p, dict) or p is None else {"bytes": p, "path": "x.png"} for p in pictures],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    else:
        column = pa.array(pictures, kind or pa.binary())
    table = pa.table({image: column} if labels is None else {image: column, label: labels})
    if names is not None:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=row_group)
    return path


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("image", ["image", "img"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_columns(tmp_path: Path, struct: bool, image: str, label: str) -> None:
    path = write(
        tmp_path / "train.parquet",
        [encoded(v) for v in (5, 6, 7)],
        [1, 0, 1],
        image=image,
        label=label,
        names=["cat", "dog"],
        struct=struct,
        row_group=2,
    )
    source = open_images(path)
    array, labels = load_array(source, size=2, channels=1)
    assert array[:, 0, 0, 0].tolist() == [5, 6, 7] and labels.tolist() == [1, 0, 1]
    assert source.class_names == ("cat", "dog") and source[1][0].shape == (2, 2, 3)


def test_large_binary_and_no_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [encoded(1)] * 2, [3, 0], struct=False, kind=pa.large_binary())
    source = open_images(path)
    assert source.class_names == ("0", "1", "2", "3") and source.labels.tolist() == [3, 0]


def test_no_label_column(tmp_path: Path) -> None:
    source = open_images(write(tmp_path / "a.parquet", [encoded(1)] * 2))
    assert source.class_names == ("picture",) and source.labels.tolist() == [0, 0]


def test_splits_and_shards(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [encoded(1)] * 3, [0] * 3, names=["a"])
    write(tmp_path / "data" / "train-00001-of-00002-0123456789abcdef.parquet", [encoded(2)], [0], names=["a"])
    write(tmp_path / "data" / "test.parquet", [encoded(3)], [0], names=["a"])
    assert available_splits(tmp_path) == ("train", "test")
    train, test = open_images(tmp_path), open_images(tmp_path, split="test")
    assert load_array(train, size=2, channels=1)[0][:, 0, 0, 0].tolist() == [1, 1, 1, 2] and len(test) == 1
    with pytest.raises(DataError, match="unknown split 'validation'; allowed: train, test"):
        open_images(tmp_path, split="validation")


def test_single_file_answers_to_train_and_to_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "test.parquet", [encoded(1)], [0])
    assert len(open_images(path)) == len(open_images(path, split="test")) == 1
    with pytest.raises(DataError, match="unknown split 'val'"):
        open_images(path, split="val")


def test_shards_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [encoded(1)], [0], names=["a"])
    write(tmp_path / "train-1.parquet", [encoded(1)], [0], names=["b"])
    with pytest.raises(DataError, match="do not agree"):
        open_images(tmp_path)


def test_errors_name_file_and_row_within_the_shard(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [encoded(1)] * 3, [0] * 3)
    write(tmp_path / "train-1.parquet", [encoded(1), encoded(1)[:50]], [0, 0])
    with pytest.raises(DataError, match="train-1.parquet' row 1 cannot be read"):
        load_array(open_images(tmp_path), size=2, channels=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pictures": [b"x", None]}, "row 1 holds no bytes in column"),
        ({"pictures": [b"x", {"bytes": None, "path": "elsewhere.png"}]}, "row 1 holds no bytes in column"),
        ({"pictures": [b"x"], "image": "photo"}, "no column image or img; it has: photo"),
        ({"pictures": ["x"], "struct": False, "kind": pa.string()}, "must hold bytes or {bytes, path}, not string"),
        ({"pictures": [b"x", b"y"], "labels": [0.5, 1.0]}, "'label' must hold whole numbers or names, not double"),
        ({"pictures": [b"x", b"y"], "labels": [0, None]}, "row 1 has no label"),
        ({"pictures": [b"x", b"y"], "labels": [0, -1]}, "row 1 has label -1; labels start at 0"),
        ({"pictures": [b"x", b"y"], "labels": [0, 2], "names": ["a", "b"]}, "row 1 has label 2, but only 2 classes"),
        ({"pictures": [b"x"], "labels": [10**9]}, "label 1000000000, but no class names"),
        ({"pictures": []}, "holds no rows"),
    ],
)
def test_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "train.parquet", **options)
    with pytest.raises(DataError, match=message):
        open_images(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [encoded(i) for i in range(50)], [0] * 50)
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:4] + bytes(200) + content[204:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            load_array(open_images(path), size=2, channels=3)
        assert "train.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_metadata_that_is_not_json_is_ignored(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([encoded(1)]), "label": [1]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_images(tmp_path / "a.parquet").class_names == ("0", "1")


def test_fingerprint_follows_the_bytes_not_the_folder(tmp_path: Path) -> None:
    one, two, three = (
        open_images(write(tmp_path / place / "train.parquet", [encoded(value)], [0])).fingerprint
        for place, value in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == two != three


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "train.parquet", [encoded(1)], [0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"\[data\]"):
        open_images(path)


def test_files_larger_than_memory_are_read_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images that are too many to be kept, in stretches of two row groups, each read once per pass."""
    for number in range(2):
        values = range(number * 10, number * 10 + 10)
        write(tmp_path / f"train-{number}.parquet", list(map(encoded, values)), [v % 3 for v in values], row_group=4)
    whole = open_images(tmp_path)
    assert whole.blocks is None
    size = parquet.encoded_bytes([tmp_path / "train-0.parquet"])
    monkeypatch.setattr(images, "MAX_ENCODED_BYTES", size * 8 // 5)  # half of it holds two groups of four
    source = open_images(tmp_path)
    assert source.blocks is not None and source.blocks.tolist() == [8, 14, 20]
    read, real = [], parquet._read_group

    def counted(path: Path, number: int, start: int) -> list[memoryview]:
        read.append((path.name, number))
        return real(path, number, start)

    monkeypatch.setattr(parquet, "_read_group", counted)
    assert np.array_equal(source.labels, whole.labels) and source.class_names == whole.class_names
    assert torch.equal(load_array(source, size=2, channels=3)[0], load_array(whole, size=2, channels=3)[0])
    assert len(read) == len(set(read)) == 6 and source.fingerprint == whole.fingerprint
    read.clear()
    blocks = torch.from_numpy(source.blocks)
    for step in range(10):
        for index in CounterSampler(20, 2, 0, blocks=blocks).indices(step).tolist():
            assert source[index][0][0, 0, 0] == index
    assert len(read) == len(set(read)) == 6
    assert source.where(11) == f"'{tmp_path / 'train-1.parquet'}' row 1"
    part = source.subset(np.arange(0, 20, 3))
    assert part.blocks is not None and part.blocks.tolist() == [3, 5, 7]
    with pytest.raises(IndexError):
        source[20]


def test_a_row_without_bytes_is_named_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "train.parquet", [*map(encoded, range(5)), None, encoded(6)], row_group=4)
    monkeypatch.setattr(images, "MAX_ENCODED_BYTES", 100)
    source = open_images(path)
    assert source[3][0][0, 0, 0] == 3
    with pytest.raises(DataError, match="row 5 holds no bytes in column"):
        source[6]


def test_names_of_classes_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [encoded(1)], [1], names=["cat", "\ud800"])
    with pytest.raises(DataError, match=r"'.*train.parquet' row 0 has a class whose name is not text, '\\ud800'"):
        open_images(path)


def test_files_that_fill_the_memory_are_refused(tmp_path: Path) -> None:
    pictures = pa.array([bytes(1 << 20)] * 300)
    texts = {name: pa.array(["a"] * 300) for name in ("text", "speaker_id")}
    for name, columns in (("image", {}), ("audio", texts)):
        table = pa.table({name: pictures, **columns})
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd", use_dictionary=False)
    for open_data, name in ((open_images, "image"), (open_speech, "audio")):
        with pytest.raises(DataError, match=r"has [0-9,]+ bytes, but 314,[0-9,]+ when read; remove it"):
            open_data(tmp_path / f"{name}.parquet")


def write_axes(path: Path, columns: dict[str, Any], names: dict[str, list[str]] | None = None) -> Path:
    """Images with several label columns."""
    count = len(next(iter(columns.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array([encoded(v) for v in range(count)]), **columns})
    features = {name: {"names": list_, "_type": "ClassLabel"} for name, list_ in (names or {}).items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def test_several_columns_are_axes_and_values_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {
        "label": [1, 0, 1, None],
        "background": ["red", None, "blue", "red"],
        "size": pa.array([2, 0, None, 1], pa.int32()),
        "hat": [True, False, None, True],
        "author": ["x", "y", "z", "x"],
    }
    path = write_axes(tmp_path / "train.parquet", columns, {"label": ["cat", "dog"]})
    source = open_images(path, class_columns=["style=label", "background", "size", "hat"])
    assert source.class_names == ("cat", "dog")
    assert dict(source.class_axes) == {
        "style": ("cat", "dog"), "background": ("blue", "red"), "size": ("0", "1", "2"), "hat": ("0", "1")
    }  # fmt: skip
    digits = class_digits(source.labels, [2, 2, 3, 2])
    assert np.stack(digits).T.tolist() == [[1, 2, 3, 2], [0, 0, 1, 1], [1, 1, 0, 0], [2, 2, 2, 2]]
    line = capsys.readouterr().err
    assert "4 images, classes by style (2), background (2), size (3), hat (2); left out: column author" in line
    part = source.subset(np.array([0, 2]))
    assert part.class_axes == source.class_axes and part.labels.tolist() == source.labels[[0, 2]].tolist()
    one = open_images(path, class_columns=["background"])
    assert one.class_names == ("blue", "red") and one.labels.tolist() == [1, 2, 0, 1], "2 says nothing"
    with pytest.raises(DataError, match="row 3 has no label"):
        open_images(path)


def test_the_classes_of_an_axis_are_those_of_all_splits(tmp_path: Path) -> None:
    """Of names and of numbers alike: the ids of both splits must mean the same."""
    write_axes(tmp_path / "train.parquet", {"label": [0, 1], "hat": ["b", "c"]})
    write_axes(tmp_path / "test.parquet", {"label": [4, None], "hat": ["a", "c"]})
    for split, ids in (("train", [[0, 2], [1, 3]]), ("test", [[4, 1], [5, 3]])):
        source = open_images(tmp_path, split=split, class_columns=["label", "hat"])
        assert [len(names) for names in source.class_axes.values()] == [5, 3]
        assert np.stack(class_digits(source.labels, [5, 3])).T.tolist() == ids


def test_columns_in_several_files_with_a_gap_in_one(tmp_path: Path) -> None:
    write_axes(tmp_path / "train-00000-of-00002.parquet", {"label": [0, 0], "hat": pa.array([None, None], pa.string())})
    write_axes(tmp_path / "train-00001-of-00002.parquet", {"label": [1, 1], "hat": ["b", "a"]})
    source = open_images(tmp_path, class_columns=["label", "hat"])
    assert np.stack(class_digits(source.labels, [2, 2])).T.tolist() == [[0, 0], [0, 0], [1, 2], [1, 1]]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            ["label", "hut"],
            DataError,
            "unknown class column 'hut' .did you mean 'hat'..; allowed: image, label, hat, ",
        ),
        (["label", "label"], ConfigError, "must hold columns with names of their own"),
        (["a=label", "a=hat"], ConfigError, "must hold columns with names of their own"),
        (["a,b=label"], ConfigError, "not 'a,b=label'"),
        (["label="], ConfigError, "not 'label='"),
        ([" "], ConfigError, "not ' '"),
        (["label", "empty"], DataError, "no row of 'train.parquet' says anything of empty; leave it out"),
        (["label", "image"], DataError, "column 'image' must hold whole numbers or names"),
        (["label", "below"], DataError, "row 1 has label -3; labels start at 0"),
        (["label", "high", "far"], DataError, "more than 2,147,483,648 combinations; leave an axis out"),
    ],
)
def test_columns_that_are_no_axes(tmp_path: Path, columns: list[str], error: Any, message: str) -> None:
    table = {
        "label": [0, 1],
        "hat": ["a", "b"],
        "empty": pa.array([None, None], pa.string()),
        "below": [None, -3],
        "high": [0, 60_000],
        "far": [0, 60_000],
    }
    path = write_axes(tmp_path / "train.parquet", table)
    with pytest.raises(error, match=message):
        open_images(path, class_columns=columns)


def test_folders_have_no_columns(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(encoded(3))
    for data in (tmp_path, "digits"):
        with pytest.raises(DataError, match=r"class_columns=\['style'\] are columns of parquet files, not of"):
            open_images(data, class_columns=["style=label"])
