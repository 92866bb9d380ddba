"""Encoded speech: codes, text tokens and durations of utterances of different lengths, in shards.

```
meta.json                  {"format": "resgen-speech-codes", "format_version": 2, "spec", "num_samples", "made_from",
                            "shard_samples", "shards": [{"file": "speech-00000.safetensors", "num_samples", "sha256"}]}
speech-00000.safetensors   those of `shard_samples` recordings that were not too long, one after another:
                           codes int32 [positions, D], tokens int32, durations int32, code_ends, token_ends and
                           speakers int64; as metadata texts and names of speakers
```

Format version 1 is one such file, `speech_codes.safetensors`; it is read, but no longer written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resgen.config import config_from_dict, config_to_dict
from resgen.data.codes.shard_files import (
    MAX_SHARDS,
    META_NAME,
    REMEDY,
    Encoding,
    Shard,
    as_damage,
    check_division,
    count,
    divided,
    file_hash,
    listed_hashes,
    new_folder,
    read_meta,
    writing,
    written,
)
from resgen.data.text import NUM_TOKENS
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

FORMAT = "resgen-speech-codes"
FILE_NAME = "speech_codes.safetensors"
"""All utterances, in format version 1."""
SHARD_UTTERANCES = 1 << 11
"""Recordings per shard, if nothing else is said: an hour or more, prepared in memory at a time."""

_FILE_VERSION = 1  # of a file of utterances, alone or as a shard
_ARRAYS = ("codes", "code_ends", "tokens", "token_ends", "durations", "speakers")


class EncodedUtterance(NamedTuple):
    """One utterance.

    Attributes:
        codes: L positions.
        tokens: of `data.text.encode_text`.
        durations: mel frames of each token; they sum to the frames of the L positions.
    """

    codes: Int[Tensor, "L D"]
    tokens: Int[Tensor, " N"]
    durations: Int[Tensor, " N"]


@dataclass(frozen=True, kw_only=True)
class SpeechPlan:
    """What a cache of encoded speech is made from and how it is divided.

    Attributes:
        spec: shape of the codes.
        num_samples: recordings, those too long to be kept included.
        made_from: fingerprints of what makes the codes: `tokenizer`, `text`, `data`, and how recordings are prepared.
        shard_samples: the most recordings of a shard; None where the division does not matter.

    Raises:
        ConfigError: a number below 1, or more than `MAX_SHARDS` shards.
    """

    spec: CodeSpec
    num_samples: int
    made_from: Mapping[str, str]
    shard_samples: int | None

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError(f"num_samples={self.num_samples} must be at least 1")
        if self.shard_samples is not None:
            check_division(self.num_samples, self.shard_samples)

    @property
    def rows(self) -> int:
        """`num_samples`."""
        return self.num_samples

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in the order of the recordings."""
        return divided(self.num_samples, self.shard_samples or self.num_samples, "speech-{number:05d}.safetensors")


