"""Training speech by index: decoded, trimmed and levelled once, kept as 16-bit samples in one array."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int, Int16, Int64
from torch import Tensor

from resgen.data.announce import leave_out
from resgen.data.sound.decode import normalise_loudness, trim_silence
from resgen.data.sound.sources import SpeechSource
from resgen.data.spoken import FrontEnd, Spoken
from resgen.errors import ConfigError, DataError
from resgen.progress import show_progress

FULL_SCALE = 32768.0  # as decoders of 16-bit files have it, so that such samples are kept exactly
_DECODE_ROWS = 32


class SpeechStore:
    """Utterances at one rate, in memory: 32 kB per second at 16 kHz.

    Args:
        source: where they come from.
        sample_rate_hz: samples per second.
        trim: cut off silence at both ends.
        loudness_db: LUFS that every utterance is scaled to; None leaves them as they are.
        max_seconds: longer utterances (after trimming) are left out, for their texts could not be cut along; None keeps
            all.
        may_be_empty: take it if none is kept, of a part of the data for example.
        skip_unreadable: leave out what cannot be read, and say so, in place of refusing it.

    Attributes:
        lengths: samples of every utterance, int64 [N].
        texts: what is said.
        speakers: who says it.
        ids: the source's names of the utterances kept.
        num_left_out: how many were longer than `max_seconds`, or could not be read.

    Raises:
        ConfigError: a setting out of range.
        DataError: naming all utterances that are damaged or hold nothing but digital silence; none is short enough.
        MissingExtraError: soundfile, soxr or pyloudnorm is needed and not installed.
    """

    def __init__(
        self,
        source: SpeechSource,
        sample_rate_hz: int,
        *,
        trim: bool = True,
        loudness_db: float | None = -23.0,
        max_seconds: float | None = 20.0,
        may_be_empty: bool = False,
        skip_unreadable: bool = False,
    ) -> None:
        if max_seconds is not None and not max_seconds > 0:
            raise ConfigError(f"max_seconds={max_seconds} must be above 0, or None")
        if loudness_db is not None and not -70 <= loudness_db <= 0:
            raise ConfigError(f"loudness_db={loudness_db} must be in -70..0, or None")
        self.source, self.sample_rate_hz, self.trim, self.loudness_db = source, sample_rate_hz, trim, loudness_db
        limit = math.inf if max_seconds is None else max_seconds * sample_rate_hz
        usable: list[int] = []
        parts: list[Tensor] = []
        bad: dict[int, str] = {}
        for index, samples in enumerate(self._decode_all()):
            if isinstance(samples, str):
                bad[index] = samples
            elif len(samples) <= limit:
                usable.append(index)
                parts.append(samples)
        skip = skip_unreadable and (may_be_empty or len(bad) < len(source))
        leave_out(bad, len(source), f"recordings of '{source.name}' split '{source.split}'", skip=skip)
        if not usable and not may_be_empty:
            raise DataError(f"'{source.name}' has no utterance of at most {max_seconds} s among {len(source)}")
        self.num_left_out = len(source) - len(usable)
        self.texts = tuple(source.texts[index] for index in usable)
        self.speakers = tuple(source.speakers[index] for index in usable)
        self.ids = tuple(source.ids[index] for index in usable)
        self.lengths: Int64[Tensor, " N"] = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        self._starts = (self.lengths.cumsum(0) - self.lengths).tolist()
        self._samples: Int16[Tensor, " S"] = torch.cat([torch.zeros(0, dtype=torch.int16), *parts])

    def __len__(self) -> int:
        return len(self.texts)

    def spoken(self, read: FrontEnd) -> list[Spoken]:
        """The texts, as a front end reads them.

        Raises:
            DataError: one that cannot be said, with the utterance's name.
        """
        texts = []
        for name, text in zip(self.ids, self.texts, strict=True):
            try:
                texts.append(read(text))
            except DataError as error:
                raise DataError(f"the text of '{name}': {error}") from error
        return texts

    def samples(self, index: int) -> Float[Tensor, " S"]:
        """Utterance `index`, float32 in [-1, 1]."""
        index = range(len(self))[index]
        return self._samples[self._starts[index] :][: int(self.lengths[index])] / FULL_SCALE

    def batch(
        self, indices: Int[Tensor, " B"] | Sequence[int], *, multiple: int
    ) -> tuple[Float[Tensor, "B S"], Int64[Tensor, " B"]]:
        """The utterances at `indices`, in that order, zero-padded at the end to a multiple of `multiple` samples.

        Returns:
            Samples, S the smallest such multiple that holds the longest one; and their true lengths.
        """
        if multiple < 1:
            raise ConfigError(f"multiple={multiple} must be at least 1")
        rows = self._row_numbers(indices)
        lengths = self.lengths[rows]
        num_samples = -(-int(lengths.max()) // multiple) * multiple
        return self._gather(rows, torch.zeros_like(lengths), lengths, num_samples), lengths

    def crop_starts(
        self, indices: Int[Tensor, " B"] | Sequence[int], num_samples: int, generator: torch.Generator
    ) -> Int64[Tensor, " B"]:
        """First samples of random pieces of `num_samples`; 0 where an utterance has no more.

        Args:
            indices: the utterances.
            num_samples: samples of a piece.
            generator: a generator on the CPU; one number per utterance is drawn, whatever its length.
        """
        if num_samples < 1:
            raise ConfigError(f"num_samples={num_samples} must be at least 1")
        places = (self.lengths[self._row_numbers(indices)] - num_samples).clamp_min(0) + 1
        return (torch.rand(len(places), generator=generator, dtype=torch.float64) * places).long()

    def crops(
        self, indices: Int[Tensor, " B"] | Sequence[int], starts: Int64[Tensor, " B"], num_samples: int
    ) -> Float[Tensor, "B S"]:
        """Pieces of `num_samples` (S) of utterances from `starts` on; a shorter one is zero-padded at the end."""
        rows = self._row_numbers(indices)
        return self._gather(rows, starts, (self.lengths[rows] - starts).clamp_max(num_samples), num_samples)

    def _row_numbers(self, indices: Int[Tensor, " B"] | Sequence[int]) -> Int64[Tensor, " B"]:
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        if not len(rows):
            raise ConfigError("a batch needs at least one index")
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"indices {int(rows.min())}..{int(rows.max())}, allowed: 0..{len(self) - 1}")
        return rows

    def _gather(
        self,
        indices: Int64[Tensor, " B"],
        starts: Int64[Tensor, " B"],
        lengths: Int64[Tensor, " B"],
        num_samples: int,
    ) -> Float[Tensor, "B S"]:
        result = torch.zeros(len(indices), num_samples)
        parts = zip(indices.tolist(), starts.tolist(), lengths.tolist(), strict=True)
        for row, (index, start, length) in enumerate(parts):
            begin = self._starts[index] + start
            result[row, :length] = self._samples[begin : begin + length]
        return result.div_(FULL_SCALE)

    def _decode(self, index: int) -> Int16[Tensor, " S"] | str:
        """An utterance, or why it cannot be read."""
        try:
            return self._prepared(index)
        except DataError as error:
            return str(error)

    def _prepared(self, index: int) -> Int16[Tensor, " S"]:
        samples = self.source.read(index, self.sample_rate_hz)
        if not len(samples) or samples.amax() == samples.amin():  # a constant offset is silence too
            name = f"'{self.source.name}' {self.source.split} '{self.source.ids[index]}'"
            raise DataError(f"{name} holds nothing but digital silence")
        if self.trim:
            samples = trim_silence(samples, self.sample_rate_hz)
        if self.loudness_db is not None:
            samples = normalise_loudness(samples, self.sample_rate_hz, self.loudness_db)
        return (samples * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16)

    def _decode_all(self) -> Iterator[Int16[Tensor, " S"] | str]:
        """Every utterance in order, or why it cannot be read; from a few threads, with a bar after two seconds."""
        count = len(self.source)

        def decode(start: int) -> list[Tensor | str]:
            return [self._decode(index) for index in range(start, min(start + _DECODE_ROWS, count))]

        pool = ThreadPoolExecutor(max_workers=max(2, min(4, os.cpu_count() or 1)))
        try:
            futures = [pool.submit(decode, start) for start in range(0, count, _DECODE_ROWS)]
            parts = ((len(samples), samples) for samples in (future.result() for future in futures))
            for samples in show_progress(parts, count, f"decoding {self.source.name} {self.source.split}"):
                yield from samples
        finally:
            pool.shutdown(cancel_futures=True)
