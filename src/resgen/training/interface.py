"""What the trainer asks of the caller: a configuration and a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn

from resgen.errors import ConfigError, check_range, unknown
from resgen.training.loggers import check_loggers
from resgen.training.optim import DECAY_SHAPES
from resgen.training.parallel import PRECISIONS
from resgen.types import Reduce

MAX_BATCH_SIZE = 1 << 17


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of a training run: length, batches, learning rate, precision, checkpoints and logs.

    Attributes:
        num_steps: optimizer steps; with `max_minutes` the maximum.
        batch_size: samples per step, over all micro-batches and processes.
        accumulate: micro-batches per step and process.
        learning_rate: peak value.
        betas: AdamW's two decays.
        weight_decay: AdamW's weight decay, for tensors of two or more axes that are not biases.
        warmup_steps: steps over which the learning rate grows linearly.
        decay_fraction: last part of training, in [0, 1], in which the learning rate falls to 0.
        decay_shape: `linear` or `cosine`.
        clip_norm: largest norm of a group's gradient; 0 disables clipping.
        ema_decay: decay of the averaged weights; 0 keeps no average.
        precision: `bf16` or `fp32` arithmetic in the losses; `auto` uses bf16 if the hardware supports it.
        compile: let the task compile its modules.
        shard: divide weights, gradients, averages and the optimizer's state over all processes (FSDP2), for training
            that does not fit on one device; without it every process holds them. At the start every process
            holds the weights in host memory, and moves and divides them block by block; for validation and
            samples its device holds all of them once.
        recompute: discard the activations within transformer blocks and recompute them in the backward pass: a third
            more operations for much less memory.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        log_every: steps between lines of the log.
        validate_every: steps between validations; 0 validates at the end only.
        sample_every: steps between sample images; 0 draws them at the end only.
        evaluate_every: steps between evaluations of generated samples, if the task can evaluate; 0 for none.
        checkpoint_every: steps between checkpoints; 0 writes one at the end only.
        keep_last: checkpoints kept, besides the best.
        seed: seed of all random streams.
        loggers: where metrics and samples go besides the run folder's own files: `tensorboard` (left out if it is not
            installed), `wandb`.
    """

    num_steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    decay_shape: str = "linear"
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    precision: str = "auto"
    compile: bool = False
    shard: bool = False
    recompute: bool = False
    device: str = "auto"
    log_every: int = 50
    validate_every: int = 500
    sample_every: int = 500
    evaluate_every: int = 0
    checkpoint_every: int = 500
    keep_last: int = 3
    seed: int = 0
    loggers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        if self.batch_size > MAX_BATCH_SIZE:
            raise ConfigError(f"batch_size={self.batch_size} must be at most {MAX_BATCH_SIZE}")
        check_range(self, 1, "num_steps", "batch_size", "accumulate", "log_every", "keep_last")
        for name in ("warmup_steps", "validate_every", "sample_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
        for name in ("weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate={self.learning_rate} must be above 0")
        if not 0 <= self.decay_fraction <= 1:
            raise ConfigError(f"decay_fraction={self.decay_fraction} must lie in [0, 1]")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay} must lie in [0, 1)")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas} must be two numbers in [0, 1)")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"batch_size={self.batch_size} must be a multiple of accumulate={self.accumulate}")
        check_loggers(self.loggers)
        if self.precision not in PRECISIONS:
            raise ConfigError(unknown("precision", self.precision, PRECISIONS))
        if self.decay_shape not in DECAY_SHAPES:
            raise ConfigError(unknown("decay_shape", self.decay_shape, DECAY_SHAPES))
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise ConfigError(unknown("device", self.device, ("auto", "cpu", "cuda", "cuda:N")))

    def micro_batches(self, processes: int) -> int:
        """Micro-batches of a step over all processes.

        Raises:
            ConfigError: the batch cannot be divided into so many parts.
        """
        count = self.accumulate * processes
        if self.batch_size % count:
            raise ConfigError(
                f"batch_size={self.batch_size} must be a multiple of accumulate={self.accumulate} "
                f"times {processes} processes"
            )
        return count


LossOf = tuple[str, Callable[[], tuple[Tensor, Mapping[str, Tensor]]]]
"""A group of parameters, and what computes its loss and metrics; all metrics of a step are sums over its parts, too."""


class Task(Protocol):
    """The object of training: data, modules and losses. The trainer knows nothing else about it.

    Generators are on the CPU whatever the device, so that every device gets the same numbers. A task may also have:

    * `before_start(generator, reduce)`, called once at the very start of a run, not on resume: initialisation from
      data;
    * `after_step(step, generator, reduce)`, called after the optimizers' step, for updates without gradients; may
      return metrics by name;
    * `compile()` and `recompute()`, called once before training if the configuration says so;
    * `shard(shard)`, to divide its module with the function that it is given, and `replaced(module)`, a context in
      which another, whole module is validated, sampled and exported;
    * `evaluate(module)`, metrics of generated samples with the averaged weights in place, called every `evaluate_every`
      steps;
    * `lengths` of the samples, for batches of like length, or `blocks`, ends of stretches of samples that are read as
      one; see `CounterSampler`;
    * `prefetch(indices)`, called before the losses of a step with this process's samples of it, then of the next.
    """

    name: str

    @property
    def module(self) -> nn.Module:
        """Everything that a checkpoint holds: all trained parameters and persistent buffers."""
        ...

    @property
    def ema_module(self) -> nn.Module | None:
        """The part of `module` whose parameters are averaged for validation and export, or None."""
        ...

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        ...

    def optimizer_groups(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Parameters by group name, the main group first; each group has its own optimizer and its own loss."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move modules, and data kept in memory, to the device, in place."""
        ...

    def losses(
        self,
        indices: Int[Tensor, " B"],
        parts: Sequence[slice],
        step: int,
        generator: torch.Generator,
        reduce: Reduce,
    ) -> Sequence[LossOf]:
        """The losses of a step in the order in which they are to be computed, each with its group.

        All that is random is drawn here, for the whole batch, and is the same in every process. A loss is a part's
        share in the loss of the whole batch: a sum over the part, divided by what counts in all of it. So the gradients
        of all parts of all processes add up to that of the batch, however it is divided.

        Args:
            indices: samples of the whole batch, in all processes.
            parts: the micro-batches of this process.
            step: number of the step.
            generator: the step's random numbers.
            reduce: the processes; all call the same losses in the same order.
        """
        ...

    def validate(self, module: nn.Module, reduce: Reduce) -> Mapping[str, float]:
        """Metrics on held-out data; `module`, the task's own, holds the averaged weights. `val_loss` picks the best.

        Every process calls it, each looks at its share of the data, and all return the metrics of the whole.
        """
        ...

    def sample(self, path: Path) -> None:
        """Write a sample image, with the averaged weights in place."""
        ...

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the published model, with the averaged weights in place."""
        ...
