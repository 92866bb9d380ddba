"""Opening recordings with texts: parquet files, folders with a table, damaged and hostile ones."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resgen.data.sound.sources import SpeechSource, available_splits, open_speech
from resgen.errors import DataError
from resgen.extras import MissingExtraError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
soundfile = pytest.importorskip("soundfile")
RATE = 8_000


def encoded(value: float, num_samples: int = 16) -> bytes:
    """A WAV file of one value, a multiple of 2**-15."""
    file = io.BytesIO()
    soundfile.write(file, np.full(num_samples, value, np.float32), RATE, "PCM_16", format="WAV")
    return file.getvalue()


def write_parquet(path: Path, values: list[float] = [0.25], **columns: Any) -> Path:  # noqa: B006 (never changed)
    """One row per value; `columns` replace columns, or leave out those that are None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = range(len(values))
    table: dict[str, Any] = {
        "audio": [{"bytes": encoded(value), "path": f"{i}.wav"} for i, value in enumerate(values)],
        "text": [f"text {i}" for i in count],
        "speaker_id": [f"speaker {i}" for i in count],
    }
    table |= columns
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), path)
    return path


def write_table(folder: Path, *lines: str, files: tuple[str, ...] = ("a.wav", "b.wav")) -> Path:
    """A folder with `metadata.csv` and sounds of 1/8, 2/8, ..."""
    for number, file in enumerate(files, 1):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(encoded(number / 8))
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_parquet_splits_and_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0.125, 0.25])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [0.5])
    write_parquet(tmp_path / "test_seen.parquet", [0.75])
    write_parquet(tmp_path / ".train-00002.parquet", [0.875])
    assert available_splits(tmp_path) == ["train", "test_seen"]
    source = open_speech(tmp_path)
    assert (source.split, len(source)) == ("train", 3)
    assert source.texts == ("text 0", "text 1", "text 0")
    assert source.speakers == ("speaker 0", "speaker 1", "speaker 0")
    assert [source.read(i, RATE)[0].item() for i in range(3)] == [0.125, 0.25, 0.5]
    assert source.read(-1, RATE).tolist() == [0.5] * 16
    assert source.read(0, 2 * RATE).shape == (32,)
    assert open_speech(tmp_path, "test_seen").read(0, RATE)[0] == 0.75
    with pytest.raises(IndexError):
        source.read(3, RATE)


def test_ids_are_the_paths_where_these_differ(tmp_path: Path) -> None:
    source = open_speech(write_parquet(tmp_path / "train.parquet", [0.5, 0.5]))
    assert source.ids == ("0.wav", "1.wav")
    same = [{"bytes": encoded(0.5), "path": "a.wav"}] * 2
    assert open_speech(
        write_parquet(tmp_path / "dev.parquet", audio=same, text=["a"] * 2, speaker_id=["b"] * 2)
    ).ids == (
        "dev-000000",
        "dev-000001",
    )


def test_a_single_file_is_the_split_of_its_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "test_seen.parquet")
    assert available_splits(path) == ["test_seen"]
    assert open_speech(str(path)).split == open_speech(path, "test_seen").split == "test_seen"


def test_parquet_with_plain_bytes(tmp_path: Path) -> None:
    source = open_speech(write_parquet(tmp_path / "data" / "train.parquet", audio=[encoded(0.5)]).parent.parent)
    assert source.read(0, RATE)[0] == 0.5 and source.ids == ("train-000000",)


def test_utterances_with_prompts(tmp_path: Path) -> None:
    prompt = {"prompt": [{"bytes": encoded(0.75)}], "prompt_text": ["said before"]}
    source = open_speech(write_parquet(tmp_path / "a" / "test.parquet", **prompt))
    assert source.prompt_texts == ("said before",) and source.read_prompt is not None
    assert source.read_prompt(0, RATE)[0] == 0.75 and source.read(0, RATE)[0] == 0.25
    plain = open_speech(write_parquet(tmp_path / "b" / "test.parquet"))
    assert plain.prompt_texts is None and plain.read_prompt is None
    other_text = open_speech(write_parquet(tmp_path / "c" / "test.parquet", **prompt | {"prompt_text": ["other"]}))
    other_sound = open_speech(write_parquet(tmp_path / "d" / "test.parquet", **prompt | {"prompt": [encoded(0.5)]}))
    assert len({one.fingerprint for one in (source, plain, other_text, other_sound)}) == 4
    for columns, message in (
        ({"prompt": ["a.wav"]}, "column 'prompt' must hold bytes"),
        ({"prompt": pa.array([None], pa.binary())}, "row 0 holds no bytes in column 'prompt'"),
        ({"prompt_text": [""]}, "row 0 has nothing in column 'prompt_text'"),
    ):
        with pytest.raises(DataError, match=message):
            open_speech(write_parquet(tmp_path / "e.parquet", **prompt | columns))
    write_parquet(tmp_path / "a" / "test-00001.parquet")
    with pytest.raises(DataError, match="prompts in some of its files only"):
        open_speech(tmp_path / "a", "test")


