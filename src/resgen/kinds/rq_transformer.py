"""RQ-Transformer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.kinds import presets
from resgen.kinds.kind import Kind, Request
from resgen.kinds.objective import Batch, Batches, GeneratorLossConfig, log_frequencies, targets_of, with_mean
from resgen.losses.tokens import token_loss
from resgen.models.resgen import ResGenConfig
from resgen.models.rq_transformer import RQTransformer, RQTransformerConfig
from resgen.models.shared import shared_fields
from resgen.samplers.autoregressive import AutoregressiveConfig, draw_autoregressive_noise, sample_autoregressive
from resgen.samplers.records import Samples
from resgen.types import LOCAL, Reduce, SequenceCondition


class AutoregressiveObjective:
    """Every code given all before it."""

    def __init__(self, model: RQTransformer, config: GeneratorLossConfig) -> None:
        self.model, self.data_start = model, config.data_start

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        if self.data_start:
            self.model.heads.bias.copy_(log_frequencies(codes, self.model.spec))

    def draw(self, targets: Bool[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
        """Nothing is random: all levels are masked."""
        return torch.where(targets, 0, self.model.spec.depth)

    def loss(
        self, batch: Batch, visible: Int[Tensor, "B L"], whole: Int[Tensor, "G M"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy per token."""
        tokens = (self.model.spec.depth - (visible if whole is None else whole)).sum()
        return self.sums(*batch)[0].sum() / tokens, {}

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per token, over all and by level."""
        by_level = torch.zeros(2, self.model.spec.depth, dtype=torch.float64)
        for codes, class_ids, sequence in batches:
            sums, count = self.sums(codes, class_ids, sequence)
            by_level[0] += sums.double().cpu()
            by_level[1] += float(count)
        return with_mean("nll_level", reduce.sum(by_level))

    def sums(
        self, codes: Int[Tensor, "B L D"], class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None
    ) -> tuple[Float[Tensor, " D"], Float[Tensor, ""]]:
        """Sums per level, and how many positions they are over; the logits of one level exist at a time."""
        hidden = self.model.hidden(codes, class_ids, sequence)
        weight = targets_of(codes, sequence).flatten().float()
        parts = zip(self.model.heads.each_level(hidden), codes.unbind(2), strict=True)
        sums = [token_loss(logits.flatten(0, 1), true.flatten(), weight) for logits, true in parts]
        return torch.stack(sums), weight.sum()


def sample(model: RQTransformer, request: Request, sampling: AutoregressiveConfig) -> Samples:
    """Code by code."""
    noise = draw_autoregressive_noise(request.seed, request.indices, model.spec, lengths=request.lengths)
    decoder = model.decoder(*request.condition)
    passes = 2 if sampling.guidance_scale else 1
    record = {"passes": lambda _: passes}
    return request.recorded(noise.shape[1], sample_autoregressive, decoder, noise, sampling, **record)


def _sized(config: ResGenConfig, num_layers: int) -> RQTransformerConfig:
    """About six layers over positions for one over levels."""
    depth_layers = max(1, round(num_layers / 6))
    return RQTransformerConfig(num_layers=num_layers, depth_layers=depth_layers, **shared_fields(config))


RQ_TRANSFORMER = Kind(
    name="rq_transformer",
    title="RQ-Transformer",
    model=RQTransformer,
    config=RQTransformerConfig,
    sampling=AutoregressiveConfig,
    sample=sample,
    objective=AutoregressiveObjective,
    sized=_sized,
    settings=lambda sampling, spec: AutoregressiveConfig(guidance_scale=sampling.guidance_scale),
    search={
        "guidance_scale": (0.5, 1.0, 2.0, 3.0),
        "top_k": (16, 64, 128, 0),
        "top_p": (0.9, 0.95, 1.0),
        "temperature": (0.8, 0.9, 1.0),
    },
    presets=presets.RQ_TRANSFORMER,
    ordered_levels=None,
    level_network="depth_transformer",
    is_yardstick=True,
    compilable=False,
)
