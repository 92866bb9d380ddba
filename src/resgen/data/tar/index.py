"""Tar shards of samples (the form of WebDataset) by index: built once per shard, after which any sample is one read.

A sample is what lies side by side under one key: `KEY.jpg` with `KEY.cls`, `KEY.txt` or `KEY.json`; the key is the
name up to the first dot of its last part. Samples without a label of these are of the class that their folder in the
shard is called. The index of a shard is a safetensors file in `.resgen/` beside it or, where
that cannot be written, in the user's cache folder. It counts as long as the shard has the size and the time of change
that it had, and holds:

```
rows      int64 [N, 6]   offset and size of the image or sound, of KEY.txt and of KEY.json (size 0: none)
labels    int32 [N]      which of `classes`, or -1
metadata  {"resgen": {"format", "format_version", "size", "mtime_ns", "sha256", "labelled_by", "classes"}}
```
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from resgen.data.labels import NAMES, PREFERRED
from resgen.data.splits import known_split
from resgen.data.tar.archive import Member, read_bytes, tar_members
from resgen.errors import DataError, WriteError
from resgen.files import atomic_path
from resgen.progress import show_progress

FORMAT, FORMAT_VERSION = "resgen-shard-index", 2
MAX_MEDIA_BYTES = 1 << 30
"""Of one image or sound, as it is stored."""
MAX_NOTE_BYTES = 1 << 20
"""Of `KEY.cls`, `KEY.txt` and `KEY.json`."""
MAX_CLASS_LENGTH = 200
"""A longer text, or one of several lines, names no class."""
MAX_UNNAMED_CLASSES = 100_000
LABEL_KEYS = tuple(dict.fromkeys((*PREFERRED, "cls", *NAMES)))

_FOLDER = ".resgen"
_PATH = "folder"
_KINDS = (".cls", ".json", ".txt", _PATH)
_TEXTS = ".txt"  # which may be captions
_MIXED = "mixed"


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The content of one shard.

    Attributes:
        path: the shard.
        sha256: SHA-256 of the whole file.
        size: size of the file, in bytes.
        rows: int64 [N, 6], see above.
        labels: int32 [N].
        classes: the texts of the labels in their order of appearance, numbers as text.
        labelled_by: `.cls`, `.json`, `.txt`, `folder`, `mixed` where samples differ, or None without labels.
    """

    path: Path
    sha256: str
    size: int
    rows: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    labelled_by: str | None

    def __len__(self) -> int:
        return len(self.rows)


def index_shards(paths: Sequence[Path], suffixes: Sequence[str]) -> list[ShardIndex]:
    """The indices of shards, from files where there are valid ones; the others are built in a few threads and kept.

    Args:
        paths: the shards.
        suffixes: suffixes of the images or sounds; every sample must have exactly one of them.

    Raises:
        DataError: naming the first shard that is missing, damaged, cut short, compressed or holds anything but samples.
    """
    indices = {path: index for path in paths if (index := _read_index(path, suffixes)) is not None}
    missing = [path for path in paths if path not in indices]
    pool = ThreadPoolExecutor(max_workers=max(2, min(8, os.cpu_count() or 1)))
    try:
        built = pool.map(lambda path: build_index(path, suffixes), missing)
        title = f"indexing {len(missing)} of {len(paths)} shards, once"
        for index in show_progress(((1, index) for index in built), len(missing), title):
            indices[index.path] = index
    finally:
        pool.shutdown(cancel_futures=True)
    return [indices[path] for path in paths]


def build_index(path: Path, suffixes: Sequence[str]) -> ShardIndex:
    """Read all of a shard, and keep its index in a file where one can be written.

    Raises:
        DataError: see `index_shards`.
    """
    where = f"shard '{path}'"
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            samples = _Samples(file, where, suffixes)
            for member in tar_members(file, where):
                samples.add(member)
            samples.close()
            samples.drop_captions()
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
    index = ShardIndex(
        path=path,
        sha256=sha256,
        size=status.st_size,
        rows=np.array(samples.rows, np.int64).reshape(-1, 6),
        labels=np.array(samples.labels, np.int32),
        classes=tuple(samples.classes),
        labelled_by=samples.labelled_by,
    )
    _write_index(index, suffixes, status.st_mtime_ns)
    return index


