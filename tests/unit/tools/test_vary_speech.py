"""A corpus said again in other voices: its rows, its names, and what is kept."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from speech_rows import RATE_HZ, encode_row, write_rows
from vary_speech import SPEEDS, VarySpeech, main

from resgen.data.sound.decode import read_sound


def sound(seconds: float, hz: float) -> torch.Tensor:
    return 0.1 * torch.sin(torch.arange(int(seconds * RATE_HZ)) / RATE_HZ * hz * 2 * torch.pi)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [
        encode_row(sound(1.0, 200), "one sound", "ann", "made", "wˈʌn"),
        encode_row(sound(2.0, 200), "two sounds", "ann", "made", "tˈu"),
        encode_row(sound(1.0, 300), "another", "ben", "made", "ənˈʌðəɹ"),
    ]
    write_rows(rows, tmp_path / "train-00000.parquet")
    return tmp_path / "train-00000.parquet"


def rows_of(file: Path) -> list[dict]:
    return pyarrow.parquet.read_table(file).to_pylist()


def length(row: dict) -> int:
    return len(read_sound(row["audio"]["bytes"], RATE_HZ, where="a row"))


def test_every_utterance_is_there_as_often_as_asked_in_voices_of_their_own(corpus: Path, tmp_path: Path) -> None:
    assert main(VarySpeech(data=(corpus,), out=tmp_path / "out", copies=2, clean=True)) == 0
    rows = rows_of(tmp_path / "out" / corpus.name)
    assert [(row["speaker_id"], row["text"], row["phonemes"]) for row in rows[:4]] == [
        ("ann%0", "one sound", "wˈʌn"),
        ("ann%1", "one sound", "wˈʌn"),
        ("ann%0", "two sounds", "tˈu"),
        ("ann%1", "two sounds", "tˈu"),
    ]
    ratios = [
        length(row) / length(old) for row, old in zip(rows, [o for o in rows_of(corpus) for _ in "ab"], strict=True)
    ]
    assert all(1 / SPEEDS[1] - 0.01 <= ratio <= 1 / SPEEDS[0] + 0.01 for ratio in ratios)
    assert ratios[0] == pytest.approx(ratios[2], abs=0.01) != pytest.approx(ratios[1], abs=0.01), "of a voice, alike"


def test_the_same_seed_gives_the_same_corpus_and_another_other_voices(corpus: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main(VarySpeech(data=(corpus,), out=tmp_path / name, seed=seed)) == 0
    a, b, c = (rows_of(tmp_path / name / corpus.name) for name in "abc")
    assert a == b
    assert {row["speaker_id"] for row in a}.isdisjoint(row["speaker_id"] for row in c)
    assert a[0]["audio"]["bytes"] != c[0]["audio"]["bytes"]


def test_files_that_are_there_are_kept(corpus: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out" / corpus.name
    kept.parent.mkdir()
    kept.write_bytes(b"here before")
    assert main(VarySpeech(data=(corpus,), out=kept.parent)) == 0
    assert kept.read_bytes() == b"here before"


def test_copies_that_get_too_short_or_too_long_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of voices that are played both faster and slower."""
    file = tmp_path / "train.parquet"
    write_rows([encode_row(sound(seconds, 200), "a sound", "ann", "made") for seconds in (0.2, 1.0, 15.0)], file)
    assert main(VarySpeech(data=(file,), out=tmp_path / "out", copies=8)) == 0
    rows = rows_of(tmp_path / "out" / file.name)
    assert all(0.2 <= length(row) / RATE_HZ <= 15 for row in rows) and 8 < len(rows) < 24
    assert f"{24 - len(rows)} copies left out" in capsys.readouterr().out


def test_no_file_is_passed_over_in_silence(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of two files of one name, and of a folder that is read and written."""
    other = tmp_path / "other" / corpus.name
    other.parent.mkdir()
    other.write_bytes(corpus.read_bytes())
    assert main(VarySpeech(data=(corpus, other), out=tmp_path / "out")) == 2
    assert "would both be written as" in capsys.readouterr().err
    assert main(VarySpeech(data=(corpus,), out=tmp_path)) == 2
    assert "lies in the folder to write; give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "copies", "words"),
    [(["none.parquet"], 1, "no such file"), (["note.txt"], 1, "cannot be read"), ([], 0, "copies 0 is out of range")],
)
def test_bad_input_is_named_in_one_line(
    files: list[str], copies: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "note.txt").write_text("no parquet")
    data = tuple(tmp_path / name for name in files)
    assert main(VarySpeech(data=data, out=tmp_path / "out", copies=copies)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
