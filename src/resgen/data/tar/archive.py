"""Where the files of a tar archive lie: one pass over its headers, nothing unpacked, hostile archives rejected.

The format is that of POSIX.1-2001 pax archives, with its older form ustar and GNU tar's long names: blocks of 512
bytes, a header before every file, two blocks of zeros at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from resgen.errors import DataError

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 16
"""Of a long name or a set of pax records; file systems allow names of 4,096 bytes."""
MAX_MEMBERS = 1 << 24
MAX_PADDING_BYTES = 1 << 20
"""After the end; tar fills up to 10,240 bytes, or as many as it was told to write at a time."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX = b"L", b"K", b"x", b"g"
_EXTENDED = (_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX)
_EMPTY = bytes(BLOCK)


class Member(NamedTuple):
    """A file in an archive: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


def tar_members(file: BinaryIO, where: str) -> Iterator[Member]:
    """The files of an archive in their order; folders are passed over.

    Args:
        file: at its beginning; its position is moved before every header, so that it may be read from in between.
        where: what to call it in an error.

    Raises:
        DataError: compressed, no archive, cut short or followed by something else, a member that is no file (a link,
            a device, a sparse file), or headers that no honest program writes.
    """
    total = os.fstat(file.fileno()).st_size
    position, name, size = 0, None, None
    for _ in range(2 * MAX_MEMBERS):
        file.seek(position)
        header = file.read(BLOCK)
        if header == _EMPTY:
            if total - position > MAX_PADDING_BYTES or any(file.read()):
                raise DataError(
                    f"{where} goes on after the mark of its end (byte {position}), which would be ignored; "
                    "split joined archives into separate shards"
                )
            return
        if len(header) < BLOCK:
            raise DataError(f"{where} is cut short: it ends at byte {total} without the mark of a tar archive's end")
        _check_header(header, where, position)
        typeflag, begin = header[156:157], position + BLOCK
        length = _number(header[124:136]) if size is None or typeflag in _EXTENDED else size
        if length is None or length < 0:
            raise DataError(f"{where} is damaged: the header at byte {position} has no size")
        if begin + length > total:
            raise DataError(f"{where} is cut short: byte {begin + length} is needed, it ends at byte {total}")
        position = begin + -(-length // BLOCK) * BLOCK
        if typeflag in _EXTENDED:
            if length > MAX_EXTENDED_BYTES:
                raise DataError(f"{where} has a header of {length} bytes; at most {MAX_EXTENDED_BYTES} are read")
            content = file.read(length)
            if typeflag == _PAX:
                records = _records(content, where, begin)
                name, size = records.get("path", name), _pax_size(records, where, begin)
            elif typeflag == _LONG_NAME:
                name = content.rstrip(b"\0").decode(errors="replace")
            continue
        if typeflag in _FILES:
            yield Member(name if name is not None else _name(header), begin, length)
        elif typeflag != _FOLDER:
            member = name if name is not None else _name(header)
            raise DataError(f"{where} holds {member!r}, which is not a file (type {typeflag!r}); only files are read")
        name = size = None
    raise DataError(f"{where} has more than {MAX_MEMBERS} files; split it into shards")


def _check_header(header: bytes, where: str, position: int) -> None:
    """The checksum: the sum of all bytes, its own field counted as blanks."""
    if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        if position:
            raise DataError(f"{where} is damaged: there is no valid header at byte {position}")
        for mark, name in _COMPRESSED.items():
            if header.startswith(mark):
                raise DataError(f"{where} is compressed ({name}); decompress it: samples are read at their offsets")
        raise DataError(f"{where} is not a tar archive")


def _number(field: bytes) -> int | None:
    """Octal digits or, with the first bit set, a big-endian binary number (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="replace")


def _records(content: bytes, where: str, position: int) -> dict[str, str]:
    """Lines `LENGTH KEY=VALUE`, the length in bytes and of the whole line."""
    records, begin = {}, 0
    while begin < len(content) and content[begin] != 0:
        digits, _, _ = content[begin : begin + 8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, separator, value = content[begin + len(digits) + 1 : begin + length].partition(b"=")
        if not separator or begin + length > len(content) or not value.endswith(b"\n"):
            raise DataError(f"{where} is damaged: there are no valid pax records at byte {position}")
        records[key.decode(errors="replace")] = value[:-1].decode(errors="replace")
        begin += length
    return records


def _pax_size(records: dict[str, str], where: str, position: int) -> int | None:
    if any(key.startswith("GNU.sparse") for key in records):
        raise DataError(f"{where} holds a sparse file (byte {position}); only whole files are read")
    size = records.get("size")
    if size is None:
        return None
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise DataError(f"{where} is damaged: size {size[:40]!r} at byte {position}")
    return int(size)


def read_bytes(path: Path, offset: int, size: int, where: str) -> bytes:
    """`size` bytes of a file from `offset` on.

    Raises:
        DataError: the file is missing, or shorter than it was when it was indexed.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
    if len(content) < size:
        raise DataError(f"{where} is cut short: {len(content)} of {size} bytes are there; it changed while it was read")
    return content
