"""The files of a code cache: its description, the shards that hold the codes, and how each is written and checked.

```
meta.json         {"format": "resgen-codes", "format_version": 2, "spec", "num_samples", "versions", "class_names",
                   "tokenizer_fingerprint", "data_fingerprint", "shard_samples",
                   "shards": [{"file": "codes-00000.npy", "num_samples", "sha256"}, ...],
                   "labels": {"file": "labels.npy", "sha256"}}
codes-00000.npy   [at most shard_samples, L, D], uint16 or int32; no shard holds samples of two versions
labels.npy        int64 [versions * num_samples]
```

Format version 1 has all codes in one file `codes.npy` and its hashes under "sha256"; it is read, but no longer written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from resgen.config import config_from_dict, config_to_dict
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

FORMAT = "resgen-codes"
FORMAT_VERSION = 2
META_NAME, LABELS_NAME = "meta.json", "labels.npy"
SINGLE_NAME = "codes.npy"
"""All codes, in format version 1."""

SHARD_SAMPLES = 1 << 18
"""Samples per shard, if nothing else is said."""
MAX_SHARDS = 512
"""Every shard is a file that stays open while it is mapped; systems allow a process 1,024 open files or more."""

REMEDY = "encode again (only what is missing or damaged is made)"

_FILES = re.compile(rf"{re.escape(META_NAME)}|{re.escape(LABELS_NAME)}|codes(-[0-9]{{5}})?\.npy")


class Shard(NamedTuple):
    """One file of codes: rows `begin` to `begin + num_samples` of the cache."""

    file: str
    begin: int
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class CodePlan:
    """What a code cache holds, what it was made from and how it is divided.

    Attributes:
        spec: shape of the codes and size of the codebooks.
        num_samples: samples, each counted once.
        versions: encoded versions per sample.
        class_names: one per label; may be empty.
        tokenizer_fingerprint: of the tokenizer that makes the codes.
        data_fingerprint: of the data that is encoded.
        shard_samples: the most samples of a shard; None is the single file of format version 1.

    Raises:
        ConfigError: a number below 1, or more than `MAX_SHARDS` shards.
    """

    spec: CodeSpec
    num_samples: int
    versions: int = 1
    class_names: tuple[str, ...] = ()
    tokenizer_fingerprint: str
    data_fingerprint: str
    shard_samples: int | None = SHARD_SAMPLES

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.versions < 1:
            raise ConfigError(f"num_samples={self.num_samples} and versions={self.versions} must be at least 1")
        if self.shard_samples is None:
            return
        if self.shard_samples < 1:
            raise ConfigError(f"shard_samples={self.shard_samples} must be at least 1")
        if self.versions * -(-self.num_samples // self.shard_samples) > MAX_SHARDS:
            least = -(-self.num_samples // max(MAX_SHARDS // self.versions, 1))
            raise ConfigError(
                f"shard_samples={self.shard_samples} makes more than {MAX_SHARDS} shards of {self.versions} x "
                f"{self.num_samples} samples; take at least {least}"
            )

    @property
    def rows(self) -> int:
        """`versions * num_samples`."""
        return self.versions * self.num_samples

    @property
    def code_type(self) -> np.dtype:
        """Type of the codes on disk."""
        return np.dtype("<u2" if self.spec.codebook_size <= 1 << 16 else "<i4")

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in the order of the rows."""
        if self.shard_samples is None:
            return (Shard(SINGLE_NAME, 0, self.rows),)
        begins = [
            version * self.num_samples + first
            for version in range(self.versions)
            for first in range(0, self.num_samples, self.shard_samples)
        ]
        sizes = np.diff([*begins, self.rows]).tolist()
        return tuple(
            Shard(f"codes-{number:05d}.npy", begin, size)
            for number, (begin, size) in enumerate(zip(begins, sizes, strict=True))
        )

    def shape(self, shard: Shard) -> tuple[int, int, int]:
        """Shape of a shard's array."""
        return shard.num_samples, self.spec.num_positions, self.spec.depth


def describe(plan: CodePlan, hashes: Mapping[str, str] | None = None) -> bytes:
    """The content of a cache's `meta.json`; without the hashes of its files, of a plan that is not carried out yet."""
    meta: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **config_to_dict(plan)}
    if hashes is not None:
        meta["shards"] = [
            {"file": shard.file, "num_samples": shard.num_samples, "sha256": hashes[shard.file]}
            for shard in plan.shards
        ]
        meta["labels"] = {"file": LABELS_NAME, "sha256": hashes[LABELS_NAME]}
    return json.dumps(meta, indent=1, ensure_ascii=False).encode()


