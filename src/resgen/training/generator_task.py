"""Stage 2: a generator learns to predict the masked levels of cached codes (Sec. 3, App. A.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from resgen.checkpoints.artefacts import save_pipeline
from resgen.data.codes import CodeCache
from resgen.data.grid import picture_grid, save_picture
from resgen.errors import ConfigError, unknown
from resgen.kinds import AnySampling, sample
from resgen.models.base import CodeModel
from resgen.nn.transformer import Block
from resgen.ops.images import to_uint8
from resgen.ops.masking import SCHEDULES
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.objectives import make_objective
from resgen.types import LOCAL, Reduce

Evaluate = Callable[[CodeModel, AnySampling], Mapping[str, float]]
"""Metrics of samples of a model under sampling settings."""


@dataclass(frozen=True, kw_only=True)
class GeneratorLossConfig:
    """How the generator is trained.

    Attributes:
        mask_schedule: gamma of the forward process; the paper trains everything with `circle`.
        smoothing: of the assignment q in the mixture's bound.
        level_decay: weight of a masked level in the cross-entropy of a residual head, relative to the level above; 1 is
            plain likelihood. Direct tokens are the paper's ablation (Eq. 2) with 1.
        data_start: fit a mixture head to the data before the first step (a deviation; see the heads' `initialize`).
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
        if self.validation_samples < 1:
            raise ConfigError(f"validation_samples={self.validation_samples} must be at least 1")


class GeneratorTask:
    """What the trainer needs to train a generator of any kind on a code cache; see `training.trainer.Task`."""

    name = "generator"

    def __init__(
        self,
        model: CodeModel,
        config: GeneratorLossConfig,
        train: CodeCache,
        held_out: CodeCache,
        *,
        tokenizer: ImageTokenizer,
        sampling: AnySampling,
        history: Mapping[str, Any] | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.module: nn.Module = model
        self.model, self.config, self.tokenizer = model, config, tokenizer
        # Without classes there is nothing that guidance could move away from.
        self.sampling = sampling if model.config.num_classes else replace(sampling, guidance_scale=0.0)
        self.train, self.held_out = train, held_out
        self.history = dict(history or {})
        self.objective = make_objective(
            model,
            mask_schedule=config.mask_schedule,
            smoothing=config.smoothing,
            level_decay=config.level_decay,
            data_start=config.data_start,
        )
        self._evaluate = evaluate
        count = min(len(train), 16384)
        codes, _ = train.batch(torch.linspace(0, len(train) - 1, count).long())
        model.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)

    @property
    def num_samples(self) -> int:
        """Rows of the code cache."""
        return len(self.train)

    @property
    def ema_module(self) -> nn.Module:
        """The whole generator."""
        return self.model

    def optimizer_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters in one group."""
        return {"generator": list(self.model.parameters())}

    def to(self, device: torch.device) -> None:
        """Move the generator and, for sample pictures, the tokenizer."""
        self.model.to(device)
        self.tokenizer.to(device)

    def compile(self) -> None:
        """Compile the blocks of the transformers."""
        for module in self.model.modules():
            if isinstance(module, Block):
                module.compile()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.codebooks.device

    @torch.no_grad()
    def before_start(self, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Let the kind's objective initialise the model from data."""
        count = min(len(self.train), 4096)
        index = torch.randint(len(self.train), (count,), generator=generator, device=generator.device)
        self.objective.start(self.train.batch(index)[0].to(self.device), generator)

    def losses(
        self, indices: Int[Tensor, " B"], step: int, micro: int, generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The loss of the kind's objective, with some classes dropped for guidance."""
        codes, class_ids = self._batch(self.train, indices)
        class_ids = self.model.condition.drop(class_ids, self.model.config.class_dropout, generator)
        loss, metrics = self.objective.loss(codes, class_ids, generator)
        yield "generator", loss, metrics

    def after_step(self, step: int, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Nothing: the codebooks are frozen."""

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, float]:
        """Exact negative log-likelihood in nats per token; the same held-out codes and masks at every validation."""
        count = min(len(self.held_out), self.config.validation_samples)
        return self.objective.validate(self._batch(self.held_out, part) for part in torch.arange(count).split(256))

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of generated samples, if the task was given a way to take them."""
        return {} if self._evaluate is None else dict(self._evaluate(self.model, self.sampling))

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """A sheet of four samples per class (the first ten classes), one class a row."""
        classes = min(self.model.config.num_classes, 10)
        class_ids = torch.arange(max(classes, 1)).repeat_interleave(4).to(self.device)
        codes = sample(self.model, class_ids, seed=0, indices=range(len(class_ids)), sampling=self.sampling).codes
        pictures = to_uint8(self.tokenizer.decode(codes)).cpu()
        names = list(self.train.class_names[:classes]) or None
        save_picture(picture_grid(pictures, 4, scale=max(1, 64 // pictures.shape[-1]), row_labels=names), path)

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the pipeline folder."""
        save_pipeline(
            folder,
            self.tokenizer,
            self.model,
            sampling=self.sampling,
            class_names=self.train.class_names if self.model.config.num_classes else (),
            history={**self.history, "generator": dict(history)},
        )

    def _batch(self, cache: CodeCache, indices: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        codes, labels = (part.to(self.device) for part in cache.batch(indices))
        return codes, labels if self.model.config.num_classes else torch.zeros_like(labels)
