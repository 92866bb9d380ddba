"""A text that is spoken sentence by sentence."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from resgen.pipelines.speech.speaker import Speaker
from resgen.pipelines.speech.utterances import Job, SpeechOutput, Utterance
from resgen.samplers.records import StepRecord


class Talk:
    """A text and how far it has been spoken; `SpeechPipeline.next_codes` takes several of them one sentence further.

    Args:
        speaker: prepares and decodes its sentences.
        utterance: the text.

    Raises:
        DataError: the first sentence takes longer than the model speaks at once.
    """

    @torch.inference_mode()
    def __init__(self, speaker: Speaker, utterance: Utterance) -> None:
        self.speaker, self.utterance = speaker, utterance
        self._jobs, self._number = [speaker.first(utterance)], 0

    @property
    def is_over(self) -> bool:
        """Whether the whole text has been spoken."""
        return self._number == len(self.utterance.sentences)

    @property
    def number(self) -> int:
        """Of the next sentence, from 0."""
        return self._number

    @property
    def job(self) -> Job:
        """The generator's input for the next sentence."""
        return self._jobs[self._number]

    @torch.inference_mode()
    def spoken(self, codes: Int[Tensor, "L D"], steps: list[StepRecord]) -> SpeechOutput:
        """The sound of the next sentence.

        Args:
            codes: codes of the sentence.
            steps: that made them.

        Raises:
            DataError: a later sentence takes longer than the model speaks at once; told with the first one.
        """
        output = self.speaker.output([(self.job, codes)], steps, self.utterance, self._number)
        if not self._number:
            self._jobs += self.speaker.rest(self.utterance, codes)
        self._number += 1
        return output
