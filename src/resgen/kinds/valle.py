"""VALL-E's scheme."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from resgen.kinds import maskgit, rq_transformer
from resgen.kinds.kind import Kind, Request
from resgen.kinds.objective import Batch, Batches, GeneratorLossConfig, by_name, log_frequencies, targets_of
from resgen.kinds.rq_transformer import AutoregressiveObjective
from resgen.models.resgen import ResGenConfig
from resgen.models.shared import shared_fields
from resgen.models.valle import Valle, ValleConfig
from resgen.samplers.autoregressive import AutoregressiveConfig
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.records import Samples, StepCallback, StepRecord
from resgen.types import LOCAL, Reduce, SequenceCondition

GREEDY = 1e-9
"""Nucleus of the most likely code alone, or of those that are equally likely."""


class FirstThenRestObjective:
    """Level 0 given all positions before it, and one other level given those above it."""

    def __init__(self, model: Valle, config: GeneratorLossConfig) -> None:
        self.model, self.data_start = model, config.data_start
        self.first = AutoregressiveObjective(model.first, config)

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        self.first.start(codes[..., :1], generator)
        if self.data_start:
            self.model.rest.head.bias.copy_(log_frequencies(codes, self.model.spec))

    def draw(self, targets: Bool[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
        """One random level per sample, from the second on, and all below it are masked."""
        depth, place = self.model.spec.depth, generator.device
        level = 1 + torch.randint(depth - 1, (len(targets), 1), generator=generator, device=place)
        return torch.where(targets, level.to(targets.device), depth)

    def loss(
        self, batch: Batch, visible: Int[Tensor, "B L"], whole: Int[Tensor, "G M"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both networks' cross-entropies per token."""
        codes, class_ids, sequence = batch
        positions = ((visible if whole is None else whole) < self.model.spec.depth).sum()
        first = self.first.sums(codes[..., :1], class_ids, sequence)[0].sum() / positions
        level = visible.amin(1).clamp(max=self.model.spec.depth - 1)  # of a sample with nothing to predict any
        rest = self._rest(codes, level, class_ids, sequence)[0].sum() / positions
        return first + rest, {"first": first.detach(), "rest": rest.detach()}

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per token, over all and by level."""
        depth = self.model.spec.depth
        by_level = torch.zeros(2, depth, dtype=torch.float64)
        for codes, class_ids, sequence in batches:
            sums, count = self.first.sums(codes[..., :1], class_ids, sequence)
            by_level[:, 0] += torch.stack([sums.sum(), count]).double().cpu()
            for level in range(1, depth):
                values, counts = self._rest(codes, torch.full_like(class_ids, level), class_ids, sequence)
                by_level[:, level] += torch.stack([values.sum(), counts.sum()]).double().cpu()
        by_level = reduce.sum(by_level)
        per_level = by_level[0] / by_level[1]
        return {"val_loss": float(per_level.mean())} | by_name("nll_level", by_level)

    def _rest(
        self,
        codes: Int[Tensor, "B L D"],
        level: Int[Tensor, " B"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None,
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Sum of the cross-entropies of each sample's level, and how many positions it is over."""
        targets = targets_of(codes, sequence)
        visible = torch.where(targets, level[:, None], codes.shape[2])
        logits = self.model.rest(codes, visible, level, class_ids, sequence)
        true = codes.gather(2, level[:, None, None].expand(-1, codes.shape[1], 1))
        value = -logits.log_softmax(-1).gather(2, true).squeeze(2)
        return (value * targets).sum(1), targets.sum(1).float()


def sample(model: Valle, request: Request, sampling: AutoregressiveConfig) -> Samples:
    """The first level code by code, then each other level at once; `guidance_first` acts on the first level only."""
    codes, visible, depth = request.codes, request.visible, model.spec.depth
    first_request = request._replace(
        codes=None if codes is None else codes[..., :1],
        visible=None if visible is None else visible.clamp(max=1),
        callback=None if request.callback is None else _deepened(request.callback, depth),
    )
    first = rq_transformer.sample(model.first, first_request, sampling)
    codes = first.codes.repeat(1, 1, depth) if codes is None else codes.clone()
    codes[..., 0] = first.codes[..., 0]
    visible = torch.ones_like(codes[..., 0]) if visible is None else visible.clamp(min=1)
    # One evaluation per level, the first of them with nothing left to do; the most likely codes, as in VALL-E.
    settings = DepthwiseConfig(
        num_steps=depth,
        choice_temperature=0.0,
        top_p=GREEDY,
        guidance_first=sampling.guidance_scale,
        guidance_scale=sampling.guidance_scale,
    )
    rest = maskgit.sample(model.rest, request._replace(codes=codes, visible=visible), settings)
    return Samples(rest.codes, first.steps + rest.steps)


def _deepened(callback: StepCallback, depth: int) -> StepCallback:
    """A callback that is shown the codes of the first level as codes of all levels, of which one is visible."""

    def deepened(record: StepRecord, codes: Tensor, visible: Tensor) -> None:
        callback(record, F.pad(codes, (0, depth - 1)), visible)

    return deepened


def _sized(config: ResGenConfig, num_layers: int) -> ValleConfig:
    """Half of the layers for either network."""
    first, rest = (num_layers + 1) // 2, max(1, num_layers // 2)
    return ValleConfig(num_layers=first, rest_layers=rest, **shared_fields(config))


VALLE = Kind(
    name="valle",
    title="VALL-E's scheme",
    model=Valle,
    config=ValleConfig,
    sampling=AutoregressiveConfig,
    sample=sample,
    objective=FirstThenRestObjective,
    sized=_sized,
    settings=rq_transformer.RQ_TRANSFORMER.settings,
    search=rq_transformer.RQ_TRANSFORMER.search,
    ordered_levels=1,
    compilable=False,
)
