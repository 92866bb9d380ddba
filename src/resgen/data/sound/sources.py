"""Recordings with their texts and speakers: parquet files, tar shards or folders with a table, opened lazily."""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from resgen.data.announce import announce, listed
from resgen.data.parquet import check_encoded, check_unpacked, encoded_cells, file_names, open_parquet
from resgen.data.sound.decode import read_sound
from resgen.data.splits import known_split, parquet_splits, split_of, subfolders
from resgen.data.tar.index import (
    MAX_NOTE_BYTES,
    ShardIndex,
    decode_note,
    fingerprint,
    index_shards,
    parse_note,
    reader,
)
from resgen.data.tar.paths import shard_splits
from resgen.errors import DataError, unknown
from resgen.files import nearest_path

TABLE = "metadata.csv"
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Of recordings in tar shards."""
FIELDS = ("file", "text", "speaker")
LJSPEECH_FIELDS = ("id", "text", "normalised")
COLUMNS = {
    "audio": ("audio",),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "speaker_id": ("speaker_id", "speaker", "client_id"),
}
"""Possible names of a column; the first that exists is used."""
PROMPT_COLUMNS = {"prompt": ("prompt",), "prompt_text": ("prompt_text",)}
ONE_SPEAKER = "speaker"
"""Of data that names none."""
_BATCH_ROWS = 1024
_DIGEST_RATE_HZ = 16_000


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeechSource:
    """A read-only view of recordings, decoded on request.

    Attributes:
        name: short name for messages and model cards.
        split: which part of the data this is.
        texts: what is said, one per utterance.
        speakers: who says it, one per utterance.
        ids: a distinct name of every utterance.
        read: (index, sample_rate_hz) to samples, float32 [S] in [-1, 1], as they were recorded.
        prompt_texts: what is said in the prompts, where every utterance comes with one: another recording of its
            speaker, to be imitated.
        read_prompt: the same as `read` for the prompts.
        digest: computes `fingerprint`; without it the samples are decoded for that.
        left_out: what there is besides, and is not used.
    """

    name: str
    split: str
    texts: tuple[str, ...]
    speakers: tuple[str, ...]
    ids: tuple[str, ...]
    read: Callable[[int, int], Float[Tensor, " S"]]
    digest: Callable[[], str] | None = None
    prompt_texts: tuple[str, ...] | None = None
    read_prompt: Callable[[int, int], Float[Tensor, " S"]] | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.speakers) == len(self.ids):
            counts = f"{len(self.texts)} texts, {len(self.speakers)} speakers, {len(self.ids)} ids"
            raise DataError(f"'{self.name}' has {counts}; allowed: one of each per utterance")

    def __len__(self) -> int:
        return len(self.texts)

    def summary(self) -> str:
        """A one-line description."""
        names = list(dict.fromkeys(self.speakers))
        speakers = (
            f"{len(names):,} speaker{'s' * (len(names) != 1)} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})"
        )
        prompts = "" if self.prompt_texts is None else ", each with a prompt"
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        count = f"{len(self):,} utterance{'s' * (len(self) != 1)}"
        return f"data '{self.name}' split '{self.split}': {count}{prompts}, {speakers}{left_out}"

    def part(self, begin: int, end: int) -> SpeechSource:
        """The utterances from `begin` to `end - 1`; with the fingerprint of all."""
        return self.subset(range(len(self))[begin:end])

    def subset(self, rows: Sequence[int], split: str | None = None) -> SpeechSource:
        """The utterances of the given rows, of the same or another split; with the fingerprint of all."""
        read_prompt, prompts = self.read_prompt, self.prompt_texts
        return SpeechSource(
            name=self.name,
            split=self.split if split is None else split,
            texts=tuple(self.texts[row] for row in rows),
            speakers=tuple(self.speakers[row] for row in rows),
            ids=tuple(self.ids[row] for row in rows),
            read=lambda index, sample_rate_hz: self.read(rows[index], sample_rate_hz),
            digest=lambda: self.fingerprint,
            prompt_texts=None if prompts is None else tuple(prompts[row] for row in rows),
            read_prompt=None if read_prompt is None else lambda index, rate: read_prompt(rows[index], rate),
            left_out=self.left_out,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over texts, speakers, ids and recordings; reads every byte on first use."""
        if self.digest is not None:
            return self.digest()
        total = hashlib.sha256()
        for index, fields in enumerate(zip(self.ids, self.texts, self.speakers, strict=True)):
            samples = self.read(index, _DIGEST_RATE_HZ).contiguous().numpy().tobytes()
            total.update(_framed(*(os.fsencode(field) for field in fields), samples))
        return total.hexdigest()


