"""What a recipe's stages would take: memory per device, operations and time, before anything is built or read.

Parameters are counted on the meta device; `plan_counts` says how activations and operations are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from resgen.devices import choose_device
from resgen.errors import ConfigError, unknown
from resgen.kinds import build
from resgen.losses.adversarial import PatchDiscriminator
from resgen.losses.sound_adversarial import MelDiscriminator, WaveformDiscriminator
from resgen.models.text import TextModel
from resgen.nn.transformer import Block
from resgen.ops.random import generator
from resgen.tokenizers.image import ImageTokenizer
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.vocoder import Vocoder
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.training.image.recipe import Recipe
from resgen.training.interface import TrainerConfig
from resgen.training.parallel import autocast, choose_precision
from resgen.training.plan_counts import (
    FLOAT,
    Batch,
    Number,
    Work,
    generator_work,
    mean_masked_share,
    quantizer_work,
    text_work,
    traced_work,
)
from resgen.training.speech.recipe import SpeechRecipe, mel_of

GB = 1e9
MEASURED_OPERATIONS = {"cpu": 2e10, "accelerator": 4e12}
"""Of one pass of a measurement at most: enough for a steady rate, few enough for repetitions."""
REAL_AND_FAKE = 2
DISCRIMINATED = 3
"""Passes of a discriminator per step: the fake for the generator's loss, both for its own."""


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
        work: of a micro-batch with this many samples and bytes per number, with recomputation or without.
    """

    name: str
    training: TrainerConfig
    size: Size
    positions: int
    codes: int
    work: Callable[[int, int, bool], Work]

    @property
    def is_divisible(self) -> bool:
        """Whether the trainer divides it over devices and recomputes its blocks: generators only."""
        return self.name == "generator"

    @property
    def recompute(self) -> bool:
        """Whether it does the latter."""
        return self.training.recompute and self.is_divisible


def memory_of(
    size: Size, activations: Mapping[str, Number], *, ema: bool, bf16: bool, recompute: bool = False, shards: int = 1
) -> dict[str, Number]:
    """Bytes per device by item, their sum as `total`.

    Weights, gradients, AdamW's two moments and averages are float32 and divided by `shards`. What is frozen is whole on
    every device. Under bf16, `bf16 weights` are the copies of all matrices that autocast keeps until the backward pass;
    with recomputation those of one block and of what is outside the blocks. Of divided weights, `gathered weights` are
    those that are whole at a time: two blocks, one of them fetched ahead, the gradient of one, and all that is outside
    the blocks with its gradients. Not counted are the device's own reserve and what the allocator wastes.

    Args:
        size: of the stage.
        activations: of one micro-batch, see `plan_counts.Work`.
        ema: averages are kept.
        bf16: matrix products in bf16.
        recompute: see `TrainerConfig`.
        shards: devices that weights are divided over; 1 for copies on all.
    """
    block = size.blocks / max(size.num_blocks, 1)
    copied = size.matrices - (size.blocks - block if recompute else 0)
    items = {
        "weights": FLOAT * size.parameters / shards,
        "gradients": FLOAT * size.parameters / shards,
        "optimizer": 2 * FLOAT * size.parameters / shards,
        "averages": FLOAT * size.averaged / shards if ema else 0,
        "frozen": FLOAT * size.frozen,
        "bf16 weights": 2 * copied if bf16 else 0,
        "gathered weights": FLOAT * (2 * (size.parameters - size.blocks) + 3 * block) if shards > 1 else 0,
    }
    items |= {f"activations: {name}": value for name, value in activations.items()}
    return items | {"total": sum(items.values())}


def stages_of(recipe: Recipe | SpeechRecipe) -> list[Stage]:
    """The trainings of a recipe, in their order.

    Of speech all utterances are taken to be as long as `data.max_seconds` and the models allow, so memory and time are
    upper limits; another length can be set there. A perceptual network, spectral losses and a pretrained ByT5 are not
    counted.
    """
    with torch.device("meta"):
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

    `auto` precision counts as bf16, which accelerators have.

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
    memory = _memory(stage, samples, shards=shards, recompute=stage.recompute)
    if memory["total"] > device_bytes:
        raise ConfigError(_too_large(stage, memory, devices=devices, device_bytes=device_bytes, shards=shards))
    work = stage.work(samples, _bytes_of(training), stage.recompute)
    return {
        "parameters": stage.size.parameters,
        "batch_size": training.batch_size,
        "samples_per_micro_batch": samples,
        "accumulate": training.accumulate,
        "precision": "fp32" if training.precision == "fp32" else "bf16",
        "shards": shards,
        "memory_bytes": memory,
        "positions_per_step": stage.positions * training.batch_size,
        "codes_per_step": stage.codes * training.batch_size,
        "operations_per_step": work.operations * world,
        "steps": training.num_steps,
        "samples_seen": training.num_steps * training.batch_size,
        "operations": work.operations * world * training.num_steps,
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


def _memory(stage: Stage, samples: int, *, shards: int, recompute: bool) -> dict[str, Number]:
    training = stage.training
    return memory_of(
        stage.size,
        stage.work(samples, _bytes_of(training), recompute).activations,
        ema=training.ema_decay > 0,
        bf16=training.precision != "fp32",
        recompute=recompute,
        shards=shards,
    )


def _too_large(stage: Stage, memory: Mapping[str, Number], *, devices: int, device_bytes: Number, shards: int) -> str:
    """What is missing, what takes most, and the least change that helps."""
    training = stage.training
    items = {name: value for name, value in memory.items() if name != "total"}
    largest = max(items, key=lambda name: items[name])
    begin = (
        f"stage '{stage.name}' needs {memory['total'] / GB:.1f} GB per device, {device_bytes / GB:.1f} GB are "
        f"available; most is {largest} ({items[largest] / GB:.1f} GB); "
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
        for samples in range(most, 0, -1):
            if per_device % samples:
                continue
            found = _memory(stage, samples, shards=divided, recompute=recompute)
            if found["total"] <= device_bytes:
                accumulate = per_device // samples
                smaller = f"{section}.accumulate={accumulate}" if accumulate > training.accumulate else ""
                advice = " and ".join(part for part in (change, smaller) if part)
                fits = f"{samples} sample{'s' if samples > 1 else ''} at a time would fit"
                return begin + (
                    f"not even one sample fits; with {advice} {fits}" if change else f"set {advice}: {fits}"
                )
    return begin + "not even one sample fits; take a smaller model or devices with more memory"


def _bytes_of(training: TrainerConfig) -> int:
    return FLOAT if training.precision == "fp32" else 2


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _image_stages(recipe: Recipe) -> list[Stage]:
    config, spec = recipe.tokenizer, recipe.tokenizer.spec
    tokenizer = ImageTokenizer(config)
    side = spec.shape[0] * config.downsampling
    images, grid = torch.empty(1, config.channels, side, side), torch.empty(1, config.code_dim, *spec.shape)
    one = traced_work(lambda: (tokenizer.encoder(images), tokenizer.decoder(grid)), tokenizer, "network")
    one += quantizer_work(spec.num_positions, spec.depth, spec.codebook_size, spec.code_dim)
    trained = nn.ModuleDict({"tokenizer": tokenizer})
    if recipe.tokenizer_loss.adversarial_weight > 0:
        discriminator = trained["discriminator"] = PatchDiscriminator(config.channels)
        judged = traced_work(lambda: discriminator(images), discriminator, "discriminator")
        one += replace(judged, multiply_adds=DISCRIMINATED * judged.multiply_adds)
    first = Stage(
        name="tokenizer",
        training=recipe.tokenizer_training,
        size=Size.of(trained, averaged=None),
        positions=spec.num_positions,
        codes=spec.num_tokens,
        work=lambda samples, size, recompute: one.times(samples),
    )
    return [first, _generator_stage(recipe, spec.num_positions, {}, frozen=_numbers(tokenizer))]


def _speech_stages(recipe: SpeechRecipe) -> list[Stage]:
    config, spec, mel = recipe.tokenizer, recipe.tokenizer.spec, mel_of(recipe)
    stages = [_sound_stage(recipe)]
    frozen = stages[0].size.parameters
    if isinstance(config, MelTokenizerConfig):
        stages.append(_vocoder_stage(recipe))
        frozen += stages[1].size.averaged
        unit, rate = config.frames_per_position * mel.hop_size, mel.sample_rate_hz
    else:
        unit, rate = config.samples_per_position, config.sample_rate_hz
    seconds = recipe.data.max_seconds
    frames = math.ceil(seconds * mel.sample_rate_hz / mel.hop_size)
    tokens = min(recipe.text.max_tokens, frames)
    text = TextModel(replace(recipe.text, byt5_folder=None))

    def of_text(samples: int, size: int, recompute: bool) -> Work:
        return text_work(text, Batch(samples=samples, positions=tokens, size=size), frames)

    stages.append(
        Stage(
            name="text",
            training=recipe.text_training,
            size=Size.of(text, averaged=text),
            positions=tokens,
            codes=0,
            work=of_text,
        )
    )
    features = {"feature_width": recipe.text.width, "feature_stride": unit // mel.hop_size}
    positions = min(spec.num_positions, math.ceil(seconds * rate / unit))
    return [*stages, _generator_stage(recipe, positions, features, frozen=frozen + _numbers(text))]


def _sound_stage(recipe: SpeechRecipe) -> Stage:
    config, spec, loss = recipe.tokenizer, recipe.tokenizer.spec, recipe.tokenizer_loss
    tokenizer: MelTokenizer | WaveformTokenizer
    if isinstance(config, MelTokenizerConfig):
        tokenizer, channels = MelTokenizer(config), config.mel.num_bands
    else:
        tokenizer, channels = WaveformTokenizer(config), 2 * (config.window_size // 2 + 1)
    unit = tokenizer.samples_per_position
    positions = math.ceil(loss.crop_seconds * tokenizer.sample_rate_hz / unit)
    inputs = torch.empty(1, channels, positions * config.frames_per_position)
    latents = torch.empty(1, config.code_dim, positions)
    one = traced_work(lambda: (tokenizer.encoder(inputs, None), tokenizer.decoder(latents, None)), tokenizer, "network")
    one += quantizer_work(positions, spec.depth, spec.codebook_size, spec.code_dim)
    trained = nn.ModuleDict({"tokenizer": tokenizer})
    if loss.adversarial_weight > 0:
        discriminator: nn.Module
        arguments: tuple[torch.Tensor, ...]
        if isinstance(config, MelTokenizerConfig):
            discriminator = MelDiscriminator(width=loss.discriminator_width)
            arguments = inputs, torch.empty(len(discriminator.windows), 1, dtype=torch.int64)
        else:
            discriminator, arguments = (
                WaveformDiscriminator(loss.discriminator_width),
                (torch.empty(1, positions * unit),),
            )
        trained["discriminator"] = discriminator
        one += _judged(discriminator, arguments)
    return Stage(
        name="tokenizer",
        training=recipe.tokenizer_training,
        size=Size.of(trained, averaged=None),
        positions=positions,
        codes=positions * spec.depth,
        work=lambda samples, size, recompute: one.times(samples),
    )


def _vocoder_stage(recipe: SpeechRecipe) -> Stage:
    """The crop's margins are counted; the tokenizer that may reconstruct mels is not."""
    config, loss = recipe.vocoder, recipe.vocoder_loss
    vocoder, mel = Vocoder(config), config.mel
    margin = math.ceil(mel.fft_size / 2 / mel.hop_size)
    frames = math.ceil(loss.crop_seconds * mel.sample_rate_hz / mel.hop_size) + 2 * margin

    def network() -> object:
        """Without the inverse transform, which looks at numbers."""
        x = vocoder.norm(vocoder.embed(torch.empty(1, mel.num_bands, frames), None).transpose(1, 2)).transpose(1, 2)
        for block in vocoder.blocks:
            x = block(x, None)
        return vocoder.head(vocoder.final_norm(x.transpose(1, 2)))

    one = traced_work(network, vocoder, "network")
    trained = nn.ModuleDict({"vocoder": vocoder})
    if loss.adversarial_weight > 0:
        trained["discriminator"] = WaveformDiscriminator(loss.discriminator_width)
        one += _judged(trained["discriminator"], (torch.empty(1, frames * mel.hop_size),))
    return Stage(
        name="vocoder",
        training=recipe.vocoder_training,
        size=Size.of(trained, averaged=vocoder),
        positions=frames,
        codes=0,
        work=lambda samples, size, recompute: one.times(samples),
    )


def _judged(discriminator: nn.Module, arguments: tuple[torch.Tensor, ...]) -> Work:
    """Passes over a real and a generated sound are kept together."""
    one = traced_work(lambda: discriminator(*arguments), discriminator, "discriminator")
    return replace(one.times(REAL_AND_FAKE), multiply_adds=DISCRIMINATED * one.multiply_adds)


def _generator_stage(
    recipe: Recipe | SpeechRecipe, positions: int, features: Mapping[str, Any], *, frozen: int
) -> Stage:
    spec = recipe.tokenizer.spec
    model = build(replace(recipe.generator, **features), spec)
    share = mean_masked_share(recipe.generator_loss.mask_schedule, positions * spec.depth)

    def work(samples: int, size: int, recompute: bool) -> Work:
        batch = Batch(samples=samples, positions=positions, size=size, recompute=recompute, masked_share=share)
        return generator_work(model, batch)

    return Stage(
        name="generator",
        training=recipe.generator_training,
        size=Size.of(model, averaged=model, frozen=frozen),
        positions=positions,
        codes=positions * spec.depth,
        work=work,
    )