class _Samples:
    """Collects the members of a shard into samples."""

    def __init__(self, file: BinaryIO, where: str, suffixes: Sequence[str]) -> None:
        self._file, self._where, self._suffixes = file, where, suffixes
        self._key: str | None = None
        self._parts: dict[str, Member] = {}
        self.rows: list[list[int]] = []
        self.labels: list[int] = []
        self.classes: dict[str, int] = {}
        self.labelled_by: str | None = None

    def add(self, member: Member) -> None:
        """The next member of the archive."""
        folder, _, last = member.name.removeprefix("./").rpartition("/")
        stem, dot, suffix = last.partition(".")
        if not stem or not dot:  # hidden files and such without a suffix belong to no sample
            return
        key, suffix = f"{folder}/{stem}" if folder else stem, f".{suffix.lower()}"
        if key != self._key:
            self.close()
            self._key = key
        if suffix in self._parts:
            raise DataError(f"{self._where} holds sample {key!r} with two files {suffix}")
        self._parts[suffix] = member

    def drop_captions(self) -> None:
        """Keep no texts of which hardly one occurs twice: they are captions, and would fill the memory."""
        if self.labelled_by == _TEXTS and len(self.classes) > max(1000, 0.95 * len(self.rows)):
            self.classes, self.labels = {"": 0}, [0] * len(self.labels)

    def close(self) -> None:
        """The sample so far is complete."""
        parts, self._parts = self._parts, {}
        if not parts:
            return
        where = f"{self._where} sample {self._key!r}"
        media = [suffix for suffix in parts if suffix in self._suffixes]
        if len(media) != 1:
            names = " ".join(parts)
            raise DataError(f"{where} must hold one file of {' '.join(self._suffixes)}; it has: {names}")
        if parts[media[0]].size > MAX_MEDIA_BYTES:
            raise DataError(f"{where} has {parts[media[0]].size} bytes; at most {MAX_MEDIA_BYTES} are read")
        row: list[int] = []
        for suffix in (media[0], ".txt", ".json"):
            row += parts[suffix][1:] if suffix in parts else (0, 0)
        labelled_by, text = self._label(parts, where)
        self.labelled_by = labelled_by if labelled_by == self.labelled_by or not self.rows else _MIXED
        self.rows.append(row)
        self.labels.append(-1 if labelled_by is None else self.classes.setdefault(text, len(self.classes)))

    def _label(self, parts: dict[str, Member], where: str) -> tuple[str | None, str]:
        """Where the class stands, and its number or name as text."""
        if ".cls" in parts:
            text = self._note(parts[".cls"], f"{where} .cls").strip()
            if not (text.isascii() and text.isdigit()):
                raise DataError(f"{where} has .cls {text[:40]!r}; allowed: a whole number from 0 on")
            return ".cls", text
        if ".json" in parts:
            document = parse_note(self._note(parts[".json"], f"{where} .json"), f"{where} .json")
            lowered = {key.lower(): value for key, value in reversed(document.items())}
            for key in LABEL_KEYS:
                value = lowered.get(key)
                if isinstance(value, str | int) and not isinstance(value, bool):
                    return ".json", str(value).strip()[:MAX_CLASS_LENGTH]
        if _TEXTS in parts and parts[_TEXTS].size <= 4 * MAX_CLASS_LENGTH:
            text = self._note(parts[_TEXTS], f"{where} .txt").strip()
            return _TEXTS, text if "\n" not in text else text[:MAX_CLASS_LENGTH]
        if _TEXTS in parts:
            return _TEXTS, ""
        folder = (self._key or "").rpartition("/")[0].rpartition("/")[2]
        return (None, "") if not folder or known_split(folder) else (_PATH, folder[:MAX_CLASS_LENGTH])

    def _note(self, member: Member, where: str) -> str:
        if member.size > MAX_NOTE_BYTES:
            raise DataError(f"{where} has {member.size} bytes; at most {MAX_NOTE_BYTES} are read")
        self._file.seek(member.offset)
        return decode_note(self._file.read(member.size), where)


def decode_note(content: bytes, where: str) -> str:
    """The text of a small file of a sample.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text; byte {error.start} cannot be read") from error


def parse_note(text: str, where: str) -> dict[str, Any]:
    """A `KEY.json`.

    Raises:
        DataError: no JSON, text in it that is none, or no object.
    """
    try:
        document = json.loads(text)
        if "\\u" in text:  # may be half of a surrogate pair
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON") from error
    if not isinstance(document, dict):
        raise DataError(f"{where} must hold a JSON object, not {type(document).__name__}")
    return document


class Classes(NamedTuple):
    """The classes of a data set: their names, and the label of each text that stands in its shards."""

    names: tuple[str, ...]
    labels: Mapping[str, int]


def join_classes(indices: Sequence[ShardIndex], names: Sequence[str] | None, where: str) -> Classes | None:
    """Classes of shards that form one data set; None if they have none.

    Numbers are labels as they are. Other texts are sorted; those of `KEY.txt` are captions, and name no classes, if
    more than half of the samples have a text of their own.

    Args:
        indices: indices of all shards.
        names: names of the classes, where the data has a list of them.
        where: what to call the data in an error.

    Raises:
        DataError: the shards differ in what labels them, or a label has no name.
    """
    kinds = {index.labelled_by for index in indices if len(index)}
    if len(kinds) > 1 or _MIXED in kinds:
        raise DataError(f"samples of '{where}' are labelled in different ways ({' '.join(_KINDS)}); all must be alike")
    texts = sorted({text for index in indices for text in index.classes})
    numbers = kinds != {_PATH} and all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts)
    if (
        kinds <= {None}
        or (kinds == {_PATH} and len(texts) == 1)
        or (kinds == {_TEXTS} and not numbers and _captions(texts, sum(map(len, indices))))
    ):
        return None
    if not numbers:
        known = {name: label for label, name in enumerate(texts if names is None else names)}
        unnamed = [text for text in texts if text not in known]
        if unnamed:
            raise DataError(f"'{where}' has class {unnamed[0]!r}, which is not among the {len(known)} named")
        return Classes(tuple(known), known)
    highest = max(map(int, texts))
    if highest >= (MAX_UNNAMED_CLASSES if names is None else len(names)):
        limit = f"no class names; at most {MAX_UNNAMED_CLASSES - 1}" if names is None else f"{len(names)} class names"
        raise DataError(f"'{where}' has label {highest}, but {limit}")
    all_names = map(str, range(highest + 1)) if names is None else names
    return Classes(tuple(all_names), {text: int(text) for text in texts})


def labels_of(index: ShardIndex, classes: Classes | None) -> np.ndarray:
    """int64 labels of a shard's samples; zeros without classes."""
    table = [0 if classes is None else classes.labels[text] for text in index.classes]
    return np.array([*table, 0], np.int64)[index.labels if classes is not None else np.full(len(index), -1)]


