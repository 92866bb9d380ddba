"""Encoded data sets: codes in shards and labels with a description, of which nothing half-written is ever used."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from resgen.data.code_shards import (
    LABELS_NAME,
    META_NAME,
    REMEDY,
    SHARD_SAMPLES,
    ArrayWriter,
    CodePlan,
    Shard,
    check_codes,
    check_labels,
    check_replaceable,
    describe,
    file_hash,
    map_array,
    read_description,
    write_rest,
    written,
)
from resgen.errors import DataError
from resgen.types import CodeSpec

_PLAN_NAME = "plan.json"
_HASH_SUFFIX = ".sha256"


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
            chosen = places == number
            shard = self.shards[number]
            codes[chosen] = shard[rows[chosen] - (ends[number] - len(shard))]
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
        wanted = {"spec": spec, "tokenizer_fingerprint": tokenizer_fingerprint, "data_fingerprint": data_fingerprint}
        for name, value in wanted.items():
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
    plan, hashes = read_description(path / META_NAME)
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
    check_replaceable(target)
    with _writing(target), _new_folder(target) as folder:
        labels = np.empty(plan.rows, np.int64)
        hashes = {}
        done = 0
        checked = _checked(batches, plan)
        rest: tuple[np.ndarray, np.ndarray] | None = None
        for shard in plan.shards:
            with written(folder / shard.file) as file:
                array = ArrayWriter(file, plan.code_type, plan.shape(shard))
                while array.rows < shard.num_samples and (batch := rest or next(checked, None)) is not None:
                    room = shard.num_samples - array.rows
                    block, classes = batch[0][:room], batch[1][:room]
                    rest = (batch[0][room:], batch[1][room:]) if len(batch[1]) > room else None
                    array.write(block)
                    labels[done : done + len(block)] = classes
                    done += len(block)
            hashes[shard.file] = array.sha256
        for _ in checked:  # a batch too many is an error
            pass
        if done != plan.rows:
            raise DataError(f"{done} rows of codes, but {plan.rows} are expected ({versions} x {num_samples})")
        if (labels.reshape(versions, num_samples) != labels[:num_samples]).any():
            raise DataError("versions of a sample differ in label; give version after version, not sample by sample")
        write_rest(folder, plan, labels, hashes)
    return open_codes(target)


class CodeEncoding:
    """A code cache in the making, shard by shard; finished shards outlast a process that is killed.

    Until all is there, it lies in a hidden folder beside its place: a plan (what is to be made from what), the shards
    and, beside each finished one, its SHA-256. A shard counts only if it has the hash recorded for it.

    One process calls `begin`, then any others `join`; each shard may be written by any of them, and one calls `finish`.

    Args:
        target: where the finished cache will be.
        plan: what it holds.
    """

    def __init__(self, target: Path, plan: CodePlan) -> None:
        self.plan = plan
        self._target, self._folder = target, _unfinished(target)
        self._hashes: dict[str, str] = {}
        with contextlib.suppress(DataError):  # there is a description where a finished cache was damaged
            _, self._hashes = read_description(self._folder / META_NAME)

    @classmethod
    def begin(cls, out_dir: str | Path, plan: CodePlan) -> CodeEncoding | None:
        """Start to make a cache, or go on with one; None if it is there, and whole.

        What is there already keeps its division into shards. What was begun from other things is deleted; a finished
        cache made from other things stays until `finish`.

        Raises:
            DataError: the place holds other files or cannot be written.
        """
        target = Path(os.path.realpath(out_dir))
        check_replaceable(target)
        folder = _unfinished(target)
        with _writing(target):
            if target.exists():
                shutil.rmtree(_aside(target), ignore_errors=True)
            if (there := _same(target, plan)) is not None:
                try:
                    open_codes(target, verify=True)
                except DataError:
                    if there.shard_samples is not None:  # format version 1 has nothing that could be kept
                        shutil.rmtree(folder, ignore_errors=True)
                        os.rename(target, folder)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                    return None
            if (begun := _same(folder, plan)) is None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                with written(folder / _PLAN_NAME) as file:
                    file.write(describe(plan))
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()
        return cls(target, begun or plan)

    @classmethod
    def join(cls, out_dir: str | Path) -> CodeEncoding | None:
        """What another process has begun: the encoding, or None if it found the cache whole."""
        target = Path(os.path.realpath(out_dir))
        folder = _unfinished(target)
        if not folder.is_dir():
            return None
        planned = (folder / _PLAN_NAME).is_file()
        plan, _ = read_description(folder / (_PLAN_NAME if planned else META_NAME), planned=planned)
        return cls(target, plan)

    def is_finished(self, shard: Shard) -> bool:
        """Whether a shard is there and whole; reads all of it."""
        expected = self._recorded(shard)
        try:
            return expected is not None and file_hash(self._folder / shard.file) == expected
        except OSError:
            return False

    @contextmanager
    def write(self, shard: Shard) -> Iterator[Callable[[Tensor], None]]:
        """Make a shard: the block is given what appends codes to it, and must append all of its samples.

        Raises:
            DataError: codes of a wrong number, shape or value, or a place that cannot be written.
        """
        with _writing(self._target):
            with written(self._folder / shard.file) as file:
                array = ArrayWriter(file, self.plan.code_type, self.plan.shape(shard))

                def append(codes: Tensor) -> None:
                    array.write(_checked_codes(codes, len(codes), self.plan, row=shard.begin + array.rows))

                yield append
                if array.rows != shard.num_samples:
                    raise DataError(
                        f"{array.rows} rows of codes for {shard.file}, but {shard.num_samples} are expected"
                    )
            # After the shard: one without its hash, or with that of another, is made again.
            with written(self._folder / f"{shard.file}{_HASH_SUFFIX}") as file:
                file.write(array.sha256.encode())

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
        hashes = {}
        for shard in self.plan.shards:
            recorded = self._recorded(shard)
            if recorded is None or not (self._folder / shard.file).is_file():
                raise DataError(f"code cache '{self._target}' cannot be finished: {shard.file} is missing; {REMEDY}")
            hashes[shard.file] = recorded
        with _writing(self._target):
            write_rest(self._folder, self.plan, np.tile(labels, self.plan.versions), hashes)
            for name in (_PLAN_NAME, *(f"{shard.file}{_HASH_SUFFIX}" for shard in self.plan.shards)):
                (self._folder / name).unlink(missing_ok=True)
            _take_place(self._folder, self._target)

    def _recorded(self, shard: Shard) -> str | None:
        try:
            return (self._folder / f"{shard.file}{_HASH_SUFFIX}").read_text(encoding="ascii")
        except (OSError, ValueError):
            return self._hashes.get(shard.file)


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _same(folder: Path, plan: CodePlan) -> CodePlan | None:
    """The plan of what is in a folder, if it differs from the given one in nothing but the division into shards."""
    for name in (META_NAME, _PLAN_NAME):
        with contextlib.suppress(DataError):
            found, _ = read_description(folder / name, planned=name == _PLAN_NAME)
            if replace(found, shard_samples=None) == replace(plan, shard_samples=None):
                return found
    return None


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


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """A failed system call as one line.

    Raises:
        DataError: naming the place and the reason.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write codes to '{target}': {error.strerror or error}") from error


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and is removed otherwise."""
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _take_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`; a folder already there steps aside first and is deleted last."""
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
