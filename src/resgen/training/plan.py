"""What a recipe's stages would take: memory per device, operations and time, before anything is built or read.

Parameters are counted on the meta device; activations and operations are those of a step on fake tensors
(`plan_steps`), with one and two layers of a generator, and from there on a straight line.
"""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from resgen.devices import choose_device
from resgen.errors import ConfigError, unknown
from resgen.kinds import build
from resgen.nn.size import outlining
from resgen.nn.transformer import Block
from resgen.ops.random import generator
from resgen.tokenizers.mel import MelTokenizerConfig
from resgen.training.image.recipe import Recipe
from resgen.training.interface import TrainerConfig
from resgen.training.parallel import autocast, choose_precision
from resgen.training.plan_steps import (
    Cost,
    Number,
    Step,
    generator_step,
    image_tokenizer_step,
    sound_tokenizer_step,
    text_step,
    trace,
    vocoder_step,
)
from resgen.training.speech.recipe import SpeechRecipe, mel_of

GB = 1e9
FLOAT = 4
"""Bytes of a float32 number: weights, gradients, moments and averages."""
TRACED_LAYERS = (1, 2)
MEASURED_OPERATIONS = {"cpu": 2e10, "accelerator": 4e12}
"""Of one pass of a measurement at most: enough for a steady rate, few enough for repetitions."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers that a stage holds on a device.

    Attributes:
        parameters: that are trained.
        averaged: of them, those that have an average.
        frozen: buffers, and networks that are only used.
        matrices: parameters of two or more axes, which bf16 arithmetic copies.
        blocks: parameters of all transformer blocks together.
        num_blocks: how many of those there are.
    """

    parameters: int
    averaged: int
    frozen: int
    matrices: int
    blocks: int
    num_blocks: int

    @classmethod
    def of(cls, module: nn.Module, *, averaged: nn.Module | None, frozen: int = 0) -> Size:
        """Of a module, its buffers counted among `frozen`."""
        blocks = [part for part in module.modules() if isinstance(part, Block)]
        return cls(
            parameters=_numbers(module),
            averaged=0 if averaged is None else _numbers(averaged),
            frozen=frozen + sum(buffer.numel() for buffer in module.buffers()),
            matrices=sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2),
            blocks=sum(map(_numbers, blocks)),
            num_blocks=len(blocks),
        )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a recipe.

    Attributes:
        name: `tokenizer`, `vocoder`, `text` or `generator`.
        training: how long and how fast.
        size: of what is trained.
        positions: of a sample: of codes, or frames (vocoder), or text tokens (text).
        codes: of a sample; 0 where there are none.
        step: a training step; of a generator, of `(layers, recompute)`.
        layers: of a generator; 0 for the others.
    """

    name: str
    training: TrainerConfig
    size: Size
    positions: int
    codes: int
    step: Callable[..., Step]
    layers: int = 0

    @property
    def is_divisible(self) -> bool:
        """Whether the trainer divides it over devices and recomputes its blocks: generators only."""
        return self.layers > 0

    @property
    def recompute(self) -> bool:
        """Whether it does the latter."""
        return self.training.recompute and self.is_divisible

    @property
    def bf16(self) -> bool:
        """Whether matrix products are in bf16; `auto` counts as bf16, which accelerators have."""
        return self.training.precision != "fp32"


@functools.lru_cache(maxsize=256)
def cost_of(stage: Stage, samples: int, *, recompute: bool = False) -> Cost:
    """The cost of a micro-batch, see `plan_steps.trace`.

    Networks of convolutions are traced in float32: norms and activations stay as large under bf16, so that is an upper
    limit.

    Args:
        stage: of `stages_of`.
        samples: of the micro-batch.
        recompute: forget the activations within a generator's blocks.
    """
    if not stage.layers:
        return trace(stage.step, samples=samples, bf16=stage.bf16 and stage.name == "text")
    first, second = (
        trace(partial(stage.step, layers, recompute), samples=samples, bf16=stage.bf16) for layers in TRACED_LAYERS
    )
    return _line(first, second, stage.layers - 1)


def _line(first: Cost, second: Cost, steps: Number) -> Cost:
    """`first` and `steps` times the difference to `second`."""
    names = dict.fromkeys([*first, *second])
    return {name: first.get(name, 0) + steps * (second.get(name, 0) - first.get(name, 0)) for name in names}


def memory_of(stage: Stage, samples: int, *, recompute: bool = False, shards: int = 1) -> dict[str, Number]:
    """Bytes per device by item, their sum as `total`.

    Weights, gradients, AdamW's two moments and averages are float32 and divided by `shards`. What is frozen is whole on
    every device. `activations` are those alive when the loss is known, by the part that made them, and `workspace` is
    what the rest of the step has on top at most; `bf16 weights` are the copies of matrices that autocast keeps until
    the backward pass. Of divided weights, `gathered weights` are those that are whole at a time: two blocks, one of
    them fetched ahead, the gradient of one, and all that is outside the blocks with its gradients. Not counted are the
    device's own reserve and what the allocator wastes.

    Args:
        stage: of `stages_of`.
        samples: of the micro-batch.
        recompute: see `TrainerConfig`.
        shards: devices that weights are divided over; 1 for copies on all.
    """
    size, cost = stage.size, dict(cost_of(stage, samples, recompute=recompute))
    cost.pop("operations")
    peak = max(cost.pop("forward"), cost.pop("backward"))
    workspace = max(0.0, peak - sum(cost.values()))
    copies = cost.pop("bf16 weights", 0.0) if stage.layers or stage.name == "text" else 2.0 * size.matrices * stage.bf16
    block = size.blocks / max(size.num_blocks, 1)
    items = {
        "weights": FLOAT * size.parameters / shards,
        "gradients": FLOAT * size.parameters / shards,
        "optimizer": 2 * FLOAT * size.parameters / shards,
        "averages": FLOAT * size.averaged / shards if stage.training.ema_decay > 0 else 0,
        "frozen": FLOAT * size.frozen,
        "bf16 weights": copies,
        "gathered weights": FLOAT * (2 * (size.parameters - size.blocks) + 3 * block) if shards > 1 else 0,
    }
    items |= {f"activations: {name}": value for name, value in cost.items()} | {"workspace": workspace}
    return items | {"total": sum(items.values())}


def stages_of(recipe: Recipe | SpeechRecipe) -> list[Stage]:
    """The trainings of a recipe, in their order.

    Of speech all utterances are taken to be as long as `data.max_seconds` and the models allow, so memory and time are
    upper limits; another length can be set there. A perceptual network and a pretrained ByT5 are not counted.
    """
    return _speech_stages(recipe) if isinstance(recipe, SpeechRecipe) else _image_stages(recipe)


def choose_stages(stages: list[Stage], name: str | None) -> list[Stage]:
    """All stages, or the one that is asked for.

    Raises:
        ConfigError: the recipe has no such stage.
    """
    names = [stage.name for stage in stages]
    if name is not None and name not in names:
        raise ConfigError(unknown("stage of this recipe", name, names))
    return [stage for stage in stages if name in (None, stage.name)]


def plan_stage(stage: Stage, *, devices: int, device_bytes: Number, shard: bool = False) -> dict[str, Any]:
    """Sizes, memory by item and operations of a stage.

    Args:
        stage: of `stages_of`.
        devices: that share every step.
        device_bytes: memory of each.
        shard: divide a generator's weights over all devices, even if its training says otherwise.

    Raises:
        ConfigError: the batch cannot be divided, or a device has too little memory; the message says what to lower.
    """
    training, world = stage.training, training_world(stage.training, devices)
    samples = training.batch_size // world
    shards = devices if stage.is_divisible and (shard or training.shard) else 1
    memory = memory_of(stage, samples, shards=shards, recompute=stage.recompute)
    if memory["total"] > device_bytes:
        raise ConfigError(_too_large(stage, memory, devices=devices, device_bytes=device_bytes, shards=shards))
    operations = cost_of(stage, samples, recompute=stage.recompute)["operations"] * world
    return {
        "parameters": stage.size.parameters,
        "batch_size": training.batch_size,
        "samples_per_micro_batch": samples,
        "accumulate": training.accumulate,
        "precision": "bf16" if stage.bf16 else "fp32",
        "shards": shards,
        "memory_bytes": memory,
        "positions_per_step": stage.positions * training.batch_size,
        "codes_per_step": stage.codes * training.batch_size,
        "operations_per_step": operations,
        "steps": training.num_steps,
        "samples_seen": training.num_steps * training.batch_size,
        "operations": operations * training.num_steps,
    }


def training_world(training: TrainerConfig, devices: int) -> int:
    """Micro-batches of a step over all devices.

    Raises:
        ConfigError: the batch cannot be divided, as the trainer has it.
    """
    if training.batch_size % (training.accumulate * devices):
        raise ConfigError(
            f"batch_size={training.batch_size} must be a multiple of accumulate={training.accumulate} "
            f"times {devices} processes"
        )
    return training.accumulate * devices


def measure_rate(
    recipe: Recipe | SpeechRecipe, *, samples: int, positions: int, seconds: float = 2.0
) -> dict[str, Any]:
    """Operations per second of this machine: one transformer block of the generator's width, forward and backward, in
    its training's precision and on its device; the median of repetitions.

    Args:
        recipe: whose generator.
        samples: of a micro-batch; fewer are taken where one pass would be more than `MEASURED_OPERATIONS`.
        positions: of a sample.
        seconds: how long to repeat, after one pass that does not count; three times at least.

    Returns:
        `operations_per_second`, and what it was measured with.
    """
    config, training = recipe.generator, recipe.generator_training
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device)
    limit = MEASURED_OPERATIONS["cpu" if device.type == "cpu" else "accelerator"]
    products = config.width * (4 * config.width + 2 * config.mlp_width + 2 * positions)
    samples = max(1, min(samples, int(limit // (6 * positions * products))))
    stream = generator("plan")
    block = Block(config.width, config.num_heads, config.mlp_width).to(device)
    x = torch.randn(samples, positions, config.width, generator=stream).to(device).requires_grad_()
    modulation = torch.randn(samples, 8, config.width, generator=stream).to(device)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        with autocast(precision, device):
            loss = block(x, modulation).float().sum()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return {
        "operations_per_second": 6 * samples * positions * products / median(times[1:]),
        "source": "measured",
        "device": device.type,
        "precision": precision,
        "width": config.width,
    }


def _too_large(stage: Stage, memory: Mapping[str, Number], *, devices: int, device_bytes: Number, shards: int) -> str:
    """What is missing, what takes most, and the least change that helps."""
    training = stage.training
    largest = max((name for name in memory if name != "total"), key=lambda name: memory[name])
    begin = (
        f"stage '{stage.name}' needs {memory['total'] / GB:.1f} GB per device, {device_bytes / GB:.1f} GB are "
        f"available; most is {largest} ({memory[largest] / GB:.1f} GB); "
    )
    per_device = training.batch_size // devices
    most = per_device // training.accumulate
    section = f"{stage.name}_training"
    choices = [(shards, stage.recompute, "")]
    if stage.is_divisible:
        choices.append((shards, True, f"{section}.recompute=true"))
        if devices > 1:
            choices += [(devices, False, "--shard"), (devices, True, f"--shard and {section}.recompute=true")]
    for divided, recompute, change in choices:
        sizes = [samples for samples in range(1, most + 1) if per_device % samples == 0]

        def is_too_large(samples: int, shards: int = divided, recompute: bool = recompute) -> bool:
            return memory_of(stage, samples, shards=shards, recompute=recompute)["total"] > device_bytes

        fitting = bisect.bisect_left(sizes, True, key=is_too_large)
        if fitting:
            samples = sizes[fitting - 1]
            accumulate = per_device // samples
            smaller = f"{section}.accumulate={accumulate}" if accumulate > training.accumulate else ""
            advice = " and ".join(part for part in (change, smaller) if part)
            fits = f"{samples} sample{'s' if samples > 1 else ''} at a time would fit"
            return begin + (f"not even one sample fits; with {advice} {fits}" if change else f"set {advice}: {fits}")
    return begin + "not even one sample fits; take a smaller model or devices with more memory"


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _image_stages(recipe: Recipe) -> list[Stage]:
    spec = recipe.tokenizer.spec
    step = partial(image_tokenizer_step, recipe)
    tokenizer = _stage("tokenizer", recipe.tokenizer_training, step, spec.num_positions, spec.num_tokens)
    with outlining("a network of this recipe"):
        frozen = _numbers(step().module.get_submodule("tokenizer"))
    return [tokenizer, _generator_stage(recipe, spec.num_positions, {}, frozen=frozen)]


def _speech_stages(recipe: SpeechRecipe) -> list[Stage]:
    config, spec, mel, seconds = recipe.tokenizer, recipe.tokenizer.spec, mel_of(recipe), recipe.data.max_seconds
    hop = mel.hop_size
    if isinstance(config, MelTokenizerConfig):
        unit, rate = config.frames_per_position * hop, mel.sample_rate_hz
    else:
        unit, rate = config.samples_per_position, config.sample_rate_hz
    crop = math.ceil(recipe.tokenizer_loss.crop_seconds * rate / unit)
    step = partial(sound_tokenizer_step, recipe)
    stages = [_stage("tokenizer", recipe.tokenizer_training, step, crop, crop * spec.depth)]
    if isinstance(config, MelTokenizerConfig):
        frames = math.ceil(recipe.vocoder_loss.crop_seconds * rate / hop)
        step = partial(vocoder_step, recipe)
        stages.append(_stage("vocoder", recipe.vocoder_training, step, frames, 0, averaged="vocoder"))
    frames = math.ceil(seconds * mel.sample_rate_hz / hop)
    tokens = min(recipe.text.max_tokens, frames)
    text = _stage("text", recipe.text_training, partial(text_step, recipe, tokens, frames), tokens, 0, averaged="")
    features = {"feature_width": recipe.text.width, "feature_stride": unit // hop}
    positions = min(spec.num_positions, math.ceil(seconds * rate / unit))
    frozen = sum(stage.size.averaged or stage.size.parameters for stage in (*stages, text))
    return [*stages, text, _generator_stage(recipe, positions, features, frozen=frozen)]


def _stage(
    name: str,
    training: TrainerConfig,
    step: Callable[[], Step],
    positions: int,
    codes: int,
    averaged: str | None = None,
) -> Stage:
    with outlining("a network of this recipe"):
        module = step().module
    average = None if averaged is None else module.get_submodule(averaged)
    size = Size.of(module, averaged=average)
    return Stage(name=name, training=training, size=size, positions=positions, codes=codes, step=step)


def _generator_stage(
    recipe: Recipe | SpeechRecipe, positions: int, features: Mapping[str, Any], *, frozen: int
) -> Stage:
    spec = recipe.tokenizer.spec
    with outlining("a network of this recipe"):
        model = build(replace(recipe.generator, **features), spec)
    return Stage(
        name="generator",
        training=recipe.generator_training,
        size=Size.of(model, averaged=model, frozen=frozen),
        positions=positions,
        codes=positions * spec.depth,
        step=partial(generator_step, recipe, positions, features),
        layers=recipe.generator.num_layers,
    )
