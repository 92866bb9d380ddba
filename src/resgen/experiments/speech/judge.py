"""Evaluation of a speech pipeline by a recogniser and a speaker encoder, on recordings of speakers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from resgen.config import config_to_dict
from resgen.data.announce import announce
from resgen.data.sound.sources import SpeechSource, available_splits, open_speech
from resgen.data.splits import known_split
from resgen.devices import dtype_name
from resgen.errors import ConfigError, DataError, unknown
from resgen.evaluation.image.evaluate import folder_sha256
from resgen.evaluation.speech.evaluate import (
    Sound,
    SpeechProtocol,
    SpeechReport,
    SpeechSample,
    Trial,
    about_judge,
    evaluate_speech,
)
from resgen.evaluation.speech.speakers import open_speaker_encoder
from resgen.evaluation.speech.transcribers import check_vocabulary, open_transcriber
from resgen.kinds import sampling_with
from resgen.pipelines.speech.pipeline import TASKS, SpeechPipeline
from resgen.progress import Advance, no_progress

DIGIT_RECOGNIZER, SPEAKER_ENCODER = "digit-recognizer", "speaker-encoder"
PER_CANDIDATE = 8
MIN_PROMPT_S = 1.0
MIN_BEGINNING_S = 0.6
CONTINUATION_S = 3.0


class SpeechJudge:
    """Measures pipelines on recordings of speakers; candidates are the speakers of all splits.

    In `cross-sentence` the prompt of an utterance is its own, where the data has prompts, or else the next one of the
    same speaker with at least 1 s; in `continuation` it is its own beginning, up to the word that ends nearest to 3 s
    or to a third.

    Args:
        data: recordings, as `open_speech` takes them.
        task: `cross-sentence` or `continuation`.
        transcriber: what understands speech, as `open_transcriber` takes it.
        speaker_encoder: what compares voices, as `open_speaker_encoder` takes it.

    Raises:
        ConfigError: there is no such task.
    """

    def __init__(self, data: str, *, task: str, transcriber: str, speaker_encoder: str) -> None:
        if task not in TASKS:
            raise ConfigError(unknown("task", task, TASKS))
        self.data, self.task = data, task
        self.transcriber, self.encoder = open_transcriber(transcriber), open_speaker_encoder(speaker_encoder)

    def open(self, split: str) -> SpeechSource:
        """The recordings of a split.

        Raises:
            ConfigError: the transcriber does not know the words that are said.
        """
        source = open_speech(self.data, split)
        check_vocabulary(self.transcriber, source.texts)
        return source

    def report(
        self,
        pipe: SpeechPipeline,
        split: str,
        *,
        model: str,
        num_trials: int | None = None,
        seeds: tuple[int, ...] = (0,),
        settings: Mapping[str, Any] | None = None,
        command: str = "",
        advance: Advance = no_progress,
    ) -> SpeechReport:
        """The full evaluation of a pipeline on one split.

        Raises:
            ConfigError: see `open`.
            DataError: nothing to evaluate: no second utterance of any speaker, say.
        """
        source = self.open(split)
        trials = (cross_sentence if self.task == "cross-sentence" else continuation)(pipe, source)
        selection = trials if num_trials is None else _spread(trials, num_trials)
        candidates = candidate_sounds(self.data, pipe)
        options = dict(settings or {})
        protocol = SpeechProtocol(
            task=self.task,
            data=source.name,
            split=split,
            data_sha256=source.fingerprint,
            num_trials=len(selection),
            seeds=seeds,
            sampling=config_to_dict(sampling_with(pipe.sampling, options)) | {"dtype": dtype_name(pipe.dtype)},
            transcriber=about_judge(self.transcriber),
            speaker_encoder=about_judge(self.encoder),
            candidates=tuple(sorted(candidates)),
            model_sha256=folder_sha256(pipe.parts.folder),
        )
        return evaluate_speech(
            selection,
            partial(speak, pipe, self.task, options),
            partial(copied, pipe),
            candidates,
            transcriber=self.transcriber,
            encoder=self.encoder,
            protocol=protocol,
            model=model,
            command=command,
            advance=advance,
        )


@dataclass(frozen=True, kw_only=True)
class SpeechEvaluation:
    """An evaluation of a speech model; the fields are the options of `resgen evaluate`."""

    model: str
    data: str
    split: str | None = None
    task: str | None = None
    transcriber: str | None = None
    speaker_encoder: str | None = None
    num_samples: int | None = None
    seed: tuple[int, ...] = ()
    steps: int | None = None
    guidance_scale: float | None = None
    prompt_guidance: float | None = None
    device: str | None = None
    dtype: str | None = None
    command: str = ""

    def run(self, advance: Advance) -> SpeechReport:
        """Measure it.

        Raises:
            ConfigError: there is no such task or split.
        """
        splits = available_splits(self.data)
        split = self.split or next((name for name in splits if name.startswith("test_unseen")), splits[-1])
        if split not in splits:
            raise ConfigError(unknown("split", split, splits))
        judge = SpeechJudge(
            self.data,
            task=self.task or TASKS[0],
            transcriber=self.transcriber or DIGIT_RECOGNIZER,
            speaker_encoder=self.speaker_encoder or SPEAKER_ENCODER,
        )
        if known_split(split) == "train":
            announce(
                f"'{self.data}' is judged on its split 'train', which models are trained on: the numbers do not "
                "say how well a model speaks what is new to it; give held-out data, or another --split"
            )
        settings = {
            "num_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "prompt_guidance": self.prompt_guidance,
        }
        return judge.report(
            SpeechPipeline.from_pretrained(self.model, device=self.device, dtype=self.dtype or "auto"),
            split,
            model=self.model,
            num_trials=self.num_samples,
            seeds=self.seed or (0,),
            settings={name: value for name, value in settings.items() if value is not None},
            command=self.command,
            advance=advance,
        )


def cross_sentence(pipe: SpeechPipeline, source: SpeechSource) -> list[Trial]:
    """One trial per utterance that comes with a prompt, or whose speaker has another of 1 s or more."""
    if source.prompt_texts is not None and source.read_prompt is not None:
        prompts = [pipe.speaker.cleaned(source.read_prompt(index, pipe.sample_rate_hz)) for index in range(len(source))]
        return [
            _trial(pipe, source, index, prepared(pipe, source, index), prompt, text)
            for index, (prompt, text) in enumerate(zip(prompts, source.prompt_texts, strict=True))
        ]
    sounds = [prepared(pipe, source, index) for index in range(len(source))]
    of_speaker: dict[str, list[int]] = defaultdict(list)
    for index, speaker in enumerate(source.speakers):
        of_speaker[speaker].append(index)
    trials = []
    for index, speaker in enumerate(source.speakers):
        own = of_speaker[speaker]
        place = own.index(index)
        for other in own[place + 1 :] + own[:place]:
            if len(sounds[other]) >= MIN_PROMPT_S * pipe.sample_rate_hz:
                trials.append(_trial(pipe, source, index, sounds[index], sounds[other], source.texts[other]))
                break
    if not trials:
        raise DataError(f"'{source.name}' has no speaker with two utterances, one of them of {MIN_PROMPT_S} s or more")
    return trials


def continuation(pipe: SpeechPipeline, source: SpeechSource) -> list[Trial]:
    """One trial per utterance of at least two words, cut after the word that the text model finds nearest to 3 s, or to
    a third of a short utterance, but not before 0.6 s."""
    trials = []
    for index in range(len(source)):
        samples = prepared(pipe, source, index)
        spoken = pipe.reader.front_end(source.texts[index])
        ends = pipe.speaker.word_ends(samples, spoken)
        if len(ends) < 2:
            continue
        length = min(CONTINUATION_S, len(samples) / pipe.sample_rate_hz / 3) * pipe.sample_rate_hz
        long_enough = [word for word, end in enumerate(ends[:-1]) if end >= MIN_BEGINNING_S * pipe.sample_rate_hz]
        if not long_enough:
            continue
        number = min(long_enough, key=lambda word: abs(ends[word] - length))
        words = spoken.text.split()
        first, rest = " ".join(words[: number + 1]), " ".join(words[number + 1 :])
        trial = _trial(pipe, source, index, samples[ends[number] :], samples[: ends[number]], first)
        trials.append(trial._replace(text=rest))
    if not trials:
        raise DataError(f"'{source.name}' has no utterance of two words or more")
    return trials


def prepared(pipe: SpeechPipeline, source: SpeechSource, index: int) -> Tensor:
    """A recording as training saw it."""
    return pipe.speaker.cleaned(source.read(index, pipe.sample_rate_hz))


def candidate_sounds(data: str, pipe: SpeechPipeline) -> dict[str, list[Sound]]:
    """Up to 8 recordings of every speaker of all splits. Of an unseen speaker they may be among the prompts and true
    recordings, never among what is judged."""
    sounds: dict[str, list[Sound]] = defaultdict(list)
    for split in available_splits(data):
        source = open_speech(data, split)
        counts: dict[str, int] = defaultdict(int)
        for index in reversed(range(len(source))):
            speaker = source.speakers[index]
            if counts[speaker] < PER_CANDIDATE and len(sounds[speaker]) < PER_CANDIDATE:
                counts[speaker] += 1
                sounds[speaker].append(Sound(prepared(pipe, source, index), pipe.sample_rate_hz))
    return dict(sounds)


def speak(
    pipe: SpeechPipeline, task: str, options: Mapping[str, Any], trial: Trial, seed: int, number: int
) -> SpeechSample:
    """What a pipeline makes of trial `number`, and in which time."""
    start = time.perf_counter()
    result = pipe(
        trial.text,
        prompt=trial.prompt.samples,
        prompt_text=trial.prompt_text,
        task=task,
        seed=seed * 100_003 + number,
        **options,
    )
    seconds = time.perf_counter() - start
    begin = len(result.audio) - len(result.codes) * pipe.codec.samples_per_position
    begin = begin if task == "continuation" else 0
    return SpeechSample(
        generated=Sound(result.audio[begin:], result.sample_rate_hz),
        passes=sum(step.passes for step in result.steps),
        seconds=seconds,
    )


@torch.inference_mode()
def copied(pipe: SpeechPipeline, sound: Sound) -> Sound:
    """A sound after it went through the tokenizer."""
    unit = pipe.codec.samples_per_position
    padded = torch.nn.functional.pad(sound.samples, (0, -len(sound.samples) % unit))[None].to(pipe.device)
    codes, valid = pipe.codec.encode(padded, torch.tensor([len(sound.samples)], device=pipe.device))
    return Sound(pipe.codec.decode(codes, valid)[0, : len(sound.samples)].cpu(), sound.sample_rate_hz)


def _trial(
    pipe: SpeechPipeline, source: SpeechSource, index: int, truth: Tensor, prompt: Tensor, prompt_text: str
) -> Trial:
    return Trial(
        text=source.texts[index],
        prompt=Sound(prompt, pipe.sample_rate_hz),
        prompt_text=prompt_text,
        truth=Sound(truth, pipe.sample_rate_hz),
        speaker=source.speakers[index],
    )


def _spread(trials: Sequence[Trial], count: int) -> list[Trial]:
    """`count` of them, evenly over the whole."""
    if count >= len(trials):
        return list(trials)
    return [trials[round(place)] for place in torch.linspace(0, len(trials) - 1, count).tolist()]