def fingerprint(indices: Iterable[ShardIndex]) -> str:
    """SHA-256 (hex) over names and contents of shards."""
    total = hashlib.sha256()
    for index in indices:
        total.update(f"{index.path.name}\0{index.size}\0{index.sha256}\n".encode())
    return total.hexdigest()


def reader(indices: Sequence[ShardIndex], column: int) -> Callable[[int], bytes]:
    """What reads, of sample `i` of all shards together, the file that stands in a column of `rows`."""
    ends = np.cumsum([len(index) for index in indices])

    def read(sample: int) -> bytes:
        shard = int(np.searchsorted(ends, sample, side="right"))
        row = sample - (int(ends[shard - 1]) if shard else 0)
        offset, size = indices[shard].rows[row, column : column + 2].tolist()
        return read_bytes(indices[shard].path, offset, size, f"shard '{indices[shard].path}' sample {row}")

    return read


def _captions(texts: Sequence[str], count: int) -> bool:
    return len(texts) > count / 2 or any("\n" in text or not text for text in texts)


def _places(path: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Where the index of a shard may lie; images and sounds of one shard have an index each."""
    name = f"{path.name}.{hashlib.sha256(' '.join(suffixes).encode()).hexdigest()[:8]}.safetensors"
    yield path.parent / _FOLDER / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute():  # not so where nobody has a home, as in many containers
        yield cache / "resgen" / "shards" / hashlib.sha256(os.fsencode(path.parent.resolve())).hexdigest()[:32] / name


def _read_index(path: Path, suffixes: Sequence[str]) -> ShardIndex | None:
    """An index that was kept; None if there is none for the shard as it is. What it says is checked like the shard."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"shard '{path}' cannot be read: {error.strerror or error}") from error
    for place in _places(path, suffixes):
        try:
            with safe_open(place, framework="np") as file:
                meta = json.loads((file.metadata() or {}).get("resgen", ""))
                rows, labels = file.get_tensor("rows"), file.get_tensor("labels")
            same = (FORMAT, FORMAT_VERSION, status.st_size, status.st_mtime_ns)
            if (meta["format"], meta["format_version"], meta["size"], meta["mtime_ns"]) != same:
                continue
            classes, labelled_by = tuple(map(str, meta["classes"])), meta["labelled_by"]
            if not _fits(rows, labels, status.st_size, len(classes), labelled_by):
                continue
            sha256 = str(meta["sha256"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            continue  # none, or damaged: build it again
        return ShardIndex(
            path=path,
            sha256=sha256,
            size=status.st_size,
            rows=rows,
            labels=labels,
            classes=classes,
            labelled_by=labelled_by,
        )
    return None


def _fits(rows: np.ndarray, labels: np.ndarray, size: int, num_classes: int, labelled_by: object) -> bool:
    """Whether an index names nothing that is not there: it may have come with the data."""
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 6 or labels.dtype != np.int32:
        return False
    if labels.shape != (len(rows),) or labelled_by not in (None, *_KINDS, _MIXED):
        return False
    offsets, sizes = rows[:, ::2], rows[:, 1::2]
    lowest = -1 if labelled_by in (None, _MIXED) else 0
    return not rows.size or bool(
        rows.min() >= 0
        and sizes[:, 0].max() <= MAX_MEDIA_BYTES
        and (offsets <= size - sizes).all()
        and labels.min() >= lowest
        and labels.max() < max(num_classes, lowest + 1)
    )


def _write_index(index: ShardIndex, suffixes: Sequence[str], mtime_ns: int) -> None:
    meta = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "size": index.size,
        "mtime_ns": mtime_ns,
        "sha256": index.sha256,
        "labelled_by": index.labelled_by,
        "classes": list(index.classes),
    }
    content = save({"rows": index.rows, "labels": index.labels}, {"resgen": json.dumps(meta)})
    for place in _places(index.path, suffixes):
        with contextlib.suppress(WriteError):  # then the next place or, after the last, memory alone
            with atomic_path(place, sync=False) as temporary:
                temporary.write_bytes(content)
            return
