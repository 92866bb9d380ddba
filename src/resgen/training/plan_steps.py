"""One training step of each stage of a recipe, run on fake tensors: what it keeps in memory, and its operations.

The steps are the trainer's own, with the tasks' losses. PyTorch without CUDA differentiates fake tensors of the CPU
only, so these are what they run on, with the choices that the package makes on an accelerator.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from resgen.data.pictures.store import PictureStore
from resgen.data.sound.store import SpeechStore
from resgen.kinds import build, make_objective
from resgen.models import text as text_models
from resgen.models.text import TextModel
from resgen.nn import attention
from resgen.nn.attention import Attention
from resgen.nn.transformer import Block
from resgen.ops import blocks
from resgen.tokenizers.image import ImageTokenizer
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.vocoder import Vocoder
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.training.generator_task import recomputed
from resgen.training.image.recipe import Recipe
from resgen.training.image.tokenizer_task import TokenizerTask
from resgen.training.interface import LossOf
from resgen.training.speech import text_task
from resgen.training.speech.recipe import SpeechRecipe, mel_of
from resgen.training.speech.text_task import Sizes, TextTask, Utterances
from resgen.training.speech.tokenizer_task import SoundTokenizerTask
from resgen.training.speech.vocoder_task import VocoderTask
from resgen.training.tracing import CPU, EvenDraws, StepCost
from resgen.types import SequenceCondition

Number = int | float
Cost = Mapping[str, Number]
"""Bytes by item that are alive when the loss is known, the largest sum before it (`forward`) and after it
(`backward`), and floating-point `operations`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step.

    Attributes:
        module: all that is trained, on the meta device.
        losses: `(indices, generator) -> losses`, as a task's.
        groups: parameters of each loss.
    """

    module: nn.Module
    losses: Callable[[int, torch.Generator], Sequence[LossOf]]
    groups: Mapping[str, list[nn.Parameter]]


def trace(make: Callable[[], Step], *, samples: int, bf16: bool) -> Cost:
    """The cost of one step with its backward pass.

    Args:
        make: the step; called under the meta device.
        samples: of the micro-batch.
        bf16: matrix products in bf16, as autocast has them.
    """
    with torch.device("meta"):
        step = make()
    with FakeTensorMode(allow_non_fake_inputs=True), _as_on_an_accelerator():
        parameters = _materialise(step.module)
        groups = {name: [parameters[p] for p in group] for name, group in step.groups.items()}
        live = StepCost(step.module, dict(_items(step.module)))
        cost: dict[str, Number] = {"forward": 0, "backward": 0}
        with EvenDraws(), live:
            for group, compute in step.losses(samples, torch.Generator()):
                live.restart()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss, _ = compute()
                kept = live.by_item()
                if kept.total() >= sum(cost.values()) - cost["forward"] - cost["backward"]:
                    cost = {**kept, "forward": cost["forward"], "backward": cost["backward"]}
                cost["forward"] = max(cost["forward"], live.largest)
                live.restart()
                loss.backward(inputs=groups[group])
                del loss
                cost["backward"] = max(cost["backward"], live.largest)
    return {**cost, "operations": live.operations}


def _materialise(module: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Fake tensors on the CPU in place of parameters, whose gradients are there already, and of buffers."""
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None:
                if old not in parameters:
                    parameters[old] = nn.Parameter(torch.empty_like(old, device=CPU), requires_grad=old.requires_grad)
                    parameters[old].grad = torch.empty_like(parameters[old]) if old.requires_grad else None
                part._parameters[name] = parameters[old]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=CPU)
    return parameters


