"""The training objective of a kind: its loss on a batch of codes, and its held-out likelihood.

All losses are nats per token that counts, and so is `val_loss`, a negative log-likelihood without the training's
bounds. For RQ-Transformer it is the joint likelihood of the codes; for ResGen and MaskGIT the mean, over seven stages
of unmasking, of the likelihood of what is masked given what is visible. So compare it within a kind only; that of a
mixture is a density besides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.errors import ConfigError, check_range, unknown
from resgen.ops.code_usage import code_histogram
from resgen.ops.masking import SCHEDULES
from resgen.ops.random import generator as make_generator
from resgen.types import LOCAL, CodeSpec, Reduce, SequenceCondition

VALIDATION_PROGRESS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
Batch = tuple[Int[Tensor, "B L D"], Int[Tensor, " B"], SequenceCondition | None]
Batches = Iterable[Batch]


@dataclass(frozen=True, kw_only=True)
class GeneratorLossConfig:
    """Settings of the generator's loss.

    Attributes:
        mask_schedule: gamma of the forward process; the paper trains everything with `circle`.
        smoothing: smoothing of the assignment q in the mixture's bound.
        level_decay: weight of a masked level in the cross-entropy of a residual head, relative to the level above; 1 is
            plain likelihood. Direct tokens are the paper's ablation (Eq. 2) with 1.
        data_start: start heads from the data before the first step: mixtures at clusters of the targets (a deviation;
            see `start_mixture`), logits at the frequencies of the codes.
        validation_samples: held-out samples that each validation looks at.
    """

    mask_schedule: str = "circle"
    smoothing: float = 0.01
    level_decay: float = 1.0
    data_start: bool = True
    validation_samples: int = 1024

    def __post_init__(self) -> None:
        if self.mask_schedule not in SCHEDULES:
            raise ConfigError(unknown("mask schedule", self.mask_schedule, SCHEDULES))
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing={self.smoothing} must lie in [0, 1)")
        if not 0 < self.level_decay <= 1:
            raise ConfigError(f"level_decay={self.level_decay} must lie in (0, 1]")
        check_range(self, 1, "validation_samples")


class Objective(Protocol):
    """The training objective of a kind, as the generator's task sees it.

    All that is random about a step is a mask, drawn for its whole batch at once. The loss of a part of the batch is the
    sum over the part's tokens divided by the number of tokens in the whole; so the parts add up to the loss of the
    batch, however it is divided over micro-batches and processes.
    """

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Initialise from data, before the first step."""
        ...

    def draw(self, targets: Bool[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
        """Visible levels of a training step, on the device of `targets`; all of them where there is no target."""
        ...

    def loss(
        self, batch: Batch, visible: Int[Tensor, "B L"], whole: Int[Tensor, "G M"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Share of a part in the loss of a batch and in the metrics for the log.

        Args:
            batch: the part.
            visible: its rows of `draw`.
            whole: all rows of `draw`; the part is the whole batch by default.
        """
        ...

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Exact likelihoods on held-out codes; the same masks at every call. Has `val_loss`.

        Of several processes each gives its own batches: of all of them number `rank`, `rank + world_size`, ...
        """
        ...


def targets_of(codes: Int[Tensor, "B L D"], sequence: SequenceCondition | None) -> Bool[Tensor, "B L"]:
    """The positions of a batch that are to be predicted."""
    return torch.ones_like(codes[..., 0], dtype=torch.bool) if sequence is None else sequence.targets


def log_frequencies(codes: Int[Tensor, "B L D"], spec: CodeSpec) -> Float[Tensor, "D V"]:
    """Logarithm of how often each code of each level occurs, every code counted once more."""
    counts = code_histogram(codes, spec.codebook_size).float() + 1
    return (counts / counts.sum(1, keepdim=True)).log()


def numbered(batches: Batches, reduce: Reduce) -> Iterator[tuple[int, Batch]]:
    """A process's batches with their numbers among all; masks are drawn by number."""
    return zip(itertools.count(reduce.rank, reduce.world_size), batches, strict=False)


def at_every_progress(
    batches: Batches, reduce: Reduce
) -> Iterator[tuple[int, Float[Tensor, " B"], torch.Generator, Batch]]:
    """A process's batches at each of `VALIDATION_PROGRESS`: its number, it for every sample, a stream for the masks,
    and the batch."""
    for number, batch in numbered(batches, reduce):
        for column, progress in enumerate(VALIDATION_PROGRESS):
            everywhere = torch.full((len(batch[0]),), progress, dtype=torch.float64)
            yield column, everywhere, make_generator("validation", f"{progress:.2f}", number), batch


def by_progress(sums: Float[Tensor, "2 P"]) -> dict[str, float]:
    """Means per progress of the mask schedule, and their mean as `val_loss`."""
    names = [f"nll_progress/{progress:.2f}" for progress in VALIDATION_PROGRESS]
    metrics = dict(zip(names, (sums[0] / sums[1]).tolist(), strict=True))
    return metrics | {"val_loss": sum(metrics.values()) / len(metrics)}


def by_name(name: str, sums: Float[Tensor, "2 D"]) -> dict[str, float]:
    """Means per level, where there was something to average."""
    means = (sums[0] / sums[1]).tolist()
    return {f"{name}/{level}": mean for level, mean in enumerate(means) if sums[1, level] > 0}


def with_mean(name: str, sums: Float[Tensor, "2 D"]) -> dict[str, float]:
    """Means per level, and the mean over all as `val_loss`."""
    return {"val_loss": float(sums[0].sum() / sums[1].sum())} | by_name(name, sums)
