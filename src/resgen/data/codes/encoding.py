"""Writing code caches: by any number of processes, shard by shard; nothing half-written is ever used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from resgen.data.codes.cache import (
    FORMAT,
    META_NAME,
    REMEDY,
    CachePlan,
    CodeCache,
    Shard,
    describe,
    file_hash,
    open_codes,
    pack_shard,
    read_meta,
    read_shard,
)
from resgen.errors import DataError
from resgen.files import atomic_path, replace_folder, write_text, writing

_PLAN_NAME = "plan.json"
_HASH_SUFFIX = ".sha256"
_FILES = re.compile(rf"{re.escape(META_NAME)}|codes-[0-9]{{5}}\.safetensors")


class Encoding:
    """A cache in the making; finished shards outlast a process that is killed.

    Until all is there, it lies in a hidden folder beside its place: a plan (what is to be made from what), the shards
    and, beside each finished one, its SHA-256. A shard counts only if it has the hash recorded for it.

    One process calls `begin`, then any others `join`; each shard may be written by any of them, and one finishes.

    Args:
        target: where the finished cache will be.
        plan: what it holds.
    """

    def __init__(self, target: Path, plan: CachePlan) -> None:
        self.plan = plan
        self._target, self._folder = target, _unfinished(target)
        self._hashes: dict[str, str] = {}
        with contextlib.suppress(DataError):  # there is a description where a finished cache was damaged
            _, self._hashes = read_meta(self._folder / META_NAME)

    @classmethod
    def begin(cls, out_dir: str | Path, plan: CachePlan) -> Encoding | None:
        """Start writing a cache, or continue one; None if it exists and is complete.

        What is there already keeps its division into shards. What was begun from other things is deleted; a finished
        cache made from other things stays until this one is finished.

        Raises:
            DataError: the place holds other files.
            WriteError: it cannot be written.
        """
        target = Path(os.path.realpath(out_dir))
        _check_replaceable(target)
        folder = _unfinished(target)
        with writing(target):
            if target.exists():
                shutil.rmtree(target.with_name(f".{target.name}.old"), ignore_errors=True)
            if _same(target, plan) is not None:
                damaged = False
                try:
                    open_codes(target, verify=True)
                except DataError:
                    damaged = True
                shutil.rmtree(folder, ignore_errors=True)
                if not damaged:
                    return None
                os.rename(target, folder)
            if (begun := _same(folder, plan)) is None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_text(folder / _PLAN_NAME, describe(plan))
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()
        return cls(target, begun or plan)

    @classmethod
    def join(cls, out_dir: str | Path) -> Encoding | None:
        """The encoding that another process has begun, or None if it found the cache complete."""
        target = Path(os.path.realpath(out_dir))
        folder = _unfinished(target)
        if not folder.is_dir():
            return None
        planned = (folder / _PLAN_NAME).is_file()
        plan, _ = read_meta(folder / (_PLAN_NAME if planned else META_NAME))
        return cls(target, plan)

    def is_finished(self, shard: Shard) -> bool:
        """Whether a shard exists and is complete; reads all of it."""
        expected = self._recorded(shard)
        try:
            return expected is not None and file_hash(self._folder / shard.file) == expected
        except OSError:
            return False

    def write(self, shard: Shard, codes: Iterable[Tensor], columns: Mapping[str, Sequence[Any]]) -> None:
        """Make a shard; with its name and its hash it counts as finished.

        Args:
            shard: which one.
            codes: codes of each sample.
            columns: those of the plan, each with a number, a row or a text per sample.

        Raises:
            DataError: samples of a wrong number, length or value.
            WriteError: it cannot be written.
        """
        content = pack_shard(self.plan, shard, codes, columns, f"codes for '{self._target}': {shard.file}")
        with atomic_path(self._folder / shard.file) as temporary:
            temporary.write_bytes(content)
        # After the shard: one without its hash, or with that of another, is made again.
        write_text(self._folder / f"{shard.file}{_HASH_SUFFIX}", hashlib.sha256(content).hexdigest())

    def finish(self) -> None:
        """Give the cache its place, when all shards are finished.

        Raises:
            DataError: a shard is missing, or there is no sample in any.
            WriteError: the place cannot be written.
        """
        hashes, num_rows = {}, 0
        for shard in self.plan.shards:
            recorded = self._recorded(shard)
            if recorded is None or not (self._folder / shard.file).is_file():
                raise DataError(f"code cache '{self._target}' cannot be finished: {shard.file} is missing; {REMEDY}")
            hashes[shard.file] = recorded
            num_rows += len(read_shard(self._folder, self.plan, shard).arrays["lengths"])
        if not num_rows:
            raise DataError(f"none of {self.plan.num_samples} samples is short enough to be encoded")
        write_text(self._folder / META_NAME, describe(self.plan, hashes))
        with writing(self._target):
            for name in (_PLAN_NAME, *(f"{shard.file}{_HASH_SUFFIX}" for shard in self.plan.shards)):
                (self._folder / name).unlink(missing_ok=True)
            replace_folder(self._folder, self._target)

    def _recorded(self, shard: Shard) -> str | None:
        try:
            return (self._folder / f"{shard.file}{_HASH_SUFFIX}").read_text(encoding="ascii")
        except (OSError, ValueError):
            return self._hashes.get(shard.file)


def write_codes(
    out_dir: str | Path,
    plan: CachePlan,
    codes: Tensor | Sequence[Tensor],
    columns: Mapping[str, Sequence[Any]],
) -> CodeCache:
    """Write a cache in one go; one already made from the same things is kept.

    Args:
        out_dir: the folder to make.
        plan: what it holds.
        codes: codes of all samples, whole numbers [L, D], version after version.
        columns: those of the plan, each with a number, a row or a text per sample.

    Raises:
        DataError: samples of a wrong number, length or value, or a folder with other files.
        WriteError: the place cannot be written.
    """
    if len(codes) > plan.rows:
        raise DataError(f"{len(codes)} samples, but {plan.rows} are expected")
    encoding = Encoding.begin(out_dir, plan)
    if encoding is not None:
        for shard in plan.shards:
            rows = slice(shard.begin, shard.begin + shard.num_samples)
            encoding.write(shard, codes[rows], {name: values[rows] for name, values in columns.items()})
        encoding.finish()
    return open_codes(out_dir)


def _check_replaceable(target: Path) -> None:
    """Reject a place for a cache that holds anything but a cache.

    Raises:
        DataError: naming what is there.
    """
    with writing(target):
        if target.exists() and not target.is_dir():
            raise DataError(f"cannot write codes to '{target}': it is a file, not a folder")
        names = {entry.name for entry in target.iterdir()} if target.exists() else set()
        others = {name for name in names if not _FILES.fullmatch(name)}
        if names and (others or META_NAME not in names):
            raise DataError(f"cannot write codes to '{target}': it holds other files ('{min(others or names)}')")
        if META_NAME in names and f'"{FORMAT}"'.encode() not in (target / META_NAME).read_bytes():
            raise DataError(f"cannot write codes to '{target}': its {META_NAME} is not that of a code cache")


def _same(folder: Path, plan: CachePlan) -> CachePlan | None:
    """The plan of what is in a folder, if it differs from the given one in nothing but the division into shards."""
    for name in (META_NAME, _PLAN_NAME):
        with contextlib.suppress(DataError):
            there, _ = read_meta(folder / name)
            if vars(there) | {"shard_samples": 0} == vars(plan) | {"shard_samples": 0}:
                return there
    return None


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")
