"""Replacing words of a recording, in a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from resgen.data.sound.decode import encode_sound, pcm_bytes
from resgen.kinds import AnySampling, sampling_with
from resgen.pipelines.speech.edit import SpeechEdit, SpeechEditPlan, results_of
from resgen.pipelines.speech.speaking import SpeechRun
from resgen.samplers.records import StepRecord
from resgen.serving.batching import Ticket, attempt, raise_if_abandoned
from resgen.serving.schemas import as_text
from resgen.serving.speech.model import ServedSpeech


@dataclass(frozen=True, kw_only=True, eq=False)
class SpeechEditJob:
    """One recording to edit.

    Attributes:
        compute: what computes it.
        recording: the content of a sound file.
        change: the other arguments of `SpeechPipeline.plan_edit`.
        sampling: the generator's sampling settings.
        blend: take the samples outside the change from the recording.
        seed: seed of the new words.
        check_input: whether to look if the recording's text fits it.
        warnings: what was found there.
        suffix: suffix of the sound file that is the answer; None for JSON.
        stepwise: tell the plan, every step and the sound; there is no other answer then.
    """

    compute: Callable[[Sequence[Ticket]], list[Any]]
    recording: memoryview
    change: dict[str, Any]
    sampling: AnySampling
    blend: bool
    seed: int
    check_input: bool = False
    warnings: list[str] = field(default_factory=list)
    suffix: str | None = None
    stepwise: bool = False


class SpeechEdits:
    """What a speech model that is served does with recordings.

    Args:
        model: the model.
    """

    def __init__(self, model: ServedSpeech) -> None:
        self.model, self.pipe = model, model.pipe
        self.name, self.sample_rate_hz = model.name, model.sample_rate_hz

    def job(
        self,
        recording: memoryview,
        change: dict[str, Any],
        *,
        blend: bool,
        seed: int,
        settings: dict[str, Any],
        check_input: bool = False,
    ) -> tuple[tuple[Any, ...], SpeechEditJob]:
        """The key and job of an edit; it shares no batch, since what is given of each is of another length.

        Raises:
            ConfigError: a setting out of range. What is wrong with recording and texts is found in the worker.
        """
        sampling = sampling_with(self.pipe.sampling, settings)
        job = SpeechEditJob(
            compute=lambda tickets: [attempt(self._edit, ticket) for ticket in tickets],
            recording=recording,
            change=change,
            sampling=sampling,
            blend=blend,
            seed=seed,
            check_input=check_input,
        )
        return (self.name, object()), job

    def answer(self, job: SpeechEditJob, output: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer, without its time."""
        return {"model": self.name, "seed": job.seed, **output}

    def _edit(self, ticket: Ticket) -> Any:
        raise_if_abandoned([ticket])
        job: SpeechEditJob = ticket.payload
        doubt = job.warnings.append if job.check_input else None
        plan = self.pipe.plan_edit(self.model.sound(job.recording, "the recording"), **job.change, doubt=doubt)
        if job.stepwise:
            if job.warnings:
                ticket.tell({"event": "warning", "warnings": job.warnings})
            ticket.tell({"event": "plan", **_said(plan), **self._before(plan)})

        def watch(record: StepRecord, codes: Tensor, visible: Tensor) -> None:
            raise_if_abandoned([ticket])
            if job.stepwise:
                ticket.tell(self.model.step(record, codes[0], visible[0]))

        run = SpeechRun(self.pipe.generator, job.sampling, 1, watch)
        (result,) = results_of(plan, self.pipe.codec, run, blend=job.blend, num_samples=1, seed=job.seed)
        if job.suffix is not None:
            return encode_sound(result.audio, result.sample_rate_hz, job.suffix)
        made = {"duration_s": result.duration_s, "spectrogram": self.model.spectrogram(result.audio)}
        if job.stepwise:
            pcm = as_text(pcm_bytes(result.audio))
            return ticket.tell({"event": "sound", "text": plan.text, "pcm": pcm, **made})
        return self._content(result) | made | {"warnings": job.warnings}

    def _before(self, plan: SpeechEditPlan) -> dict[str, Any]:
        """The recording, and the positions of the result that are new."""
        return {
            "new_positions": [plan.begin, plan.begin + plan.num_new],
            "duration_s": len(plan.recording) / plan.sample_rate_hz,
            "spectrogram": self.model.spectrogram(plan.recording),
        }

    def _content(self, result: SpeechEdit) -> dict[str, Any]:
        wav = as_text(encode_sound(result.audio, result.sample_rate_hz))
        return {"sample_rate_hz": result.sample_rate_hz, "wav": wav, **_said(result.plan)}


def _said(plan: SpeechEditPlan) -> dict[str, Any]:
    """What is said, and where it changes."""
    begin_s, end_s = plan.cut_s
    new_s = plan.num_new * plan.samples_per_position / plan.sample_rate_hz
    return {
        "text": plan.text,
        "replaced": " ".join(word.text for word in plan.replaced),
        "words": [word._asdict() for word in plan.words],
        "replaced_words": [plan.span.start, plan.span.stop],
        "new_words": [plan.new_words.start, plan.new_words.stop],
        "begin_s": begin_s,
        "end_s": end_s,
        "new_end_s": end_s if plan.num_new == plan.end - plan.begin else begin_s + new_s,
    }