def _items(root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for name, module in root.named_modules():
        if isinstance(module, Attention):
            yield module, "attention"
        elif isinstance(module, Block):
            yield module, "mlp"
        elif not name:
            yield module, "other"
        elif isinstance(root, nn.ModuleDict) and "." not in name:
            yield module, name


@contextlib.contextmanager
def _as_on_an_accelerator() -> Iterator[None]:
    """Fused attention and large blocks of rows; and no search for the alignment of texts, which wants numbers."""
    with (
        mock.patch.object(attention, "MAX_PLAIN_LENGTH", 0),
        mock.patch.object(blocks, "CPU_BLOCK", blocks.DEVICE_BLOCK),
        mock.patch.object(text_models, "monotonic_alignment", lambda scores, texts, frames: scores.argmax(2)),
        mock.patch.object(text_task, "alignment_prior", _even_prior),
    ):
        yield


def _even_prior(texts: Tensor, frames: Tensor, num_tokens: int, num_frames: int, *, strength: float) -> Tensor:
    return torch.zeros(len(texts), num_tokens, num_frames, dtype=torch.float64)


def image_tokenizer_step(recipe: Recipe) -> Step:
    """Reconstruction, commitment and adversarial losses; a perceptual network is not counted."""
    config = recipe.tokenizer
    store = _Pictures((config.channels, config.image_size, config.image_size))
    task = TokenizerTask(ImageTokenizer(config), recipe.tokenizer_loss, store, store.batch(torch.arange(1)))
    return _of_task(task, recipe.tokenizer_loss.adversarial_start)


def sound_tokenizer_step(recipe: SpeechRecipe) -> Step:
    """All losses of a crop."""
    config = recipe.tokenizer
    tokenizer = MelTokenizer(config) if isinstance(config, MelTokenizerConfig) else WaveformTokenizer(config)
    store = _Recordings(tokenizer.sample_rate_hz)
    task = SoundTokenizerTask(tokenizer, recipe.tokenizer_loss, store, store)
    return _of_task(task, recipe.tokenizer_loss.adversarial_start)


def vocoder_step(recipe: SpeechRecipe) -> Step:
    """All losses of a crop, made from its own mels: the tokenizer that may reconstruct them is not counted."""
    vocoder = Vocoder(recipe.vocoder)
    store = _Recordings(vocoder.sample_rate_hz)
    task = VocoderTask(vocoder, recipe.vocoder_loss, store, store)
    return _of_task(task, recipe.vocoder_loss.adversarial_start)


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
    return _of_task(task)


def generator_step(
    recipe: Recipe | SpeechRecipe, positions: int, features: Mapping[str, Any], layers: int, recompute: bool = False
) -> Step:
    """The loss of the kind's objective, with a model of so many layers."""
    spec = recipe.tokenizer.spec
    model = build(replace(recipe.generator, num_layers=layers, **features), spec)
    if recompute:
        for block in (part for part in model.modules() if isinstance(part, Block)):
            block.forward = functools.partial(recomputed, block.forward)  # type: ignore[method-assign]
    objective = make_objective(model, recipe.generator_loss)

    def loss(count: int, stream: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        codes = torch.zeros(count, positions, spec.depth, dtype=torch.int64)
        sequence = None
        if features:
            rows = torch.zeros(count, positions * features["feature_stride"], features["feature_width"])
            everywhere = torch.ones(count, positions, dtype=torch.bool)
            sequence = SequenceCondition(valid=everywhere, prompt=~everywhere, features=rows)
        visible = objective.draw(torch.ones(count, positions, dtype=torch.bool), stream)
        return objective.loss((codes, torch.zeros(count, dtype=torch.int64), sequence), visible)

    def losses(count: int, stream: torch.Generator) -> list[LossOf]:
        return [("generator", functools.partial(loss, count, stream))]

    return Step(module=model, losses=losses, groups={"generator": list(model.parameters())})


class _Pictures(PictureStore):
    """Black pictures."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def batch(self, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        return torch.zeros(len(indices), *self.shape, dtype=torch.uint8)


class _Recordings(SpeechStore):
    """Silent recordings."""

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.lengths = torch.tensor([3600 * sample_rate_hz], device=CPU)
        self.texts = ("a",)

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


def _of_task(task: Any, first_step: int = 0) -> Step:
    def losses(count: int, stream: torch.Generator) -> Sequence[LossOf]:
        return task.losses(torch.zeros(count, dtype=torch.int64), [slice(count)], first_step, stream)

    return Step(module=task.module, losses=losses, groups=task.optimizer_groups())
