"""A speech model behind a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from resgen.checkpoints.speech import load_speech_pipeline
from resgen.data.pictures.grid import png_bytes
from resgen.data.sound.decode import encode_sound, read_sound
from resgen.data.sound.spectrogram import spectrogram_picture
from resgen.errors import DataError, ResGenError
from resgen.kinds import AnySampling, sampling_with
from resgen.ops.mel import log_mel
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.pipelines.speech.utterances import SpeechOutput, Utterance
from resgen.serving.batching import Ticket, raise_if_abandoned
from resgen.serving.config import ServerConfig
from resgen.serving.schemas import as_text

VALUES_PER_SECOND = 192_000
"""Samples times channels of an uploaded sound: 48 kHz in four channels."""


class SpeechJob(NamedTuple):
    """One text to speak.

    Attributes:
        compute: what computes a batch of such jobs.
        text: what to say.
        prompt: the content of a sound file, or None.
        prompt_text: what is said in it.
        speed: above 1 is faster.
        seed: of all sentences.
        settings: of the sampler, the same for all jobs of a batch.
    """

    compute: Callable[[Sequence[Ticket]], list[Any]]
    text: str
    prompt: memoryview | None
    prompt_text: str | None
    speed: float
    seed: int
    settings: dict[str, Any]


class ServedSpeech:
    """A speech pipeline and what a server says of it; arguments as of `ServedImages`."""

    kind = "speech"

    def __init__(
        self, name: str, source: str, config: ServerConfig, *, device: str | None = None, dtype: str = "auto"
    ) -> None:
        parts = load_speech_pipeline(source)
        self.name, self.config = name, config
        self.description = str(parts.folder.extra.get("description", ""))
        self.pipe = SpeechPipeline(parts, device=device, dtype=dtype)
        encode_sound(torch.zeros(1), self.pipe.sample_rate_hz)  # without soundfile it fails here, not at a request

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/models` says of the model."""
        spec = self.pipe.generator.spec
        return {
            "classes": [],
            "image": None,
            "sample_rate_hz": self.pipe.sample_rate_hz,
            "positions": spec.num_positions,
            "levels": spec.depth,
            "defaults": dataclasses.asdict(self.pipe.sampling),
        }

    def spoken(
        self,
        text: str,
        *,
        prompt: memoryview | None,
        prompt_text: str | None,
        speed: float,
        seed: int,
        settings: dict[str, Any],
    ) -> tuple[tuple[Any, ...], SpeechJob]:
        """The key and job of a text.

        Raises:
            ConfigError: a setting out of range.
            DataError: only one of a prompt and its text. What is wrong with them is found in the worker.
        """
        if (prompt is None) != (not prompt_text):
            raise DataError("a prompt needs its text and the text its prompt: give prompt and prompt_text, or neither")
        sampling: AnySampling = sampling_with(self.pipe.sampling, settings)
        job = SpeechJob(self._speak, text, prompt, prompt_text, speed, seed, settings)
        return (self.name, "speech", sampling), job

    def answer(self, job: SpeechJob, output: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer, without its time."""
        return {"model": self.name, "seed": job.seed, **output}

    def _speak(self, tickets: Sequence[Ticket]) -> list[Any]:
        """Sound and picture of every job, or the reason why there are none."""
        requests: list[Utterance | ResGenError] = []
        for ticket in tickets:
            raise_if_abandoned(tickets)
            try:
                requests.append(self._prepared(ticket.payload))
            except ResGenError as error:
                requests.append(error)
        ready = [number for number, one in enumerate(requests) if isinstance(one, Utterance)]
        outcomes: list[Any] = list(requests)
        for number, outcome in zip(ready, self._outputs(tickets, [requests[n] for n in ready]), strict=True):
            outcomes[number] = outcome
        return outcomes

    def _prepared(self, job: SpeechJob) -> Utterance:
        prompt = None
        if job.prompt is not None:
            longest = self.config.max_sound_s
            sound = read_sound(
                job.prompt,
                self.pipe.sample_rate_hz,
                where="the prompt",
                max_seconds=longest,
                max_values=round(longest * VALUES_PER_SECOND),
            )
            prompt = self.pipe.prepare(sound, job.prompt_text)
        return Utterance(self.pipe.sentences(job.text), prompt, speed=job.speed, seed=job.seed)

    def _outputs(self, tickets: Sequence[Ticket], utterances: list[Any]) -> list[Any]:
        """One result for each utterance. A text that turns out to be too long would end its batch, so that then each is
        tried on its own."""
        if not utterances:
            return []
        settings = tickets[0].payload.settings
        try:
            outputs = self.pipe.speak(
                utterances,
                batch_size=self.config.max_batch,
                callback=lambda *_: raise_if_abandoned(tickets),
                **settings,
            )
        except ResGenError as error:
            if len(utterances) == 1:
                return [error]
            return [outcome for one in utterances for outcome in self._outputs(tickets, [one])]
        return [self._output(one) for one in outputs]

    def _output(self, result: SpeechOutput) -> dict[str, Any]:
        mel = log_mel(result.audio[None].to(self.pipe.device), self.pipe.mel)[0]
        return {
            "sample_rate_hz": result.sample_rate_hz,
            "duration_s": result.duration_s,
            "wav": as_text(encode_sound(result.audio, result.sample_rate_hz)),
            "spectrogram": as_text(png_bytes(spectrogram_picture(mel, scale=2))),
        }