def read_description(path: Path, *, planned: bool = False) -> tuple[CodePlan, dict[str, str]]:
    """What `describe` wrote: the plan, and the SHA-256 of every file (of none if it is only `planned`).

    Raises:
        DataError: missing, of another or a newer format, or damaged.
    """
    folder = path.parent
    meta = _read_json(path)
    version = meta.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise DataError(
            f"code cache '{folder}' has format version {version}; this version reads 1 to {FORMAT_VERSION}: "
            "upgrade resgen, or encode again"
        )
    try:
        plan = CodePlan(
            spec=config_from_dict(CodeSpec, meta["spec"], where="spec."),
            num_samples=_count(meta["num_samples"]),
            versions=_count(meta["versions"]),
            class_names=tuple(str(name) for name in meta["class_names"]),
            tokenizer_fingerprint=str(meta["tokenizer_fingerprint"]),
            data_fingerprint=str(meta["data_fingerprint"]),
            shard_samples=None if version == 1 else _count(meta["shard_samples"]),
        )
        if planned:
            return plan, {}
        if version == 1:
            return plan, {name: str(meta["sha256"][name]) for name in (SINGLE_NAME, LABELS_NAME)}
        listed = [(str(entry["file"]), entry["num_samples"]) for entry in meta["shards"]]
        if listed != [(shard.file, shard.num_samples) for shard in plan.shards]:
            raise ValueError("its shards are not those of its numbers")
        hashes = {file: str(entry["sha256"]) for (file, _), entry in zip(listed, meta["shards"], strict=True)}
        return plan, hashes | {LABELS_NAME: str(meta["labels"]["sha256"])}
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"code cache '{folder}': {path.name} is damaged ({reason}); encode again") from error


def map_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Map an array of the cache into memory; its file must have exactly the size that the array needs.

    Raises:
        DataError: missing, truncated or of another type, shape or size.
    """
    where = f"code cache '{path.parent}'"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{where} has no {path.name}; {REMEDY}") from error
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{where}: {path.name} is truncated or damaged; {REMEDY}") from error
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
        raise DataError(f"{where}: {path.name} holds {found}, but {dtype} {shape} is described; {REMEDY}")
    if size != array.offset + array.nbytes:
        raise DataError(f"{where}: {path.name} has {size} bytes, not {array.offset + array.nbytes}; {REMEDY}")
    return array


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_codes(codes: np.ndarray, spec: CodeSpec, where: str) -> None:
    """Refuse codes that are in no codebook.

    Raises:
        DataError: naming the range of the codes.
    """
    if codes.size and (codes.min() < 0 or codes.max() >= spec.codebook_size):
        raise DataError(f"{where} has codes {codes.min()}..{codes.max()}, but the codebooks hold {spec.codebook_size}")


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels without a class; with 0 classes any will do that is not negative.

    Raises:
        DataError: naming the range of the labels.
    """
    if labels.size and (labels.min() < 0 or (num_classes and labels.max() >= num_classes)):
        raise DataError(f"{where} has labels {labels.min()}..{labels.max()}, but {num_classes} classes")


def check_replaceable(target: Path) -> None:
    """Refuse a place for a cache that holds anything but a cache.

    Raises:
        DataError: naming what is there.
    """
    try:
        if target.exists() and not target.is_dir():
            raise DataError(f"cannot write codes to '{target}': it is a file, not a folder")
        names = {entry.name for entry in target.iterdir()} if target.exists() else set()
        others = {name for name in names if not _FILES.fullmatch(name)}
        if names and (others or META_NAME not in names):
            raise DataError(f"cannot write codes to '{target}': it holds other files ('{min(others or names)}')")
        if names and f'"{FORMAT}"'.encode() not in (target / META_NAME).read_bytes():
            raise DataError(f"cannot write codes to '{target}': its {META_NAME} is not that of a code cache")
    except OSError as error:
        raise DataError(f"cannot write codes to '{target}': {error.strerror}") from error


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that gets its name only when all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class ArrayWriter:
    """Appends to a `.npy` file; plain writes, because a full disk kills a process that writes to mapped memory."""

    def __init__(self, file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        self._file, self._dtype, self._hash = file, dtype, hashlib.sha256()
        self.rows = 0
        self._append(header.getvalue())

    @property
    def sha256(self) -> str:
        """Of what is written so far."""
        return self._hash.hexdigest()

    def write(self, block: np.ndarray) -> None:
        """Append rows."""
        self.rows += len(block)
        self._append(np.ascontiguousarray(block, self._dtype).tobytes())

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)


def write_rest(folder: Path, plan: CodePlan, labels: np.ndarray, hashes: Mapping[str, str]) -> None:
    """Write the labels of all rows and, last, the description of a folder in which all shards are."""
    with written(folder / LABELS_NAME) as file:
        array = ArrayWriter(file, np.dtype("<i8"), (plan.rows,))
        array.write(labels)
    with written(folder / META_NAME) as file:
        file.write(describe(plan, {**hashes, LABELS_NAME: array.sha256}))


def _read_json(path: Path) -> dict[str, Any]:
    folder = path.parent
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"'{folder}' is not a code cache: it has no {path.name}") from error
    except OSError as error:
        raise DataError(f"code cache '{folder}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"code cache '{folder}': {path.name} is damaged (not JSON); encode again") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"'{folder}' is not a code cache: {path.name} does not say format '{FORMAT}'")
    return meta


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a positive number")
    return value
