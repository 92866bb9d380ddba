"""Code caches in shards: made in any order, killed at any moment, damaged and mended, and those of the old format."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resgen.config import config_to_dict
from resgen.data.codes.pictures import CodeCache, CodeEncoding, open_codes, write_codes
from resgen.data.codes.shards import MAX_SHARDS, CodePlan, Shard
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

SPEC = CodeSpec(depth=3, codebook_size=16, code_dim=4, shape=(2, 2))
LABELS = np.array([0, 1, 2, 2, 1])
PLAN = CodePlan(
    spec=SPEC,
    num_samples=5,
    versions=2,
    class_names=("a", "b", "c"),
    tokenizer_fingerprint="tok",
    data_fingerprint="dat",
    shard_samples=2,
)
CODES = torch.randint(16, (10, 4, 3), generator=torch.Generator().manual_seed(0))
SMALL = replace(PLAN, num_samples=3, versions=1)
"""Two shards: enough to be killed in every way."""
FILES = [*(f"codes-0000{number}.npy" for number in range(6)), "labels.npy", "meta.json"]


def make(out: Path, plan: CodePlan = PLAN, codes: Tensor = CODES) -> list[str]:
    """What a process does that makes a cache; the files that it had to make."""
    encoding = CodeEncoding.begin(out, plan)
    if encoding is None:
        return []
    made = []
    for shard in encoding.plan.shards:
        if not encoding.is_finished(shard):
            with encoding.write(shard) as append:
                for row in range(shard.begin, shard.begin + shard.num_samples):
                    append(codes[row : row + 1])
            made.append(shard.file)
    encoding.finish(LABELS[: plan.num_samples])
    return made


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


def test_shard_by_shard_gives_the_files_of_write_codes(whole: Path, tmp_path: Path) -> None:
    described = {key: value for key, value in vars(PLAN).items()}
    write_codes(tmp_path / "other", [(CODES, torch.from_numpy(np.tile(LABELS, 2)))], **described)
    assert content(whole) == content(tmp_path / "other") and names(whole) == FILES
    assert names(tmp_path) == ["other", "whole"]
    cache = open_codes(whole, verify=True)
    assert torch.equal(cache.batch(torch.arange(10))[0], CODES) and cache.labels.tolist() == [*LABELS, *LABELS]
    listed = json.loads((whole / "meta.json").read_text())["shards"]
    assert [entry["num_samples"] for entry in listed] == [2, 2, 1, 2, 2, 1]
    assert listed[4]["sha256"] == hashlib.sha256((whole / FILES[4]).read_bytes()).hexdigest()
    assert make(whole) == [], "made from the same things"


def test_any_process_may_write_any_shard(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    assert CodeEncoding.join(out) is None
    CodeEncoding.begin(out, PLAN)
    for shard in reversed(PLAN.shards):
        joined = CodeEncoding.join(out)
        assert joined is not None and joined.plan == PLAN and not joined.is_finished(shard)
        with joined.write(shard) as append:
            append(CODES[shard.begin : shard.begin + shard.num_samples])
        assert joined.is_finished(shard) and not out.exists()
    joined.finish(LABELS)
    assert content(out) == content(whole) and CodeEncoding.join(out) is None


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


DAMAGES = {
    "missing": (Path.unlink, "has no {}"),
    "truncated": (damaged(lambda data: data[:-1]), "{} is truncated or damaged"),
    "empty": (damaged(lambda data: b""), "{} is truncated or damaged"),
    "longer": (damaged(lambda data: data + b"\0"), "{} has .* bytes, not"),
    "changed": (damaged(lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]), "{} is damaged .its SHA-256"),
}


@pytest.mark.parametrize("file", [FILES[3], "labels.npy"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_only_that_is_made_again(whole: Path, damage: str, file: str) -> None:
    before = content(whole)
    kept = {name: (whole / name).stat().st_ino for name in FILES[:6] if name != file}
    change, message = DAMAGES[damage]
    change(whole / file)
    if damage == "changed":
        open_codes(whole)  # reads no codes
    with pytest.raises(DataError, match=message.format(file) + ".*encode again .only what is") as caught:
        open_codes(whole, verify=damage == "changed")
    assert "\n" not in str(caught.value)
    assert make(whole) == [file for file in [file] if file != "labels.npy"]
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
    make(tmp_path / "wanted", SMALL)
    wanted, made = content(tmp_path / "wanted"), []
    for step in range(1, 1000):
        out = tmp_path / str(step) / "c"
        prepare(out)
        before = content(out) if out.exists() else None
        if not killed(step, lambda out=out: make(out, SMALL)):
            assert content(out) == wanted
            return made
        if (out / "meta.json").exists():
            assert content(out) in (before, wanted), "a cache is the old one or the new one"
        else:
            assert not out.exists()
        made.append(len(make(out, SMALL)))
        assert content(out) == wanted and names(out.parent) == ["c"], step
    raise AssertionError("no end")


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    made = killed_at_every_step(tmp_path, lambda out: out.parent.mkdir())
    assert sorted(made, reverse=True) == made and set(made) == {0, 1, 2}, "nothing finished is made twice"


def test_killed_while_it_replaces_another_cache(tmp_path: Path) -> None:
    other = replace(SMALL, tokenizer_fingerprint="other", shard_samples=5)
    assert set(killed_at_every_step(tmp_path, lambda out: make(out, other))) == {0, 1, 2}


def test_killed_while_it_mends(tmp_path: Path) -> None:
    def prepare(out: Path) -> None:
        make(out, SMALL)
        (out / FILES[1]).unlink()

    assert set(killed_at_every_step(tmp_path, prepare)) == {0, 1}


def begun(out: Path, plan: CodePlan = PLAN, finished: int = 3) -> CodeEncoding:
    """An encoding of which only some shards are made."""
    encoding = CodeEncoding.begin(out, plan)
    assert encoding is not None
    for shard in encoding.plan.shards[:finished]:
        with encoding.write(shard) as append:
            append(CODES[shard.begin : shard.begin + shard.num_samples])
    return encoding


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_fingerprint": "x"},
        {"data_fingerprint": "x"},
        {"class_names": ("a", "b", "d")},
        {"versions": 1},
        {"num_samples": 6},
        {"spec": replace(SPEC, codebook_size=17)},
    ],
)
def test_what_was_begun_from_other_things_is_not_used(whole: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    begun(tmp_path / "c")
    fresh = CodeEncoding.begin(tmp_path / "c", replace(PLAN, **change))
    assert fresh is not None and not any(fresh.is_finished(shard) for shard in fresh.plan.shards)
    assert CodeEncoding.begin(whole, replace(PLAN, **change)) is not None
    assert len(open_codes(whole, verify=True)) == 10, "it stays until the other one is finished"


def test_shards_that_do_not_have_their_hash_are_made_again(tmp_path: Path) -> None:
    encoding = begun(tmp_path / "c")
    folder = tmp_path / ".c.unfinished"
    damaged(lambda data: data[:-1])(folder / FILES[0])
    (folder / f"{FILES[1]}.sha256").unlink()
    assert [encoding.is_finished(shard) for shard in PLAN.shards] == [False, False, True, False, False, False]
    with pytest.raises(DataError, match=f"cannot be finished: {FILES[1]} is missing"):
        encoding.finish(LABELS)
    assert make(tmp_path / "c") == [*FILES[:2], *FILES[3:6]] and names(tmp_path) == ["c"]


def test_what_is_there_keeps_its_division(whole: Path, tmp_path: Path) -> None:
    other = replace(PLAN, shard_samples=4)
    begun(tmp_path / "c")
    assert make(tmp_path / "c", other) == FILES[3:6] and content(tmp_path / "c") == content(whole)
    assert make(whole, other) == []
    (whole / FILES[2]).unlink()
    assert make(whole, other) == [FILES[2]]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (CODES[:1], f"1 rows of codes for {FILES[0]}, but 2 are expected"),
        (CODES[:3], f"3 rows of codes for {FILES[0]}, but 2 are expected"),
        (torch.full_like(CODES[:2], 16), "codes 16..16, but the codebooks hold 16"),
        (CODES[:2, :3], r"codes of shape \(2, 3, 3\)"),
        (CODES[:2].float(), "whole numbers"),
    ],
)
def test_wrong_codes_make_no_shard(tmp_path: Path, codes: Tensor, message: str) -> None:
    encoding = begun(tmp_path / "c", finished=0)
    with pytest.raises(DataError, match=message), encoding.write(PLAN.shards[0]) as append:
        append(codes)
    assert not encoding.is_finished(PLAN.shards[0]) and names(tmp_path / ".c.unfinished") == ["plan.json"]


def test_wrong_labels_are_refused(tmp_path: Path) -> None:
    encoding = begun(tmp_path / "c", finished=6)
    for labels, message in ((LABELS + 1, "labels 1..3, but 3 classes"), (LABELS[:4], r"shape \(4,\) for 5 samples")):
        with pytest.raises(DataError, match=message):
            encoding.finish(labels)
    assert not (tmp_path / "c").exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "codes-1.npy").write_text("mine")
    with pytest.raises(DataError, match="it holds other files .'codes-1.npy'"):
        CodeEncoding.begin(tmp_path / "c", PLAN)


def old_format(folder: Path) -> CodeCache:
    """A cache as the first version of the format had it."""
    folder.mkdir()
    np.save(folder / "codes.npy", CODES.numpy().astype(np.uint16))
    np.save(folder / "labels.npy", np.tile(LABELS, 2))
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names(folder)}
    described = {key: value for key, value in config_to_dict(PLAN).items() if key != "shard_samples"}
    meta = {"format": "resgen-codes", "format_version": 1, **described, "sha256": hashes}
    (folder / "meta.json").write_text(json.dumps(meta))
    return open_codes(folder)


def test_the_old_format_is_read_and_kept(tmp_path: Path) -> None:
    cache = old_format(tmp_path / "c")
    cache.verify()
    cache.require(spec=SPEC, tokenizer_fingerprint="tok", data_fingerprint="dat")
    assert (cache.versions, cache.num_samples, cache.class_names) == (2, 5, PLAN.class_names)
    wanted = torch.tensor([9, 0, 4, 5])
    codes, labels = cache.batch(wanted)
    assert torch.equal(codes, CODES[wanted]) and labels.tolist() == [1, 0, 1, 0]
    before = content(tmp_path / "c")
    assert make(tmp_path / "c") == [] and content(tmp_path / "c") == before


def test_the_old_format_damaged_is_replaced(whole: Path, tmp_path: Path) -> None:
    old_format(tmp_path / "c")
    DAMAGES["changed"][0](tmp_path / "c" / "codes.npy")
    with pytest.raises(DataError, match="codes.npy is damaged"):
        open_codes(tmp_path / "c", verify=True)
    assert make(tmp_path / "c") == FILES[:6] and content(tmp_path / "c") == content(whole)
