"""Caches in shards: written by any number of processes, shard by shard, and nothing half-written is ever used.

`CodeEncoding` and `SpeechEncoding` say what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from resgen.config import config_to_dict
from resgen.errors import ConfigError, DataError

META_NAME = "meta.json"
MAX_SHARDS = 512
"""Every shard is a file that stays open while it is mapped; systems allow a process 1,024 open files or more."""
REMEDY = "encode again (only what is missing or damaged is made)"

_PLAN_NAME = "plan.json"
_HASH_SUFFIX = ".sha256"


class Shard(NamedTuple):
    """One file: rows `begin` to `begin + num_samples` of the cache."""

    file: str
    begin: int
    num_samples: int


class Plan(Protocol):
    """What a cache holds, what it was made from and how it is divided: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def shard_samples(self) -> int | None:
        """The most samples of a shard; None is a cache of an older format, of one file."""
        ...

    @property
    def rows(self) -> int:
        """Of all shards."""
        ...

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in the order of the rows."""
        ...


P = TypeVar("P", bound=Plan)
E = TypeVar("E", bound="Encoding[Any]")


class Encoding(ABC, Generic[P]):
    """A cache in the making, shard by shard; finished shards outlast a process that is killed.

    Until all is there, it lies in a hidden folder beside its place: a plan (what is to be made from what), the shards
    and, beside each finished one, its SHA-256. A shard counts only if it has the hash recorded for it.

    One process calls `begin`, then any others `join`; each shard may be written by any of them, and one finishes.

    Args:
        target: where the finished cache will be.
        plan: what it holds.
    """

    format: ClassVar[str]
    version: ClassVar[int]
    what: ClassVar[str]
    """In errors: a code cache."""
    files: ClassVar[re.Pattern[str]]
    """Names of all files that a cache may hold."""

    def __init__(self, target: Path, plan: P) -> None:
        self.plan = plan
        self._target, self._folder = target, _unfinished(target)
        self._hashes: dict[str, str] = {}
        with contextlib.suppress(DataError):  # there is a description where a finished cache was damaged
            _, self._hashes = self.read(self._folder / META_NAME)

    @classmethod
    @abstractmethod
    def read(cls, path: Path, *, planned: bool = False) -> tuple[P, dict[str, str]]:
        """What `describe` wrote: the plan, and the SHA-256 of every file (of none if it is only `planned`).

        Raises:
            DataError: missing, of another or a newer format, or damaged.
        """

    @classmethod
    @abstractmethod
    def check(cls, target: Path) -> None:
        """Read all of a finished cache.

        Raises:
            DataError: it is damaged.
        """

    @classmethod
    def describe(cls, plan: P, hashes: Mapping[str, str] | None = None, **more: Any) -> bytes:
        """The content of `meta.json`; without the hashes of its files, of a plan that is not carried out yet."""
        meta: dict[str, Any] = {"format": cls.format, "format_version": cls.version, **config_to_dict(plan)}
        if hashes is not None:
            meta["shards"] = [
                {"file": shard.file, "num_samples": shard.num_samples, "sha256": hashes[shard.file]}
                for shard in plan.shards
            ]
        return json.dumps(meta | more, indent=1, ensure_ascii=False).encode()

    @classmethod
    def begin(cls: type[E], out_dir: str | Path, plan: Any) -> E | None:
        """Start to make a cache, or go on with one; None if it is there, and whole.

        What is there already keeps its division into shards. What was begun from other things is deleted; a finished
        cache made from other things stays until this one is finished.

        Raises:
            DataError: the place holds other files or cannot be written.
        """
        target = Path(os.path.realpath(out_dir))
        cls.check_replaceable(target)
        folder = _unfinished(target)
        with writing(target):
            if target.exists():
                shutil.rmtree(_aside(target), ignore_errors=True)
            if (there := cls._same(target, plan)) is not None:
                try:
                    cls.check(target)
                except DataError:
                    if there.shard_samples is not None:  # an older format has nothing that could be kept
                        shutil.rmtree(folder, ignore_errors=True)
                        os.rename(target, folder)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                    return None
            if (begun := cls._same(folder, plan)) is None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                with written(folder / _PLAN_NAME) as file:
                    file.write(cls.describe(plan))
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()
        return cls(target, begun or plan)

    @classmethod
    def join(cls: type[E], out_dir: str | Path) -> E | None:
        """What another process has begun: the encoding, or None if it found the cache whole."""
        target = Path(os.path.realpath(out_dir))
        folder = _unfinished(target)
        if not folder.is_dir():
            return None
        planned = (folder / _PLAN_NAME).is_file()
        plan, _ = cls.read(folder / (_PLAN_NAME if planned else META_NAME), planned=planned)
        return cls(target, plan)

    @classmethod
    def check_replaceable(cls, target: Path) -> None:
        """Refuse a place for a cache that holds anything but a cache.

        Raises:
            DataError: naming what is there.
        """
        try:
            if target.exists() and not target.is_dir():
                raise DataError(f"cannot write codes to '{target}': it is a file, not a folder")
            names = {entry.name for entry in target.iterdir()} if target.exists() else set()
            others = {name for name in names if not cls.files.fullmatch(name)}
            if names and (others or not cls.is_marked(names)):
                raise DataError(f"cannot write codes to '{target}': it holds other files ('{min(others or names)}')")
            if META_NAME in names and f'"{cls.format}"'.encode() not in (target / META_NAME).read_bytes():
                raise DataError(f"cannot write codes to '{target}': its {META_NAME} is not that of a {cls.what}")
        except OSError as error:
            raise DataError(f"cannot write codes to '{target}': {error.strerror}") from error

    @classmethod
    def is_marked(cls, names: set[str]) -> bool:
        """Whether a folder with these files is a cache."""
        return META_NAME in names

    @classmethod
    def is_there(cls, folder: Path) -> bool:
        """Whether a folder describes itself as such a cache."""
        try:
            meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(meta, dict) and meta.get("format") == cls.format

    def is_finished(self, shard: Shard) -> bool:
        """Whether a shard is there and whole; reads all of it."""
        expected = self._recorded(shard)
        try:
            return expected is not None and file_hash(self._folder / shard.file) == expected
        except OSError:
            return False

    @contextmanager
    def _shard_file(self, shard: Shard) -> Iterator[HashedFile]:
        """The file of a shard for writing; with its name and its hash it counts as finished.

        Raises:
            DataError: it cannot be written.
        """
        with writing(self._target):
            with written(self._folder / shard.file) as file:
                hashed = HashedFile(file)
                yield hashed
            # After the shard: one without its hash, or with that of another, is made again.
            with written(self._folder / f"{shard.file}{_HASH_SUFFIX}") as file:
                file.write(hashed.sha256.encode())

    def _recorded_hashes(self) -> dict[str, str]:
        """Of all shards.

        Raises:
            DataError: one is missing.
        """
        hashes = {}
        for shard in self.plan.shards:
            recorded = self._recorded(shard)
            if recorded is None or not (self._folder / shard.file).is_file():
                raise DataError(f"{self.what} '{self._target}' cannot be finished: {shard.file} is missing; {REMEDY}")
            hashes[shard.file] = recorded
        return hashes

    def _take_place(self) -> None:
        """Give the cache, which is described now, its place."""
        for name in (_PLAN_NAME, *(f"{shard.file}{_HASH_SUFFIX}" for shard in self.plan.shards)):
            (self._folder / name).unlink(missing_ok=True)
        take_place(self._folder, self._target)

    def _recorded(self, shard: Shard) -> str | None:
        try:
            return (self._folder / f"{shard.file}{_HASH_SUFFIX}").read_text(encoding="ascii")
        except (OSError, ValueError):
            return self._hashes.get(shard.file)

    @classmethod
    def _same(cls, folder: Path, plan: P) -> P | None:
        """The plan of what is in a folder, if it differs from the given one in nothing but the division into shards."""
        for name in (META_NAME, _PLAN_NAME):
            with contextlib.suppress(DataError):
                other, _ = cls.read(folder / name, planned=name == _PLAN_NAME)
                if replace(other, shard_samples=None) == replace(plan, shard_samples=None):
                    return other
        return None


class HashedFile:
    """A file that is written from its beginning to its end, and its SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what is written so far."""
        return self._hash.hexdigest()

    def write(self, content: bytes) -> None:
        """Append."""
        self._file.write(content)
        self._hash.update(content)


def divided(num_samples: int, shard_samples: int, pattern: str, *, versions: int = 1) -> tuple[Shard, ...]:
    """The shards of `versions` times `num_samples` rows, of which none holds rows of two versions.

    Args:
        num_samples: of a version.
        shard_samples: the most of a shard.
        pattern: of the names, with `{number}`.
        versions: one after the other.
    """
    begins = [v * num_samples + first for v in range(versions) for first in range(0, num_samples, shard_samples)]
    ends = [*begins[1:], versions * num_samples]
    spans = enumerate(zip(begins, ends, strict=True))
    return tuple(Shard(pattern.format(number=number), begin, end - begin) for number, (begin, end) in spans)


def check_division(num_samples: int, shard_samples: int, *, versions: int = 1) -> None:
    """Refuse a division into shards that cannot be.

    Raises:
        ConfigError: shards of no samples, or more than `MAX_SHARDS` of them.
    """
    if shard_samples < 1:
        raise ConfigError(f"shard_samples={shard_samples} must be at least 1")
    if versions * -(-num_samples // shard_samples) > MAX_SHARDS:
        least = -(-num_samples // max(MAX_SHARDS // versions, 1))
        raise ConfigError(
            f"shard_samples={shard_samples} makes more than {MAX_SHARDS} shards of {versions} x {num_samples} samples; "
            f"take at least {least}"
        )


def read_meta(path: Path, encoding: type[Encoding[Any]]) -> dict[str, Any]:
    """A `meta.json` or plan of a format version that can be read.

    Raises:
        DataError: missing, of another or a newer format, or damaged.
    """
    folder, what = path.parent, encoding.what
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"'{folder}' is not a {what}: it has no {path.name}") from error
    except OSError as error:
        raise DataError(f"{what} '{folder}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} '{folder}': {path.name} is damaged (not JSON); encode again") from error
    if not isinstance(meta, dict) or meta.get("format") != encoding.format:
        raise DataError(f"'{folder}' is not a {what}: {path.name} does not say format '{encoding.format}'")
    version = meta.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= encoding.version:
        raise DataError(
            f"{what} '{folder}' has format version {version}; this version reads 1 to {encoding.version}: "
            "upgrade resgen, or encode again"
        )
    return meta


@contextmanager
def as_damage(path: Path, what: str) -> Iterator[None]:
    """Whatever is wrong with a description's content, as one line.

    Raises:
        DataError: naming the file.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{what} '{path.parent}': {path.name} is damaged ({reason}); encode again") from error


def listed_hashes(meta: Mapping[str, Any], plan: Plan) -> dict[str, str]:
    """SHA-256 of every shard in a description.

    Raises:
        ValueError: the shards are not those of the plan.
    """
    listed = [(str(entry["file"]), entry["num_samples"]) for entry in meta["shards"]]
    if listed != [(shard.file, shard.num_samples) for shard in plan.shards]:
        raise ValueError("its shards are not those of its numbers")
    return {file: str(entry["sha256"]) for (file, _), entry in zip(listed, meta["shards"], strict=True)}


def count(value: Any) -> int:
    """A positive number of a description.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a positive number")
    return value


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """A failed system call as one line.

    Raises:
        DataError: naming the place and the reason.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write codes to '{target}': {error.strerror or error}") from error


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and is removed otherwise."""
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        take_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def take_place(new: Path, target: Path) -> None:
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


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