def open_speech(path: str | Path, split: str | None = None) -> SpeechSource:
    """Open recordings with texts.

    * a parquet file, or a folder of them (or of `data/*.parquet`) named by split (`train.parquet`,
      `test-00000-of-00002.parquet`), with the columns `audio` ({bytes, path} or bytes), `text` and `speaker_id`, or as
      they are called in `COLUMNS`; with `prompt` (as `audio`) and `prompt_text` as well, every utterance comes with a
      prompt.
    * a folder with `metadata.csv`, or folders of that form named by split. Each line is `file|text|speaker`, the file
      relative to the table's folder, or `file|text` of one speaker; there are no quotes, a first line of just these
      words is skipped. In the form of LJSpeech, `id|text|normalised` of `wavs/id.wav`, the last is what is said.
    * tar shards, see `data.tar.paths.shard_splits`, with `KEY.wav` (or another of `SUFFIXES`) and its text in
      `KEY.txt` or `text` of `KEY.json`, its speaker in `speaker_id` or `speaker` of `KEY.json`. Without that all are of
      the one speaker `speaker`.

    Args:
        path: the file or folder.
        split: one of `available_splits(path)`; left out, it is the only one, or `train`.

    One line on standard error says what was opened.

    Raises:
        DataError: nothing there, no such split, no rows, or of a form that cannot be read.
        MissingExtraError: pyarrow is needed and not installed.
    """
    source = _open(path, split)
    announce(source.summary())
    return source


def _open(path: str | Path, split: str | None) -> SpeechSource:
    splits = available_splits(path)
    path = Path(path)
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in splits:
        raise DataError(f"'{path}': {unknown('split', split, splits)}")
    try:
        if shards := _shards(path):
            return _open_shards(shards[split], path.name, split)
        if path.is_file():
            return _open_parquet([path], path.name, split)
        if (path / TABLE).is_file():
            return _open_table(path, path.name, split)
        if groups := parquet_splits(path):
            return _open_parquet(groups[split], path.name, split)
        return _open_table(_table_folders(path)[split], path.name, split)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error


def available_splits(path: str | Path) -> list[str]:
    """The splits that `open_speech` accepts, `train` first; of a folder with one table it is `train` alone.

    Raises:
        DataError: no parquet file, and no folder that holds such files or `metadata.csv`.
    """
    path = Path(path)
    try:
        if shards := _shards(path):
            return list(shards)
        if path.is_file():
            if path.suffix.lower() != ".parquet":
                raise DataError(f"file '{path}' is not a .parquet or .tar file; for a {TABLE} give its folder")
            return [split_of(path)]
        if not path.is_dir():
            raise DataError(
                f"no such file or folder: '{path}'; {nearest_path(path)}; allowed: a folder, a .parquet or .tar file"
            )
        if (path / TABLE).is_file():
            return ["train"]
        names = parquet_splits(path) or _table_folders(path)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if not names:
        table = next(iter(sorted(path.glob("*.tsv"))), None)  # Common Voice's form
        remedy = f"; write the lines of {table.name} as 'clips/PATH|SENTENCE|CLIENT_ID' into {TABLE}" if table else ""
        raise DataError(
            f"folder '{path}' holds no parquet files, no tar shards, no {TABLE} and no folders with one{remedy}"
        )
    return sorted(names, key=lambda name: (name != "train", name))


def _table_folders(path: Path) -> dict[str, Path]:
    return {known_split(part.name) or part.name: part for part in subfolders(path) if (part / TABLE).is_file()}


class _Rows(NamedTuple):
    """One parquet file; the sounds are still encoded and share Arrow's memory."""

    sounds: list[memoryview]
    paths: list[str | None]
    texts: list[str]
    speakers: list[str]
    prompts: list[memoryview]
    prompt_texts: list[str]
    unused: set[str]


def _open_parquet(files: Sequence[Path], name: str, split: str) -> SpeechSource:
    rows = _Rows([], [], [], [], [], [], set())
    ends = []
    for file in files:
        _read_parquet(file, rows)
        ends.append(len(rows.sounds))
    if not rows.sounds:
        raise DataError(f"'{name}' split '{split}' holds no rows")
    if rows.prompts and len(rows.prompts) != len(rows.sounds):
        raise DataError(f"'{name}' split '{split}' has prompts in some of its files only")
    names = [path for path in rows.paths if path]
    distinct = len(set(names)) == len(rows.paths)
    ids = tuple(names) if distinct else tuple(f"{split}-{i:06d}" for i in range(len(rows.paths)))
    texts, speakers = tuple(rows.texts), tuple(rows.speakers)

    def where(index: int) -> str:
        part = bisect_right(ends, index)
        return f"'{files[part]}' row {index - (ends[part - 1] if part else 0)}"

    def read(index: int, sample_rate_hz: int) -> Float[Tensor, " S"]:
        index = range(len(rows.sounds))[index]
        return read_sound(rows.sounds[index], sample_rate_hz, where=where(index))

    def read_prompt(index: int, sample_rate_hz: int) -> Float[Tensor, " S"]:
        index = range(len(rows.prompts))[index]
        return read_sound(rows.prompts[index], sample_rate_hz, where=f"the prompt of {where(index)}")

    def content(index: int) -> bytes:
        """Hash of the sound and, where there are prompts, of the prompt, before the prompt's text."""
        if not rows.prompts:
            return hashlib.sha256(rows.sounds[index]).digest()
        sounds = (rows.sounds[index], rows.prompts[index])
        return b"".join(hashlib.sha256(sound).digest() for sound in sounds) + rows.prompt_texts[index].encode()

    return SpeechSource(
        name=name,
        split=split,
        texts=texts,
        speakers=speakers,
        ids=ids,
        read=read,
        digest=lambda: _digest(ids, texts, speakers, map(content, range(len(ids)))),
        prompt_texts=tuple(rows.prompt_texts) if rows.prompts else None,
        read_prompt=read_prompt if rows.prompts else None,
        left_out=tuple(f"column {name}" for name in sorted(rows.unused)),
    )


