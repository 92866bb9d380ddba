"""Editing speech: an interval of a recording gets other words, the rest is kept.

A stretch is found by comparing texts, or named in seconds; words are replaced whole. A word is replaced if at least
half of it lies in the stretch, or if the stretch lies within it, and the stretch then grows to hold it. Where no word
is replaced, the new ones come between the two nearest. The stretch is widened to whole positions of the codes. Whatever
of a word that stays lies in it is spoken again, at the same place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.data.sound.decode import loudness_gain, sounding_span
from resgen.data.spoken import Spoken
from resgen.data.text import PROSODY, token_ids
from resgen.errors import ConfigError, DataError
from resgen.kinds import Kind
from resgen.models.text import TextModel
from resgen.ops.alignment import expand, fitted_durations
from resgen.ops.mel import MelConfig, log_mel
from resgen.pipelines.speech.fit import tell_doubt
from resgen.pipelines.speech.speaking import SpeechRun, pace
from resgen.pipelines.speech.utterances import Job, SpeechOutput, SpeechOutputs
from resgen.tokenizers.sound import SoundCodec

FADE_SECONDS = 0.01
"""Over which recording and new speech are mixed at either end of a stretch; within the stretch."""


class SpokenWord(NamedTuple):
    """A word of a recording, with the seconds at which its letters begin and end."""

    text: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeechEditPlan:
    """The plan of a speech edit: what is kept of a recording, and the words spoken in place of the rest.

    Attributes:
        recording: at the model's rate, as it was recorded.
        sample_rate_hz: its rate.
        words: its words.
        span: those that are replaced; empty where new ones are put in.
        text: the whole new text.
        codes: `[L, D]` of the recording, from its sample `offset` on.
        offset: what lies before is silence.
        samples_per_position: samples of sound for each position of the codes.
        gain: that the recording was given before it was encoded.
        begin: first position that is replaced.
        end: the position after the last one.
        num_new: positions that come in their place.
        features: expanded hidden states of the new text.
    """

    recording: Float[Tensor, " S"]
    sample_rate_hz: int
    words: list[SpokenWord]
    span: slice
    text: str
    codes: Int[Tensor, "L D"]
    offset: int
    samples_per_position: int
    gain: float
    begin: int
    end: int
    num_new: int
    features: Float[Tensor, "T E"]

    @property
    def replaced(self) -> list[SpokenWord]:
        """The words of the recording that are replaced."""
        return self.words[self.span]

    @property
    def new_words(self) -> slice:
        """The words of `text` that come in their place."""
        return slice(self.span.start, self.span.stop + len(self.text.split()) - len(self.words))

    @property
    def cut(self) -> tuple[int, int]:
        """The samples of the recording, from and to, in whose place the new ones come."""
        begin, end = (self.offset + place * self.samples_per_position for place in (self.begin, self.end))
        return begin, min(end, len(self.recording))

    @property
    def cut_s(self) -> tuple[float, float]:
        """The same in seconds."""
        begin, end = self.cut
        return begin / self.sample_rate_hz, end / self.sample_rate_hz

    def job(self, seed: int, stream: int) -> Job:
        """The generator's conditions."""
        return Job(seed, stream, self.codes[: self.begin], self.features, self.codes[self.end :])

    def edited(self, new: Int[Tensor, "N D"]) -> Int[Tensor, "M D"]:
        """All codes with the new ones in their place."""
        return torch.cat([self.codes[: self.begin], new, self.codes[self.end :]])

    def audio(self, decoded: Float[Tensor, " R"], *, blend: bool) -> Float[Tensor, " A"]:
        """The edited recording.

        Args:
            decoded: samples of all codes.
            blend: take the samples outside the stretch from the recording.
        """
        unit = self.samples_per_position
        decoded = (decoded / self.gain).clamp(-1, 1)
        end = self.offset + len(self.codes) * unit
        missing = max(0, end - len(self.recording))  # the last position reaches beyond the recording
        recording = torch.nn.functional.pad(self.recording, (0, missing))
        if blend:
            begin, after = (self.offset + place * unit for place in (self.begin, self.end))
            new = decoded[self.begin * unit :][: self.num_new * unit].clone()
            fade = min(round(FADE_SECONDS * self.sample_rate_hz), len(new) // 2, after - begin)
            rise = torch.linspace(0, math.pi / 2, fade + 2, dtype=torch.float64)[1:-1].sin().to(new)
            if begin > 0:
                new[:fade] = new[:fade] * rise + recording[begin : begin + fade] * rise.flip(0)
            if after < len(self.recording):
                new[-fade:] = new[-fade:] * rise.flip(0) + recording[after - fade : after] * rise
            result = torch.cat([recording[:begin], new.clamp(-1, 1), recording[after:]])
        else:
            result = torch.cat([recording[: self.offset], decoded, recording[end:]])
        # What was padding stays out, unless new speech has come in its place.
        same_end = self.end < len(self.codes) or self.num_new == self.end - self.begin
        return result[: len(result) - missing] if same_end else result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SpeechEdit(SpeechOutput):
    """An edited recording: `audio` is the whole at the recording's own loudness, `codes` are the kept codes with the
    new ones between them, `texts` is the whole new text.

    Attributes:
        plan: what was kept and what was replaced.
    """

    plan: SpeechEditPlan


class SpeechEditor:
    """Finds the words of recordings and plans edits.

    Args:
        codec: encodes.
        text_model: aligns and predicts durations.
        mel: that it aligns.
        loudness_db: what recordings are brought to before they are encoded; None leaves them.
    """

    def __init__(self, codec: SoundCodec, text_model: TextModel, mel: MelConfig, loudness_db: float | None) -> None:
        self.codec, self.text_model, self.mel, self.loudness_db = codec, text_model, mel, loudness_db
        self.stride = codec.samples_per_position // mel.hop_size
        self.device = text_model.angles.device

    @torch.inference_mode()
    def listen(
        self, samples: Float[Tensor, " S"], spoken: Spoken, where: str, also: tuple[int, int] | None = None
    ) -> Recording:
        """Encode a recording without the silence at its ends, and align it with its text.

        Args:
            samples: at the model's rate, of any level.
            spoken: its text.
            where: what to call it in an error.
            also: samples, from and to, that are encoded even if they are silent.

        Raises:
            DataError: too little speech for the text, or more than the model takes.
        """
        unit, rate = self.codec.samples_per_position, self.codec.sample_rate_hz
        offset, end = sounding_span(samples, rate)
        gain = 1.0 if self.loudness_db is None else loudness_gain(samples[offset:end], rate, self.loudness_db)
        if also is not None:
            offset, end = min(offset, also[0]), max(end, also[1])
        length, most = -(-(end - offset) // unit), self.codec.spec.num_positions
        if length > most:
            raise DataError(
                f"{where} has {(end - offset) / rate:.1f} s of speech, "
                f"the model takes at most {most * unit / rate:.1f} s; cut it into pieces"
            )
        tokens = token_ids(spoken.content)[None].to(self.device)
        if length * self.stride < tokens.shape[1]:
            seconds = (end - offset) / rate
            raise DataError(f"{where} has {seconds:.2f} s of speech, too little for its text {spoken.text!r}")
        sound = self._cut(samples, offset, gain, length)
        codes, _ = self.codec.encode(sound[None], torch.tensor([len(sound)], device=self.device))
        real, frames = torch.ones_like(tokens, dtype=torch.bool), torch.tensor([length * self.stride]).to(self.device)
        hidden = self.text_model(tokens, real)
        mels = self.text_model.normalise(log_mel(sound[None], self.mel), frames)
        durations = self.text_model.match(hidden, real, mels, frames)[0]
        rate_of_speech = pace(self.text_model.log_durations(hidden, real)[0, 1:-1], durations[1:-1])
        return Recording(samples, spoken, codes[0], offset, gain, durations.cpu(), rate_of_speech, where)

    def sound(self, recording: Recording) -> Float[Tensor, " S"]:
        """What of a recording was encoded, as loud as it was then."""
        return self._cut(recording.samples, recording.offset, recording.gain, len(recording.codes))

    def tell_doubt(self, recording: Recording, doubt: Callable[[str], object]) -> None:
        """See `fit.tell_doubt`."""
        sound = self.sound(recording)
        tell_doubt(self.text_model, sound, recording.spoken, self.mel, where=recording.where, doubt=doubt)

    def _cut(self, samples: Float[Tensor, " S"], offset: int, gain: float, count: int) -> Float[Tensor, " R"]:
        """The samples of `count` positions from `offset` on."""
        size = count * self.codec.samples_per_position
        sound = gain * samples[offset : offset + size].to(self.device)
        return torch.nn.functional.pad(sound, (0, size - len(sound)))

    def words(self, recording: Recording) -> list[SpokenWord]:
        """The words of a recording."""
        spoken, frames = recording.spoken, recording.durations.cumsum(0)
        samples = (recording.offset + frames.double() * self.mel.hop_size).clamp(max=len(recording.samples))
        ends = samples / self.codec.sample_rate_hz
        return [
            SpokenWord(word.rstrip(PROSODY) or word, float(ends[begin]), float(ends[end]))
            for word, (begin, end) in zip(spoken.text.split(), _words(spoken.content), strict=True)
        ]

    def stretch(self, recording: Recording, span: slice) -> tuple[float, float]:
        """Seconds between which some words of a recording are spoken; of none, where a word between two would come."""
        rate, words = self.codec.sample_rate_hz, self.words(recording)
        if span.start < span.stop:
            return words[span.start].begin_s, words[span.stop - 1].end_s
        frame, length = self.mel.hop_size / rate, len(recording.samples) / rate
        before = min(words[span.start - 1].end_s, length - frame) if span.start else None
        after = words[span.start].begin_s if span.start < len(words) else None
        if after is None:
            assert before is not None
            return before, before + frame
        return max(0.0, after - frame) if before is None else before, after

    @torch.inference_mode()
    def plan(
        self,
        recording: Recording,
        spoken: Spoken,
        begin_s: float,
        end_s: float,
        span: slice | None = None,
        *,
        speed: float = 1.0,
        keep_length: bool = False,
    ) -> SpeechEditPlan:
        """Say what of a recording is given, and what is spoken in between.

        Args:
            recording: what `listen` returned, with the stretch.
            spoken: words for the stretch.
            begin_s: start of the stretch, in seconds.
            end_s: end of the stretch, in seconds.
            span: words to replace, none if it is empty; those of the stretch by default.
            speed: above 1 is faster than the speaker.
            keep_length: let the new words take as long as the old ones.

        Raises:
            DataError: the new words are too many for the length to be kept, or for the model.
        """
        words = self.words(recording)
        span = _span(words, begin_s, end_s) if span is None else span
        begin, end = self._positions(recording, words[span], begin_s, end_s)
        left, new, right = _new_text(recording.spoken.content, span, spoken.content)
        whole = b"".join(_new_text(recording.spoken.text.encode(), span, spoken.text.encode())).decode()
        tokens = token_ids(left + new + right)[None].to(self.device)
        real = torch.ones_like(tokens, dtype=torch.bool)
        hidden = self.text_model(tokens, real)
        new_tokens = slice(len(left) + 1, len(left) + 1 + len(new))
        exact = self.text_model.log_durations(hidden, real)[0, new_tokens].double().exp().cpu()
        exact = exact / (recording.rate * speed)
        before, after = recording.durations[: len(left) + 1], recording.durations[-len(right) - 1 :].clone()
        # Frames between the text that stays and the stretch; where it reaches into the stretch they are negative, and
        # are spoken again ...
        early = begin * self.stride - int(before.sum())
        late = int(recording.durations.sum() - after.sum()) - end * self.stride
        again = max(0, -early) + max(0, -late)
        count = self._num_new(recording, spoken.text, exact, end - begin, again, keep_length)
        durations = fitted_durations(exact, count * self.stride - again)
        # ... otherwise they are silence between words, and given.
        durations[0] += max(0, early)  # a space: a stretch that begins in silence begins with one
        last_silence = durations[-1:] if new.endswith(b" ") else after[:1]
        last_silence += max(0, late)
        durations = torch.cat([before, durations, after])
        features = expand(hidden.float(), durations[None].to(self.device), int(durations.sum()))[0]
        return SpeechEditPlan(
            recording=recording.samples,
            sample_rate_hz=self.codec.sample_rate_hz,
            words=words,
            span=span,
            text=whole,
            codes=recording.codes,
            offset=recording.offset,
            samples_per_position=self.codec.samples_per_position,
            gain=recording.gain,
            begin=begin,
            end=end,
            num_new=count,
            features=features,
        )

    def _positions(
        self, recording: Recording, replaced: list[SpokenWord], begin_s: float, end_s: float
    ) -> tuple[int, int]:
        """The first position of a stretch that holds the replaced words, and the one after its last."""
        unit, rate = self.codec.samples_per_position, self.codec.sample_rate_hz
        if replaced:
            begin_s, end_s = min(begin_s, replaced[0].begin_s), max(end_s, replaced[-1].end_s)
        begin = max(0, math.floor((round(begin_s * rate) - recording.offset) / unit))
        end = min(len(recording.codes), math.ceil((round(end_s * rate) - recording.offset) / unit))
        return begin, max(begin + 1, end)

    def _num_new(
        self,
        recording: Recording,
        text: str,
        exact: Float[Tensor, " M"],
        num_old: int,
        again: int,
        keep_length: bool,
    ) -> int:
        """Positions that come in the place of `num_old`.

        Args:
            recording: what is edited.
            text: the new words, for errors.
            exact: predicted frames of their tokens.
            num_old: positions of the stretch.
            again: frames of what stays in the text that are spoken again.
            keep_length: take as many.

        Raises:
            DataError: too many for the length to be kept, or for the model.
        """
        seconds = self.codec.samples_per_position / self.codec.sample_rate_hz
        count = num_old if keep_length else round((again + float(exact.sum())) / self.stride)
        least = -(-(again + len(exact)) // self.stride)
        if keep_length and count < least:
            raise DataError(
                f"{text!r} does not fit into {count * seconds:.2f} s; a frame for a letter or phoneme and "
                f"whole positions take {least * seconds:.2f} s; widen the stretch, or leave out keep_length"
            )
        count = max(count, least)
        length, most = len(recording.codes) - num_old + count, self.codec.spec.num_positions
        if length > most:
            raise DataError(
                f"the edited recording would take {length * seconds:.1f} s, the model speaks at most "
                f"{most * seconds:.1f} s at once; use fewer words or a shorter recording"
            )
        return count


class Recording(NamedTuple):
    """A recording with its text and codes.

    Attributes:
        samples: as they were recorded.
        spoken: its text.
        codes: from sample `offset` on.
        offset: what lies before is silence.
        gain: that was applied before encoding.
        durations: frames of each token.
        rate: how much faster than average it is spoken.
        where: what to call it in a message.
    """

    samples: Float[Tensor, " S"]
    spoken: Spoken
    codes: Int[Tensor, "L D"]
    offset: int
    gain: float
    durations: Int[Tensor, " N"]
    rate: float
    where: str


def check_stretch(begin_s: float, end_s: float, duration_s: float) -> None:
    """Reject an interval that is empty or reaches beyond a recording; hundredths of a second may have been rounded up.

    Raises:
        ConfigError: naming the stretch and what is allowed.
    """
    if not 0 <= begin_s < min(end_s, duration_s) or not end_s < duration_s + 0.01:
        raise ConfigError(
            f"the stretch from {begin_s:g} to {end_s:g} s must have 0 <= from < to <= {duration_s:.2f} s, "
            "the recording's length"
        )


def changed_words(old: Spoken, new: Spoken) -> tuple[slice, Spoken]:
    """The words of a text that are replaced if another text is to be said, and the words in their place: all between
    what both texts begin with and what both end with, whatever the punctuation. Where words are only left out, one
    beside them is said again.

    Raises:
        DataError: the words are the same.
    """
    texts, contents = new.text.split(), new.content.split(b" ")
    before, after = ([word.rstrip(PROSODY) or word for word in words] for words in (old.text.split(), texts))
    if before == after:
        raise DataError(f"the text {new.text!r} has the words of the recording; change one, or name a stretch")
    pairs = [one == other for one, other in zip(before, after, strict=False)]
    begin = [*pairs, False].index(False)
    ends = zip(before[begin:][::-1], after[begin:][::-1], strict=False)
    kept = [*(one == other for one, other in ends), False].index(False)
    if begin == len(after) - kept:
        begin, kept = (begin, kept - 1) if kept else (begin - 1, kept)
    part = slice(begin, len(after) - kept)
    replacement = Spoken(" ".join(texts[part]), b" ".join(contents[part]), new.guesses)
    return slice(begin, len(before) - kept), replacement


def check_following(kind: Kind, plan: SpeechEditPlan) -> None:
    """Reject a kind that would ignore the codes kept after the interval.

    Raises:
        ConfigError: it draws positions in order, and the stretch does not reach to the end.
    """
    if plan.end < len(plan.codes) and kind.ordered_levels != 0:
        raise ConfigError(
            f"kind '{kind.name}' draws positions in order and would not heed what follows the stretch: "
            "let it reach to the end of the recording"
        )


@torch.inference_mode()
def results_of(
    plan: SpeechEditPlan, codec: SoundCodec, run: SpeechRun, *, blend: bool, num_samples: int, seed: int
) -> SpeechOutputs[SpeechEdit]:
    """Results of a plan; arguments are those of `SpeechPipeline.edit`."""
    results: SpeechOutputs[SpeechEdit] = SpeechOutputs()
    for new in run.generate([plan.job(seed, number) for number in range(num_samples)]):
        codes = plan.edited(new)
        result = SpeechEdit(
            audio=plan.audio(codec.decode(codes[None])[0].float().cpu(), blend=blend),
            sample_rate_hz=plan.sample_rate_hz,
            codes=codes.cpu(),
            steps=run.steps,
            texts=[plan.text],
            seed=seed,
            plan=plan,
        )
        results.append(result)
    return results


def _words(content: bytes) -> list[tuple[int, int]]:
    """First byte, and the one after the last letter, of every word; punctuation is left out."""
    places, place = [], 0
    for word in content.split(b" "):
        places.append((place, place + (len(word.rstrip(PROSODY.encode())) or len(word))))
        place += len(word) + 1
    return places


def _span(words: list[SpokenWord], begin_s: float, end_s: float) -> slice:
    """The words to be replaced; an empty slice where the new ones come between two."""
    inside = [
        number
        for number, (_, begin, end) in enumerate(words)
        if 2 * (min(end, end_s) - max(begin, begin_s)) >= end - begin or (begin <= begin_s and end_s <= end)
    ]
    if inside:
        return slice(inside[0], inside[-1] + 1)
    place = sum(begin + end < begin_s + end_s for _, begin, end in words)
    return slice(place, place)


def _new_text(content: bytes, span: slice, new: bytes) -> tuple[bytes, bytes, bytes]:
    """What stays before, what is new, what stays after."""
    words = _words(content)
    if span.start < span.stop:
        left, right = content[: words[span.start][0]], content[words[span.stop - 1][1] :]
        marks = PROSODY.encode()
        return left, new.rstrip(marks) if right[:1] in (bytes([mark]) for mark in marks) else new, right
    if span.start == len(words):
        return content, b" " + new, b""
    begin = words[span.start][0]
    return content[: max(0, begin - 1)], (b" " if begin else b"") + new + b" ", content[begin:]