def test_without_a_split_several_need_one_called_train(tmp_path: Path) -> None:
    write_parquet(tmp_path / "dev.parquet")
    assert open_speech(tmp_path).split == "dev"
    write_parquet(tmp_path / "eval.parquet")
    with pytest.raises(DataError, match="unknown split 'train'; allowed: dev, eval$"):
        open_speech(tmp_path)
    with pytest.raises(DataError, match="unknown split 'evil' .did you mean 'eval'.*; allowed: dev, eval$"):
        open_speech(tmp_path, "evil")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": None}, "has no column text; it has: audio, speaker_id"),
        (
            {"text": None, "speaker_id": None},
            "no column text and no column speaker_id; it has: audio; also read: 'sentence', .*'client_id'$",
        ),
        ({"audio": None}, "has no column audio; it has: text, speaker_id"),
        ({"audio": ["a.wav"]}, "column 'audio' must hold bytes or {bytes, path}, not string"),
        ({"text": [7]}, "column 'text' must hold text, not int64"),
        ({"audio": pa.array([None], pa.binary())}, "row 0 holds no bytes in column"),
        ({"audio": pa.array([{"bytes": None}], pa.struct([("bytes", pa.binary())]))}, "row 0 holds no bytes in column"),
        ({"text": [" "]}, "row 0 has nothing in column 'text'"),
        ({"speaker_id": pa.array([None], pa.string())}, "row 0 has nothing in column 'speaker_id'"),
    ],
)
def test_unsuitable_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_speech(write_parquet(tmp_path / "train.parquet", **columns))


def test_the_row_of_a_missing_text_counts_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resgen.data.sound.sources._BATCH_ROWS", 2)
    path = write_parquet(tmp_path / "train.parquet", [0.5] * 4, text=["a", "b", "c", ""])
    with pytest.raises(DataError, match="row 3 has nothing in column 'text'"):
        open_speech(path)


def test_damaged_and_empty_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"parquet file '.*train.parquet' cannot be read: [^\n]+$"):
        open_speech(path)
    empty = {"audio": pa.array([], pa.binary()), "text": pa.array([], pa.string())}
    with pytest.raises(DataError, match="split 'dev' holds no rows"):
        open_speech(write_parquet(tmp_path / "dev.parquet", **empty, speaker_id=pa.array([], pa.string())))


def test_a_damaged_sound_is_named_by_file_and_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0.5] * 2)
    write_parquet(tmp_path / "train-1.parquet", [0.5] * 2, audio=[encoded(0.5), b"no sound"])
    source = open_speech(tmp_path)
    assert len(source.read(2, RATE)) == 16
    with pytest.raises(DataError, match="train-1.parquet' row 1 "):
        source.read(3, RATE)


def test_pyarrow_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "train.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"\[data\]"):
        open_speech(path)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no parquet files, no tar shards, no metadata.csv"):
        open_speech(tmp_path)
    with pytest.raises(DataError, match="no such file or folder: '.*nowhere'"):
        open_speech(tmp_path / "nowhere")
    (tmp_path / "a.wav").write_bytes(encoded(0.5))
    with pytest.raises(DataError, match="a.wav' is not a .parquet or .tar file"):
        open_speech(tmp_path / "a.wav")


@pytest.mark.parametrize("header", [[], ["File|text|speaker"], ["\ufefffile | text | speaker\r"]])
def test_table(tmp_path: Path, header: list[str]) -> None:
    folder = write_table(
        tmp_path, *header, 'b.wav|Zwölf, \u2028 "ja"|ann\r', "", " sub/a.wav |two|bob", files=("sub/a.wav", "b.wav")
    )
    assert available_splits(folder) == ["train"]
    source = open_speech(folder)
    assert source.ids == ("b.wav", "sub/a.wav") and source.speakers == ("ann", "bob")
    assert source.texts == ('Zwölf, \u2028 "ja"', "two")
    assert source.read(0, RATE)[0] == 0.25 and source.read(1, RATE)[0] == 0.125
    assert source.name == tmp_path.name and source.split == "train"


