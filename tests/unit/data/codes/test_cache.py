"""Code caches: what is written comes back, what is damaged or at odds with itself is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from resgen.data.codes.cache import CachePlan, CodeCache, open_codes
from resgen.data.codes.encoding import Encoding, write_codes
from resgen.data.text import token_ids
from resgen.errors import DataError
from resgen.types import CodeSpec

SPEC = CodeSpec(depth=3, codebook_size=16, code_dim=4, shape=(2, 2))
PLAN = CachePlan(
    spec=SPEC,
    num_samples=6,
    columns={"labels": "number"},
    class_names=("a", "b", "c"),
    made_from={"tokenizer": "tok", "data": "dat"},
    shard_samples=6,
)
LABELS = [0, 1, 2, 2, 1, 0]
FILE = "codes-00000.safetensors"
TEXTS = ("ab", "c", "abcd")
SPEAKERS = ("zoe", "adam", "zoe")
LENGTHS = (3, 1, 2)
STRIDE = 8
SPEECH = CachePlan(
    spec=CodeSpec(depth=2, codebook_size=7, code_dim=4, shape=(20,)),
    num_samples=3,
    columns={"tokens": "row", "durations": "row", "texts": "text", "speakers": "text"},
    made_from={"tokenizer": "abc"},
    ragged=True,
    shard_samples=3,
)


def rows(count: int, spec: CodeSpec = SPEC) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    return torch.randint(spec.codebook_size, (count, spec.num_positions, spec.depth), generator=stream)


def pictures(out: Path, **changes: Any) -> CodeCache:
    return write_codes(out, replace(PLAN, **changes), rows(6), {"labels": LABELS})


def utterances() -> tuple[list[Tensor], dict[str, list[Any]]]:
    stream = torch.Generator().manual_seed(0)
    codes = [torch.randint(7, (length, 2), generator=stream) for length in LENGTHS]
    tokens = [token_ids(text.encode()) for text in TEXTS]
    durations = [torch.ones_like(part) for part in tokens]
    for row, length in zip(durations, LENGTHS, strict=True):
        row[0] += length * STRIDE - len(row)
    return codes, {"tokens": tokens, "durations": durations, "texts": list(TEXTS), "speakers": list(SPEAKERS)}


def speech(out: Path, **changes: Any) -> CodeCache:
    codes, columns = utterances()
    return write_codes(out, replace(SPEECH, **changes), codes, columns)


def rewrite(path: Path, arrays: Mapping[str, Tensor | None], **meta: Any) -> None:
    """The shard with other arrays or metadata (None removes)."""
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["resgen"]) | meta
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()} | arrays  # noqa: SIM118
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, path, metadata={"resgen": json.dumps({k: v for k, v in document.items() if v is not None})})


@pytest.mark.parametrize("shard_samples", [1, 2, 4, 6])
def test_pictures_come_back(tmp_path: Path, shard_samples: int) -> None:
    pictures(tmp_path / "deep" / "cache", shard_samples=shard_samples)
    cache = open_codes(tmp_path / "deep" / "cache", verify=True)
    assert len(cache) == 6 and cache.spec == SPEC and cache.labels.tolist() == LABELS
    assert cache.plan == replace(PLAN, shard_samples=shard_samples) and set(cache.lengths.tolist()) == {4}
    order = torch.tensor([5, 0, 3, 3, 2, 4, 1])
    codes, labels = cache.batch(order)
    assert codes.dtype == labels.dtype == torch.int64
    assert torch.equal(codes, rows(6)[order]) and labels.tolist() == [0, 0, 2, 2, 2, 1, 1]
    assert torch.equal(cache.sample(-1)["codes"], rows(6)[5])
    assert cache.batch(torch.arange(0))[0].shape == (0, 4, 3)
    for row in (6, -1):
        with pytest.raises(IndexError, match=f"rows {row}..{row}, but code cache '.*' has 6"):
            cache.batch(torch.tensor([row]))


@pytest.mark.parametrize(("size", "kind"), [(65_536, "uint16"), (65_537, "int32")])
def test_type_of_the_codes(tmp_path: Path, size: int, kind: str) -> None:
    spec = CodeSpec(depth=1, codebook_size=size, code_dim=1, shape=(2,))
    codes = torch.tensor([[[0], [size - 1]]])
    plan = replace(PLAN, spec=spec, num_samples=1)
    cache = write_codes(tmp_path / "c", plan, codes, {"labels": [0]})
    assert cache.parts[0].arrays["codes"].dtype == kind and torch.equal(cache.batch(torch.tensor([0]))[0], codes)


@pytest.mark.parametrize("shard_samples", [1, 2, 3])
def test_speech_comes_back(tmp_path: Path, shard_samples: int) -> None:
    cache = speech(tmp_path / "codes", shard_samples=shard_samples)
    cache.verify()
    codes, columns = utterances()
    assert len(cache) == 3 and cache.lengths.tolist() == list(LENGTHS)
    assert cache.texts("texts") == TEXTS and cache.texts("speakers") == SPEAKERS
    for index in range(3):
        sample = cache.sample(index)
        assert list(sample) == ["codes", "tokens", "durations"] and torch.equal(sample["codes"], codes[index])
        assert all(torch.equal(sample[name], columns[name][index]) for name in ("tokens", "durations"))
        assert all(value.dtype == torch.int64 for value in sample.values())
    with pytest.raises(IndexError):
        cache.sample(3)


def test_samples_may_be_left_out_of_ragged_caches(tmp_path: Path) -> None:
    plan = replace(SPEECH, num_samples=5, shard_samples=2)
    encoding = Encoding.begin(tmp_path / "c", plan)
    assert encoding is not None
    codes, columns = utterances()
    for shard, kept in zip(plan.shards, (slice(0, 2), slice(0, 0), slice(2, 3)), strict=True):
        encoding.write(shard, codes[kept], {name: values[kept] for name, values in columns.items()})
    encoding.finish()
    cache = open_codes(tmp_path / "c", verify=True)
    assert cache.texts("texts") == TEXTS and torch.equal(cache.sample(2)["codes"], codes[2])
    assert [len(part.arrays["lengths"]) for part in cache.parts] == [2, 0, 1]


def test_nothing_short_enough(tmp_path: Path) -> None:
    encoding = Encoding.begin(tmp_path / "codes", SPEECH)
    assert encoding is not None
    encoding.write(SPEECH.shards[0], [], dict.fromkeys(SPEECH.columns, ()))
    with pytest.raises(DataError, match="none of 3 samples is short enough"):
        encoding.finish()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": list(TEXTS[:2])}, "texts must be one text per sample"),
        ({"speakers": [1, 2, 3]}, "speakers must be one text per sample"),
        ({"codes": [torch.full((3, 2), 7), *utterances()[0][1:]]}, "codes 0..7, but the codebooks hold 7"),
        ({"codes": [torch.zeros(2, 2, dtype=torch.int64), *utterances()[0][1:]]}, "sum to the frames"),
        ({"codes": [torch.zeros(0, 2, dtype=torch.int64), *utterances()[0][1:]]}, "codes must be a row of 1 to"),
        ({"durations": [-row for row in utterances()[1]["durations"]]}, "durations must be"),
        ({"tokens": [row.float() for row in utterances()[1]["tokens"]]}, "tokens must be whole numbers"),
    ],
)
def test_what_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    codes, columns = utterances()
    codes = changes.pop("codes", codes)
    with pytest.raises(DataError, match=message):
        write_codes(tmp_path / "codes", SPEECH, codes, columns | changes)
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"codes": None}, "damaged"),
        ({"codes": torch.zeros(6, 3, dtype=torch.uint16)}, "codes of 3 levels"),
        ({"codes": torch.zeros(12, dtype=torch.uint16)}, "codes has shape"),
        ({"codes": torch.zeros(6, 2)}, "codes is of type torch.float32, not torch.uint16"),
        ({"codes": torch.zeros(5, 2, dtype=torch.uint16)}, "codes of 6 numbers, but there are 5"),
        ({"lengths": torch.tensor([3, 0, 3])}, "codes must be a row of 1 to 6"),
        ({"lengths": torch.tensor([4, -1, 3])}, "codes must be a row of 1 to 6"),
        ({"lengths": torch.tensor([2**62, 2**62, 6])}, "codes must be a row of 1 to 6"),
        ({"lengths": torch.tensor([3, 1, 3])}, "codes of 7 numbers"),
        ({"lengths": torch.tensor([3, 1])}, "codes of 4 numbers"),
        ({"lengths": torch.tensor([1] * 6)}, "6 samples, but 3 are expected"),
        ({"lengths": torch.tensor(6)}, "lengths has shape"),
        ({"lengths": torch.zeros(0, dtype=torch.int64)}, "codes of 0 numbers"),
        ({"tokens_lengths": torch.tensor([4, 3, 7])}, "tokens of 14 numbers"),
        ({"tokens": torch.full((13,), 2**20, dtype=torch.int32)}, "tokens must lie"),
        ({"durations": torch.ones(12, dtype=torch.int32)}, "durations of 13 numbers"),
        ({"durations": torch.full((13,), -1, dtype=torch.int32)}, "durations must be"),
        ({"durations": torch.arange(13, dtype=torch.int32)}, "durations of each sample"),
        ({"durations_lengths": torch.tensor([3, 4, 6])}, "one number of at least 0 per token"),
    ],
)
def test_arrays_at_odds(tmp_path: Path, arrays: dict[str, Tensor | None], message: str) -> None:
    speech(tmp_path / "codes")
    rewrite(tmp_path / "codes" / FILE, arrays)
    with pytest.raises(DataError, match=message) as caught:
        open_codes(tmp_path / "codes")
    assert "\n" not in str(caught.value) and "encode again" in str(caught.value)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"texts": None}, "damaged"),
        ({"texts": []}, "texts must be one text"),
        ({"texts": {"texts": ["ab", "c"], "speakers": list(SPEAKERS)}}, "texts must be one text"),
        ({"texts": {"texts": list(TEXTS)}}, "speakers must be one text"),
        ({"spec": {}}, "made from other things"),
        ({"made_from": []}, "made from other things"),
    ],
)
def test_metadata_at_odds(tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    speech(tmp_path / "codes")
    rewrite(tmp_path / "codes" / FILE, {}, **meta)
    with pytest.raises(DataError, match=message):
        open_codes(tmp_path / "codes")


def change(key: str, value: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        meta[key] = value
        (folder / "meta.json").write_text(json.dumps(meta))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / FILE).write_bytes(b"x" * 500), "is truncated or damaged"),
        (lambda folder: save_file({"codes": torch.zeros(2)}, folder / FILE), "is truncated or damaged"),
        (lambda folder: rewrite(folder / FILE, {"labels": torch.full((6,), 9)}), "labels 9..9, but 3 classes"),
        (lambda folder: (folder / "meta.json").unlink(), "is not a code cache: it has no meta.json"),
        (lambda folder: (folder / "meta.json").write_text("{"), "damaged .not JSON"),
        (lambda folder: (folder / "meta.json").write_text("[" * 100_000), "damaged .not JSON"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "does not say format"),
        (change("format", "other"), "does not say format 'resgen-codes'"),
        (change("format_version", 2), "format version 2; this version reads 1: upgrade resgen"),
        (change("num_samples", 7), "its shards are not those of its numbers"),
        (change("num_samples", "6"), "meta.json is damaged .*num_samples='6' must be of type int"),
        (change("spec", {"depth": 3}), "meta.json is damaged .*'spec.codebook_size' is missing"),
        (change("spec", PLAN.made_from), "meta.json is damaged"),
        (change("columns", {"labels": "picture"}), "meta.json is damaged"),
        (change("made_from", []), "meta.json is damaged"),
        (change("class_names", ["a", "\ud800", "c"]), r"meta.json is damaged .*class_names='.ud800' must be text"),
        (change("num_samples", 10**400), "meta.json is damaged .*num_samples must lie in"),
        (change("shards", [{"file": f"../{FILE}", "num_samples": 6, "sha256": "0"}]), "its shards are not"),
        (change("shards", 3), "meta.json is damaged"),
        (change("shard_samples", 0), "meta.json is damaged"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    pictures(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(DataError, match=message) as caught:
        open_codes(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_thousands_of_classes_come_back(tmp_path: Path) -> None:
    names = tuple(f"c{number:05d}" for number in range(5000))
    pictures(tmp_path / "c", class_names=names)
    assert open_codes(tmp_path / "c").plan.class_names == names


def test_codes_out_of_range_are_never_returned(tmp_path: Path) -> None:
    pictures(tmp_path / "c")
    codes = rows(6)
    codes[2, 0, 0] = 16
    rewrite(tmp_path / "c" / FILE, {"codes": codes.flatten(0, 1).to(torch.uint16)})
    cache = open_codes(tmp_path / "c")
    cache.batch(torch.tensor([0, 1]))
    for read in (lambda: cache.batch(torch.tensor([1, 2])), lambda: cache.sample(2)):
        with pytest.raises(DataError, match="but the codebooks hold 16"):
            read()
    with pytest.raises(DataError, match=f"{FILE} is damaged"):
        cache.verify()


def test_what_a_cache_is_made_from(tmp_path: Path) -> None:
    cache = pictures(tmp_path / "p")
    cache.require("data", "dat")
    with pytest.raises(DataError, match="was made from data dat, not from other; encode again"):
        cache.require("data", "other")
