"""Encoded speech: codes, text tokens and durations of utterances of different lengths, in one safetensors file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resgen.config import config_from_dict, config_to_dict
from resgen.data.text import NUM_TOKENS
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

FORMAT = "resgen-speech-codes"
FORMAT_VERSION = 1
FILE_NAME = "speech_codes.safetensors"
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


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeechCodes:
    """Encoded utterances, in memory.

    Attributes:
        spec: shape of the codes.
        texts: normalised, one per utterance.
        speaker_names: one per speaker.
        speakers: which of them speaks, `[num utterances]`.
        lengths: positions of each utterance.
        made_from: fingerprints of what made the codes: `tokenizer`, `text`, `data`.
    """

    spec: CodeSpec
    texts: tuple[str, ...]
    speaker_names: tuple[str, ...]
    speakers: Int[Tensor, " U"]
    lengths: Int[Tensor, " U"]
    made_from: Mapping[str, str]
    arrays: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.texts)

    def utterance(self, index: int) -> EncodedUtterance:
        """Codes, tokens and durations of one utterance, int64."""
        codes, tokens = _span(self.arrays["code_ends"], index), _span(self.arrays["token_ends"], index)
        return EncodedUtterance(
            self.arrays["codes"][codes].long(),
            self.arrays["tokens"][tokens].long(),
            self.arrays["durations"][tokens].long(),
        )


def write_speech_codes(
    folder: str | Path,
    utterances: Iterable[EncodedUtterance],
    *,
    spec: CodeSpec,
    texts: Sequence[str],
    speakers: Sequence[str],
    made_from: Mapping[str, str],
) -> SpeechCodes:
    """Write a cache of encoded utterances, replacing one that is there; nothing is left behind on failure.

    Args:
        folder: made if it is missing.
        utterances: in the order of `texts`.
        spec: shape of the codes.
        texts: normalised, one per utterance.
        speakers: one per utterance.
        made_from: fingerprints, stored for whoever opens the cache.

    Raises:
        DataError: no utterances, other numbers of them than of texts, codes out of range, or a place that cannot be
            written.
    """
    folder, parts = Path(folder), list(utterances)
    if not parts or len(parts) != len(texts) or len(texts) != len(speakers):
        raise DataError(f"{len(parts)} utterances with {len(texts)} texts and {len(speakers)} speakers to be written")
    names = sorted(set(speakers))
    numbers = {name: number for number, name in enumerate(names)}
    arrays = {
        "codes": torch.cat([part.codes for part in parts]).int(),
        "code_ends": torch.tensor([len(part.codes) for part in parts]).cumsum(0),
        "tokens": torch.cat([part.tokens for part in parts]).int(),
        "token_ends": torch.tensor([len(part.tokens) for part in parts]).cumsum(0),
        "durations": torch.cat([part.durations for part in parts]).int(),
        "speakers": torch.tensor([numbers[name] for name in speakers]),
    }
    meta = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": config_to_dict(spec),
        "texts": list(texts),
        "speaker_names": names,
        "made_from": dict(made_from),
    }
    _check(arrays, meta, f"speech codes for '{folder}'")
    temporary = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(arrays, temporary, metadata={"resgen": json.dumps(meta)})
            os.replace(temporary, folder / FILE_NAME)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"speech codes cannot be written to '{folder}': {reason}") from error
    return open_speech_codes(folder)


def open_speech_codes(folder: str | Path) -> SpeechCodes:
    """Read a cache of encoded utterances.

    Raises:
        DataError: missing, damaged, of a newer format or at odds with itself.
    """
    path = Path(folder) / FILE_NAME
    where = f"speech codes '{path}'"
    if not path.is_file():
        raise DataError(f"'{folder}' holds no encoded speech: it has no {FILE_NAME}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("resgen", ""))
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{where}: damaged ({type(error).__name__}); encode again") from error
    spec = _check(arrays, meta, where)
    return SpeechCodes(
        spec=spec,
        texts=tuple(meta["texts"]),
        speaker_names=tuple(meta["speaker_names"]),
        speakers=arrays["speakers"],
        lengths=arrays["code_ends"].diff(prepend=torch.zeros(1, dtype=torch.int64)),
        made_from=meta["made_from"],
        arrays=arrays,
    )


def _span(ends: Tensor, index: int) -> slice:
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))


def _check(arrays: Mapping[str, Tensor], meta: Any, where: str) -> CodeSpec:
    """Everything that `SpeechCodes.utterance` relies on."""
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{where}: not in the format '{FORMAT}'")
    if meta.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{where}: format version {meta.get('format_version')}; this version reads {FORMAT_VERSION}")
    found = meta.get("spec")
    try:
        spec = config_from_dict(CodeSpec, found if isinstance(found, dict) else {}, where="spec.")
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from error
    texts, names, made_from = meta.get("texts"), meta.get("speaker_names"), meta.get("made_from")
    if not isinstance(texts, list) or not isinstance(names, list) or not isinstance(made_from, dict):
        raise DataError(f"{where}: texts, speaker_names or made_from are missing")
    for name, array in arrays.items():
        whole = array.dtype == (torch.int64 if name in ("code_ends", "token_ends", "speakers") else torch.int32)
        if not whole or array.ndim != (2 if name == "codes" else 1) or not array.numel():
            raise DataError(f"{where}: {name} has shape {tuple(array.shape)} and type {array.dtype}; encode again")
    codes, tokens, speakers, durations = (arrays[name] for name in ("codes", "tokens", "speakers", "durations"))
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
        sums.long().diff(prepend=torch.zeros(1, dtype=torch.int64))
        for sums in (durations.cumsum(0)[arrays["token_ends"] - 1], arrays["code_ends"])
    )
    if bool((frames * lengths[0] != frames[0] * lengths).any()):
        raise DataError(f"{where}: the durations of each utterance must sum to the frames of its positions")
    if len(speakers) != len(texts) or speakers.min() < 0 or speakers.max() >= len(names):
        raise DataError(f"{where}: speakers must be one number below {len(names)} per utterance")
    return spec