def usual_shard(num_samples: int) -> int:
    """Recordings per shard where nobody says how many."""
    return max(SHARD_UTTERANCES, -(-num_samples // MAX_SHARDS))


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeechCodes:
    """Encoded utterances, mapped into memory.

    Attributes:
        path: their folder.
        spec: shape of the codes.
        texts: normalised, one per utterance.
        speaker_names: one per speaker.
        speakers: which of them speaks, `[num utterances]`.
        lengths: positions of each utterance.
        made_from: fingerprints of what made the codes: `tokenizer`, `text`, `data`.
        parts: arrays of each file.
        hashes: recorded SHA-256 of every shard; none in format version 1.
    """

    path: Path
    spec: CodeSpec
    texts: tuple[str, ...]
    speaker_names: tuple[str, ...]
    speakers: Int[Tensor, " U"]
    lengths: Int[Tensor, " U"]
    made_from: Mapping[str, str]
    parts: tuple[Mapping[str, Tensor], ...]
    hashes: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _ends(self) -> Tensor:
        """Utterances of the first, the first two, ... parts."""
        return _ends(len(part["code_ends"]) for part in self.parts)

    def utterance(self, index: int) -> EncodedUtterance:
        """Codes, tokens and durations of one utterance, int64."""
        index = range(len(self))[index]
        number = int(torch.searchsorted(self._ends, index, right=True))
        part = self.parts[number]
        row = index - (int(self._ends[number - 1]) if number else 0)
        codes, tokens = _span(part["code_ends"], row), _span(part["token_ends"], row)
        return EncodedUtterance(
            part["codes"][codes].long(),
            part["tokens"][tokens].long(),
            part["durations"][tokens].long(),
        )

    def verify(self) -> None:
        """Compare all shards with their recorded SHA-256. What is in them was checked when they were opened.

        Raises:
            DataError: naming the first that differs.
        """
        for file, expected in self.hashes.items():
            if file_hash(self.path / file) != expected:
                raise DataError(f"speech codes '{self.path}': {file} is damaged (its SHA-256 differs); {REMEDY}")


class SpeechEncoding(Encoding[SpeechPlan]):
    """A cache of encoded speech in the making; see `Encoding`."""

    format = FORMAT
    version = 2
    what = "folder of speech codes"
    files = re.compile(rf"{re.escape(META_NAME)}|{re.escape(FILE_NAME)}|speech-[0-9]{{5}}\.safetensors")

    @classmethod
    def is_marked(cls, names: set[str]) -> bool:
        return META_NAME in names or names == {FILE_NAME}

    @classmethod
    def read(cls, path: Path, *, planned: bool = False) -> tuple[SpeechPlan, dict[str, str]]:
        meta = read_meta(path, cls)
        with as_damage(path, cls.what):
            plan = SpeechPlan(
                spec=config_from_dict(CodeSpec, meta["spec"], where="spec."),
                num_samples=count(meta["num_samples"]),
                made_from={str(key): str(value) for key, value in dict(meta["made_from"]).items()},
                shard_samples=count(meta["shard_samples"]),
            )
            return plan, {} if planned else listed_hashes(meta, plan)

    @classmethod
    def check(cls, target: Path) -> None:
        open_speech_codes(target, verify=True)

    def write(
        self, shard: Shard, utterances: Sequence[EncodedUtterance], texts: Sequence[str], speakers: Sequence[str]
    ) -> None:
        """Make a shard.

        Args:
            shard: which one.
            utterances: in the order of the recordings; those that were too long are left out.
            texts: normalised, one per utterance.
            speakers: one per utterance.

        Raises:
            DataError: other numbers of utterances than of texts, codes out of range, or a place that cannot be written.
        """
        content = _content(utterances, self.plan, texts, speakers, f"speech codes for '{self._target}': {shard.file}")
        with self._shard_file(shard) as file:
            file.write(content)

    def finish(self) -> None:
        """Give the cache its place, when all shards are finished.

        Raises:
            DataError: a shard is missing, there is no utterance in any, or a place that cannot be written.
        """
        hashes = self._recorded_hashes()
        count = sum(len(_read_file(self._folder / shard.file)[1]["texts"]) for shard in self.plan.shards)
        if not count:
            raise DataError(f"none of {self.plan.num_samples} recordings is short enough to be encoded")
        with writing(self._target):
            with written(self._folder / META_NAME) as file:
                file.write(self.describe(self.plan, hashes))
            self._take_place()


def write_speech_codes(
    folder: str | Path,
    utterances: Iterable[EncodedUtterance],
    *,
    spec: CodeSpec,
    texts: Sequence[str],
    speakers: Sequence[str],
    made_from: Mapping[str, str],
    shard_samples: int | None = None,
) -> SpeechCodes:
    """Write a cache of encoded utterances in one go, replacing one that is there.

    Args:
        folder: made if it is missing.
        utterances: in the order of `texts`.
        spec: shape of the codes.
        texts: normalised, one per utterance.
        speakers: one per utterance.
        made_from: fingerprints, stored for whoever opens the cache.
        shard_samples: the most utterances of a file.

    Raises:
        DataError: no utterances, other numbers of them than of texts, codes out of range, or a place that cannot be
            written.
    """
    parts = list(utterances)
    if not parts or len(parts) != len(texts) or len(texts) != len(speakers):
        raise DataError(f"{len(parts)} utterances with {len(texts)} texts and {len(speakers)} speakers to be written")
    plan = SpeechPlan(
        spec=spec,
        num_samples=len(parts),
        made_from=dict(made_from),
        shard_samples=shard_samples or usual_shard(len(parts)),
    )
    target = Path(os.path.realpath(folder))
    SpeechEncoding.check_replaceable(target)
    hashes = {}
    with writing(target), new_folder(target) as temporary:
        for shard in plan.shards:
            rows = slice(shard.begin, shard.begin + shard.num_samples)
            content = _content(parts[rows], plan, texts[rows], speakers[rows], f"speech codes for '{target}'")
            hashes[shard.file] = hashlib.sha256(content).hexdigest()
            with written(temporary / shard.file) as file:
                file.write(content)
        with written(temporary / META_NAME) as file:
            file.write(SpeechEncoding.describe(plan, hashes))
    return open_speech_codes(target)


def open_speech_codes(folder: str | Path, *, verify: bool = False) -> SpeechCodes:
    """Open a cache of encoded utterances; everything in it is checked.

    Args:
        folder: of the cache.
        verify: also compare the files with their SHA-256.

    Raises:
        DataError: missing, damaged, of a newer format or at odds with itself.
    """
    folder = Path(folder)
    if (folder / META_NAME).is_file():
        plan, hashes = SpeechEncoding.read(folder / META_NAME)
        files, spec, made_from = [shard.file for shard in plan.shards], plan.spec, plan.made_from
    elif (folder / FILE_NAME).is_file():
        files, hashes, spec, made_from = [FILE_NAME], {}, None, None
    else:
        raise DataError(f"'{folder}' holds no encoded speech: it has neither {META_NAME} nor {FILE_NAME}")
    parts, metas = zip(*(_read_file(folder / file) for file in files), strict=True)
    for file, arrays, meta in zip(files, parts, metas, strict=True):
        shard_spec = _check(arrays, meta, f"speech codes '{folder / file}'")
        if spec is not None and (spec, made_from) != (shard_spec, meta["made_from"]):
            raise DataError(f"speech codes '{folder}': {file} was made from other things; {REMEDY}")
        spec, made_from = shard_spec, meta["made_from"]
    names = sorted({name for meta in metas for name in meta["speaker_names"]})
    numbers = {name: number for number, name in enumerate(names)}
    speakers = [
        torch.tensor([numbers[name] for name in meta["speaker_names"]], dtype=torch.int64)[arrays["speakers"]]
        for arrays, meta in zip(parts, metas, strict=True)
    ]
    texts = tuple(text for meta in metas for text in meta["texts"])
    if not texts or spec is None or made_from is None:
        raise DataError(f"speech codes '{folder}' hold no utterances; encode again")
    codes = SpeechCodes(
        path=folder,
        spec=spec,
        texts=texts,
        speaker_names=tuple(names),
        speakers=torch.cat(speakers),
        lengths=torch.cat([_sizes(arrays["code_ends"]) for arrays in parts]),
        made_from=made_from,
        parts=parts,
        hashes=hashes,
    )
    if verify:
        codes.verify()
    return codes


def _content(
    utterances: Sequence[EncodedUtterance],
    plan: SpeechPlan,
    texts: Sequence[str],
    speakers: Sequence[str],
    where: str,
) -> bytes:
    """A file of utterances."""
    if not len(utterances) == len(texts) == len(speakers):
        raise DataError(f"{where}: {len(utterances)} utterances with {len(texts)} texts and {len(speakers)} speakers")
    names = sorted(set(speakers))
    numbers = {name: number for number, name in enumerate(names)}
    empty = torch.zeros(0, plan.spec.depth, dtype=torch.int64)
    arrays = {
        "codes": torch.cat([part.codes for part in utterances] or [empty]).int(),
        "code_ends": _ends(len(part.codes) for part in utterances),
        "tokens": torch.cat([part.tokens for part in utterances] or [empty[:, 0]]).int(),
        "token_ends": _ends(len(part.tokens) for part in utterances),
        "durations": torch.cat([part.durations for part in utterances] or [empty[:, 0]]).int(),
        "speakers": torch.tensor([numbers[name] for name in speakers], dtype=torch.int64),
    }
    meta = {
        "format": FORMAT,
        "format_version": _FILE_VERSION,
        "spec": config_to_dict(plan.spec),
        "texts": list(texts),
        "speaker_names": names,
        "made_from": dict(plan.made_from),
    }
    _check(arrays, meta, where)
    return save(arrays, metadata={"resgen": json.dumps(meta)})


def _read_file(path: Path) -> tuple[dict[str, Tensor], Any]:
    where = f"speech codes '{path}'"
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("resgen", ""))
            return {name: file.get_tensor(name) for name in _ARRAYS}, meta
    except FileNotFoundError as error:
        raise DataError(f"{where}: missing; {REMEDY}") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: damaged ({type(error).__name__}); encode again") from error


def _ends(sizes: Iterable[int]) -> Tensor:
    return torch.tensor(list(sizes), dtype=torch.int64).cumsum(0)


def _sizes(ends: Tensor) -> Tensor:
    return ends.diff(prepend=torch.zeros(1, dtype=torch.int64))


def _span(ends: Tensor, index: int) -> slice:
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))


