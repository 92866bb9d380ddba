"""Generated speech under a protocol: what is understood, whose voice it is, how long it took (Sec. 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.config import config_to_dict
from resgen.data.sound.decode import resample
from resgen.errors import DataError
from resgen.evaluation.report import markdown_table, plain
from resgen.evaluation.speech.folders import SoundJudge
from resgen.evaluation.speech.metrics import (
    NORMALISER,
    Rate,
    centroids,
    error_rates,
    mean_interval,
    nearest_speaker,
    similarity,
)
from resgen.evaluation.speech.speakers import SpeakerEncoder
from resgen.evaluation.speech.transcribers import Transcriber
from resgen.progress import Advance, no_progress

T = TypeVar("T")


class Sound(NamedTuple):
    """Samples in [-1, 1] and their rate."""

    samples: Float[Tensor, " S"]
    sample_rate_hz: int


class Trial(NamedTuple):
    """One text to be spoken in the voice of a prompt.

    Attributes:
        text: what is to be said, without the prompt's text.
        prompt: a recording of the speaker; in continuation the beginning of `truth`.
        prompt_text: what is said in it.
        truth: a recording of the text by the speaker, in continuation without the prompt.
        speaker: who it is.
    """

    text: str
    prompt: Sound
    prompt_text: str
    truth: Sound
    speaker: str


class SpeechSample(NamedTuple):
    """The result of a trial.

    Attributes:
        generated: the model's speech, without the prompt.
        passes: network evaluations.
        seconds: seconds of speaking: prompt, text, generator and decoder.
    """

    generated: Sound
    passes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SpeechProtocol:
    """Everything that the numbers depend on.

    Attributes:
        task: `cross-sentence` or `continuation`.
        data: name of the recordings.
        split: which of them.
        data_sha256: SHA-256 of their content.
        num_trials: utterances spoken, per seed.
        seeds: seeds of the generator.
        sampling: settings.
        transcriber: name, version and hash of what understood the speech.
        speaker_encoder: name, version and hash of what compared the voices.
        candidates: speakers that the prompt's speaker was told from.
        normaliser: normaliser of texts and transcripts.
        model_sha256: SHA-256 of the model.
    """

    task: str
    data: str
    split: str
    data_sha256: str
    num_trials: int
    seeds: tuple[int, ...]
    sampling: dict[str, Any]
    transcriber: dict[str, str]
    speaker_encoder: dict[str, str]
    candidates: tuple[str, ...]
    model_sha256: str
    normaliser: str = NORMALISER


@dataclass(frozen=True, kw_only=True)
class SpeechScores:
    """Measures of one kind of speech; rates and similarities with 95 % intervals over the utterances.

    Attributes:
        name: `generated`, `recordings` or `tokenizer` (the recordings after encoding and decoding).
        wer: word error rate.
        cer: character error rate.
        exact: share of utterances without an error.
        sim_o: similarity to the prompt as it was recorded.
        sim_r: similarity to the prompt after it went through the tokenizer.
        nearest: share of utterances whose nearest candidate is the prompt's speaker.
    """

    name: str
    wer: Rate
    cer: Rate
    exact: float
    sim_o: Rate
    sim_r: Rate
    nearest: Rate


@dataclass(frozen=True, kw_only=True)
class SpeechReport:
    """Scores of generated speech, beside those of the recordings and of the tokenizer's copies.

    Attributes:
        protocol: what was measured, and with what.
        model: name or folder.
        scores: the three kinds.
        by_speaker: word error rate of each speaker's generated utterances.
        real_time_factor: seconds of speaking per second of generated speech; copies and judges are not in it.
        passes: network evaluations per utterance.
        command: that made the report.
        transcripts: (speaker, text, what was understood) of the generated utterances.
    """

    protocol: SpeechProtocol
    model: str
    scores: list[SpeechScores]
    by_speaker: dict[str, float]
    real_time_factor: float
    passes: float
    command: str
    transcripts: list[tuple[str, str, str]]

    def document(self) -> dict[str, Any]:
        """Rates have their interval by name."""
        document = config_to_dict(self)
        for row, scores in zip(document["scores"], self.scores, strict=True):
            for name, value in vars(scores).items():
                if isinstance(value, Rate):
                    row[name] = value.document()
        return document

    def markdown(self) -> str:
        """Scores, WER by speaker, protocol, command."""
        protocol = self.protocol
        names = ("speech", "WER", "CER", "without error", "SIM-o", "SIM-r", "nearest speaker is the prompt's")
        rows = []
        for row in self.scores:
            rates = [row.wer.percent(), row.cer.percent(), f"{row.exact:.1%}"]
            alike = [f"{rate.value:.3f}" for rate in (row.sim_o, row.sim_r)]
            rows.append([row.name, *rates, *alike, row.nearest.percent()])
        speakers = [[name, f"{value:.1%}"] for name, value in self.by_speaker.items()]
        settings = [[name, plain(value)] for name, value in config_to_dict(protocol).items() if name != "candidates"]
        parts = [
            f"# Speech of {self.model}: {protocol.task}",
            markdown_table(names, rows),
            "In brackets: 95 % confidence intervals, bootstrapped over the utterances. "
            f"{protocol.num_trials} utterances per seed ({', '.join(map(str, protocol.seeds))}), {self.passes:.0f} "
            "network passes per utterance. "
            f"The real-time factor is {self.real_time_factor:.2f}, for synthesis alone.",
            f"The rows `recordings` and `tokenizer` are the scores of `{protocol.transcriber['name']}` and "
            f"`{protocol.speaker_encoder['name']}` on the original recordings and on their reconstructions: the "
            f"generator has no part in these errors. {len(protocol.candidates)} candidate speakers.",
            markdown_table(("speaker", "WER of generated speech"), speakers),
            "## Protocol",
            markdown_table(("setting", "value"), settings),
            f"```\n{self.command}\n```\n",
        ]
        return "\n\n".join(parts)


def evaluate_speech(
    trials: Sequence[Trial],
    speak: Callable[[Trial, int, int], SpeechSample],
    copy: Callable[[Sound], Sound],
    candidates: Mapping[str, Sequence[Sound]],
    *,
    transcriber: Transcriber,
    encoder: SpeakerEncoder,
    protocol: SpeechProtocol,
    model: str,
    command: str,
    advance: Advance = no_progress,
) -> SpeechReport:
    """Speak all trials with every seed and score them. Recordings and their copies, the same for all seeds, are scored
    once.

    Args:
        trials: what to say in whose voice.
        speak: `(trial, seed, number)` to speech.
        copy: a sound after it went through the tokenizer.
        candidates: recordings of the speakers to choose from, by name; the trials' speakers among them.
        transcriber: understands the speech.
        encoder: compares voices.
        protocol: protocol of this evaluation.
        model: name or folder.
        command: that asked for it.
        advance: called after every utterance with (done, total, title).

    Raises:
        DataError: no trials, or a speaker who is not a candidate.
    """
    if not trials:
        raise DataError("there is nothing to say: no trials")
    names = sorted(candidates)
    for trial in trials:
        if trial.speaker not in candidates:
            raise DataError(f"speaker '{trial.speaker}' is not among the candidates")
    runs = [(trial, seed, number) for seed in protocol.seeds for number, trial in enumerate(trials)]
    samples = [speak(*run) for run in _with_progress(runs, "speaking", advance)]
    copies = [(copy(trial.truth), copy(trial.prompt)) for trial in _with_progress(trials, "copying", advance)]
    references = _References(
        texts=[trial.text for trial in trials],
        prompts=torch.stack([_embed(encoder, trial.prompt) for trial in trials]),
        prompt_copies=torch.stack([_embed(encoder, prompt) for _, prompt in copies]),
        speakers=torch.tensor([names.index(trial.speaker) for trial in trials]),
        voices=candidate_voices(candidates, names, encoder, advance),
    )
    speech = {
        "generated": [one.generated for one in samples],
        "recordings": [trial.truth for trial in trials],
        "tokenizer": [truth for truth, _ in copies],
    }
    heard = {
        name: [
            (transcriber(_at(sound, transcriber.sample_rate_hz)), _embed(encoder, sound))
            for sound in _with_progress(sounds, f"listening to {name}", advance)
        ]
        for name, sounds in speech.items()
    }
    rows = [
        (trial.speaker, trial.text, transcript)
        for (trial, _, _), (transcript, _) in zip(runs, heard["generated"], strict=True)
    ]
    duration = sum(len(one.generated.samples) / one.generated.sample_rate_hz for one in samples)
    return SpeechReport(
        protocol=protocol,
        model=model,
        scores=[references.scores(name, answers) for name, answers in heard.items()],
        by_speaker=_errors_by_speaker(rows),
        real_time_factor=sum(one.seconds for one in samples) / duration,
        passes=sum(one.passes for one in samples) / len(samples),
        command=command,
        transcripts=rows,
    )


class _References(NamedTuple):
    """What speech is compared with: texts and voices of the N trials.

    Attributes:
        texts: what should be understood.
        prompts: voices of the prompts.
        prompt_copies: those of the prompts after they went through the tokenizer.
        speakers: places of the prompts' speakers among the candidates.
        voices: the candidates.
    """

    texts: list[str]
    prompts: Float[Tensor, "N E"]
    prompt_copies: Float[Tensor, "N E"]
    speakers: Int[Tensor, " N"]
    voices: Float[Tensor, "P E"]

    def scores(self, name: str, heard: Sequence[tuple[str, Float[Tensor, " E"]]]) -> SpeechScores:
        """Scores of transcripts and voices of all trials, once or several times over."""
        times, embeddings = len(heard) // len(self.texts), torch.stack([voice for _, voice in heard])
        errors = error_rates(self.texts * times, [transcript for transcript, _ in heard])
        return SpeechScores(
            name=name,
            wer=errors.words,
            cer=errors.characters,
            exact=errors.exact,
            sim_o=mean_interval(similarity(embeddings, self.prompts.repeat(times, 1))),
            sim_r=mean_interval(similarity(embeddings, self.prompt_copies.repeat(times, 1))),
            nearest=mean_interval(nearest_speaker(embeddings, self.speakers.repeat(times), self.voices).float()),
        )


def _with_progress(items: Sequence[T], title: str, advance: Advance) -> Iterator[T]:
    """The items; `advance` is called after each."""
    for number, item in enumerate(items, 1):
        yield item
        advance(number, len(items), title)


def _errors_by_speaker(rows: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """Word error rate of the rows (speaker, text, transcript) of each speaker."""
    rates = {}
    for name in sorted({speaker for speaker, _, _ in rows}):
        _, texts, transcripts = zip(*(row for row in rows if row[0] == name), strict=True)
        rates[name] = error_rates(texts, transcripts).words.value
    return rates


def about_judge(judge: SoundJudge) -> dict[str, str]:
    """What a protocol says of a recogniser or speaker encoder."""
    return {"name": judge.name, "version": judge.version, "sha256": judge.sha256}


def candidate_voices(
    candidates: Mapping[str, Sequence[Sound]],
    names: Sequence[str],
    encoder: SpeakerEncoder,
    advance: Advance,
) -> Float[Tensor, "P E"]:
    """The mean voice of each candidate, in the order of `names`."""
    embeddings, owners = [], []
    total = sum(len(candidates[name]) for name in names)
    for number, name in enumerate(names):
        for sound in candidates[name]:
            embeddings.append(_embed(encoder, sound))
            owners.append(number)
            advance(len(owners), total, "candidate voices")
    speakers: Int[Tensor, " N"] = torch.tensor(owners)
    return centroids(torch.stack(embeddings), speakers, len(names))


def _embed(encoder: SpeakerEncoder, sound: Sound) -> Float[Tensor, " E"]:
    return encoder(_at(sound, encoder.sample_rate_hz))


def _at(sound: Sound, sample_rate_hz: int) -> Float[Tensor, " S"]:
    if sound.sample_rate_hz == sample_rate_hz:
        return sound.samples
    return resample(sound.samples, sound.sample_rate_hz, sample_rate_hz)
