"""Code caches in the making: in any order, killed at any moment, damaged and mended."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resgen.data.codes.cache import MAX_SHARDS, CachePlan, Shard, open_codes, usual_shard
from resgen.data.codes.encoding import Encoding, write_codes
from resgen.errors import ConfigError, DataError, WriteError
from resgen.types import CodeSpec

SPEC = CodeSpec(depth=3, codebook_size=16, code_dim=4, shape=(2, 2))
LABELS = [0, 1, 2, 2, 1]
PLAN = CachePlan(
    spec=SPEC,
    num_samples=5,
    versions=2,
    columns={"labels": "number"},
    class_names=("a", "b", "c"),
    made_from={"tokenizer": "tok", "data": "dat"},
    shard_samples=2,
)
CODES = torch.randint(16, (10, 4, 3), generator=torch.Generator().manual_seed(0))
SMALL = replace(PLAN, num_samples=3, versions=1)
"""Two shards: enough to be killed in every way."""
FILES = [*(f"codes-0000{number}.safetensors" for number in range(6)), "meta.json"]


def make(out: Path, plan: CachePlan = PLAN, stop: int = 99) -> list[str]:
    """What a process does that makes a cache; the files that it had to make."""
    encoding = Encoding.begin(out, plan)
    if encoding is None:
        return []
    made: list[str] = []
    for shard in encoding.plan.shards:
        if not encoding.is_finished(shard):
            if len(made) == stop:
                return made
            write_shard(encoding, shard)
            made.append(shard.file)
    encoding.finish()
    return made


def write_shard(encoding: Encoding, shard: Shard, codes: Tensor = CODES, labels: list[int] = 2 * LABELS) -> None:
    rows = slice(shard.begin, shard.begin + shard.num_samples)
    versions = encoding.plan.versions
    every = [label for _ in range(versions) for label in labels[: encoding.plan.num_samples]]
    encoding.write(shard, codes[rows], {"labels": every[rows]})


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    make(tmp_path / "whole")
    return tmp_path / "whole"


def test_no_shard_holds_two_versions() -> None:
    assert [shard[1:] for shard in PLAN.shards] == [(0, 2), (2, 2), (4, 1), (5, 2), (7, 2), (9, 1)]
    assert [shard.file for shard in PLAN.shards] == FILES[:6]
    assert replace(PLAN, shard_samples=9).shards == (Shard(FILES[0], 0, 5), Shard(FILES[1], 5, 5))


def test_shards_are_not_too_many() -> None:
    for versions in (1, 2):
        plan = replace(PLAN, num_samples=10 * MAX_SHARDS, versions=versions, shard_samples=10 * versions)
        assert len(plan.shards) == MAX_SHARDS
        with pytest.raises(ConfigError, match=f"makes more than 512 shards .* take at least {10 * versions}$"):
            replace(plan, shard_samples=10 * versions - 1)
    assert usual_shard(100, least=2048) == 2048 and usual_shard(3_000_000, least=2048) == 5860
    assert usual_shard(3_000_000, 2, least=2048) == 11719
    for name in ("num_samples", "versions", "shard_samples"):
        with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
            replace(PLAN, **{name: 0})


def test_shard_by_shard_gives_the_files_of_write_codes(whole: Path, tmp_path: Path) -> None:
    write_codes(tmp_path / "other", PLAN, CODES, {"labels": 2 * LABELS})
    assert content(whole) == content(tmp_path / "other") and names(whole) == FILES
    assert names(tmp_path) == ["other", "whole"]
    cache = open_codes(whole, verify=True)
    assert torch.equal(cache.batch(torch.arange(10))[0], CODES) and cache.labels.tolist() == 2 * LABELS
    listed = json.loads((whole / "meta.json").read_text())["shards"]
    assert [entry["num_samples"] for entry in listed] == [2, 2, 1, 2, 2, 1]
    assert listed[4]["sha256"] == hashlib.sha256((whole / FILES[4]).read_bytes()).hexdigest()
    assert make(whole) == [], "made from the same things"


def test_any_process_may_write_any_shard(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    assert Encoding.join(out) is None
    Encoding.begin(out, PLAN)
    for shard in reversed(PLAN.shards):
        joined = Encoding.join(out)
        assert joined is not None and joined.plan == PLAN and not joined.is_finished(shard)
        write_shard(joined, shard)
        assert joined.is_finished(shard) and not out.exists()
    joined.finish()
    assert content(out) == content(whole) and Encoding.join(out) is None


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def changed(data: bytes) -> bytes:
    """Another code, which is in the codebook too."""
    place = data.index(CODES[2:4].to(torch.uint16).numpy().tobytes())
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "missing": (Path.unlink, "{} is missing"),
    "truncated": (damaged(lambda data: data[:-1]), "{} is truncated or damaged"),
    "empty": (damaged(lambda data: b""), "{} is truncated or damaged"),
    "longer": (damaged(lambda data: data + b"\0"), "{} is truncated or damaged"),
    "changed": (damaged(changed), "{} is damaged .its SHA-256"),
    "foreign": (lambda file: file.write_bytes(foreign(file)), "{} was made from other things"),
}


def foreign(file: Path) -> bytes:
    make(file.parents[1] / "foreign", replace(PLAN, made_from={"tokenizer": "x"}))
    folder = (file.parents[1] / "foreign").rename(file.parents[2] / f"foreign-{file.parents[1].name}")
    return (folder / file.name).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_only_that_is_made_again(whole: Path, damage: str) -> None:
    before, file = content(whole), FILES[1]
    kept = {name: (whole / name).stat().st_ino for name in FILES[:6] if name != file}
    change, message = DAMAGES[damage]
    change(whole / file)
    if damage == "changed":
        open_codes(whole)  # reads no codes
    with pytest.raises(DataError, match=message.format(file) + ".*encode again .only what is") as caught:
        open_codes(whole, verify=damage == "changed")
    assert "\n" not in str(caught.value)
    assert make(whole) == [file]
    assert content(whole) == before and names(whole.parent) == ["whole"]
    assert kept == {name: (whole / name).stat().st_ino for name in kept}


def killed(step: int, work: Callable[[], Any]) -> bool:
    """Whether `work`, in another process that is killed right before its `step`-th change on the disk, came so far."""
    child = os.fork()
    if child == 0:
        count, unlink = 0, os.unlink

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal count
                count += not (function is unlink and str(args[0]).endswith(".tmp"))  # these have got their names
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)

            return call

        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def killed_at_every_step(tmp_path: Path, prepare: Callable[[Path], object]) -> list[int]:
    """Make the small cache, be killed at each step in turn and go on; how many shards had to be made after each."""
    make(tmp_path / "expected", SMALL)
    expected, made = content(tmp_path / "expected"), []
    for step in range(1, 1000):
        out = tmp_path / str(step) / "c"
        prepare(out)
        before = content(out) if out.exists() else None
        if not killed(step, lambda out=out: make(out, SMALL)):
            assert content(out) == expected
            return made
        if (out / "meta.json").exists():
            assert content(out) in (before, expected), "a cache is the old one or the new one"
        else:
            assert not out.exists()
        made.append(len(make(out, SMALL)))
        assert content(out) == expected and names(out.parent) == ["c"], step
    raise AssertionError("no end")


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    made = killed_at_every_step(tmp_path, lambda out: out.parent.mkdir())
    assert sorted(made, reverse=True) == made and set(made) == {0, 1, 2}, "nothing finished is made twice"


def test_killed_while_it_replaces_another_cache(tmp_path: Path) -> None:
    other = replace(SMALL, made_from={"tokenizer": "other"}, shard_samples=5)
    assert set(killed_at_every_step(tmp_path, lambda out: make(out, other))) == {0, 1, 2}


def test_killed_while_it_mends(tmp_path: Path) -> None:
    def prepare(out: Path) -> None:
        make(out, SMALL)
        (out / FILES[1]).unlink()

    assert set(killed_at_every_step(tmp_path, prepare)) == {0, 1}


@pytest.mark.parametrize(
    "change",
    [
        {"made_from": {"tokenizer": "x", "data": "dat"}},
        {"class_names": ("a", "b", "d")},
        {"versions": 1},
        {"num_samples": 6},
        {"ragged": True},
        {"columns": {}},
        {"spec": replace(SPEC, codebook_size=17)},
    ],
)
def test_what_was_begun_from_other_things_is_not_used(whole: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    make(tmp_path / "c", stop=3)
    fresh = Encoding.begin(tmp_path / "c", replace(PLAN, **change))
    assert fresh is not None and not any(fresh.is_finished(shard) for shard in fresh.plan.shards)
    assert Encoding.begin(whole, replace(PLAN, **change)) is not None
    assert len(open_codes(whole, verify=True)) == 10, "it stays until the other one is finished"


def test_shards_that_do_not_have_their_hash_are_made_again(tmp_path: Path) -> None:
    make(tmp_path / "c", stop=3)
    encoding, folder = Encoding.join(tmp_path / "c"), tmp_path / ".c.unfinished"
    assert encoding is not None
    damaged(lambda data: data[:-1])(folder / FILES[0])
    (folder / f"{FILES[1]}.sha256").unlink()
    assert [encoding.is_finished(shard) for shard in PLAN.shards] == [False, False, True, False, False, False]
    write_shard(encoding, PLAN.shards[0])
    with pytest.raises(DataError, match=f"cannot be finished: {FILES[1]} is missing"):
        encoding.finish()
    assert make(tmp_path / "c") == [FILES[1], *FILES[3:6]] and names(tmp_path) == ["c"]


def test_what_is_there_keeps_its_division(whole: Path, tmp_path: Path) -> None:
    other = replace(PLAN, shard_samples=4)
    make(tmp_path / "c", stop=3)
    assert make(tmp_path / "c", other) == FILES[3:6] and content(tmp_path / "c") == content(whole)
    assert make(whole, other) == []
    (whole / FILES[2]).unlink()
    assert make(whole, other) == [FILES[2]]


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        (CODES[:1], LABELS[:1], "1 samples, but 2 are expected"),
        (CODES[:3], LABELS[:3], "3 samples, but 2 are expected"),
        (CODES[:2], LABELS[:3], "labels must be one number of at least 0 per sample"),
        (CODES[:2], [0, -1], "labels must be one number of at least 0 per sample"),
        (CODES[:2], [0, 3], "labels 0..3, but 3 classes"),
        (torch.full_like(CODES[:2], 16), LABELS[:2], "codes 16..16, but the codebooks hold 16"),
        (CODES[:2] - 16, LABELS[:2], "codes -16..-1, but"),
        (CODES[:2, :3], LABELS[:2], "samples of 3..3 positions do not fit"),
        (CODES[:2, :, :2], LABELS[:2], "codes of 2 levels"),
        (CODES[:2, :, 0], LABELS[:2], "codes has shape"),
        (CODES[:2].float(), LABELS[:2], "whole numbers"),
    ],
)
def test_wrong_samples_make_no_shard(tmp_path: Path, codes: Tensor, labels: list[int], message: str) -> None:
    encoding = Encoding.begin(tmp_path / "c", PLAN)
    assert encoding is not None
    with pytest.raises(DataError, match=message):
        encoding.write(PLAN.shards[0], codes, {"labels": labels})
    assert not encoding.is_finished(PLAN.shards[0]) and names(tmp_path / ".c.unfinished") == ["plan.json"]


def test_a_sample_too_many_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 samples, but 5 are expected"):
        write_codes(tmp_path / "c", replace(PLAN, versions=1), CODES, {"labels": 2 * LABELS})
    assert names(tmp_path) == []


def test_other_files_are_left_alone(whole: Path, tmp_path: Path) -> None:
    (whole / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match="it holds other files .'diary.txt'"):
        Encoding.begin(whole, PLAN)
    (tmp_path / "c").mkdir()
    make(tmp_path / "c")
    (tmp_path / "c" / "meta.json").write_text("{}")
    with pytest.raises(DataError, match="not that of a code cache"):
        Encoding.begin(tmp_path / "c", PLAN)
    (tmp_path / "c" / "meta.json").unlink()
    with pytest.raises(DataError, match="other files"):
        Encoding.begin(tmp_path / "c", PLAN)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        Encoding.begin(tmp_path / "file", PLAN)
    assert names(tmp_path) == ["c", "file", "whole"]


def test_replaces_through_a_link(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(whole)
    make(tmp_path / "link", replace(PLAN, made_from={"data": "other"}))
    assert (tmp_path / "link").is_symlink() and open_codes(whole).plan.made_from == {"data": "other"}


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_keeps_the_old_cache(whole: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = content(whole)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, call, full)
        with pytest.raises(WriteError, match="cannot write .*No space left on device"):
            make(whole, replace(PLAN, made_from={"data": "other"}))
    assert content(whole) == before and make(whole) == []
