"""A speech model in a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from resgen.checkpoints.quality import measured
from resgen.checkpoints.speech import load_speech_pipeline
from resgen.checkpoints.voices import DEFAULT_VOICE, choose_voice, sentences_of
from resgen.data.pictures.grid import png_bytes
from resgen.data.sound.decode import encode_sound, pcm_bytes, read_sound, resample
from resgen.data.sound.spectrogram import spectrogram_picture
from resgen.errors import DataError, ResGenError
from resgen.kinds import AnySampling, sampling_with
from resgen.ops.mel import log_mel
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.pipelines.speech.talk import Talk
from resgen.pipelines.speech.trace import SpeechTrace
from resgen.pipelines.speech.utterances import SpeechOutput, Utterance
from resgen.samplers.records import StepRecord
from resgen.serving.batching import UNFINISHED, Ticket, attempt, raise_if_abandoned
from resgen.serving.config import ServerConfig
from resgen.serving.schemas import as_text

SAMPLES = 3
"""Most sentences that show how a model speaks."""
VALUES_PER_SECOND = 192_000
"""Samples times channels of an uploaded sound: 48 kHz in four channels."""


@dataclass(kw_only=True, eq=False)
class SpeechJob:
    """One text to speak.

    Attributes:
        compute: what computes a batch of such jobs.
        text: what to say.
        prompt: the content of a sound file, or None.
        prompt_text: what is said in it.
        prepared: whether the prompt is (see `Voice`).
        speed: above 1 is faster.
        seed: seed of all sentences.
        settings: settings of the sampler, the same for all jobs of a batch.
        check_prompt: whether to look if the prompt's text fits it.
        warnings: what was found there.
        suffix: suffix of the sound file that is the answer; None for JSON.
        rate_hz: the rate of what is told sentence by sentence.
        stepwise: tell every step besides, and a sentence with its text and image.
        talk: how far it has been told.
    """

    compute: Callable[[Sequence[Ticket]], list[Any]]
    text: str
    prompt: memoryview | None
    prompt_text: str | None
    speed: float
    seed: int
    settings: dict[str, Any]
    prepared: bool = False
    check_prompt: bool = False
    warnings: list[str] = field(default_factory=list)
    suffix: str | None = None
    rate_hz: int = 0
    stepwise: bool = False
    talk: Talk | None = None


class ServedSpeech:
    """A speech pipeline and what a server says of it; arguments as in `ServedImages`."""

    modality = "speech"

    def __init__(
        self, name: str, source: str, config: ServerConfig, *, device: str | None = None, dtype: str = "auto"
    ) -> None:
        parts = load_speech_pipeline(source)
        self.name, self.config = name, config
        self.description, self.measured = str(parts.folder.extra.get("description", "")), measured(parts.folder)
        self.sentences = sentences_of(parts.folder)
        self.pipe = SpeechPipeline(parts, device=device, dtype=dtype)
        self.trace, self.sample_rate_hz = SpeechTrace(self.pipe), self.pipe.sample_rate_hz
        encode_sound(torch.zeros(1), self.sample_rate_hz)  # without soundfile it fails here, not at a request

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/models` says of the model."""
        spec = self.pipe.generator.spec
        return {
            "classes": [],
            "image": None,
            "sample_rate_hz": self.sample_rate_hz,
            "voices": [DEFAULT_VOICE, *self.pipe.voices],
            "sentences": self.sentences,
            "positions": spec.num_positions,
            "levels": spec.depth,
            "measured": self.measured,
            "defaults": dataclasses.asdict(self.pipe.sampling),
        }

    def spoken(
        self,
        text: str,
        *,
        prompt: memoryview | None = None,
        prompt_text: str | None = None,
        voice: str | None = None,
        check_prompt: bool = False,
        speed: float,
        seed: int,
        settings: dict[str, Any],
    ) -> tuple[tuple[Any, ...], SpeechJob]:
        """The key and job of a text.

        Raises:
            ConfigError: a setting out of range, an unknown voice, or a voice and a prompt.
            DataError: only one of a prompt and its text. What is wrong with them is found in the worker.
        """
        prompt, prompt_text, prepared = choose_voice(voice, prompt, prompt_text, self.pipe.voices)
        if (prompt is None) != (not prompt_text):
            raise DataError("a prompt needs its text and the text its prompt: give prompt and prompt_text, or neither")
        sampling: AnySampling = sampling_with(self.pipe.sampling, settings)
        job = SpeechJob(
            compute=self._speak,
            text=text,
            prompt=None if prompt is None else memoryview(prompt),
            prompt_text=prompt_text,
            speed=speed,
            seed=seed,
            settings=settings,
            prepared=prepared,
            check_prompt=check_prompt and voice is None,
        )
        return (self.name, sampling), job

    def told(self, key: tuple[Any, ...], job: SpeechJob, rate_hz: int | None) -> tuple[tuple[Any, ...], SpeechJob]:
        """Key and job of the same text sentence by sentence, as samples of 16 bits.

        Args:
            key: from `spoken`.
            job: likewise.
            rate_hz: rate of the samples; the model's own if left out.
        """
        return (*key, "told"), replace(job, compute=self._tell, rate_hz=rate_hz or self.sample_rate_hz)

    def stepwise(self, key: tuple[Any, ...], job: SpeechJob) -> tuple[tuple[Any, ...], SpeechJob]:
        """Key and job of the same text step by step; it shares no batch, since its steps are its own."""
        key, job = self.told(key, job, None)
        return (*key, object()), replace(job, stepwise=True)

    def voices(self) -> list[dict[str, Any]]:
        """Its named voices: what is said in them, and their sound."""
        voices = self.pipe.voices.items()
        return [{"name": name, "text": voice.text, "flac": as_text(voice.content)} for name, voice in voices]

    def samples(self) -> list[tuple[str, tuple[Any, ...], SpeechJob]]:
        """Voice, key and job of sentences that show how the model speaks: in its own voice and in two of its others,
        with its own settings and seed 0."""
        voices = [DEFAULT_VOICE, *self.pipe.voices][: len(self.sentences[:SAMPLES])]
        spoken = zip(voices, self.sentences, strict=False)
        return [(voice, *self.spoken(text, voice=voice, speed=1.0, seed=0, settings={})) for voice, text in spoken]

    def answer(self, job: SpeechJob, output: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer, without its time."""
        return {"model": self.name, "seed": job.seed, **output}

    def sound(self, content: memoryview, where: str) -> Tensor:
        """Samples of an upload at the model's rate; called in the worker.

        Raises:
            DataError: no sound, or one that is too long.
        """
        longest = self.config.max_sound_s
        return read_sound(
            content,
            self.sample_rate_hz,
            where=where,
            max_seconds=longest,
            max_values=round(longest * VALUES_PER_SECOND),
        )

    def spectrogram(self, audio: Tensor) -> str:
        """The image of samples at the model's rate."""
        mel = log_mel(audio[None].to(self.pipe.device), self.pipe.mel)[0]
        return as_text(png_bytes(spectrogram_picture(mel, scale=2)))

    def step(self, record: StepRecord, codes: Tensor, visible: Tensor) -> dict[str, Any]:
        """How far a sequence is: the levels that are known, and the spectrogram of what they decode to."""
        visible = visible.cpu()
        mel = self.trace.mel(codes.cpu(), visible)
        return {
            "event": "step",
            "step": record.step,
            "num_steps": record.num_steps,
            "visible": visible.tolist(),
            "spectrogram": None if mel is None else as_text(png_bytes(spectrogram_picture(mel, scale=2))),
        }

    def _tell(self, tickets: Sequence[Ticket]) -> list[Any]:
        """The next sentence of every job."""
        raise_if_abandoned(tickets)
        outcomes = [attempt(self._begun, ticket) for ticket in tickets]
        ready = [number for number, talk in enumerate(outcomes) if isinstance(talk, Talk)]
        if ready:
            talks = [outcomes[number] for number in ready]
            stepwise = tickets[0].payload.stepwise  # then it is the only one

            def watch(record: StepRecord, codes: Tensor, visible: Tensor) -> None:
                raise_if_abandoned(tickets)
                if stepwise:
                    talk = talks[0]
                    given = len(talk.job.codes)  # the prompt
                    about = {"sentence": talk.number, "sentences": len(talk.utterance.sentences)}
                    tickets[0].tell({**self.step(record, codes[0, given:], visible[0, given:]), **about})

            sampling = sampling_with(self.pipe.sampling, tickets[0].payload.settings)
            codes, steps = self.pipe.next_codes(talks, sampling, watch)
            for number, own in zip(ready, codes, strict=True):
                outcomes[number] = attempt(self._tell_one, tickets[number], outcomes[number], own, steps)
        return outcomes

    def _begun(self, ticket: Ticket) -> Talk:
        job: SpeechJob = ticket.payload
        if job.talk is None:
            job.talk = Talk(self.pipe.speaker, self._prepared(job))
            if job.stepwise and job.warnings:
                ticket.tell({"event": "warning", "warnings": job.warnings})
        return job.talk

    def _tell_one(self, ticket: Ticket, talk: Talk, codes: Tensor, steps: list[StepRecord]) -> Any:
        number = talk.number
        output = talk.spoken(codes, steps)
        pcm = pcm_bytes(resample(output.audio, output.sample_rate_hz, ticket.payload.rate_hz))
        if ticket.payload.stepwise:
            about = {
                "event": "sound",
                "sentence": number,
                "text": " ".join(output.texts),
                "duration_s": output.duration_s,
            }
            ticket.tell({**about, "pcm": as_text(pcm), "spectrogram": self.spectrogram(output.audio)})
        else:
            ticket.tell(pcm)
        return None if talk.is_over else UNFINISHED

    def _speak(self, tickets: Sequence[Ticket]) -> list[Any]:
        """The whole sound of every job, or the reason why there is none."""
        outcomes: list[Any] = []
        for ticket in tickets:
            raise_if_abandoned(tickets)
            outcomes.append(attempt(self._prepared, ticket.payload))
        ready = [number for number, one in enumerate(outcomes) if isinstance(one, Utterance)]
        outputs = self._outputs(tickets, [outcomes[number] for number in ready])
        for number, output in zip(ready, outputs, strict=True):
            job = tickets[number].payload
            outcomes[number] = attempt(self._content, job, output) if isinstance(output, SpeechOutput) else output
        return outcomes

    def _prepared(self, job: SpeechJob) -> Utterance:
        prompt = None
        if job.prompt is not None:
            doubt = job.warnings.append if job.check_prompt else None
            sound = self.sound(job.prompt, "the prompt")
            prompt = self.pipe.prepare(sound, job.prompt_text, doubt, prepared=job.prepared)
        return Utterance(self.pipe.sentences(job.text), prompt, speed=job.speed, seed=job.seed)

    def _outputs(self, tickets: Sequence[Ticket], utterances: list[Any]) -> list[Any]:
        """One result for each utterance. A text that turns out to be too long would end its batch, so that then each is
        tried on its own."""
        if not utterances:
            return []
        try:
            return self.pipe.speak(
                utterances,
                batch_size=self.config.max_batch,
                callback=lambda *_: raise_if_abandoned(tickets),
                **tickets[0].payload.settings,
            )
        except ResGenError as error:
            if len(utterances) == 1:
                return [error]
            return [outcome for one in utterances for outcome in self._outputs(tickets, [one])]

    def _content(self, job: SpeechJob, result: SpeechOutput) -> Any:
        """A sound file, or sound and image for JSON."""
        if job.suffix is not None:
            return encode_sound(result.audio, result.sample_rate_hz, job.suffix)
        return {
            "sample_rate_hz": result.sample_rate_hz,
            "duration_s": result.duration_s,
            "wav": as_text(encode_sound(result.audio, result.sample_rate_hz)),
            "spectrogram": self.spectrogram(result.audio),
            "warnings": job.warnings,
        }