def test_table_per_split(tmp_path: Path) -> None:
    write_table(tmp_path / "test", "a.wav|one|ann")
    write_table(tmp_path / "train", "b.wav|two|bob")
    write_table(tmp_path / ".hidden", "b.wav|two|bob")
    assert available_splits(tmp_path) == ["train", "test"]
    assert open_speech(tmp_path).texts == ("two",) and open_speech(tmp_path, "test").texts == ("one",)
    with pytest.raises(DataError, match="unknown split 'val'; allowed: train, test"):
        open_speech(tmp_path, "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../a.wav|one|ann", r"line 2 names '\.\./a.wav'; allowed: a file below the folder of the table"),
        ("sub/../../a.wav|one|ann", "line 2 names .* allowed: a file below"),
        (r"..\a.wav|one|ann", "line 2 names .* allowed: a file below"),
        ("/etc/passwd|one|ann", "line 2 names '/etc/passwd'; allowed: a file below"),
        (r"C:\a.wav|one|ann", "line 2 names .* allowed: a file below"),
        ("a\0.wav|one|ann", "line 2 names .* allowed: a file below"),
        ("c.wav|one|ann", r"names files that are neither there nor in 'wavs': 'c.wav' .line 2."),
        (".|one|ann", r"'.' .line 2."),
        ("a.wav|one|ann", "line 2 names 'a.wav' a second time"),
        ("b.wav", "line 2 has 1 fields; allowed: 3, file.text.speaker, or the first two"),
        (
            'b.wav,"one, two",ann',
            r"line 2 has 1 fields; .*separated by \|, not by commas, .* write 'a.wav\|Yes, I can.\|anna'",
        ),
        ("b.wav|one|ann|x", "line 2 has 4 fields"),
        ("b.wav||ann", "line 2 has no text"),
        ("b.wav|one|", "line 2 has no speaker"),
        ("file|text|speaker", r"'file' .line 2."),
    ],
)
def test_unsuitable_lines(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(0.5))  # where ../a.wav leads
    folder = write_table(tmp_path / "inner", "a.wav|zero|ann", line)
    with pytest.raises(DataError, match=message):
        open_speech(folder)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    folder = write_table(tmp_path, "a.wav|zero|ann", *(f"{number}|one|ann" for number in range(30)))
    with pytest.raises(DataError, match=r"'0' \(line 2\); '1' \(line 3\); .*'19' \(line 21\); and 10 more$"):
        open_speech(folder)


def test_table_without_lines_or_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="metadata.csv' holds no lines 'file|text|speaker'"):
        open_speech(write_table(tmp_path, "file|text|speaker"))
    (tmp_path / "metadata.csv").write_bytes(b"a.wav|gr\xfcn|ann")
    with pytest.raises(DataError, match="metadata.csv' is not UTF-8 text; byte 8 "):
        open_speech(tmp_path)


def test_fingerprint_follows_texts_speakers_names_and_sounds(tmp_path: Path) -> None:
    def fingerprint(kind: str, line: str = "a.wav|one|ann", value: float = 0.5, file: str = "a.wav") -> str:
        name, text, speaker = line.split("|")
        if kind == "table":
            folder = write_table(tmp_path / "table", line, files=())
            (folder / file).write_bytes(encoded(value))
            return open_speech(folder).fingerprint
        audio = [{"bytes": encoded(value), "path": name}]
        return open_speech(
            write_parquet(tmp_path / "train.parquet", audio=audio, text=[text], speaker_id=[speaker])
        ).fingerprint

    (tmp_path / "table").mkdir()
    for kind in ("table", "parquet"):
        first = fingerprint(kind)
        assert first == fingerprint(kind) and len(first) == 64
        others = [
            fingerprint(kind, "a.wav|two|ann"),
            fingerprint(kind, "a.wav|one|bob"),
            fingerprint(kind, "a.wav|onea|nn"),
            fingerprint(kind, "b.wav|one|ann", file="b.wav"),
            fingerprint(kind, value=0.25),
        ]
        assert len({first, *others}) == 6


def test_fingerprint_without_a_digest_is_of_the_samples() -> None:
    def source(value: float) -> SpeechSource:
        def read(index: int, sample_rate_hz: int) -> Tensor:
            return torch.full((4,), value)

        return SpeechSource(name="fake", split="train", texts=("a",), speakers=("b",), ids=("c",), read=read)

    assert source(0.5).fingerprint == source(0.5).fingerprint != source(0.25).fingerprint


def test_source_needs_one_speaker_per_text() -> None:
    with pytest.raises(DataError, match="'fake' has 2 texts, 1 speakers, 2 ids"):
        SpeechSource(
            name="fake",
            split="train",
            texts=("a", "b"),
            speakers=("c",),
            ids=("d", "e"),
            read=lambda i, r: torch.ones(1),
        )
