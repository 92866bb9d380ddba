"""Files and folders that are complete or absent: written under a hidden name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from resgen.errors import WriteError
from resgen.matches import nearest

MAX_TEXT_BYTES = 1 << 24
MAX_NAMES = 1000
"""Of a folder, that are compared with a name that is not in it."""


def nearest_path(path: str | Path) -> str:
    """What there is instead of a path that does not exist: the entry most like it in the last folder that is there."""
    path = Path(path)
    folder = next((place for place in path.parents if place.is_dir()), Path("."))
    missing = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else path.name
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [entry.name for entry in itertools.islice(os.scandir(folder), MAX_NAMES)]
    for name in nearest(missing, names, 1):
        return f"did you mean '{folder / name}'?"
    return f"'{folder.absolute()}' has no '{missing}'"


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Report a failed system call as one line that names `path`.

    Raises:
        WriteError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write '{path}': {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_path(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary name for a file that takes its place when the block ends without an exception.

    Args:
        path: the place to take; missing folders are made.
        sync: wait until the file is on the disk, so that it survives a loss of power.

    Raises:
        WriteError: the file cannot be written; what was at `path` is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                _sync(temporary)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def read_small_text(source: str | Path | BinaryIO | io.BufferedIOBase) -> str:
    """The UTF-8 text of a file or pipe, by name or open, without a byte order mark.

    Raises:
        OSError: it cannot be read, or goes on beyond `MAX_TEXT_BYTES`, as devices do.
        UnicodeDecodeError: it is not UTF-8.
    """
    with Path(source).open("rb") if isinstance(source, str | Path) else contextlib.nullcontext(source) as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_TEXT_BYTES >> 20} MB of text")
    return content.decode("utf-8-sig")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, in which bytes of names of files that are no text are escaped; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write JSON; see `atomic_path`.

    Raises:
        WriteError: the values are not JSON, or the file cannot be written.
    """
    write_text(path, json_text(data, path))


def json_text(data: Mapping[str, Any], path: str | Path) -> str:
    """Indented JSON with a final line break; `path` is where it goes, for errors.

    Raises:
        WriteError: the values are not JSON.
    """
    try:
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise WriteError(f"cannot write '{path}': the values are not plain JSON: {error}") from error


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends without an exception.

    Args:
        path: the place to take.
        temporary: the folder, where other processes must know it.

    Raises:
        WriteError: writing fails; the temporary folder is gone and what was at `path` is untouched.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise WriteError(f"'{path}' cannot be replaced as a whole; give a folder with a name of its own")
    path = path.resolve() if path.is_symlink() else path  # what a link points to is replaced, not the link
    temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
            replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a folder already there steps aside first and is deleted last.

    Raises:
        OSError: a folder cannot be renamed; what was at `path` is there again.
    """
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(path.parent)


def remove_leftovers(parent: str | Path) -> None:
    """Delete temporary folders that a killed process left in `parent`."""
    for pattern in (".*.tmp", ".*.old"):
        for folder in Path(parent).glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written. Windows takes a file that can be written, and no folder at all."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
