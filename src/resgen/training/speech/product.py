"""Encoded speech as examples with prompts, and generated speech as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from resgen.checkpoints.speech import VoiceConfig, save_speech_pipeline
from resgen.data.codes.cache import CodeCache
from resgen.data.pictures.grid import save_picture
from resgen.data.sound.decode import write_sound
from resgen.data.sound.spectrogram import spectrogram_sheet
from resgen.data.text import pad_texts
from resgen.errors import ConfigError
from resgen.kinds import AnySampling, sample
from resgen.models.base import CodeModel
from resgen.models.text import TextModel
from resgen.ops.alignment import expand
from resgen.ops.mel import MelConfig, log_mel
from resgen.ops.random import generator as make_generator
from resgen.tokenizers.sound import SoundCodec
from resgen.training.generator_task import Batch
from resgen.types import SequenceCondition

PREVIEWS = 4
TEXT_BATCH = 16
KEPT_BYTES = 1 << 30
"""The most that the hidden states of all texts may take to be kept in memory; of more, every step computes its own."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The visible beginnings of training sequences (Sec. 5.1, a Default of the method).

    Attributes:
        max_seconds: the longest prompt.
        max_share: the longest prompt within an utterance, as a share of it; one position at least is left to predict.
        other_share: share of samples whose prompt is another utterance of the same speaker, as in the cross-sentence
            task; the others' is their own beginning, as in continuation.
    """

    max_seconds: float = 3.0
    max_share: float = 1 / 3
    other_share: float = 0.5

    def __post_init__(self) -> None:
        if not self.max_seconds > 0:
            raise ConfigError(f"max_seconds={self.max_seconds} must be above 0")
        for name in ("max_share", "other_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in [0, 1]")


class Piece(NamedTuple):
    """An utterance with the features of its frames."""

    codes: Int[Tensor, "L D"]
    features: Float[Tensor, "T E"]


COLUMNS: dict[str, Literal["number", "row", "text"]] = {
    "tokens": "row",
    "durations": "row",
    "texts": "text",
    "speakers": "text",
}
"""What an utterance has in a code cache, besides its codes: texts are normalised."""


class EncodedUtterance(NamedTuple):
    """One utterance.

    Attributes:
        codes: L positions.
        tokens: what `data.text.token_ids` returned.
        durations: mel frames of each token; they sum to the frames of the L positions.
    """

    codes: Int[Tensor, "L D"]
    tokens: Int[Tensor, " N"]
    durations: Int[Tensor, " N"]


class Prompted(NamedTuple):
    """An utterance of a step and what it begins with.

    Attributes:
        utterance: its index.
        other: index of another, whose beginning is the prompt; None for the utterance's own.
        prompt: length of the prompt in positions.
    """

    utterance: int
    other: int | None
    prompt: int


class SpeechExamples:
    """Encoded speech as `generator_task.Examples`: sequences that begin with a prompt.

    Args:
        cache: encoded utterances.
        text_model: gives the features: hidden states of the text, expanded by the durations; it is not trained.
        prompts: which beginnings are shown.
        positions_per_second: positions of the codes per second.
        stride: mel frames per position.
    """

    def __init__(
        self,
        cache: CodeCache,
        text_model: TextModel,
        prompts: PromptConfig,
        *,
        positions_per_second: float,
        stride: int,
    ) -> None:
        self.cache, self.text_model, self.prompts, self.stride = cache, text_model, prompts, stride
        self.max_prompt = max(1, int(prompts.max_seconds * positions_per_second))
        tokens = cache.numbers("tokens_lengths")
        self._by_length = tokens.argsort(stable=True)
        self._place = self._by_length.argsort()
        self._keeps = int(tokens.sum()) * text_model.config.width * 4 <= KEPT_BYTES
        self._kept: dict[int, Tensor] = {}
        numbers = {name: number for number, name in enumerate(sorted(set(cache.texts("speakers"))))}
        self._speakers = torch.tensor([numbers[name] for name in cache.texts("speakers")])
        order, counts = self._speakers.argsort(stable=True), torch.bincount(self._speakers)
        self._of_speaker = order.split(counts.tolist())

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def lengths(self) -> Int[Tensor, " U"]:
        """Positions of each utterance, without a prompt of another."""
        return self.cache.lengths

    def codes(self, indices: Int[Tensor, " B"]) -> Int[Tensor, "1 M D"]:
        """All positions of the utterances in one row."""
        return torch.cat([self.cache.sample(index)["codes"] for index in indices.tolist()])[None]

    def draw(
        self, indices: Int[Tensor, " B"], generator: torch.Generator
    ) -> tuple[list[Prompted], Bool[Tensor, "B L"]]:
        """Utterances with a prompt each, and the positions after it."""
        samples = [self._draw(index, generator) for index in indices.tolist()]
        ends = [one.prompt * (one.other is not None) + int(self.cache.lengths[one.utterance]) for one in samples]
        return samples, SequenceCondition.of(ends, [one.prompt for one in samples]).targets

    def batch(self, samples: Sequence[Prompted]) -> Batch:
        """Codes and conditions."""
        needed = [one.utterance for one in samples] + [one.other for one in samples if one.other is not None]
        pieces = dict(zip(needed, self._pieces(needed), strict=True))
        codes, features = [], []
        for one in samples:
            parts = [pieces[one.utterance]]
            if one.other is not None:
                other = pieces[one.other]
                parts.insert(0, Piece(other.codes[: one.prompt], other.features[: one.prompt * self.stride]))
            codes.append(torch.cat([part.codes for part in parts]))
            features.append(torch.cat([part.features for part in parts]))
        sequence = SequenceCondition.of([len(one) for one in codes], [one.prompt for one in samples], features)
        return pad_sequence(codes, batch_first=True), torch.zeros(len(samples), dtype=torch.int64), sequence

    def _draw(self, index: int, generator: torch.Generator) -> Prompted:
        first, second, third = torch.rand(3, generator=generator).tolist()
        length, most = int(self.cache.lengths[index]), self.cache.spec.num_positions
        same = self._of_speaker[int(self._speakers[index])]
        if first < self.prompts.other_share and len(same) > 1:
            place = int(second * (len(same) - 1))
            other = int(same[place])
            other = int(same[-1]) if other == index else other
            prompt = min(int(self.cache.lengths[other]), self.max_prompt, most - length)
            if prompt > 0:
                return Prompted(index, other, prompt)
        longest = min(self.max_prompt, int(length * self.prompts.max_share), length - 1)
        return Prompted(index, None, int(third * (longest + 1)))

    def _pieces(self, indices: list[int]) -> list[Piece]:
        parts = [EncodedUtterance(**self.cache.sample(index)) for index in indices]
        return [
            Piece(part.codes, expand(hidden[None], part.durations[None], self.stride * len(part.codes))[0])
            for part, hidden in zip(parts, self._hidden(indices), strict=True)
        ]

    def _hidden(self, indices: list[int]) -> list[Float[Tensor, "N E"]]:
        """Hidden states of the texts of utterances, on the CPU. A text that is kept was read with its neighbours in
        length, whatever batch asked for it first, so that a training that goes on computes what it had."""
        if self._keeps:
            known = self._kept
            groups = sorted({int(self._place[index]) // TEXT_BATCH for index in indices if index not in known})
            missing = [self._by_length[group * TEXT_BATCH :][:TEXT_BATCH] for group in groups]
        else:
            known = {}
            places = self._place[indices].unique()
            missing = list(self._by_length[places].split(TEXT_BATCH))
        for rows in missing:
            known.update(zip(rows.tolist(), self._read(rows.tolist()), strict=True))
        return [known[index] for index in indices]

    @torch.no_grad()
    def _read(self, indices: list[int]) -> list[Float[Tensor, "N E"]]:
        texts = [self.cache.sample(index)["tokens"] for index in indices]
        tokens, valid = pad_texts(texts)
        device = self.text_model.angles.device
        with torch.autocast(device.type, enabled=False):  # losses ask within autocast, samples without
            hidden = self.text_model(tokens.to(device), valid.to(device)).float().cpu()
        return [row[: len(text)].clone() for row, text in zip(hidden, texts, strict=True)]


class SpeechProduct:
    """`generator_task.Product` of speech.

    Args:
        codec: decodes samples; exported with the generator.
        text_model: exported as well.
        alphabet: letters or phonemes that it knows.
        examples: held-out speech, whose texts and prompts samples are given.
        mel: settings of the images' mels.
        voice: exported as well.
    """

    def __init__(
        self,
        codec: SoundCodec,
        text_model: TextModel,
        alphabet: str,
        examples: SpeechExamples,
        mel: MelConfig,
        voice: VoiceConfig,
    ) -> None:
        self.codec, self.text_model, self.alphabet = codec, text_model, alphabet
        self.examples, self.mel, self.voice = examples, mel, voice

    def to(self, device: torch.device) -> None:
        """Move all that turns texts into features and codes into sound."""
        self.text_model.to(device)
        self.codec.tokenizer.to(device)
        if self.codec.vocoder is not None:
            self.codec.vocoder.to(device)

    @torch.no_grad()
    def sample(self, path: Path, model: CodeModel, sampling: AnySampling) -> None:
        """Held-out texts in the voices of their prompts: spectrograms of the tokenizer's reconstructions and of what
        the model says, and the model's as WAV files."""
        count = min(PREVIEWS, len(self.examples))
        indices = torch.linspace(0, len(self.examples) - 1, count).long()
        samples, _ = self.examples.draw(indices, make_generator("sample prompts"))
        codes, class_ids, sequence = self.examples.batch(samples)
        assert sequence is not None
        device = model.codebooks.device
        sequence, codes = sequence.to(device), codes.to(device)
        visible = torch.where(sequence.prompt, model.spec.depth, 0)
        start = (codes, visible)
        new_codes = sample(
            model,
            class_ids.to(device),
            seed=0,
            indices=range(count),
            sampling=sampling,
            start=start,
            sequence=sequence,
        ).codes
        sounds = [self.codec.decode(part, sequence.valid) for part in (codes, new_codes)]
        rows = []
        for row, length in enumerate(sequence.lengths):
            end = length * self.codec.samples_per_position
            rows.append([log_mel(sound[row : row + 1, :end], self.mel)[0].cpu() for sound in sounds])
            name = f"{path.stem}_{row + 1}.wav"
            write_sound(sounds[1][row, :end].cpu(), self.codec.sample_rate_hz, path.with_name(name))
        labels = [self.examples.cache.texts("texts")[index][:40] for index in indices.tolist()]
        save_picture(spectrogram_sheet(rows, labels=["tokenizer", "model"], row_labels=labels), path)

    def export(self, folder: Path, model: CodeModel, sampling: AnySampling, history: Mapping[str, Any]) -> None:
        """Write the speech pipeline's folder."""
        vocoder = self.codec.vocoder
        save_speech_pipeline(
            folder,
            tokenizer=self.codec.tokenizer,
            vocoder=vocoder,  # type: ignore[arg-type]
            text_model=self.text_model,
            alphabet=self.alphabet,
            generator=model,
            sampling=sampling,
            voice=self.voice,
            history=history,
        )
