"""Encoded data sets: codes and labels as two NumPy files with a description, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from resgen.config import config_from_dict, config_to_dict
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

FORMAT = "resgen-codes"
FORMAT_VERSION = 1
_META, _CODES, _LABELS = "meta.json", "codes.npy", "labels.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeCache:
    """An encoded data set, mapped into memory.

    Row `v * num_samples + i` is version `v` (for example: 0 as it is, 1 mirrored) of sample `i`.

    Attributes:
        path: its folder.
        spec: shape of the codes and size of the codebooks.
        codes: [rows, L, D], uint16 or int32.
        labels: int64 [rows].
        versions: how many encoded versions of every sample are stored.
        class_names: one per label; may be empty.
        tokenizer_fingerprint: of the tokenizer that made the codes.
        data_fingerprint: of the data that was encoded.
    """

    path: Path
    spec: CodeSpec
    codes: np.ndarray
    labels: np.ndarray
    versions: int
    class_names: tuple[str, ...]
    tokenizer_fingerprint: str
    data_fingerprint: str

    def __len__(self) -> int:
        """Stored rows, `versions * num_samples`."""
        return len(self.labels)

    @property
    def num_samples(self) -> int:
        """Samples of the data set, each counted once."""
        return len(self) // self.versions

    def batch(self, indices: Int[Tensor, " B"]) -> tuple[Int[Tensor, "B L D"], Int[Tensor, " B"]]:
        """Codes and labels (int64) of the given rows.

        Raises:
            DataError: a stored code is not below the codebook's size.
        """
        rows = indices.cpu().numpy()
        codes = self.codes[rows].astype(np.int64)
        _check_range(codes, self.spec.codebook_size, f"code cache '{self.path}'")
        return torch.from_numpy(codes), torch.from_numpy(self.labels[rows])

    def require(
        self,
        *,
        spec: CodeSpec | None = None,
        tokenizer_fingerprint: str | None = None,
        data_fingerprint: str | None = None,
    ) -> None:
        """Check that the cache was made with what is given.

        Raises:
            DataError: naming the first difference.
        """
        wanted = {"spec": spec, "tokenizer_fingerprint": tokenizer_fingerprint, "data_fingerprint": data_fingerprint}
        for name, value in wanted.items():
            if value is not None and value != getattr(self, name):
                raise DataError(
                    f"code cache '{self.path}' has {name} {getattr(self, name)}, but {value} is wanted; encode again"
                )


def write_codes(
    out_dir: str | Path,
    batches: Iterable[tuple[Int[Tensor, "_ L D"], Int[Tensor, " _"]]],
    *,
    spec: CodeSpec,
    num_samples: int,
    class_names: Sequence[str],
    tokenizer_fingerprint: str,
    data_fingerprint: str,
    versions: int = 1,
) -> CodeCache:
    """Write a code cache, replacing one that is already there; nothing is left behind on failure.

    Args:
        out_dir: the folder to make.
        batches: codes and labels of all rows in order: all samples of version 0, then all of version 1, and so on.
        spec: what the codes look like.
        num_samples: samples, each counted once; `versions * num_samples` rows are expected.
        class_names: one per label, or empty.
        tokenizer_fingerprint: stored for `CodeCache.require`.
        data_fingerprint: stored for `CodeCache.require`.
        versions: encoded versions per sample.

    Raises:
        ConfigError: num_samples or versions below 1.
        DataError: rows of a wrong number, shape or value; a folder with other files; a place that cannot be written.
    """
    if num_samples < 1 or versions < 1:
        raise ConfigError(f"num_samples={num_samples} and versions={versions} must be at least 1")
    target = Path(os.path.realpath(out_dir))
    _check_replaceable(target)
    rows = num_samples * versions
    meta: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": config_to_dict(spec),
        "num_samples": num_samples,
        "versions": versions,
        "class_names": list(class_names),
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "data_fingerprint": data_fingerprint,
    }
    with _new_folder(target) as folder:
        labels = np.empty(rows, np.int64)
        done = 0
        with _written(folder / _CODES) as file:
            array = _ArrayWriter(file, _code_type(spec), (rows, spec.num_positions, spec.depth))
            for codes, classes in batches:
                block, block_labels = _checked(codes, classes, spec, len(class_names), row=done)
                if done + len(block) > rows:
                    raise DataError(f"more than the {rows} expected rows of codes ({num_samples} x {versions})")
                array.write(block)
                labels[done : done + len(block)] = block_labels
                done += len(block)
        if done != rows:
            raise DataError(f"{done} rows of codes, but {rows} are expected ({num_samples} x {versions})")
        if (labels.reshape(versions, num_samples) != labels[:num_samples]).any():
            raise DataError("versions of a sample differ in label; give version after version, not sample by sample")
        with _written(folder / _LABELS) as file:
            label_array = _ArrayWriter(file, np.dtype(np.int64), (rows,))
            label_array.write(labels)
        meta["sha256"] = {_CODES: array.sha256, _LABELS: label_array.sha256}
        with _written(folder / _META) as file:
            file.write(json.dumps(meta, indent=1, ensure_ascii=False).encode())
    return open_codes(target)


def open_codes(path: str | Path, *, verify: bool = False) -> CodeCache:
    """Open a code cache; the codes stay on disk until they are used.

    Args:
        path: its folder.
        verify: also read everything: check the SHA-256 of both files and the range of all codes.

    Raises:
        DataError: missing, of a newer format, truncated, damaged, or at odds with its own description.
    """
    path = Path(path)
    where = f"code cache '{path}'"
    meta = _read_meta(path)
    try:
        spec = config_from_dict(CodeSpec, meta["spec"], where="spec.")
        num_samples, versions = _count(meta["num_samples"]), _count(meta["versions"])
        names = tuple(str(name) for name in meta["class_names"])
        tokenizer, data = str(meta["tokenizer_fingerprint"]), str(meta["data_fingerprint"])
        hashes = {name: str(meta["sha256"][name]) for name in (_CODES, _LABELS)}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {_META} is damaged ({type(error).__name__}: {error})") from error
    rows = num_samples * versions
    codes = _open_array(path / _CODES, _code_type(spec), (rows, spec.num_positions, spec.depth))
    labels = np.array(_open_array(path / _LABELS, np.dtype(np.int64), (rows,)))
    if labels.min() < 0 or (names and labels.max() >= len(names)):
        raise DataError(f"{where} has labels {labels.min()}..{labels.max()}, but {len(names)} classes")
    if verify:
        for name, expected in hashes.items():
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise DataError(f"{where}: {name} is damaged (its SHA-256 differs); encode again")
        _check_range(codes, spec.codebook_size, where)
    return CodeCache(
        path=path,
        spec=spec,
        codes=codes,
        labels=labels,
        versions=versions,
        class_names=names,
        tokenizer_fingerprint=tokenizer,
        data_fingerprint=data,
    )


class _ArrayWriter:
    """Appends to a `.npy` file; plain writes, because a full disk kills a process that writes to mapped memory."""

    def __init__(self, file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        self._file, self._dtype, self._hash = file, dtype, hashlib.sha256()
        self._append(header.getvalue())

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, block: np.ndarray) -> None:
        self._append(np.ascontiguousarray(block, self._dtype).tobytes())

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)


def _code_type(spec: CodeSpec) -> np.dtype:
    return np.dtype("<u2" if spec.codebook_size <= 1 << 16 else "<i4")


def _checked(
    codes: Tensor, labels: Tensor, spec: CodeSpec, num_classes: int, *, row: int
) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(labels), spec.num_positions, spec.depth)
    if tuple(codes.shape) != shape or labels.ndim != 1:
        raise DataError(f"codes of shape {tuple(codes.shape)} from row {row} on, but {shape} is expected")
    if codes.is_floating_point() or labels.is_floating_point():
        raise DataError(f"codes and labels must be whole numbers, not {codes.dtype} and {labels.dtype} (row {row})")
    block, classes = codes.cpu().numpy(), labels.cpu().numpy()
    _check_range(block, spec.codebook_size, f"batch from row {row} on")
    if classes.size and (classes.min() < 0 or (num_classes and classes.max() >= num_classes)):
        raise DataError(f"labels {classes.min()}..{classes.max()} from row {row} on, but {num_classes} classes")
    return block, classes


def _check_range(codes: np.ndarray, codebook_size: int, where: str) -> None:
    if codes.size and (codes.min() < 0 or codes.max() >= codebook_size):
        raise DataError(f"{where} has codes {codes.min()}..{codes.max()}, but the codebooks hold {codebook_size}")


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a positive number")
    return value


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"'{path}' is not a code cache: it has no {_META}") from error
    except OSError as error:
        raise DataError(f"code cache '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"code cache '{path}': {_META} is damaged (not JSON)") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"'{path}' is not a code cache: {_META} does not say format '{FORMAT}'")
    if meta.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"code cache '{path}' has format version {meta.get('format_version')}; this version reads {FORMAT_VERSION}"
        )
    return meta


def _open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"code cache '{path.parent}' has no {path.name}; encode again") from error
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"code cache '{path.parent}': {path.name} is truncated or damaged; encode again") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
        raise DataError(f"code cache '{path.parent}': {path.name} holds {found}, but {dtype} {shape} is described")
    return array


def _check_replaceable(target: Path) -> None:
    try:
        if target.exists() and not target.is_dir():
            raise DataError(f"cannot write codes to '{target}': it is a file, not a folder")
        names = {entry.name for entry in target.iterdir()} if target.exists() else set()
    except OSError as error:
        raise DataError(f"cannot write codes to '{target}': {error.strerror}") from error
    if not names:
        return
    others = names - {_META, _CODES, _LABELS}
    if _META not in names or others:
        raise DataError(f"cannot write codes to '{target}': it holds other files ('{min(others or names)}')")
    try:
        content = (target / _META).read_bytes()
    except OSError as error:
        raise DataError(f"cannot write codes to '{target}': {error.strerror}") from error
    if f'"{FORMAT}"'.encode() not in content:
        raise DataError(f"cannot write codes to '{target}': its {_META} is not that of a code cache")


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing; on leaving it is on the disk."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and is removed otherwise."""
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp")
    old = target.with_name(f"{temporary.name}.old")
    try:
        try:
            temporary.mkdir(parents=True)
            yield temporary
            try:
                if target.exists():
                    os.rename(target, old)
                os.rename(temporary, target)
            except BaseException:
                if old.exists() and not target.exists():
                    os.rename(old, target)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write codes to '{target}': {error.strerror or error}") from error
