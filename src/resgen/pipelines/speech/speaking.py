"""Shared by speaking and editing: the generator over sequences of speech, and a speaker's pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from resgen.kinds import AnySampling, sample
from resgen.models.base import CodeModel
from resgen.pipelines.speech.utterances import Job
from resgen.samplers.records import StepCallback, StepRecord
from resgen.types import SequenceCondition

RATES = (0.6, 1.6)


@runtime_checkable
class BatchCallback(Protocol):
    """A sampler's callback that also receives every batch before its first step."""

    def begin_batch(self, lengths: Sequence[int]) -> None:
        """A batch of sequences of so many positions follows; what is beyond them is padding."""
        ...


class SpeechRun:
    """The generator over jobs.

    Args:
        model: the generator.
        sampling: its settings.
        batch_size: jobs per network evaluation.
        callback: callback of the sampler; a `BatchCallback` also receives the batches.
    """

    def __init__(self, model: CodeModel, sampling: AnySampling, batch_size: int, callback: StepCallback | None) -> None:
        self.model, self.sampling, self.batch_size, self.callback = model, sampling, batch_size, callback
        self.steps: list[StepRecord] = []

    def generate(self, jobs: Sequence[Job]) -> list[Int[Tensor, "L D"]]:
        """Codes of every job, without those that were given.

        Raises:
            RuntimeError: the sampler has altered given codes, a defect.
        """
        order = sorted(range(len(jobs)), key=lambda number: len(jobs[number].features))
        by_job: dict[int, Tensor] = {}
        for begin in range(0, len(order), self.batch_size):
            part = order[begin : begin + self.batch_size]
            for number, codes in zip(part, self._batch([jobs[number] for number in part]), strict=True):
                by_job[number] = codes
        return [by_job[number] for number in range(len(jobs))]

    def _batch(self, jobs: list[Job]) -> list[Tensor]:
        model, device = self.model, self.model.codebooks.device
        lengths = [len(job.features) // int(model.config.feature_stride) for job in jobs]
        prompts = [len(job.codes) for job in jobs]
        sequence = SequenceCondition.of(lengths, prompts, [job.features for job in jobs])
        codes = torch.stack([F.pad(job.codes, (0, 0, 0, max(lengths) - len(job.codes))) for job in jobs])
        fixed = sequence.prompt.clone()
        for row, (job, length) in enumerate(zip(jobs, lengths, strict=True)):
            if job.after is not None:
                codes[row, length - len(job.after) : length] = job.after
                fixed[row, length - len(job.after) : length] = True
        if isinstance(self.callback, BatchCallback):
            self.callback.begin_batch(lengths)
        samples = sample(
            model,
            torch.zeros(len(jobs), dtype=torch.int64, device=device),
            seed=[job.seed for job in jobs],
            indices=[job.stream for job in jobs],
            sampling=self.sampling,
            start=(codes, torch.where(fixed, model.spec.depth, 0)),
            sequence=replace(sequence, prompt=fixed),
            callback=self.callback,
        )
        if not torch.equal(samples.codes[fixed], codes[fixed]):
            raise RuntimeError("the sampler has altered codes that were given")
        self.steps += samples.steps
        ends = [length - job.num_after for length, job in zip(lengths, jobs, strict=True)]
        return [row[begin:end] for row, begin, end in zip(samples.codes, prompts, ends, strict=True)]


def pace(log_durations: Float[Tensor, " N"], durations: Int[Tensor, " N"]) -> float:
    """How much faster than the text model predicts somebody speaks, within `RATES`.

    Args:
        log_durations: natural logarithm of the predicted frames of each letter.
        durations: its frames in a recording.
    """
    rate = float(log_durations.exp().sum() / durations.sum())
    return min(max(rate, RATES[0]), RATES[1])
