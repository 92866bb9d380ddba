"""What the generators that see all positions at once share: ResGen and MaskGIT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.models.base import CodeModel
from resgen.models.conditions import ClassCondition
from resgen.nn.attention import PositionCache
from resgen.nn.positions import positions_of
from resgen.nn.transformer import SharedModulation, Transformer
from resgen.ops.guidance import guide
from resgen.types import CodeSpec, SequenceCondition

INIT_STD = 0.02
WORTHWHILE = 0.875
"""Share of the positions up to which computing only those pays."""


class BidirectionalModel(CodeModel):
    """Base, abstract: a transformer over the visible sums of all positions, under one condition for all of them."""

    positions: Tensor

    def __init__(self, config: Any, spec: CodeSpec) -> None:
        super().__init__(config, spec)
        self.is_grid = len(spec.shape) == 2
        positions = positions_of(spec.shape, config.width, config.num_heads)
        self.register_buffer("positions", positions, persistent=False)
        self.input = nn.Linear(spec.code_dim, config.width)
        self.visible_embedding = nn.Embedding(spec.depth + 1, config.width)
        self.condition = ClassCondition(config.num_classes, config.width)
        self.modulation = SharedModulation(config.width, config.condition_width)
        self.transformer = Transformer(
            width=config.width, num_layers=config.num_layers, num_heads=config.num_heads, mlp_width=config.mlp_width
        )
        nn.init.normal_(self.visible_embedding.weight, std=INIT_STD)

    def embed(self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"]) -> Float[Tensor, "B L O"]:
        """Network input: the projected sum of the visible embeddings, how many are visible, and where."""
        known = self.known(codes, visible)
        x = self.input(known.to(self.input.weight.dtype)) + self.visible_embedding(visible)
        return x + self.positions.to(x.dtype) if self.is_grid else x

    def hidden(
        self,
        x: Float[Tensor, "B L O"],
        condition: Float[Tensor, "B O"],
        sequence: SequenceCondition | None = None,
    ) -> Float[Tensor, "B L O"]:
        """Hidden states of a batch of network inputs under its conditions."""
        vectors = self.feature_vectors(sequence)
        x = x if vectors is None else x + vectors
        return self.transform(x, self.modulation(condition), None if sequence is None else sequence.attended)

    def transform(
        self,
        x: Float[Tensor, "B A O"],
        modulation: Float[Tensor, "B 8 O"],
        valid: Bool[Tensor, "B L"] | None = None,
        index: Int[Tensor, "B A"] | None = None,
        caches: Sequence[PositionCache] | None = None,
    ) -> Float[Tensor, "B A O"]:
        """The transformer alone, for callers that keep the modulation over many steps.

        Args:
            x: network inputs of all positions, or of those in `index`.
            modulation: of each sample.
            valid: positions that may be attended to.
            index: which positions `x` holds, with `caches` for the others.
            caches: see `Reuse`.
        """
        if self.is_grid:
            angles = None
        else:
            angles = self.positions[: x.shape[1]] if index is None else self.positions[index][:, None]
        attn_mask = None if valid is None else valid[:, None, None, :]
        return self.transformer(x, modulation, angles, attn_mask, caches=caches)


class Reuse:
    """The transformer of a model, run at the positions that still need it: keys and values of finished positions serve
    again (the paper leaves this open).

    A position with all its levels visible has no output any more; others only look at its keys and values. Those are
    kept for `steps` evaluations, in which the other positions alone are computed; then all are computed again. In the
    first layer that changes nothing, in the others it is an approximation: keys and values depend on what has become
    visible elsewhere since. A batch is refreshed as a whole, also where guidance sets in and as long as hardly anything
    would be saved.

    Args:
        model: whose transformer is run.
        steps: evaluations that keys and values serve after the one that computed them, at least 1.
    """

    def __init__(self, model: BidirectionalModel, steps: int) -> None:
        self.model, self.steps = model, steps
        self.caches = [PositionCache() for _ in model.transformer.blocks]
        self.age = 0
        self.kept: Tensor | None = None

    def __call__(
        self,
        x: Float[Tensor, "C L O"],
        modulation: Float[Tensor, "C 8 O"],
        valid: Bool[Tensor, "C L"] | None,
        visible: Int[Tensor, "B L"],
    ) -> Float[Tensor, "C L O"]:
        """Hidden states, 0 at the positions that are not computed.

        Args:
            x: network inputs of one branch of guidance, or of all (C is B or a multiple).
            modulation: of every row of `x`.
            valid: positions that may be attended to.
            visible: levels of each position.
        """
        kept = self.kept
        self.kept = (visible == self.model.spec.depth).repeat(len(x) // len(visible), 1)
        index = None
        if kept is not None and self.age < self.steps and len(x) <= len(kept):
            index = left_over(kept[: len(x)])
            if index.shape[1] > WORTHWHILE * x.shape[1]:  # gathering would cost more than it saves
                index = None
        self.age = 0 if index is None else self.age + 1
        for cache in self.caches:
            cache.index = index
        if index is None:
            return self.model.transform(x, modulation, valid, None, self.caches)
        rows = index[..., None].expand(-1, -1, x.shape[-1])
        hidden = self.model.transform(x.gather(1, rows), modulation, valid, index, self.caches)
        return torch.zeros_like(x).scatter_(1, rows, hidden)


def left_over(kept: Bool[Tensor, "C L"]) -> Int[Tensor, "C A"]:
    """The positions of each sample that are not kept. Where a sample has fewer than the most, its first one is repeated
    (the same result is then written twice)."""
    count = (~kept).sum(1, keepdim=True)
    order = kept.int().argsort(dim=1, stable=True)[:, : max(1, int(count.max()))]
    return torch.where(torch.arange(order.shape[1], device=kept.device) < count, order, order[:, :1])


class GuidedEvaluation:
    """Evaluations of a `BidirectionalModel` for a sampler: what does not change is computed once, all branches of
    guidance run as one batch, and keys and values of finished positions may serve for `reuse_steps` evaluations more
    (`Reuse`).

    Args:
        model: to evaluate.
        sequence: the condition, for sequences.
        reuse_steps: see `Reuse`; 0 computes everything in every evaluation.
        prompt_guidance: share of the guidance that is away from the request without its prompt.
    """

    def __init__(
        self,
        model: BidirectionalModel,
        sequence: SequenceCondition | None,
        reuse_steps: int = 0,
        prompt_guidance: float = 0.0,
    ) -> None:
        if prompt_guidance and sequence is None:
            raise ConfigError(f"prompt_guidance={prompt_guidance} is for sequences with prompts; set it to 0")
        self.model, self.prompt_guidance = model, prompt_guidance
        self.reuse = Reuse(model, reuse_steps) if reuse_steps else None
        self.features, self.valid = model.branches(sequence, prompt_guidance)

    def __call__(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        conditional: Float[Tensor, "B 8 O"],
        others: Sequence[Float[Tensor, "_ 8 O"]],
        guidance_scale: float,
    ) -> Float[Tensor, "B L O"]:
        """Guided hidden states; with reuse they may be 0 at finished positions.

        Args:
            codes: of masked levels they are never looked at.
            visible: levels of each position.
            conditional: modulation of the conditional branch.
            others: modulations of the branches to move away from, as `CodeModel.branches` orders them; of every sample,
                or one for all.
            guidance_scale: 0 runs the conditional branch only.
        """
        x, modulation, batch = self.model.embed(codes, visible), conditional, len(codes)
        if guidance_scale:
            modulation = torch.cat([conditional, *(other.expand_as(conditional) for other in others)])
            x = x.repeat(1 + len(others), 1, 1)
        if self.features is not None:
            x = x + self.features[: len(x)]
        valid = None if self.valid is None else self.valid[: len(x)]
        if self.reuse is None:
            hidden = self.model.transform(x, modulation, valid)
        else:
            hidden = self.reuse(x, modulation, valid, visible)
        if not guidance_scale:
            return hidden
        asked, *away = hidden.split(batch)
        if len(away) == 2:
            away = [torch.lerp(away[0], away[1], self.prompt_guidance)]
        return guide(asked, away[0], guidance_scale)