def _check(arrays: Mapping[str, Tensor], meta: Any, where: str) -> CodeSpec:
    """Everything that `SpeechCodes.utterance` relies on."""
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{where}: not in the format '{FORMAT}'")
    if meta.get("format_version") != _FILE_VERSION:
        raise DataError(f"{where}: format version {meta.get('format_version')}; this version reads {_FILE_VERSION}")
    entry = meta.get("spec")
    try:
        spec = config_from_dict(CodeSpec, entry if isinstance(entry, dict) else {}, where="spec.")
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from error
    texts, names, made_from = meta.get("texts"), meta.get("speaker_names"), meta.get("made_from")
    if not isinstance(texts, list) or not isinstance(names, list) or not isinstance(made_from, dict):
        raise DataError(f"{where}: texts, speaker_names or made_from are missing")
    for name, array in arrays.items():
        whole = array.dtype == (torch.int64 if name in ("code_ends", "token_ends", "speakers") else torch.int32)
        if not whole or array.ndim != (2 if name == "codes" else 1) or (texts and not array.numel()):
            raise DataError(f"{where}: {name} has shape {tuple(array.shape)} and type {array.dtype}; encode again")
    codes, tokens, speakers, durations = (arrays[name] for name in ("codes", "tokens", "speakers", "durations"))
    if not texts:
        if any(array.numel() for array in arrays.values()):
            raise DataError(f"{where}: there is something in it, but no texts; encode again")
        return spec
    for name, total in (("code_ends", len(codes)), ("token_ends", len(tokens))):
        ends = arrays[name]
        rising = len(ends) == len(texts) and bool((ends.diff() > 0).all())
        if not rising or int(ends[0]) < 1 or int(ends[-1]) != total:
            raise DataError(f"{where}: {name} do not divide {total} entries into {len(texts)} utterances")
    if codes.shape[1] != spec.depth or codes.min() < 0 or codes.max() >= spec.codebook_size:
        raise DataError(f"{where}: codes {tuple(codes.shape)} do not fit {spec}")
    if tokens.min() < 0 or tokens.max() >= NUM_TOKENS:
        raise DataError(f"{where}: tokens must lie in 0..{NUM_TOKENS - 1}")
    if len(durations) != len(tokens) or durations.min() < 0:
        raise DataError(f"{where}: durations must be one number of at least 0 per token")
    frames, lengths = (
        _sizes(sums.long()) for sums in (durations.cumsum(0)[arrays["token_ends"] - 1], arrays["code_ends"])
    )
    if bool((frames * lengths[0] != frames[0] * lengths).any()):
        raise DataError(f"{where}: the durations of each utterance must sum to the frames of its positions")
    if len(speakers) != len(texts) or speakers.min() < 0 or speakers.max() >= len(names):
        raise DataError(f"{where}: speakers must be one number below {len(names)} per utterance")
    return spec
