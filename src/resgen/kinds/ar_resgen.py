"""AR-ResGen, and CLaM-TTS as one setting of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from resgen.kinds import presets
from resgen.kinds.heads import HeadObjective
from resgen.kinds.kind import Kind, Request
from resgen.kinds.objective import Batches, numbered, targets_of, with_mean
from resgen.models.ar_resgen import ARResGen, ARResGenConfig
from resgen.models.resgen import ResGenConfig
from resgen.models.shared import shared_fields
from resgen.ops.masking import num_masked
from resgen.ops.random import generator as make_generator
from resgen.samplers.autoregressive import (
    LatentAutoregressiveConfig,
    draw_latent_autoregressive_noise,
    sample_latent_autoregressive,
)
from resgen.samplers.records import Samples
from resgen.types import LOCAL, Reduce


class LatentAutoregressiveObjective(HeadObjective):
    """The masked levels of every position given all positions before it; how many are masked is drawn for
    each position from the schedule."""

    def draw(self, targets: Bool[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
        """At least one level of every target is masked."""
        depth = self.model.spec.depth
        progress = torch.rand(targets.shape, generator=generator, dtype=torch.float64, device=generator.device)
        visible = depth - num_masked(self.mask_schedule, progress, depth)  # r < 1 masks one at least
        return torch.where(targets, visible.to(targets.device), depth)

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per masked token, by visible levels."""
        by_visible = torch.zeros(2, self.model.spec.depth, dtype=torch.float64)
        for number, batch in numbered(batches, reduce):
            targets = targets_of(batch[0], batch[2])
            by_visible += self.nll(batch, self.draw(targets, make_generator("validation", number)))
        return with_mean("nll_visible", reduce.sum(by_visible))


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
    passes = 2 if sampling.guidance_scale else 1
    record = {"passes": lambda _: passes}
    return request.recorded(positions, sample_latent_autoregressive, decoder, model.spec, noise, sampling, **record)


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
        fixed_means=config.fixed_means,
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
    presets=presets.AR_RESGEN,
    step_counts=lambda depth: [count for count in (1, 2, 4, 8) if count <= depth],
    ordered_levels=None,
    level_network="mlp",
    iterates=True,
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
