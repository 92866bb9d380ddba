"""Stage 2: a generator learns to predict the masked levels of cached codes (Sec. 3, App. A.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.checkpoints.artefacts import save_pipeline
from resgen.data.codes import CodeCache
from resgen.data.grid import picture_grid, save_picture
from resgen.errors import ConfigError, unknown
from resgen.losses.mixture import mixture_loss
from resgen.models.resgen import ResGen
from resgen.ops.images import to_uint8
from resgen.ops.masking import SCHEDULES, num_masked, sample_visible
from resgen.ops.random import generator as make_generator
from resgen.samplers.unmasking import SamplingConfig, draw_noise, sample_codes
from resgen.tokenizers.image import ImageTokenizer
from resgen.types import LOCAL, Reduce

VALIDATION_PROGRESS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


@dataclass(frozen=True, kw_only=True)
class GeneratorLossConfig:
    """How the generator is trained.

    Attributes:
        mask_schedule: gamma of the forward process; the paper trains everything with `circle`.
        smoothing: of the assignment q in the mixture's bound.
        data_start: fit the head's means to the data before the first step (a deviation; see `MixtureHead.initialize`).
        validation_samples: held-out samples that each validation looks at.
    """

    mask_schedule: str = "circle"
    smoothing: float = 0.01
    data_start: bool = True
    validation_samples: int = 1024

    def __post_init__(self) -> None:
        if self.mask_schedule not in SCHEDULES:
            raise ConfigError(unknown("mask schedule", self.mask_schedule, SCHEDULES))
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing={self.smoothing} must lie in [0, 1)")
        if self.validation_samples < 1:
            raise ConfigError(f"validation_samples={self.validation_samples} must be at least 1")


class GeneratorTask:
    """What the trainer needs to train a `ResGen` on a code cache; see `training.trainer.Task`."""

    name = "generator"

    def __init__(
        self,
        model: ResGen,
        config: GeneratorLossConfig,
        train: CodeCache,
        held_out: CodeCache,
        *,
        tokenizer: ImageTokenizer,
        sampling: SamplingConfig,
        history: Mapping[str, Any] | None = None,
    ) -> None:
        self.module: nn.Module = model
        self.model, self.config, self.tokenizer = model, config, tokenizer
        # Without classes there is nothing that guidance could move away from.
        self.sampling = sampling if model.config.num_classes else replace(sampling, guidance_scale=0.0)
        self.train, self.held_out = train, held_out
        self.history = dict(history or {})
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
        """Compile the transformer's blocks."""
        for block in self.model.transformer.blocks:
            block.compile()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.codebooks.device

    @torch.no_grad()
    def before_start(self, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Fit the head's means to the targets of fully masked positions."""
        if not self.config.data_start:
            return
        index = torch.randint(
            len(self.train), (min(len(self.train), 4096),), generator=generator, device=generator.device
        )
        codes = self.train.batch(index)[0].to(self.device)
        latents = self.model.target(codes, torch.zeros_like(codes[..., 0])).flatten(0, 1)
        self.model.head.initialize(latents, generator)

    def losses(
        self, indices: Int[Tensor, " B"], step: int, micro: int, generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The mixture bound per masked token of a randomly masked batch (Eq. 1)."""
        codes, labels = (part.to(self.device) for part in self.train.batch(indices))
        spec = self.model.spec
        progress = torch.rand(len(codes), generator=generator, dtype=torch.float64, device=generator.device)
        masked = num_masked(self.config.mask_schedule, progress, spec.num_tokens).to(self.device)
        visible = sample_visible(masked, spec.num_positions, spec.depth, generator)
        class_ids = self._class_ids(labels)
        class_ids = self.model.condition.drop(class_ids, self.model.config.class_dropout, generator)
        hidden, target = self._masked_rows(codes, visible, class_ids)
        total = masked.sum()
        weight = (1 / total).expand(len(target)).float()  # the batch sum over the number of masked tokens
        loss = mixture_loss(self.model.head, hidden, target, weight, smoothing=self.config.smoothing)
        yield "generator", loss.loss, {"regression": loss.regression, "classification": loss.classification}

    def after_step(self, step: int, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Nothing: the codebooks are frozen."""

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, float]:
        """Exact negative log-likelihood in nats per masked token: by progress of the mask schedule and by visible
        levels.

        The same held-out codes and masks are used at every validation.
        """
        spec, model = self.model.spec, self.model
        count = min(len(self.held_out), self.config.validation_samples)
        index = torch.arange(count)
        by_level = torch.zeros(2, spec.depth, dtype=torch.float64)
        metrics: dict[str, float] = {}
        for progress in VALIDATION_PROGRESS:
            nll, tokens = 0.0, 0
            for part in index.split(256):
                codes, labels = (value.to(self.device) for value in self.held_out.batch(part))
                stream = make_generator("validation", f"{progress:.2f}", int(part[0]))
                masked = num_masked(self.config.mask_schedule, progress, spec.num_tokens).expand(len(part))
                visible = sample_visible(masked.to(self.device), spec.num_positions, spec.depth, stream)
                hidden, target = self._masked_rows(codes, visible, self._class_ids(labels))
                value = -model.head.log_prob(hidden, target).double().cpu()
                start = visible[visible < spec.depth].cpu()
                by_level[0].index_add_(0, start, value)
                by_level[1].index_add_(0, start, torch.ones_like(value))
                nll, tokens = nll + float(value.sum()), tokens + int(masked.sum())
            metrics[f"nll_progress/{progress:.2f}"] = nll / max(tokens, 1)
        metrics["val_loss"] = sum(metrics.values()) / len(metrics)
        for level in range(spec.depth):
            if by_level[1, level]:
                per_token = by_level[1, level] * (spec.depth - level)
                metrics[f"nll_visible/{level}"] = float(by_level[0, level] / per_token)
        return metrics

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """A sheet of four samples per class (the first ten classes), one class a row."""
        classes = min(self.model.config.num_classes, 10)
        class_ids = torch.arange(max(classes, 1)).repeat_interleave(4).to(self.device)
        noise = draw_noise(0, range(len(class_ids)), self.sampling.num_steps, self.model.spec)
        model = self.model
        codes = sample_codes(model.predictor(class_ids), model.codebooks, model.level_std, noise, self.sampling).codes
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

    def _class_ids(self, labels: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        return labels if self.model.config.num_classes else torch.zeros_like(labels)

    def _masked_rows(
        self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"], class_ids: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "N O"], Float[Tensor, "N H"]]:
        """Hidden states and targets of the positions with something masked."""
        rows = (visible.flatten() < self.model.spec.depth).nonzero().squeeze(1)
        hidden = self.model(codes, visible, class_ids).flatten(0, 1)[rows]
        return hidden, self.model.target(codes, visible).flatten(0, 1)[rows]
