"""MaskGIT, depth by depth."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.kinds import presets
from resgen.kinds.kind import Kind, Request
from resgen.kinds.objective import (
    VALIDATION_PROGRESS,
    Batch,
    Batches,
    GeneratorLossConfig,
    at_every_progress,
    by_name,
    by_progress,
    log_frequencies,
    targets_of,
)
from resgen.losses.tokens import token_loss
from resgen.models.maskgit import MaskGIT, MaskGITConfig
from resgen.models.shared import shared_fields
from resgen.ops.masking import num_masked, sample_visible
from resgen.samplers.depthwise import DepthwiseConfig, draw_noise, sample_codes
from resgen.samplers.records import Samples
from resgen.types import LOCAL, Reduce, SequenceCondition


class DepthwiseObjective:
    """One level per sample, its positions masked by the schedule, given all coarser levels."""

    def __init__(self, model: MaskGIT, config: GeneratorLossConfig) -> None:
        self.model, self.mask_schedule, self.data_start = model, config.mask_schedule, config.data_start

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        if self.data_start:
            self.model.head.bias.copy_(log_frequencies(codes, self.model.spec))

    def draw(self, targets: Bool[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
        """Masks of one random level per sample at random progress of the schedule."""
        count, place = len(targets), generator.device
        level = torch.randint(self.model.spec.depth, (count,), generator=generator, device=place)
        progress = torch.rand(count, generator=generator, dtype=torch.float64, device=place)
        return draw_level(
            targets, level.to(targets.device), self.model.spec.depth, self.mask_schedule, progress, generator
        )

    def loss(
        self, batch: Batch, visible: Int[Tensor, "B L"], whole: Int[Tensor, "G M"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy per masked position."""
        codes, class_ids, sequence = batch
        depth = self.model.spec.depth
        scored, all_scored = (_at_lowest(masks, depth) for masks in (visible, visible if whole is None else whole))
        level = visible.amin(1).clamp(max=depth - 1)  # of a sample with nothing to predict any
        logits, true = self._logits(codes, visible, level, class_ids, sequence)
        return token_loss(logits.flatten(0, 1), true.flatten(), scored.flatten() / all_scored.sum()), {}

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per masked position, by progress of the mask schedule and by level."""
        spec = self.model.spec
        by_level = torch.zeros(2, spec.depth, dtype=torch.float64)
        sums = torch.zeros(2, len(VALIDATION_PROGRESS), dtype=torch.float64)
        for column, progress, stream, (codes, class_ids, sequence) in at_every_progress(batches, reduce):
            level = torch.arange(len(codes), device=codes.device) % spec.depth
            visible = draw_level(targets_of(codes, sequence), level, spec.depth, self.mask_schedule, progress, stream)
            logits, true = self._logits(codes, visible, level, class_ids, sequence)
            value = -logits.log_softmax(-1).gather(2, true[..., None]).squeeze(2)
            counts = visible == level[:, None]
            value = (value * counts).sum(1).double().cpu()
            by_level[0].index_add_(0, level.cpu(), value)
            by_level[1].index_add_(0, level.cpu(), counts.sum(1).double().cpu())
            sums[0, column] += value.sum()
            sums[1, column] += counts.sum().cpu()
        return by_progress(reduce.sum(sums)) | by_name("nll_level", reduce.sum(by_level))

    def _logits(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        level: Int[Tensor, " B"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None,
    ) -> tuple[Float[Tensor, "B L V"], Int[Tensor, "B L"]]:
        true = codes.gather(2, level[:, None, None].expand(-1, codes.shape[1], 1)).squeeze(2)
        return self.model(codes, visible, level, class_ids, sequence), true


def draw_level(
    targets: Bool[Tensor, "B L"],
    level: Int[Tensor, " B"],
    depth: int,
    mask_schedule: str,
    progress: Float[Tensor, " B"],
    generator: torch.Generator,
) -> Int[Tensor, "B L"]:
    """A state of depth-wise decoding: `level` visible levels at n = ceil(gamma(r) L) positions, one more at the others;
    all where nothing is targets."""
    masked = num_masked(mask_schedule, progress, targets.sum(1).to(progress.device)).to(targets.device)
    visible = level[:, None] + sample_visible(masked, targets.shape[1], 1, generator, targets)
    return torch.where(targets, visible, depth)


def _at_lowest(visible: Int[Tensor, "B L"], depth: int) -> Bool[Tensor, "B L"]:
    """The positions with the fewest visible levels of their sample: those that are masked."""
    return (visible == visible.amin(1, keepdim=True)) & (visible < depth)


def sample(model: MaskGIT, request: Request, sampling: DepthwiseConfig) -> Samples:
    """Depth by depth."""
    noise = draw_noise(
        request.seed,
        request.indices,
        sampling.num_steps,
        model.spec,
        lengths=request.lengths,
        device=model.codebooks.device,
    )
    predict = model.predictor(*request.condition)
    whole = None if request.sequence is None else request.sequence.prompt
    return request.recorded(sampling.num_steps, sample_codes, predict, model.spec, noise, sampling, whole)


MASKGIT = Kind(
    name="maskgit",
    title="MaskGIT, depth by depth",
    model=MaskGIT,
    config=MaskGITConfig,
    sampling=DepthwiseConfig,
    sample=sample,
    objective=DepthwiseObjective,
    sized=lambda config, num_layers: MaskGITConfig(num_layers=num_layers, **shared_fields(config)),
    # Four steps per level, as in the paper (63 at depth 16).
    settings=lambda sampling, spec: DepthwiseConfig(guidance_scale=sampling.guidance_scale, num_steps=4 * spec.depth),
    search={
        "guidance_scale": (1.0, 2.0, 4.0, 6.0),
        "choice_temperature": (1.0, 4.5, 10.0, 20.0),
        "top_p": (0.9, 0.95, 1.0),
        "temperature": (0.8, 0.9, 1.0),
    },
    presets=presets.MASKGIT,
    step_counts=lambda depth: (depth, 2 * depth, 4 * depth),
    least_steps=lambda depth: depth,
    gains_with_progress=True,
)
