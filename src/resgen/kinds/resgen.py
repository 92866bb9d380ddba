"""ResGen and the kinds that share its network: the paper's mixture head, our residual head, direct tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.kinds import presets
from resgen.kinds.heads import HeadObjective
from resgen.kinds.kind import Kind, Request
from resgen.kinds.objective import VALIDATION_PROGRESS, Batches, at_every_progress, by_name, by_progress, targets_of
from resgen.models.head_choice import make_head
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.ops.masking import num_masked, sample_visible
from resgen.samplers.records import Samples
from resgen.samplers.unmasking import SamplingConfig, draw_noise, sample_codes
from resgen.types import LOCAL, Reduce

STEP_COUNTS = (2, 4, 8, 16, 32)
SEARCH: dict[str, Sequence[float]] = {"guidance_scale": (1.0, 2.0, 4.0, 6.0)}
OF_CODES = SEARCH | {
    "choice_temperature": (1.0, 2.0, 4.0, 8.0),
    "top_p": (0.9, 0.95, 1.0),
    "temperature": (0.8, 0.9, 1.0),
}
OF_DENSITY = SEARCH | {
    "choice_temperature": (10.0, 20.0, 40.0, 100.0),
    "top_p": (0.9, 0.95, 1.0),
    "temperature": (0.4, 0.7, 1.0),
}


class UnmaskingObjective(HeadObjective):
    """ResGen with any head: all masked levels of all positions at once, masked by the forward process (Sec. 3)."""

    def draw(self, targets: Bool[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
        """Masks at random progress of the schedule."""
        progress = torch.rand(len(targets), generator=generator, dtype=torch.float64, device=generator.device)
        return self._draw(targets, progress, generator)

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per masked token: by progress of the mask schedule and by visible levels."""
        by_visible = torch.zeros(2, self.model.spec.depth, dtype=torch.float64)
        sums = torch.zeros(2, len(VALIDATION_PROGRESS), dtype=torch.float64)
        for column, progress, stream, batch in at_every_progress(batches, reduce):
            nll = self.nll(batch, self._draw(targets_of(batch[0], batch[2]), progress, stream))
            by_visible += nll
            sums[:, column] += nll.sum(1)
        return by_progress(reduce.sum(sums)) | by_name("nll_visible", reduce.sum(by_visible))

    def _draw(
        self, targets: Bool[Tensor, "B L"], progress: Float[Tensor, " B"], generator: torch.Generator
    ) -> Int[Tensor, "B L"]:
        """Masks at the given progress of the schedule."""
        depth = self.model.spec.depth
        tokens = depth * targets.sum(1).to(progress.device)
        masked = num_masked(self.mask_schedule, progress, tokens).to(targets.device)
        return sample_visible(masked, targets.shape[1], depth, generator, targets)


def sample(model: ResGen, request: Request, sampling: SamplingConfig) -> Samples:
    """Iterative unmasking."""
    if request.sequence is not None and not request.sequence.prompt.any():
        sampling = replace(sampling, prompt_guidance=0.0)  # no prompt, no branch without it
    noise = draw_noise(
        request.seed,
        request.indices,
        sampling.num_steps,
        model.spec,
        model.head.noise,
        lengths=request.lengths,
        device=model.codebooks.device,
    )
    predict = model.predictor(*request.condition, prompt_guidance=sampling.prompt_guidance)
    return request.recorded(sampling.num_steps, sample_codes, predict, noise, sampling, passes=sampling.passes)


def with_head(config: ResGenConfig, head: str) -> ResGenConfig:
    """The same network with another head; metric and fixed means are the mixture's alone."""
    if head == "mixture":
        return replace(config, head=head)
    return replace(config, head=head, metric="none", fixed_means=False)


def _kind(
    name: str,
    title: str,
    head: str,
    search: Mapping[str, Sequence[Any]],
    *,
    temperature: float,
    choice_temperature: float,
    **facts: Any,
) -> Kind:
    return Kind(
        name=name,
        title=title,
        model=ResGen,
        config=ResGenConfig,
        sampling=SamplingConfig,
        sample=sample,
        objective=UnmaskingObjective,
        sized=lambda config, num_layers: replace(with_head(config, head), num_layers=num_layers),
        settings=lambda sampling, spec: replace(
            sampling, temperature=temperature, choice_temperature=choice_temperature
        ),
        search=search,
        presets={size: replace(preset, head=head) for size, preset in presets.RESGEN.items()},
        head=head,
        make=lambda config, spec: ResGen(config, spec, make_head(config, spec)),
        step_counts=lambda depth: STEP_COUNTS,
        **facts,
    )


# A density's confidences are sums of squares, and its temperature scales Gaussian noise; a confidence in codes is a
# log-probability, and the temperature divides logits.
RESGEN = _kind(
    "resgen",
    "ResGen",
    "mixture",
    OF_DENSITY,
    temperature=0.6,
    choice_temperature=40.0,
    has_verdict=True,
    is_yardstick=True,
)
RESIDUAL = _kind(
    "residual",
    "residual head (ours)",
    "residual",
    OF_CODES,
    temperature=1.0,
    choice_temperature=1.0,
    level_decay=True,
    has_verdict=True,
)
DIRECT = _kind("direct", "direct tokens", "tokens", OF_CODES, temperature=1.0, choice_temperature=1.0)
