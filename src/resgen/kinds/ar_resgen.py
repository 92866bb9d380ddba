"""AR-ResGen, and CLaM-TTS as one setting of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from resgen.kinds.heads import Rows, head_loss, masked_rows
from resgen.kinds.kind import Kind, Request, shared_fields
from resgen.kinds.objective import Batch, Batches, GeneratorLossConfig, by_name, numbered, targets_of
from resgen.models.ar_resgen import PRESETS, ARResGen, ARResGenConfig
from resgen.models.resgen import ResGenConfig
from resgen.ops.masking import num_masked
from resgen.ops.random import generator as make_generator
from resgen.samplers.autoregressive import (
    LatentAutoregressiveConfig,
    draw_latent_autoregressive_noise,
    sample_latent_autoregressive,
)
from resgen.samplers.records import Samples
from resgen.types import LOCAL, Reduce, SequenceCondition


class LatentAutoregressiveObjective:
    """The masked levels of every position given all positions before it; how many are masked is drawn for
    each position from the schedule."""

    def __init__(self, model: ARResGen, config: GeneratorLossConfig) -> None:
        self.model, self.head_loss = model, head_loss(model, config)
        self.mask_schedule, self.data_start = config.mask_schedule, config.data_start

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Fit the head to data."""
        if self.data_start:
            self.head_loss.start(codes, generator)

    def draw(self, targets: Bool[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
        """At least one level of every target is masked."""
        depth = self.model.spec.depth
        progress = torch.rand(targets.shape, generator=generator, dtype=torch.float64, device=generator.device)
        visible = (depth - num_masked(self.mask_schedule, progress, depth)).clamp(max=depth - 1)
        return torch.where(targets, visible.to(targets.device), depth)

    def loss(
        self, batch: Batch, visible: Int[Tensor, "B L"], whole: Int[Tensor, "G M"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The head's loss per masked token."""
        codes, class_ids, sequence = batch
        return self.head_loss.loss(self._rows(codes, class_ids, visible, sequence), visible if whole is None else whole)

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per masked token, by visible levels."""
        spec = self.model.spec
        by_level = torch.zeros(2, spec.depth, dtype=torch.float64)
        for number, (codes, class_ids, sequence) in numbered(batches, reduce):
            stream = make_generator("validation", number)
            visible = self.draw(targets_of(codes, sequence), stream)
            hidden, true, start = self._rows(codes, class_ids, visible, sequence)
            value = self.head_loss.nll(hidden, true, start).double().cpu()
            by_level[0].index_add_(0, start.cpu(), value)
            by_level[1].index_add_(0, start.cpu(), (spec.depth - start.cpu()).double())
        by_level = reduce.sum(by_level)
        return {"val_loss": float(by_level[0].sum() / by_level[1].sum())} | by_name("nll_visible", by_level)

    def _rows(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        visible: Int[Tensor, "B L"],
        sequence: SequenceCondition | None,
    ) -> Rows:
        """Of all positions with something masked."""
        return masked_rows(self.model(codes, visible, class_ids, sequence), codes, visible)


def sample(model: ARResGen, request: Request, sampling: LatentAutoregressiveConfig) -> Samples:
    """Position by position."""
    noise = draw_latent_autoregressive_noise(
        request.seed,
        request.indices,
        sampling.num_steps,
        model.spec,
        model.head.noise,
        lengths=request.lengths,
    )
    decoder = model.decoder(*request.condition)
    positions = noise.uniform.shape[1]
    return request.recorded(positions, sample_latent_autoregressive, decoder, model.spec, noise, sampling)


def _sized(config: ResGenConfig, num_layers: int) -> ARResGenConfig:
    """About six transformer blocks for one of the MLP that takes the place of a transformer over levels."""
    return ARResGenConfig(
        num_layers=num_layers,
        head=config.head,
        head_layers=max(2, round(num_layers / 6)),
        head_width=config.mlp_width,
        num_components=config.num_components,
        mean_rank=config.mean_rank,
        metric=config.metric,
        **shared_fields(config),
    )


AR_RESGEN = Kind(
    name="ar_resgen",
    title="AR-ResGen",
    model=ARResGen,
    config=ARResGenConfig,
    sampling=LatentAutoregressiveConfig,
    sample=sample,
    objective=LatentAutoregressiveObjective,
    sized=_sized,
    settings=lambda sampling, spec: LatentAutoregressiveConfig(guidance_scale=sampling.guidance_scale),
    search={
        "guidance_scale": (0.5, 1.0, 2.0, 3.0),
        "num_steps": (1, 2, 4, 8),
        "top_p": (0.9, 0.95, 1.0),
        "temperature": (0.4, 0.7, 1.0),
    },
    presets=PRESETS,
    step_counts=lambda depth: [count for count in (1, 2, 4, 8) if count <= depth],
    ordered_levels=None,
    level_network="mlp",
    compilable=False,
)
CLAM_TTS = replace(
    AR_RESGEN,
    name="clam_tts",
    title="CLaM-TTS's scheme",
    head="mixture",
    settings=lambda sampling, spec: LatentAutoregressiveConfig(guidance_scale=sampling.guidance_scale, num_steps=1),
)
"""CLaM-TTS (arXiv:2404.02781): one prediction of the mixture head per position. Saved as the `ar_resgen` that it is."""
