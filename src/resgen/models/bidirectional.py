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
from resgen.nn.positions import positions_of
from resgen.nn.transformer import SharedModulation, Transformer
from resgen.ops.guidance import guide
from resgen.types import CodeSpec, SequenceCondition

INIT_STD = 0.02


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
        x: Float[Tensor, "B L O"],
        modulation: Float[Tensor, "B 8 O"],
        valid: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L O"]:
        """The transformer alone, for callers that keep the modulation over many steps.

        Args:
            x: network inputs.
            modulation: of each sample.
            valid: positions that may be attended to.
        """
        angles = None if self.is_grid else self.positions[: x.shape[1]]
        attn_mask = None if valid is None else valid[:, None, None, :]
        return self.transformer(x, modulation, angles, attn_mask)


class GuidedEvaluation:
    """Evaluations of a `BidirectionalModel` for a sampler: what does not change is computed once, and all branches of
    guidance run as one batch.

    Args:
        model: to evaluate.
        sequence: the condition, for sequences.
        prompt_guidance: share of the guidance that is away from the request without its prompt.
    """

    def __init__(
        self,
        model: BidirectionalModel,
        sequence: SequenceCondition | None,
        prompt_guidance: float = 0.0,
    ) -> None:
        if prompt_guidance and sequence is None:
            raise ConfigError(f"prompt_guidance={prompt_guidance} is for sequences with prompts; set it to 0")
        self.model, self.prompt_guidance = model, prompt_guidance
        self.features, self.valid = model.branches(sequence, prompt_guidance)

    def __call__(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        conditional: Float[Tensor, "B 8 O"],
        others: Sequence[Float[Tensor, "_ 8 O"]],
        guidance_scale: float,
    ) -> Float[Tensor, "B L O"]:
        """Guided hidden states.

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
        hidden = self.model.transform(x, modulation, valid)
        if not guidance_scale:
            return hidden
        asked, *away = hidden.split(batch)
        if len(away) == 2:
            away = [torch.lerp(away[0], away[1], self.prompt_guidance)]
        return guide(asked, away[0], guidance_scale)
