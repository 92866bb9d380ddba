"""Encoded data sets: codes in shards and labels with a description, of which nothing half-written is ever used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from resgen.config import config_from_dict
from resgen.data.codes.shard_files import (
    META_NAME,
    REMEDY,
    Encoding,
    HashedFile,
    Shard,
    as_damage,
    count,
    file_hash,
    listed_hashes,
    new_folder,
    read_meta,
    writing,
    written,
)
from resgen.data.codes.shards import (
    LABELS_NAME,
    SHARD_SAMPLES,
    SINGLE_NAME,
    ArrayWriter,
    CodePlan,
    check_codes,
    check_labels,
    map_array,
)
from resgen.errors import DataError
from resgen.types import CodeSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeCache:
    """An encoded data set, mapped into memory.

    Row `v * num_samples + i` is version `v` (for example: 0 as it is, 1 mirrored) of sample `i`.

    Attributes:
        path: its folder.
        spec: shape of the codes and size of the codebooks.
        shards: the codes of all rows in order, `[rows of the shard, L, D]` each, uint16 or int32.
        labels: int64 [rows].
        versions: how many encoded versions of every sample are stored.
        class_names: one per label; may be empty.
        tokenizer_fingerprint: of the tokenizer that made the codes.
        data_fingerprint: of the data that was encoded.
        hashes: recorded SHA-256 of every file, shards first and in their order.
    """

    path: Path
    spec: CodeSpec
    shards: tuple[np.ndarray, ...]
    labels: np.ndarray
    versions: int
    class_names: tuple[str, ...]
    tokenizer_fingerprint: str
    data_fingerprint: str
    hashes: Mapping[str, str]

    def __len__(self) -> int:
        """Stored rows, `versions * num_samples`."""
        return len(self.labels)

    @property
    def num_samples(self) -> int:
        """Samples of the data set, each counted once."""
        return len(self) // self.versions

    def batch(self, indices: Int[Tensor, " B"]) -> tuple[Int[Tensor, "B L D"], Int[Tensor, " B"]]:
        """Codes and labels (int64) of the given rows, in whatever shards they are.

        Raises:
            DataError: a stored code is not below the codebook's size.
            IndexError: there is no such row.
        """
        rows = indices.cpu().numpy()
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()}, but code cache '{self.path}' has {len(self)}")
        ends = np.cumsum([len(shard) for shard in self.shards])
        places = np.searchsorted(ends, rows, side="right")
        codes = np.empty((len(rows), self.spec.num_positions, self.spec.depth), np.int64)
        for number in np.unique(places):
            in_shard = places == number
            shard = self.shards[number]
            codes[in_shard] = shard[rows[in_shard] - (ends[number] - len(shard))]
        check_codes(codes, self.spec, f"code cache '{self.path}'")
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
        expected = {"spec": spec, "tokenizer_fingerprint": tokenizer_fingerprint, "data_fingerprint": data_fingerprint}
        for name, value in expected.items():
            if value is not None and value != getattr(self, name):
                raise DataError(
                    f"code cache '{self.path}' has {name} {getattr(self, name)}, but {value} is wanted; encode again"
                )

    def verify(self) -> None:
        """Read everything: compare all files with their recorded SHA-256 and all codes with the codebooks' size.

        Raises:
            DataError: naming the first file that differs.
        """
        where = f"code cache '{self.path}'"
        for file, expected in self.hashes.items():
            if file_hash(self.path / file) != expected:
                raise DataError(f"{where}: {file} is damaged (its SHA-256 differs); {REMEDY}")
        for shard in self.shards:
            check_codes(shard, self.spec, where)


def open_codes(path: str | Path, *, verify: bool = False) -> CodeCache:
    """Open a code cache; the codes stay on disk until they are used. The sizes of all files are checked.

    Args:
        path: its folder.
        verify: also read everything; see `CodeCache.verify`.

    Raises:
        DataError: missing, of a newer format, truncated, damaged, or at odds with its own description.
    """
    path = Path(path)
    plan, hashes = CodeEncoding.read(path / META_NAME)
    shards = tuple(map_array(path / shard.file, plan.code_type, plan.shape(shard)) for shard in plan.shards)
    labels = np.array(map_array(path / LABELS_NAME, np.dtype("<i8"), (plan.rows,)))
    check_labels(labels, len(plan.class_names), f"code cache '{path}'")
    cache = CodeCache(
        path=path,
        spec=plan.spec,
        shards=shards,
        labels=labels,
        versions=plan.versions,
        class_names=plan.class_names,
        tokenizer_fingerprint=plan.tokenizer_fingerprint,
        data_fingerprint=plan.data_fingerprint,
        hashes=hashes,
    )
    if verify:
        cache.verify()
    return cache


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
    shard_samples: int = SHARD_SAMPLES,
) -> CodeCache:
    """Write a code cache in one go, replacing one that is already there; nothing is left behind on failure.

    `CodeEncoding` is for work that is long enough to be interrupted or shared.

    Args:
        out_dir: the folder to make.
        batches: codes and labels of all rows in order: all samples of version 0, then all of version 1, and so on.
        spec: what the codes look like.
        num_samples: samples, each counted once; `versions * num_samples` rows are expected.
        class_names: one per label, or empty.
        tokenizer_fingerprint: stored for `CodeCache.require`.
        data_fingerprint: stored for `CodeCache.require`.
        versions: encoded versions per sample.
        shard_samples: the most samples of a shard.

    Raises:
        ConfigError: num_samples, versions or shard_samples below 1, or too many shards.
        DataError: rows of a wrong number, shape or value; a folder with other files; a place that cannot be written.
    """
    plan = CodePlan(
        spec=spec,
        num_samples=num_samples,
        versions=versions,
        class_names=tuple(class_names),
        tokenizer_fingerprint=tokenizer_fingerprint,
        data_fingerprint=data_fingerprint,
        shard_samples=shard_samples,
    )
    target = Path(os.path.realpath(out_dir))
    CodeEncoding.check_replaceable(target)
    with writing(target), new_folder(target) as folder:
        labels = np.empty(plan.rows, np.int64)
        hashes = {}
        count = 0
        checked = _checked(batches, plan)
        rest: tuple[np.ndarray, np.ndarray] | None = None
        for shard in plan.shards:
            with written(folder / shard.file) as plain:
                file = HashedFile(plain)
                array = ArrayWriter(file, plan.code_type, plan.shape(shard))
                while array.rows < shard.num_samples and (batch := rest or next(checked, None)) is not None:
                    room = shard.num_samples - array.rows
                    block, classes = batch[0][:room], batch[1][:room]
                    rest = (batch[0][room:], batch[1][room:]) if len(batch[1]) > room else None
                    array.write(block)
                    labels[count : count + len(block)] = classes
                    count += len(block)
            hashes[shard.file] = file.sha256
        for _ in checked:  # a batch too many is an error
            pass
        if count != plan.rows:
            raise DataError(f"{count} rows of codes, but {plan.rows} are expected ({versions} x {num_samples})")
        if (labels.reshape(versions, num_samples) != labels[:num_samples]).any():
            raise DataError("versions of a sample differ in label; give version after version, not sample by sample")
        _write_rest(folder, plan, labels, hashes)
    return open_codes(target)


class CodeEncoding(Encoding[CodePlan]):
    """A code cache in the making; see `Encoding`."""

    format = "resgen-codes"
    version = 2
    what = "code cache"
    files = re.compile(rf"{re.escape(META_NAME)}|{re.escape(LABELS_NAME)}|codes(-[0-9]{{5}})?\.npy")

    @classmethod
    def read(cls, path: Path, *, planned: bool = False) -> tuple[CodePlan, dict[str, str]]:
        meta = read_meta(path, cls)
        with as_damage(path, cls.what):
            old = meta["format_version"] == 1
            plan = CodePlan(
                spec=config_from_dict(CodeSpec, meta["spec"], where="spec."),
                num_samples=count(meta["num_samples"]),
                versions=count(meta["versions"]),
                class_names=tuple(str(name) for name in meta["class_names"]),
                tokenizer_fingerprint=str(meta["tokenizer_fingerprint"]),
                data_fingerprint=str(meta["data_fingerprint"]),
                shard_samples=None if old else count(meta["shard_samples"]),
            )
            if planned:
                return plan, {}
            if old:
                return plan, {name: str(meta["sha256"][name]) for name in (SINGLE_NAME, LABELS_NAME)}
            return plan, listed_hashes(meta, plan) | {LABELS_NAME: str(meta["labels"]["sha256"])}

    @classmethod
    def check(cls, target: Path) -> None:
        open_codes(target, verify=True)

    @contextmanager
    def write(self, shard: Shard) -> Iterator[Callable[[Tensor], None]]:
        """Make a shard: the block is given what appends codes to it, and must append all of its samples.

        Raises:
            DataError: codes of a wrong number, shape or value, or a place that cannot be written.
        """
        with self._shard_file(shard) as file:
            array = ArrayWriter(file, self.plan.code_type, self.plan.shape(shard))

            def append(codes: Tensor) -> None:
                array.write(_checked_codes(codes, len(codes), self.plan, row=shard.begin + array.rows))

            yield append
            if array.rows != shard.num_samples:
                raise DataError(f"{array.rows} rows of codes for {shard.file}, but {shard.num_samples} are expected")

    def finish(self, labels: np.ndarray) -> None:
        """Give the cache its place, when all shards are finished.

        Args:
            labels: int64 [num_samples], the same for all versions.

        Raises:
            DataError: a shard is missing, labels do not fit, or a place that cannot be written.
        """
        if labels.shape != (self.plan.num_samples,):
            raise DataError(f"labels of shape {labels.shape} for {self.plan.num_samples} samples")
        check_labels(labels, len(self.plan.class_names), f"what is encoded for '{self._target}'")
        hashes = self._recorded_hashes()
        with writing(self._target):
            _write_rest(self._folder, self.plan, np.tile(labels, self.plan.versions), hashes)
            self._take_place()


def _write_rest(folder: Path, plan: CodePlan, labels: np.ndarray, hashes: Mapping[str, str]) -> None:
    """Write the labels of all rows and, last, the description of a folder in which all shards are."""
    with written(folder / LABELS_NAME) as plain:
        file = HashedFile(plain)
        ArrayWriter(file, np.dtype("<i8"), (plan.rows,)).write(labels)
    about = {"file": LABELS_NAME, "sha256": file.sha256}
    with written(folder / META_NAME) as plain:
        plain.write(CodeEncoding.describe(plan, hashes, labels=about))


def _checked(batches: Iterable[tuple[Tensor, Tensor]], plan: CodePlan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    row = 0
    for codes, labels in batches:
        if labels.ndim != 1 or labels.is_floating_point():
            raise DataError(f"labels must be whole numbers, one per row, not {labels.dtype} {tuple(labels.shape)}")
        block, classes = _checked_codes(codes, len(labels), plan, row=row), labels.cpu().numpy()
        check_labels(classes, len(plan.class_names), f"batch from row {row} on")
        row += len(block)
        if row > plan.rows:
            raise DataError(f"more than the {plan.rows} expected rows of codes ({plan.versions} x {plan.num_samples})")
        yield block, classes


def _checked_codes(codes: Tensor, count: int, plan: CodePlan, *, row: int) -> np.ndarray:
    shape = (count, plan.spec.num_positions, plan.spec.depth)
    if tuple(codes.shape) != shape:
        raise DataError(f"codes of shape {tuple(codes.shape)} from row {row} on, but {shape} is expected")
    if codes.is_floating_point():
        raise DataError(f"codes must be whole numbers, not {codes.dtype} (row {row})")
    block = codes.cpu().numpy()
    check_codes(block, plan.spec, f"batch from row {row} on")
    return block
