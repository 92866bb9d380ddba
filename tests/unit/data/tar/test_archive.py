"""Headers of tar archives: what tarfile writes is found where it finds it; damaged and hostile ones are refused."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from resgen.data.tar.archive import BLOCK, MAX_EXTENDED_BYTES, Member, read_bytes, tar_members
from resgen.errors import DataError
from tars import write_tar

FILES = {
    "a.txt": b"first",
    "empty.bin": b"",
    "folder/b.png": b"x" * 512,
    "folder/" + "long" * 40 + ".png": b"y" * 513,
    "deep/" * 30 + "unicode-ä.txt": b"z" * 1500,
    "e/" * 120 + "f": b"w",
}


def members(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return list(tar_members(file, f"shard '{path}'"))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, form: int) -> None:
    files = dict(list(FILES.items())[:3]) | {"p/" * 70 + "in-the-prefix.png": b"u"}
    path = write_tar(tmp_path / "a.tar", FILES if form != tarfile.USTAR_FORMAT else files, form=form)
    with tarfile.open(path) as tar:
        expected = [Member(one.name, one.offset_data, one.size) for one in tar.getmembers()]
    assert members(path) == expected and len(expected) in (4, 6)
    for member in expected:
        assert read_bytes(path, member.offset, member.size, "it") == (files | FILES)[member.name]


def test_large_numbers_and_folders(tmp_path: Path) -> None:
    """Sizes in base 256 (GNU) and in pax records; a folder is no file."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        named = tarfile.TarInfo("b")
        named.size, named.pax_headers = 3, {"size": "3", "comment": "a=b\nc"}
        tar.addfile(named, io.BytesIO(b"abc"))
    assert [member[::2] for member in members(path)] == [("b", 3)]
    content = bytearray(write_tar(tmp_path / "b.tar", {"c": b"abc"}).read_bytes())
    content[124:136] = b"\x80" + (3).to_bytes(11, "big")
    (tmp_path / "b.tar").write_bytes(signed(content))
    assert members(tmp_path / "b.tar") == [Member("c", 512, 3)]


def signed(content: bytes | bytearray) -> bytes:
    """With the right checksum in the first header."""
    header = bytearray(content[:BLOCK])
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(content[BLOCK:])


def header(kind: bytes = b"0", size: bytes = b"00000000003", name: bytes = b"name") -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157], block[257:263] = name, size, kind, b"ustar\0"
    return signed(block)


BODY, END = b"abc".ljust(BLOCK, b"\0"), bytes(2 * BLOCK)


def pax(records: bytes, name: bytes = b"") -> bytes:
    block = records.ljust(-(-len(records) // BLOCK) * BLOCK, b"\0")
    return header(b"x", f"{len(records):011o}".encode(), name) + block + header() + BODY + END


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is cut short: it ends at byte 0"),
        (b"no archive".ljust(2000), "is not a tar archive"),
        (gzip.compress(bytes(range(256)) * 8, mtime=0) + END, "is compressed .gzip.; decompress it"),
        (header() + BODY, "cut short: it ends at byte 1024 without the mark"),
        (header() + BODY[:300], "cut short: it ends at byte 812|is cut short"),
        (header() + b"ab", "cut short: byte 515 is needed, it ends at byte 514"),
        (header() + BODY + header()[:200], "cut short: it ends at byte 1224"),
        (header() + BODY + b"\1" * BLOCK + END, "damaged: there is no valid header at byte 1024"),
        (header(size=b"-0000000001") + BODY + END, "has no size"),
        (header(size=b"\xff" * 12) + BODY + END, "has no size"),
        (header(size=b"\x80" + b"\xff" * 11) + BODY + END, "is cut short: byte .* is needed"),
        ((header() + BODY + END) * 2, r"goes on after the mark of its end .byte 1024."),
        (header() + BODY + bytes(BLOCK + (1 << 20)), "goes on after the mark of its end"),
        (header(b"2") + END, "holds 'name', which is not a file .type b'2'."),
        (header(b"S") + BODY + END, "which is not a file"),
        (header(b"L", b"00000300000") + bytes(1 << 17) + END, f"at most {MAX_EXTENDED_BYTES} are read"),
        (pax(b"19 GNU.sparse.a=b\n"[:18].replace(b"19", b"18")), "sparse file"),
        (pax(b"11 size=-1\n"), "damaged: size '-1'"),
        (pax(b"99 path=a\n"), "no valid pax records"),
        (pax(b"0 path=a\n"), "no valid pax records"),
        (pax(b"x path=a\n"), "no valid pax records"),
        (pax(b"20 size=9999999999\n\0"[:20].replace(b"20", b"19")), "cut short: byte .* is needed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        members(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)


def test_archives_cut_short_anywhere(tmp_path: Path) -> None:
    """Wherever an archive ends before its mark, that is noticed."""
    whole = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + BLOCK
    for length in [*range(0, end, 499), *range(0, end, BLOCK), end]:
        (tmp_path / "b.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut short|not a tar archive"):
            members(tmp_path / "b.tar")


def test_reading_where_the_system_has_no_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.pread")
    (tmp_path / "a").write_bytes(b"abcdef")
    assert read_bytes(tmp_path / "a", 1, 4, "it") == b"bcde"


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(DataError, match="it is cut short: 2 of 5 bytes are there"):
        read_bytes(tmp_path / "a", 1, 5, "it")
    with pytest.raises(DataError, match="it cannot be read: No such file"):
        read_bytes(tmp_path / "b", 1, 5, "it")
