"""Estimates of a recipe's stages: memory per device, operations and time, before anything is built or read.

Parameters are counted on the meta device; activations and operations are those of a step on fake tensors
(`tracing`), with one and two layers of a generator, and from there on a straight line.
"""

from __future__ import annotations

import bisect
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from resgen.devices import choose_device
from resgen.errors import ConfigError, unknown
from resgen.kinds import build, make_objective
from resgen.nn.size import outlining
from resgen.nn.transformer import Block
from resgen.ops.random import generator
from resgen.training.generator_task import recomputed
from resgen.training.interface import LossOf, TrainerConfig
from resgen.training.parallel import autocast, choose_precision
from resgen.training.tracing import Cost, Number, Step, trace
from resgen.types import SequenceCondition

GB = 1e9
FLOAT = 4
"""Bytes of a float32 number: weights, gradients, moments and averages."""
TRACED_LAYERS = (1, 2)
MEASURED_OPERATIONS = {"cpu": 2e10, "accelerator": 4e12}
"""Of one pass of a measurement at most: enough for a steady rate, few enough for repetitions."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a recipe.

    Attributes:
        name: `tokenizer`, `vocoder`, `text` or `generator`.
        training: how long and how fast.
        module: all that is trained, on the meta device.
        product: the part of it that later stages use.
        averaged: whether that part has an average.
        frozen: numbers of the networks that are only used.
        positions: positions of a sample: of codes, or frames (vocoder), or text tokens (text).
        codes: codes of a sample; 0 where there are none.
        step: a training step; of a generator, of `(layers, recompute)`.
        layers: layers of a generator; 0 for the others.
    """

    name: str
    training: TrainerConfig
    module: nn.Module
    product: nn.Module
    averaged: bool
    frozen: int = 0
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
    def parameters(self) -> int:
        """How many numbers are trained."""
        return count(self.module)

    @property
    def is_traced_in_bf16(self) -> bool:
        """Whether `bf16` shows in a trace: networks of convolutions are traced in float32."""
        return self.layers > 0 or self.name == "text"

    @property
    def bf16(self) -> bool:
        """Whether matrix products are in bf16; `auto` counts as bf16, which accelerators have."""
        return self.training.precision != "fp32"