def _read_parquet(path: Path, rows: _Rows) -> None:
    """Add the rows of a file."""
    first = len(rows.sounds)
    with open_parquet(path) as file:
        check_unpacked(path, file.metadata)
        schema = file.schema_arrow
        with_prompts = all(name in schema.names for name in PROMPT_COLUMNS)
        columns = _columns(path, schema, {**COLUMNS, **PROMPT_COLUMNS} if with_prompts else COLUMNS)
        rows.unused.update(set(schema.names) - set(columns.values()))
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns.values())):
            start = len(rows.sounds) - first
            for name, sounds in (("audio", rows.sounds), ("prompt", rows.prompts))[: 1 + with_prompts]:
                sounds.extend(encoded_cells(path, batch.column(columns[name]), columns[name], start))
            rows.paths.extend(file_names(batch.column(columns["audio"])))
            texts = (("text", rows.texts), ("speaker_id", rows.speakers), ("prompt_text", rows.prompt_texts))
            for name, values in texts[: 2 + with_prompts]:
                for row, value in enumerate(batch.column(columns[name]).to_pylist(), start):
                    text = "" if value is None else str(value)
                    if not text.strip():
                        raise DataError(f"'{path}' row {row} has nothing in column '{columns[name]}'")
                    values.append(text)


