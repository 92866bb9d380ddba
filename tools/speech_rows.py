"""Rows of the speech corpora and the parquet files that hold them."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import soundfile
from torch import Tensor

from resgen.data.sound.decode import normalise_loudness
from resgen.errors import DataError
from resgen.ops.random import derive_seed

RATE_HZ = 16_000
MIN_SECONDS, MAX_SECONDS = 0.2, 15.0


class Row(NamedTuple):
    """One utterance, encoded."""

    content: bytes
    text: str
    speaker_id: str
    source: str
    seconds: float
    phonemes: str = ""


def encode_row(samples: Tensor, text: str, speaker_id: str, source: str, phonemes: str = "") -> Row:
    """A row of samples float32 (S,) at `RATE_HZ`, brought to the loudness of all.

    Raises:
        DataError: silent, or shorter or longer than allowed.
    """
    seconds = len(samples) / RATE_HZ
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise DataError(f"{speaker_id} '{text}' takes {seconds:.2f} s; allowed: {MIN_SECONDS:g} to {MAX_SECONDS:g} s")
    if not samples.abs().max() > 0:
        raise DataError(f"{speaker_id} '{text}' is silent")
    file = io.BytesIO()
    soundfile.write(file, normalise_loudness(samples, RATE_HZ).numpy(), RATE_HZ, "PCM_16", format="FLAC")
    return Row(file.getvalue(), text, speaker_id, source, seconds, phonemes)


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """A parquet file of a corpus, under a temporary name until it is whole."""
    numbers: Counter[str] = Counter()
    audio = []
    for row in rows:
        audio.append({"bytes": row.content, "path": f"{file.stem}/{row.speaker_id}-{numbers[row.speaker_id]:04d}.flac"})
        numbers[row.speaker_id] += 1
    names = ["text", "speaker_id", "source"] + ["phonemes"] * any(row.phonemes for row in rows)
    features: dict[str, Any] = {"audio": {"_type": "Audio", "sampling_rate": RATE_HZ}}
    features |= {name: {"_type": "Value", "dtype": "string"} for name in names}
    content = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {name: pyarrow.array([getattr(row, name) for row in rows], pyarrow.string()) for name in names}
    table = pyarrow.table({"audio": pyarrow.array(audio, content), **columns})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    temporary = file.with_name(f".{file.name}")
    pyarrow.parquet.write_table(table, temporary, row_group_size=500)
    os.replace(temporary, file)


def read_rows(
    file: Path, columns: Sequence[str] = ("audio", "text", "speaker_id"), also: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a parquet file: columns that must be there, and others if they are.

    Raises:
        DataError: the file cannot be read or lacks a column.
    """
    try:
        there = pyarrow.parquet.read_schema(file).names
        if absent := [name for name in columns if name not in there]:
            raise DataError(f"'{file}' has no column {', '.join(absent)}")
        names = [*columns, *(name for name in also if name in there)]
        return pyarrow.parquet.read_table(file, columns=names).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"'{file}' cannot be read: {' '.join(str(error).split())}") from error


def read_lines(file: Path) -> list[str]:
    """The lines of a text file."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' cannot be read as UTF-8 text: {error}") from error


def is_test_text(text: str) -> bool:
    """Whether a text is kept for the test splits, as a tenth of all are."""
    return derive_seed("test text", text) % 10 == 0
