"""Estimates of the training stages of a speech recipe; see `training.plan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from resgen.data.sound.store import SpeechStore
from resgen.models.text import TextModel
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.vocoder import Vocoder
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.training.plan import Stage, generator_stage, task_stage, task_step
from resgen.training.speech.recipe import SpeechRecipe, mel_of
from resgen.training.speech.text_task import Sizes, TextTask, Utterances
from resgen.training.speech.tokenizer_task import SoundTokenizerTask
from resgen.training.speech.vocoder_task import VocoderTask
from resgen.training.tracing import CPU, Step


def stages_of(recipe: SpeechRecipe) -> list[Stage]:
    """The trainings in their order.

    All utterances are taken to be as long as `data.max_seconds` and the models allow, so memory and time are upper
    limits; another length can be set there. A pretrained ByT5 is not counted.
    """
    config, spec, mel, seconds = recipe.tokenizer, recipe.tokenizer.spec, mel_of(recipe), recipe.data.max_seconds
    hop = mel.hop_size
    if isinstance(config, MelTokenizerConfig):
        unit, rate = config.frames_per_position * hop, mel.sample_rate_hz
    else:
        unit, rate = config.samples_per_position, config.sample_rate_hz
    crop = math.ceil(recipe.tokenizer_loss.crop_seconds * rate / unit)
    step = partial(tokenizer_step, recipe)
    stages = [task_stage("tokenizer", recipe.tokenizer_training, step, crop, crop * spec.depth)]
    if isinstance(config, MelTokenizerConfig):
        frames = math.ceil(recipe.vocoder_loss.crop_seconds * rate / hop)
        step = partial(vocoder_step, recipe)
        stages.append(task_stage("vocoder", recipe.vocoder_training, step, frames, 0, averaged=True))
    frames = math.ceil(seconds * mel.sample_rate_hz / hop)
    tokens = min(recipe.text.max_tokens, frames)
    step = partial(text_step, recipe, tokens, frames)
    stages.append(task_stage("text", recipe.text_training, step, tokens, 0, part="", averaged=True))
    features = {"feature_width": recipe.text.width, "feature_stride": unit // hop}
    positions = min(spec.num_positions, math.ceil(seconds * rate / unit))
    return [*stages, generator_stage(recipe, positions, features, before=stages)]


def tokenizer_step(recipe: SpeechRecipe) -> Step:
    """All losses of a crop."""
    config = recipe.tokenizer
    tokenizer = MelTokenizer(config) if isinstance(config, MelTokenizerConfig) else WaveformTokenizer(config)
    store = _Recordings(tokenizer.sample_rate_hz)
    task = SoundTokenizerTask(tokenizer, recipe.tokenizer_loss, store, store)
    return task_step(task, recipe.tokenizer_loss.adversarial_start)


def vocoder_step(recipe: SpeechRecipe) -> Step:
    """All losses of a crop, made from its own mels: the tokenizer that may reconstruct them is not counted."""
    vocoder = Vocoder(recipe.vocoder)
    store = _Recordings(vocoder.sample_rate_hz)
    task = VocoderTask(vocoder, recipe.vocoder_loss, store, store)
    return task_step(task, recipe.vocoder_loss.adversarial_start)


def text_step(recipe: SpeechRecipe, tokens: int, frames: int) -> Step:
    """All losses of whole utterances; a pretrained encoder is not counted."""
    model = TextModel(replace(recipe.text, byt5_folder=None))
    store = _Recordings(mel_of(recipe).sample_rate_hz)
    task = TextTask(model, recipe.text_loss, store, store, mel=mel_of(recipe))

    def batch(indices: Tensor, device: torch.device) -> Utterances:
        count = len(indices)
        valid = torch.ones(count, tokens, dtype=torch.bool)
        mels = torch.zeros(count, recipe.text.num_bands, frames)
        return Utterances(torch.zeros(count, tokens, dtype=torch.int64), valid, mels, torch.full((count,), frames))

    task.train.batch = batch  # type: ignore[method-assign]
    task.train.sizes = lambda indices: Sizes(len(indices), len(indices) * tokens, len(indices) * frames)  # type: ignore[method-assign]
    # Searching for the alignment of texts wants numbers.
    model.search = lambda scores, *_: scores.argmax(2)
    model.timed_search = lambda scores, *_: scores.argmax(2)
    task.flow = lambda texts, frames, *shape, strength: torch.zeros(len(texts), *shape, dtype=torch.float64)
    return task_step(task)


class _Recordings(SpeechStore):
    """Silent recordings."""

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.lengths = torch.tensor([3600 * sample_rate_hz], device=CPU)
        self.texts = self.ids = ("a",)

    def __len__(self) -> int:
        return 1

    def crop_starts(
        self, indices: Int[Tensor, " B"] | Sequence[int], num_samples: int, generator: torch.Generator
    ) -> Int64[Tensor, " B"]:
        return torch.zeros(len(indices), dtype=torch.int64)

    def crops(
        self, indices: Int[Tensor, " B"] | Sequence[int], starts: Int64[Tensor, " B"], num_samples: int
    ) -> Float[Tensor, "B S"]:
        return torch.zeros(len(indices), num_samples)

    def batch(
        self, indices: Int[Tensor, " B"] | Sequence[int], *, multiple: int
    ) -> tuple[Float[Tensor, "B S"], Int64[Tensor, " B"]]:
        return torch.zeros(len(indices), multiple, device=CPU), torch.full((len(indices),), multiple, device=CPU)
