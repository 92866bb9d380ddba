"""Code caches: written whole or not at all, and never read wrongly."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resgen.data import CodeCache, open_codes, write_codes
from resgen.data.codes import pictures as module
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

SPEC = CodeSpec(depth=3, codebook_size=16, code_dim=4, shape=(2, 2))


def rows(count: int, spec: CodeSpec = SPEC, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.codebook_size, (count, spec.num_positions, spec.depth), generator=generator)


def write(out: Path, batches: Any = None, **changes: Any) -> CodeCache:
    if batches is None:
        batches = list(zip(rows(6).split(4), torch.tensor([0, 1, 2, 2, 1, 0]).split(4), strict=True))
    options: dict[str, Any] = {
        "spec": SPEC,
        "num_samples": 6,
        "class_names": ["a", "b", "c"],
        "tokenizer_fingerprint": "tok",
        "data_fingerprint": "dat",
    }
    return write_codes(out, batches, **options | changes)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "cache")
    cache = open_codes(tmp_path / "deep" / "cache", verify=True)
    (shard,) = cache.shards
    assert isinstance(shard, np.memmap) and shard.dtype == np.uint16
    assert len(cache) == cache.num_samples == 6 and cache.versions == 1 and cache.spec == SPEC
    assert cache.class_names == ("a", "b", "c")
    assert (cache.tokenizer_fingerprint, cache.data_fingerprint) == ("tok", "dat")
    codes, labels = cache.batch(torch.tensor([5, 0, 5]))
    assert codes.dtype == labels.dtype == torch.int64
    assert torch.equal(codes, rows(6)[[5, 0, 5]]) and labels.tolist() == [0, 0, 0]
    assert names(tmp_path / "deep") == ["cache"] and names(cache.path) == ["codes-00000.npy", "labels.npy", "meta.json"]


@pytest.mark.parametrize(("size", "kind"), [(65_536, np.uint16), (65_537, np.int32)])
def test_type_of_the_codes(tmp_path: Path, size: int, kind: type) -> None:
    spec = CodeSpec(depth=1, codebook_size=size, code_dim=1, shape=(2,))
    codes = torch.tensor([[[0], [size - 1]]])
    cache = write(tmp_path / "c", [(codes, torch.tensor([0]))], spec=spec, num_samples=1)
    assert cache.shards[0].dtype == kind and torch.equal(cache.batch(torch.tensor([0]))[0], codes)


def test_versions(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 2])
    batches = [(rows(3), labels), (rows(3, seed=1), labels)]
    write(tmp_path / "c", batches, num_samples=3, versions=2)
    cache = open_codes(tmp_path / "c")
    assert len(cache) == 6 and cache.num_samples == 3 and cache.versions == 2
    assert torch.equal(cache.batch(torch.tensor([4]))[0], rows(3, seed=1)[1:2])
    with pytest.raises(DataError, match="version after version"):
        write(tmp_path / "d", [(rows(6), torch.tensor([0, 0, 1, 1, 2, 2]))], num_samples=3, versions=2)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(rows(5), torch.zeros(5, dtype=torch.int64))], "5 rows of codes, but 6 are expected"),
        ([(rows(7), torch.zeros(7, dtype=torch.int64))], "more than the 6 expected rows"),
        ([(rows(6)[:, :3], torch.zeros(6, dtype=torch.int64))], r"codes of shape \(6, 3, 3\)"),
        ([(rows(6), torch.zeros(5, dtype=torch.int64))], r"but \(5, 4, 3\) is expected"),
        ([(rows(6) + 1, torch.zeros(6, dtype=torch.int64))], "codes 1..16, but the codebooks hold 16"),
        ([(rows(6) - 1, torch.zeros(6, dtype=torch.int64))], "codes -1..14"),
        ([(rows(6), torch.full((6,), 3))], "from row 0 on has labels 3..3, but 3 classes"),
        ([(rows(6).float(), torch.zeros(6, dtype=torch.int64))], "whole numbers"),
    ],
)
def test_bad_batches_leave_nothing(tmp_path: Path, batches: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "c", iter(batches))
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_keeps_the_old_cache(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "c")

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield rows(3, seed=1), torch.zeros(3, dtype=torch.int64)
        raise error

    with pytest.raises(error):
        write(tmp_path / "c", broken())
    assert names(tmp_path) == ["c"]
    assert torch.equal(open_codes(tmp_path / "c", verify=True).batch(torch.arange(6))[0], rows(6))


def test_batches_need_not_fit_the_shards(tmp_path: Path) -> None:
    """Any division into batches gives the same files."""
    labels = torch.tensor([0, 1, 2, 2, 1])
    for name, size in (("whole", 10), ("threes", 3), ("ones", 1)):
        batches = zip(rows(10).split(size), labels.repeat(2).split(size), strict=True)
        write(tmp_path / name, batches, num_samples=5, versions=2, shard_samples=2)
    files = {name: {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in names(tmp_path)}
    assert files["whole"] == files["threes"] == files["ones"]
    cache = open_codes(tmp_path / "whole", verify=True)
    assert [len(shard) for shard in cache.shards] == [2, 2, 1, 2, 2, 1]
    assert torch.equal(cache.batch(torch.arange(10))[0], rows(10))


def test_rows_of_all_shards(tmp_path: Path) -> None:
    write(tmp_path / "c", shard_samples=2)
    cache = open_codes(tmp_path / "c")
    wanted = torch.tensor([5, 0, 3, 3, 2, 4, 1])
    codes, labels = cache.batch(wanted)
    assert torch.equal(codes, rows(6)[wanted]) and labels.tolist() == [0, 0, 2, 2, 2, 1, 1]
    assert cache.batch(torch.arange(0))[0].shape == (0, 4, 3)
    for row in (6, -1):
        with pytest.raises(IndexError, match=f"rows {row}..{row}, but code cache '.*' has 6"):
            cache.batch(torch.tensor([row]))


def test_failed_rename_keeps_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c")
    rename, calls = module.os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", second_fails)
    with pytest.raises(DataError, match="cannot write codes to .*No space left"):
        write(tmp_path / "c")
    assert names(tmp_path) == ["c"] and len(open_codes(tmp_path / "c", verify=True)) == 6


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        write(tmp_path / "c")
    assert names(tmp_path) == []


def test_replaces_a_cache_but_no_other_folder(tmp_path: Path) -> None:
    write(tmp_path / "c")
    write(tmp_path / "c", [(rows(6, seed=2), torch.zeros(6, dtype=torch.int64))])
    assert torch.equal(open_codes(tmp_path / "c").batch(torch.arange(6))[0], rows(6, seed=2))
    (tmp_path / "c" / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files .'diary.txt'"):
        write(tmp_path / "c")
    other = tmp_path / "other"
    other.mkdir()
    write(other)
    (other / "meta.json").write_text("{}")
    with pytest.raises(DataError, match="not that of a code cache"):
        write(other)
    (other / "meta.json").unlink()
    with pytest.raises(DataError, match="other files"):
        write(other)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write(tmp_path / "file")
    assert names(tmp_path) == ["c", "file", "other"]


def test_replaces_through_a_link(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "link").symlink_to(tmp_path / "c")
    write(tmp_path / "link", [(rows(6, seed=2), torch.zeros(6, dtype=torch.int64))])
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(open_codes(tmp_path / "c").batch(torch.arange(6))[0], rows(6, seed=2))


def test_counts_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_samples=0"):
        write(tmp_path / "c", num_samples=0)
    with pytest.raises(ConfigError, match="versions=0"):
        write(tmp_path / "c", versions=0)
    with pytest.raises(ConfigError, match="shard_samples=0"):
        write(tmp_path / "c", shard_samples=0)


def truncate(folder: Path) -> None:
    content = (folder / "codes-00000.npy").read_bytes()
    (folder / "codes-00000.npy").write_bytes(content[:-1])


def change(key: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        meta[key] = value
        (folder / "meta.json").write_text(json.dumps(meta))

    return apply


def pickled(folder: Path) -> None:
    np.save(folder / "codes-00000.npy", np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "codes-00000.npy is truncated or damaged"),
        (pickled, "codes-00000.npy is truncated or damaged"),
        (lambda folder: (folder / "labels.npy").unlink(), "has no labels.npy"),
        (lambda folder: (folder / "meta.json").unlink(), "is not a code cache: it has no meta.json"),
        (lambda folder: (folder / "meta.json").write_text("{"), "damaged .not JSON"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "does not say format"),
        (lambda folder: (folder / "labels.npy").write_bytes(b""), "labels.npy is truncated or damaged"),
        (
            lambda folder: np.save(folder / "codes-00000.npy", np.zeros((6, 4, 3))),
            "holds float64 .6, 4, 3., but uint16",
        ),
        (lambda folder: np.save(folder / "labels.npy", np.full(6, 9)), "labels 9..9, but 3 classes"),
        (change("format", "other"), "does not say format 'resgen-codes'"),
        (change("format_version", 3), "format version 3; this version reads 1 to 2: upgrade resgen"),
        (change("format_version", True), "format version True"),
        (change("num_samples", 7), "its shards are not those of its numbers"),
        (change("num_samples", "6"), "meta.json is damaged"),
        (change("spec", {"depth": 3}), "meta.json is damaged"),
        (change("labels", {}), "meta.json is damaged"),
        (change("shards", [{"file": "../codes-00000.npy", "num_samples": 6, "sha256": "0"}]), "its shards are not"),
        (change("shard_samples", 0), "meta.json is damaged"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(DataError, match=message) as caught:
        open_codes(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a code cache"):
        open_codes(tmp_path / "nothing")


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    write(tmp_path / "c")
    content = bytearray((tmp_path / "c" / "codes-00000.npy").read_bytes())
    content[-2] ^= 1
    (tmp_path / "c" / "codes-00000.npy").write_bytes(content)
    assert len(open_codes(tmp_path / "c")) == 6
    with pytest.raises(DataError, match="codes-00000.npy is damaged"):
        open_codes(tmp_path / "c", verify=True)


def test_codes_out_of_range_are_never_returned(tmp_path: Path) -> None:
    cache = write(tmp_path / "c")
    codes = np.array(cache.shards[0])
    codes[2, 0, 0] = 16
    np.save(tmp_path / "c" / "codes-00000.npy", codes)
    cache = open_codes(tmp_path / "c")
    cache.batch(torch.tensor([0, 1]))
    with pytest.raises(DataError, match="but the codebooks hold 16"):
        cache.batch(torch.tensor([1, 2]))


def test_require(tmp_path: Path) -> None:
    cache = write(tmp_path / "c")
    cache.require(spec=SPEC, tokenizer_fingerprint="tok", data_fingerprint="dat")
    with pytest.raises(DataError, match="tokenizer_fingerprint tok, but other is wanted; encode again"):
        cache.require(tokenizer_fingerprint="other")
    with pytest.raises(DataError, match="data_fingerprint"):
        cache.require(data_fingerprint="other")
    with pytest.raises(DataError, match="spec"):
        cache.require(spec=CodeSpec(depth=2, codebook_size=16, code_dim=4, shape=(2, 2)))
