"""The cache of encoded speech: what is written comes back, what is damaged or at odds with itself is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from resgen.data.codes.speech import (
    FILE_NAME,
    EncodedUtterance,
    SpeechCodes,
    SpeechEncoding,
    SpeechPlan,
    open_speech_codes,
    usual_shard,
    write_speech_codes,
)
from resgen.data.text import encode_text
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

SPEC = CodeSpec(depth=2, codebook_size=7, code_dim=4, shape=(20,))
TEXTS = ("ab", "c", "abcd")
SPEAKERS = ("zoe", "adam", "zoe")
LENGTHS = (3, 1, 2)
STRIDE = 8
FIRST = "speech-00000.safetensors"


def utterances() -> list[EncodedUtterance]:
    stream = torch.Generator().manual_seed(0)
    parts = []
    for text, length in zip(TEXTS, LENGTHS, strict=True):
        tokens = encode_text(text)
        durations = torch.ones_like(tokens)
        durations[0] += length * STRIDE - len(tokens)
        codes = torch.randint(SPEC.codebook_size, (length, SPEC.depth), generator=stream)
        parts.append(EncodedUtterance(codes, tokens, durations))
    return parts


def write(folder: Path, **changes) -> SpeechCodes:
    arguments = {"spec": SPEC, "texts": TEXTS, "speakers": SPEAKERS, "made_from": {"tokenizer": "abc"}}
    parts = changes.pop("parts", utterances())
    return write_speech_codes(folder, parts, **(arguments | changes))


def old_format(folder: Path) -> Path:
    """The cache as the first version of the format had it: the file of a shard under another name."""
    write(folder)
    (folder / FIRST).rename(folder / FILE_NAME)
    (folder / "meta.json").unlink()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return old_format(tmp_path / "codes")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rewrite(folder: Path, arrays: dict | None = None, **meta: object) -> None:
    """The file with other arrays or metadata (None removes)."""
    with safe_open(folder / FILE_NAME, framework="pt") as file:
        document = json.loads(file.metadata()["resgen"]) | meta
        tensors = {name: file.get_tensor(name) for name in file.keys()} | (arrays or {})  # noqa: SIM118
    document = {name: value for name, value in document.items() if value is not None}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, folder / FILE_NAME, metadata={"resgen": json.dumps(document)})


@pytest.mark.parametrize("form", ["old", "one shard", "shards of one"])
def test_what_is_written_comes_back(tmp_path: Path, form: str) -> None:
    if form == "old":
        codes = open_speech_codes(old_format(tmp_path / "codes"), verify=True)
    else:
        codes = write(tmp_path / "codes", shard_samples=1 if form == "shards of one" else None)
        codes.verify()
    assert len(codes) == 3 and codes.spec == SPEC and codes.texts == TEXTS
    assert codes.speaker_names == ("adam", "zoe") and codes.speakers.tolist() == [1, 0, 1]
    assert codes.lengths.tolist() == list(LENGTHS) and codes.made_from == {"tokenizer": "abc"}
    for index, part in enumerate(utterances()):
        found = codes.utterance(index)
        assert all(torch.equal(one, other) for one, other in zip(found, part, strict=True))
        assert all(field.dtype == torch.int64 for field in found)
    files = {
        "old": [FILE_NAME],
        "one shard": [FIRST],
        "shards of one": [f"speech-0000{n}.safetensors" for n in range(3)],
    }
    described = [] if form == "old" else ["meta.json"]
    assert sorted(path.name for path in codes.path.iterdir()) == sorted(files[form] + described)
    with pytest.raises(IndexError):
        codes.utterance(3)


def test_another_cache_takes_its_place(cache: Path) -> None:
    write(cache, parts=utterances()[:1], texts=TEXTS[:1], speakers=SPEAKERS[:1])
    assert open_speech_codes(cache).texts == TEXTS[:1]


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": []},
        {"texts": TEXTS[:2]},
        {"speakers": SPEAKERS[:2]},
        {"parts": [utterances()[0]._replace(codes=torch.full((3, 2), 7)), *utterances()[1:]]},
        {"parts": [utterances()[0]._replace(codes=torch.full((3, 2), -1)), *utterances()[1:]]},
        {"parts": [utterances()[0]._replace(codes=torch.zeros(2, 2, dtype=torch.int64)), *utterances()[1:]]},
        {"parts": [utterances()[0]._replace(codes=torch.zeros(0, 2, dtype=torch.int64)), *utterances()[1:]]},
        {"parts": [part._replace(durations=-part.durations) for part in utterances()]},
    ],
    ids=["none", "texts", "speakers", "large", "negative", "frames", "empty", "durations"],
)
def test_what_is_not_written(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(DataError):
        write(tmp_path / "codes", **changes)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "codes"):
        with pytest.raises(DataError, match="cannot write codes to"):
            write(folder)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path / "codes")
    before = content(tmp_path / "codes")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write(tmp_path / "codes", made_from={"tokenizer": "other"})
    assert content(tmp_path / "codes") == before, "the old cache stays"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "file"]


def test_missing_and_damaged_files(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no encoded speech"):
        open_speech_codes(tmp_path)
    path = cache / FILE_NAME
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[: len(content) // 2], content[:-1], b"x" * len(content)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            open_speech_codes(cache)
    save_file({"codes": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="damaged|format"):
        open_speech_codes(cache)


@pytest.mark.parametrize(
    ("meta", "named"),
    [
        ({"format": "resgen-codes"}, "not in the format"),
        ({"format_version": 2}, "format version 2"),
        ({"format_version": None}, "format version None"),
        ({"spec": None}, "depth"),
        ({"spec": "large"}, "depth"),
        ({"spec": {"depth": 2, "codebook_size": 0, "code_dim": 4, "shape": [20]}}, "codebook_size=0"),
        ({"spec": {"depth": 3, "codebook_size": 7, "code_dim": 4, "shape": [20]}}, "do not fit"),
        ({"texts": None}, "missing"),
        ({"texts": []}, "something in it, but no texts"),
        ({"texts": ["ab", "c"]}, "into 2 utterances"),
        ({"speaker_names": ["adam"]}, "speakers must be"),
        ({"made_from": []}, "missing"),
    ],
)
def test_metadata_at_odds(cache: Path, meta: dict, named: str) -> None:
    rewrite(cache, **meta)
    with pytest.raises(DataError, match=named):
        open_speech_codes(cache)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"codes": None}, "damaged"),
        ({"codes": torch.full((6, 2), 7, dtype=torch.int32)}, "do not fit"),
        ({"codes": torch.full((6, 2), -1, dtype=torch.int32)}, "do not fit"),
        ({"codes": torch.zeros(6, 3, dtype=torch.int32)}, "do not fit"),
        ({"codes": torch.zeros(12, dtype=torch.int32)}, "codes has shape"),
        ({"codes": torch.zeros(6, 2)}, "codes has shape"),
        ({"codes": torch.zeros(5, 2, dtype=torch.int32)}, "code_ends"),
        ({"code_ends": torch.tensor([3, 3, 6])}, "code_ends"),
        ({"code_ends": torch.tensor([4, 3, 6])}, "code_ends"),
        ({"code_ends": torch.tensor([-1, 3, 6])}, "code_ends"),
        ({"code_ends": torch.tensor([3, 4, 7])}, "code_ends"),
        ({"code_ends": torch.tensor([3, 6])}, "code_ends"),
        ({"code_ends": torch.tensor(6)}, "code_ends"),
        ({"code_ends": torch.zeros(0, dtype=torch.int64)}, "code_ends"),
        ({"token_ends": torch.tensor([4, 7, 14])}, "token_ends"),
        ({"tokens": torch.full((13,), 259, dtype=torch.int32)}, "tokens must lie"),
        ({"durations": torch.ones(12, dtype=torch.int32)}, "durations must be"),
        ({"durations": torch.full((13,), -1, dtype=torch.int32)}, "durations must be"),
        ({"durations": torch.arange(13, dtype=torch.int32)}, "durations of each utterance"),
        ({"speakers": torch.tensor([0, 1])}, "speakers must be"),
        ({"speakers": torch.tensor([0, 1, 2])}, "speakers must be"),
        ({"speakers": torch.tensor([0, 1, -1])}, "speakers must be"),
    ],
)
def test_arrays_at_odds(cache: Path, arrays: dict, named: str) -> None:
    rewrite(cache, arrays)
    with pytest.raises(DataError, match=named):
        open_speech_codes(cache)


PLAN = SpeechPlan(spec=SPEC, num_samples=5, made_from={"tokenizer": "abc"}, shard_samples=2)


def make(out: Path, plan: SpeechPlan = PLAN, stop: int = 99) -> list[str]:
    """What a process does that encodes five recordings, of which the third and fourth are too long; the files made."""
    encoding = SpeechEncoding.begin(out, plan)
    if encoding is None:
        return []
    parts, made = utterances(), []
    kept = {0: 0, 1: 1, 4: 2}
    for shard in encoding.plan.shards:
        if encoding.is_finished(shard) or len(made) == stop:
            continue
        rows = [kept[row] for row in range(shard.begin, shard.begin + shard.num_samples) if row in kept]
        texts, speakers = [TEXTS[row] for row in rows], [SPEAKERS[row] for row in rows]
        encoding.write(shard, [parts[row] for row in rows], texts, speakers)
        made.append(shard.file)
    if len(made) < stop:
        encoding.finish()
    return made


def test_shards_of_which_recordings_are_left_out(tmp_path: Path) -> None:
    assert len(make(tmp_path / "codes")) == 3 and make(tmp_path / "codes") == []
    codes = open_speech_codes(tmp_path / "codes", verify=True)
    assert codes.texts == TEXTS and codes.speaker_names == ("adam", "zoe") and codes.speakers.tolist() == [1, 0, 1]
    for index, part in enumerate(utterances()):
        assert all(torch.equal(one, other) for one, other in zip(codes.utterance(index), part, strict=True))
    assert [len(part["code_ends"]) for part in codes.parts] == [2, 0, 1]
    listed = json.loads((tmp_path / "codes" / "meta.json").read_text())["shards"]
    assert [entry["num_samples"] for entry in listed] == [2, 2, 1]


def test_an_interrupted_encoding_goes_on(tmp_path: Path) -> None:
    make(tmp_path / "whole")
    assert make(tmp_path / "codes", stop=1) == [FIRST] and not (tmp_path / "codes").exists()
    assert len(make(tmp_path / "codes")) == 2
    assert content(tmp_path / "codes") == content(tmp_path / "whole")
    other = SpeechPlan(spec=SPEC, num_samples=5, made_from={"tokenizer": "other"}, shard_samples=2)
    assert len(make(tmp_path / "codes", other)) == 3, "made from other things, all is made again"


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "foreign"])
def test_only_a_damaged_shard_is_made_again(tmp_path: Path, damage: str) -> None:
    make(tmp_path / "codes")
    before = content(tmp_path / "codes")
    file = tmp_path / "codes" / "speech-00002.safetensors"
    if damage == "changed":  # a code for another one that is in the codebook, too
        data = bytearray(file.read_bytes())
        place = data.index(utterances()[2].codes.int().numpy().tobytes())
        data[place] = (data[place] + 1) % SPEC.codebook_size
        file.write_bytes(data)
        open_speech_codes(tmp_path / "codes")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        make(tmp_path / "other", SpeechPlan(spec=SPEC, num_samples=5, made_from={"text": "x"}, shard_samples=2))
        (tmp_path / "other" / file.name).replace(file)
    with pytest.raises(DataError, match=f"{file.name}.*encode again") as caught:
        open_speech_codes(tmp_path / "codes", verify=damage == "changed")
    assert "\n" not in str(caught.value)
    assert make(tmp_path / "codes") == [file.name] and content(tmp_path / "codes") == before


def test_nothing_short_enough(tmp_path: Path) -> None:
    encoding = SpeechEncoding.begin(tmp_path / "codes", PLAN)
    assert encoding is not None
    for shard in PLAN.shards:
        encoding.write(shard, [], [], [])
    with pytest.raises(DataError, match="none of 5 recordings is short enough"):
        encoding.finish()


def test_divisions(tmp_path: Path) -> None:
    assert usual_shard(100) == 2048 and usual_shard(3_000_000) == 5860
    with pytest.raises(ConfigError, match="more than 512 shards"):
        SpeechPlan(spec=SPEC, num_samples=600, made_from={}, shard_samples=1)
    with pytest.raises(ConfigError, match="num_samples=0"):
        SpeechPlan(spec=SPEC, num_samples=0, made_from={}, shard_samples=1)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    make(tmp_path / "codes")
    place = tmp_path / "codes" / "meta.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"format_version": 3}))
    with pytest.raises(DataError, match="has format version 3; this version reads 1 to 2: upgrade resgen"):
        open_speech_codes(tmp_path / "codes")