def _columns(path: Path, schema: Any, allowed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What the columns are called in a file."""
    from pyarrow import types

    columns = {name: next((one for one in aliases if one in schema.names), "") for name, aliases in allowed.items()}
    if missing := [name for name, column in columns.items() if not column]:
        there = ", ".join(schema.names) or "none"
        aliases = ", ".join(f"'{other}'" for name in missing for other in allowed[name][1:])
        others = f"; also read: {aliases}" if aliases else ""
        raise DataError(f"'{path}' has no column {' and no column '.join(missing)}; it has: {there}{others}")
    for name, column in columns.items():
        column_type = schema.field(column).type
        column_type = column_type.value_type if types.is_dictionary(column_type) else column_type
        is_text = types.is_string(column_type) or types.is_large_string(column_type)
        if name in ("audio", "prompt"):
            check_encoded(path, schema, column)
        elif not is_text and not (name == "speaker_id" and types.is_integer(column_type)):
            raise DataError(f"'{path}' column '{column}' must hold text, not {column_type}")
    return columns


def _shards(path: Path) -> dict[str, list[Path]]:
    """Tar shards by split, where there are some and neither a table nor parquet files, which come first."""
    first = path.is_dir() and ((path / TABLE).is_file() or bool(parquet_splits(path)))
    return {} if first else shard_splits(path)


def _open_shards(files: Sequence[Path], name: str, split: str) -> SpeechSource:
    indices = index_shards(files, SUFFIXES)
    media = reader(indices, 0)
    texts, speakers, ids, places = [], [], [], []
    for index in indices:
        for row, (text, speaker) in enumerate(_notes(index)):
            texts.append(text)
            speakers.append(speaker)
            ids.append(f"{index.path.stem}-{row:06d}")
            places.append(f"shard '{index.path}' sample {row}")
    if not texts:
        raise DataError(f"'{name}' split '{split}' holds no samples")

    def read(index: int, sample_rate_hz: int) -> Float[Tensor, " S"]:
        index = range(len(texts))[index]
        return read_sound(media(index), sample_rate_hz, where=places[index])

    return SpeechSource(
        name=name,
        split=split,
        texts=tuple(texts),
        speakers=tuple(speakers),
        ids=tuple(ids),
        read=read,
        digest=lambda: fingerprint(indices),
    )


def _notes(index: ShardIndex) -> Iterator[tuple[str, str]]:
    """Text and speaker of every sample of a shard."""
    read_text, read_json = reader([index], 2), reader([index], 4)
    for row, sizes in enumerate(index.rows[:, [3, 5]].tolist()):
        where = f"shard '{index.path}' sample {row}"
        if max(sizes) > MAX_NOTE_BYTES:
            raise DataError(f"{where} has a .txt or .json of {max(sizes)} bytes; at most {MAX_NOTE_BYTES} are read")
        text = decode_note(read_text(row), f"{where} .txt") if sizes[0] else ""
        about = parse_note(decode_note(read_json(row), where), f"{where} .json") if sizes[1] else {}
        text = text or about.get("text", "")
        speaker = about.get("speaker_id", about.get("speaker", ONE_SPEAKER))
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where} has no text; give KEY.txt, or 'text' in KEY.json")
        if not isinstance(speaker, str | int) or not str(speaker).strip():
            raise DataError(f"{where} has speaker {speaker!r}; allowed: text or a number")
        yield text.strip(), str(speaker).strip()


def _open_table(folder: Path, name: str, split: str) -> SpeechSource:
    table = folder / TABLE
    try:
        lines = table.read_text(encoding="utf-8-sig").split("\n")  # not at other separators, which texts may hold
    except UnicodeDecodeError as error:
        raise DataError(f"'{table}' is not UTF-8 text; byte {error.start} cannot be read") from error
    files: list[Path] = []
    missing: list[str] = []
    rows: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        fields = [field.strip() for field in line.split("|")]
        header = number == 1 and tuple(field.lower() for field in fields) in (FIELDS, FIELDS[:2], LJSPEECH_FIELDS)
        if not line.strip() or header:
            continue
        row = _read_line(folder, fields, f"'{table}' line {number}")
        if row is None:
            missing.append(f"'{fields[0]}' (line {number})")
            continue
        file, text, speaker = row
        if file in rows:
            raise DataError(f"'{table}' line {number} names '{file}' a second time")
        files.append(folder / file)
        rows[file] = text, speaker
    if missing:
        raise DataError(f"'{table}' names files that are neither there nor in 'wavs': {listed(missing)}")
    if not rows:
        raise DataError(f"'{table}' holds no lines '{'|'.join(FIELDS)}'")
    voices = {speaker for _, speaker in rows.values()}
    if len(voices) == len(rows) > 2 and any(" " in voice for voice in voices):
        raise DataError(
            f"'{table}' has a different speaker on every line, such as {min(voices)[:40]!r}; the third "
            "field is the speaker: omit it if all lines have one speaker"
        )
    ids = tuple(rows)
    texts, speakers = (tuple(values) for values in zip(*rows.values(), strict=True))

    def read(index: int, sample_rate_hz: int) -> Float[Tensor, " S"]:
        return read_sound(files[index], sample_rate_hz)

    return SpeechSource(
        name=name,
        split=split,
        texts=texts,
        speakers=speakers,
        ids=ids,
        read=read,
        digest=lambda: _digest(ids, texts, speakers, map(_file_digest, files)),
    )


def _read_line(folder: Path, fields: Sequence[str], where: str) -> tuple[str, str, str] | None:
    """File, text and speaker; None where there is no such file.

    Raises:
        DataError: the line is not whole, or its file not below `folder`: tables come with downloaded data.
    """
    if len(fields) not in (2, 3):
        with_commas = len(fields) == 1 and "," in fields[0]
        remedy = (
            "; fields are separated by |, not by commas, and need no quotes: write 'a.wav|Yes, I can.|anna'"
            if with_commas
            else ""
        )
        raise DataError(
            f"{where} has {len(fields)} fields; allowed: {len(FIELDS)}, {'|'.join(FIELDS)}, or the first two{remedy}"
        )
    for name, value in zip(FIELDS, fields, strict=False):
        if not value:
            raise DataError(f"{where} has no {name}")
    file, text, speaker = (*fields, ONE_SPEAKER)[:3]
    outside = PureWindowsPath(file).anchor or ".." in re.split(r"[\\/]", file)
    if outside or not file.isprintable():
        raise DataError(f"{where} names {file!r}; allowed: a file below the folder of the table")
    if (folder / file).is_file():
        return file, text, speaker
    for place in ("wavs/", "wav/", ""):  # LJSpeech's form
        if (folder / f"{place}{file}.wav").is_file():
            return f"{place}{file}.wav", fields[-1], ONE_SPEAKER
    return None


def _digest(ids: Sequence[str], texts: Sequence[str], speakers: Sequence[str], contents: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for name, text, speaker, content in zip(ids, texts, speakers, contents, strict=True):
        total.update(_framed(os.fsencode(name), text.encode(), speaker.encode(), content))
    return total.hexdigest()


def _framed(*parts: bytes) -> bytes:
    """The parts, each after its length, so that different parts never give the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