@functools.lru_cache(maxsize=256)
def cost_of(stage: Stage, samples: int, *, recompute: bool = False) -> Cost:
    """The cost of a micro-batch, see `tracing.trace`.

    Networks of convolutions are traced in float32: norms and activations stay as large under bf16, so that is an upper
    limit.

    Args:
        stage: stage of a recipe.
        samples: samples of the micro-batch.
        recompute: forget the activations within a generator's blocks.
    """
    if not stage.layers:
        return trace(stage.step, samples=samples, bf16=stage.bf16 and stage.is_traced_in_bf16)
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
        stage: stage of a recipe.
        samples: samples of the micro-batch.
        recompute: see `TrainerConfig`.
        shards: devices that weights are divided over; 1 for copies on all.
    """
    cost = dict(cost_of(stage, samples, recompute=recompute))
    cost.pop("operations")
    peak = max(cost.pop("forward"), cost.pop("backward"))
    workspace = max(0.0, peak - sum(cost.values()))
    copies = cost.pop("bf16 weights", 0.0)
    if not stage.is_traced_in_bf16:
        copies = 2.0 * stage.bf16 * sum(p.numel() for p in stage.module.parameters() if p.ndim >= 2)
    blocks = [count(part) for part in stage.module.modules() if isinstance(part, Block)]
    parameters, block = stage.parameters, max(blocks, default=0)
    items = {
        "weights": FLOAT * parameters / shards,
        "gradients": FLOAT * parameters / shards,
        "optimizer": 2 * FLOAT * parameters / shards,
        "averages": FLOAT * count(stage.product) * stage.averaged / shards if stage.training.ema_decay > 0 else 0,
        "frozen": FLOAT * (stage.frozen + sum(buffer.numel() for buffer in stage.module.buffers())),
        "bf16 weights": copies,
        "gathered weights": FLOAT * (2 * (parameters - sum(blocks)) + 3 * block) if shards > 1 else 0,
    }
    items |= {f"activations: {name}": value for name, value in cost.items()} | {"workspace": workspace}
    return items | {"total": sum(items.values())}


def task_stage(
    name: str,
    training: TrainerConfig,
    step: Callable[[], Step],
    positions: int,
    codes: int,
    *,
    part: str | None = None,
    averaged: bool = False,
) -> Stage:
    """A training that is not divided.

    Args:
        name: name of the stage.
        training: how long and how fast.
        step: a training step.
        positions: positions of a sample.
        codes: codes of a sample.
        part: name, as a module, of what is trained and what later stages use; the stage's name by default.
        averaged: whether that part has an average.
    """
    with outlining("a network of this recipe"):
        module = step().module
    return Stage(
        name=name,
        training=training,
        module=module,
        product=module.get_submodule(name if part is None else part),
        averaged=averaged,
        positions=positions,
        codes=codes,
        step=step,
    )


def generator_stage(recipe: Any, positions: int, features: Mapping[str, Any], *, before: Sequence[Stage]) -> Stage:
    """The training of a generator.

    Args:
        recipe: with a tokenizer, a generator, its training and its loss.
        positions: positions of a sample.
        features: `feature_width` and `feature_stride`, where every position has features.
        before: the stages whose products it uses.
    """
    spec = recipe.tokenizer.spec
    with outlining("a network of this recipe"):
        model = build(replace(recipe.generator, **features), spec)
    return Stage(
        name="generator",
        training=recipe.generator_training,
        module=model,
        product=model,
        averaged=True,
        frozen=sum(count(stage.product) for stage in before),
        positions=positions,
        codes=positions * spec.depth,
        step=partial(generator_step, recipe, positions, features),
        layers=recipe.generator.num_layers,
    )


def generator_step(
    recipe: Any, positions: int, features: Mapping[str, Any], layers: int, recompute: bool = False
) -> Step:
    """The loss of the kind's objective, with a model of so many layers."""
    spec = recipe.tokenizer.spec
    model = build(replace(recipe.generator, num_layers=layers, **features), spec)
    if recompute:
        for block in (part for part in model.modules() if isinstance(part, Block)):
            block.forward = partial(recomputed, block.forward)  # type: ignore[method-assign]
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
        return [("generator", partial(loss, count, stream))]

    return Step(module=model, losses=losses, groups={"generator": list(model.parameters())})


def task_step(task: Any, first_step: int = 0) -> Step:
    """A step of a task, number `first_step` of its training."""

    def losses(count: int, stream: torch.Generator) -> Sequence[LossOf]:
        return task.losses(torch.zeros(count, dtype=torch.int64), [slice(count)], first_step, stream)

    return Step(module=task.module, losses=losses, groups=task.optimizer_groups())


def choose_stages(stages: list[Stage], name: str | None) -> list[Stage]:
    """All stages, or the requested one.

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
        stage: stage of a recipe.
        devices: that share every step.
        device_bytes: memory of each.
        shard: divide a generator's weights over all devices, even if its training says otherwise.

    Raises:
        ConfigError: the batch cannot be divided, or a device has too little memory; the message says what to lower.
    """
    training, world = stage.training, stage.training.micro_batches(devices)
    samples = training.batch_size // world
    shards = devices if stage.is_divisible and (shard or training.shard) else 1
    memory = memory_of(stage, samples, shards=shards, recompute=stage.recompute)
    if memory["total"] > device_bytes:
        raise ConfigError(_too_large(stage, memory, devices=devices, device_bytes=device_bytes, shards=shards))
    operations = cost_of(stage, samples, recompute=stage.recompute)["operations"] * world
    return {
        "parameters": stage.parameters,
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


def measure_rate(recipe: Any, *, samples: int, positions: int, seconds: float = 2.0) -> dict[str, Any]:
    """Operations per second of this machine: one transformer block of the generator's width, forward and backward, in
    its training's precision and on its device; the median of repetitions.

    Args:
        recipe: whose generator.
        samples: samples of a micro-batch; fewer are taken where one pass would be more than `MEASURED_OPERATIONS`.
        positions: positions of a sample.
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


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
