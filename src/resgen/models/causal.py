"""What the autoregressive generators share: a causal transformer over positions, and its steps one by one (Sec. 5.2.1,
after RQ-Transformer, arXiv:2203.01941)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.models.base import INIT_STD, CodeModel
from resgen.models.conditions import ClassCondition
from resgen.nn.cache import KeyValueCache, new_caches
from resgen.nn.positions import Positions
from resgen.nn.transformer import SharedModulation, Transformer
from resgen.ops.guidance import Weight, guide
from resgen.ops.residual import residual_decode
from resgen.types import CodeSpec, SequenceCondition


class CausalModel(CodeModel):
    """Base of the autoregressive generators, abstract: a causal transformer over positions, in row-major order.

    The input of position i is the projected sum of *all* embeddings of position i - 1, that of position 0 a learned
    start vector plus the class embedding; to both the position is added (grids), or it turns queries and keys
    (sequences), as in ResGen. The features of position i are added to its input. A sample without features, in training
    and in the unconditional branch of guidance, still sees its prompt: it is what comes before.

    Deviation from RQ-Transformer: there the class is a token in front of the sequence. Here it modulates the layer
    norms, as in ResGen, so that all kinds of generators are conditioned in the same way; it is added to the start
    vector besides.
    """

    def __init__(self, config: Any, spec: CodeSpec) -> None:
        super().__init__(config, spec)
        self.positions = Positions(spec.shape, config.width, config.num_heads)
        self.input = nn.Linear(spec.code_dim, config.width)
        self.start = nn.Parameter(torch.empty(config.width))
        self.condition = ClassCondition(config.num_classes, config.width, config.other_axes)
        self.modulation = SharedModulation(config.width, config.condition_width)
        self.transformer = Transformer(
            width=config.width, num_layers=config.num_layers, num_heads=config.num_heads, mlp_width=config.mlp_width
        )
        nn.init.normal_(self.start, std=INIT_STD)

    def latents(self, codes: Int[Tensor, "B L D"]) -> Float[Tensor, "B L H"]:
        """The sum of the scaled embeddings of all levels."""
        return residual_decode(codes, self.codebooks)

    def context(
        self,
        latents: Float[Tensor, "B S H"],
        condition: Float[Tensor, "B O"],
        modulation: Float[Tensor, "B 8 O"],
        caches: Sequence[KeyValueCache] | None = None,
        features: Float[Tensor, "B L O"] | None = None,
    ) -> Float[Tensor, "B P O"]:
        """What the positions before it say about a position: one vector per position.

        Args:
            latents: full sums of the embeddings of S positions: the first ones, or with caches those that follow the
                ones given before.
            condition: embedding of the class.
            modulation: modulation of all layers.
            caches: keys and values of earlier calls, one cache per layer.
            features: feature vectors of all positions, for a model that takes them.

        Returns:
            Without caches, and in the first call with them, for the positions 0 to S (P = S + 1); in later calls for
            the S positions that follow.
        """
        begin = caches[0].length if caches else 0
        x = self.input(latents.to(self.input.weight.dtype))
        if begin == 0:
            x = torch.cat([(self.start + condition)[:, None], x], dim=1)
        x = self.positions.add(x, begin)
        if features is not None:
            x = x + features[:, begin : begin + x.shape[1]]
        return self.transformer(x, modulation, self.positions.angles(x.shape[1], begin), causal=True, caches=caches)


class CausalSteps:
    """The causal transformer of a model under a condition, position by position; the common part of the decoders.

    Both guidance branches run as one batch: conditional rows first.

    Args:
        model: whose transformer runs.
        class_ids: the condition.
        sequence: the condition of sequences.
    """

    def __init__(
        self, model: CausalModel, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None = None
    ) -> None:
        self.model = model
        self.class_ids = class_ids
        self.sequence = sequence
        self.guided = False

    def begin(self, guided: bool) -> None:
        """Start at the first position, with the unconditional branch if `guided`."""
        model, ids = self.model, self.class_ids
        self.guided = guided
        if guided:
            ids = torch.cat([ids, torch.full_like(ids, model.condition.null_id)])
        vectors, _ = model.branches(self.sequence)
        self.features = None if vectors is None else vectors[: len(ids)]
        self.condition = model.condition(ids)
        self.modulation = model.modulation(self.condition)
        length = model.spec.num_positions if self.sequence is None else self.sequence.valid.shape[1]
        self.caches = new_caches(len(model.transformer.blocks), length)

    def next_position(self, codes: Int[Tensor, "B S D"]) -> Float[Tensor, "C 1 O"]:
        """The context of the position after `codes`, which are the S positions finished since the last call."""
        latents = self.branches(self.model.latents(codes))
        return self.model.context(latents, self.condition, self.modulation, self.caches, self.features)[:, -1:]

    def branches(self, x: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "C ..."]:
        """One copy of `x` per branch (C = B, or 2B with guidance)."""
        return torch.cat([x, x]) if self.guided else x

    def guide(self, hidden: Float[Tensor, "C O"], guidance_scale: Weight) -> Float[Tensor, "B O"]:
        """h = h_c + w (h_c - h_u).

        Raises:
            ConfigError: a scale other than 0 without the unconditional branch.
        """
        if not self.guided:
            if isinstance(guidance_scale, Tensor) or guidance_scale:
                raise ConfigError(f"guidance_scale={guidance_scale} but decoding was begun without guidance")
            return hidden
        conditional, unconditional = hidden.chunk(2)
        return guide(conditional, unconditional, guidance_scale)
