"""The cache of encoded speech: what is written comes back, what is damaged or at odds with itself is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from resgen.data.speech_codes import FILE_NAME, EncodedUtterance, SpeechCodes, open_speech_codes, write_speech_codes
from resgen.data.text import encode_text
from resgen.errors import DataError
from resgen.types import CodeSpec

SPEC = CodeSpec(depth=2, codebook_size=7, code_dim=4, shape=(20,))
TEXTS = ("ab", "c", "abcd")
SPEAKERS = ("zoe", "adam", "zoe")
LENGTHS = (3, 1, 2)
STRIDE = 8


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


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "codes")
    return tmp_path / "codes"


def rewrite(folder: Path, arrays: dict | None = None, **meta: object) -> None:
    """The file with other arrays or metadata (None removes)."""
    with safe_open(folder / FILE_NAME, framework="pt") as file:
        document = json.loads(file.metadata()["resgen"]) | meta
        tensors = {name: file.get_tensor(name) for name in file.keys()} | (arrays or {})  # noqa: SIM118
    document = {name: value for name, value in document.items() if value is not None}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, folder / FILE_NAME, metadata={"resgen": json.dumps(document)})


def test_what_is_written_comes_back(cache: Path) -> None:
    codes = open_speech_codes(cache)
    assert len(codes) == 3 and codes.spec == SPEC and codes.texts == TEXTS
    assert codes.speaker_names == ("adam", "zoe") and codes.speakers.tolist() == [1, 0, 1]
    assert codes.lengths.tolist() == list(LENGTHS) and codes.made_from == {"tokenizer": "abc"}
    for index, part in enumerate(utterances()):
        found = codes.utterance(index)
        assert all(torch.equal(one, other) for one, other in zip(found, part, strict=True))
        assert all(field.dtype == torch.int64 for field in found)
    assert [path.name for path in cache.iterdir()] == [FILE_NAME]


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
        with pytest.raises(DataError, match="cannot be written"):
            write(folder)

    def full(arrays: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write(tmp_path / "codes")
    before = (tmp_path / "codes" / FILE_NAME).read_bytes()
    monkeypatch.setattr("resgen.data.speech_codes.save_file", full)
    with pytest.raises(DataError, match="No space left"):
        write(tmp_path / "codes")
    assert [path.read_bytes() for path in (tmp_path / "codes").iterdir()] == [before], "the old cache stays"


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
        ({"texts": []}, "into 0 utterances"),
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
