"""RQ-Transformer, a counterpart of ResGen on the same codes (Sec. 5.2.1; arXiv:2203.01941): a causal transformer over
positions and a small causal transformer over the levels of each, one code at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.models.base import INIT_STD, check_config
from resgen.models.causal import CausalModel, CausalSteps
from resgen.models.level_head import LevelHead
from resgen.nn.cache import new_caches
from resgen.nn.transformer import Transformer
from resgen.ops.guidance import Weight
from resgen.ops.mixture import at_least_float32
from resgen.types import CodeSpec, SequenceCondition


@dataclass(frozen=True, kw_only=True)
class RQTransformerConfig:
    """Shape of the generator; the defaults are the paper's size (`xl`, 626M).

    Attributes:
        width: O, of both transformers.
        num_layers: blocks of the transformer over positions.
        num_heads: attention heads, of both transformers.
        mlp_width: hidden width of each block's MLP, of both transformers.
        condition_width: hidden width of the shared modulation MLP.
        depth_layers: blocks of the transformer over levels.
        num_classes: classes of the condition; 0 for none.
        other_axes: classes of each other axis of the condition.
        class_dropout: share of training samples without their class and features, for guidance.
        feature_width: width of the features of each position, such as expanded text; 0 for none.
        feature_stride: rows of features per position.
    """

    tag: ClassVar[str] = "rq_transformer"
    width: int = 1152
    num_layers: int = 30
    num_heads: int = 16
    mlp_width: int = 4608
    condition_width: int = 4608
    depth_layers: int = 5
    num_classes: int = 0
    other_axes: tuple[int, ...] = ()
    class_dropout: float = 0.1
    feature_width: int = 0
    feature_stride: int = 1

    def __post_init__(self) -> None:
        check_config(self, ("width", "num_layers", "num_heads", "mlp_width", "condition_width", "depth_layers"))


@final
class RQTransformer(CausalModel):
    """The generator. `CausalModel` describes the transformer over positions and the condition.

    RQ-Transformer has one classifier for all levels, because its levels share a codebook. Here every level has a
    codebook of its own, and so a classifier of its own.

    The transformer over levels has the spatial transformer's output as its input at level 0, and the projected sum of
    the position's embeddings of the levels above at every other one, plus a learned embedding of the level. It is
    modulated by the same vectors (plus its own biases per block) as the transformer over positions.

    The paper states 626M parameters, neither width nor layers. `xl` has ResGen's width of 1152, 16 heads and MLPs of
    4608, 30 blocks over positions and 5 over levels (the ratio of 6 to 1 of RQ-Transformer's own largest model): 626.0M
    with 16 levels of 1,024 codes of width 64, on 8 x 8 positions and for 1,000 classes.
    """

    config: RQTransformerConfig

    def __init__(self, config: RQTransformerConfig, spec: CodeSpec) -> None:
        super().__init__(config, spec)
        self.depth_input = nn.Linear(spec.code_dim, config.width)
        self.level_embedding = nn.Parameter(torch.empty(spec.depth, config.width))
        self.depth_transformer = Transformer(
            width=config.width, num_layers=config.depth_layers, num_heads=config.num_heads, mlp_width=config.mlp_width
        )
        self.heads = LevelHead(config.width, spec.depth, spec.codebook_size)
        nn.init.normal_(self.level_embedding, std=INIT_STD)

    def forward(
        self, codes: Int[Tensor, "B L D"], class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None = None
    ) -> Float[Tensor, "B L D V"]:
        """Logits of every code given all before it: earlier positions, and coarser levels of its own (teacher forcing).

        The first positions of a grid or sequence may be given alone.
        """
        logits = self.heads.each_level(self.hidden(codes, class_ids, sequence))
        return at_least_float32(torch.stack(list(logits), dim=2))

    def hidden(
        self, codes: Int[Tensor, "B L D"], class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None = None
    ) -> Float[Tensor, "B L D O"]:
        """What `heads` turns into logits, for callers that take the levels one by one."""
        condition = self.condition(class_ids)
        modulation = self.modulation(condition)
        sums = self.partial_sums(codes)
        context = self.context(sums[:, :-1, -1], condition, modulation, features=self.feature_vectors(sequence))
        finer = self.depth_input(sums[:, :, :-1].to(self.depth_input.weight.dtype))
        x = torch.cat([context[:, :, None], finer], dim=2) + self.level_embedding
        # A sequence per position in one batch; as segments, all of a sample share one modulation.
        h = self.depth_transformer(x.flatten(1, 2), modulation, causal=True, segment=self.spec.depth)
        return h.unflatten(1, x.shape[1:3])

    def partial_sums(self, codes: Int[Tensor, "B L D"]) -> Float[Tensor, "B L D H"]:
        """Sums of the scaled embeddings of each position's levels up to and with every level."""
        embedded = [F.embedding(codes[..., level], self.codebooks[level]) for level in range(self.spec.depth)]
        return torch.stack(embedded, dim=2).cumsum(2)

    def decoder(self, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None = None) -> RQTransformerDecoder:
        """This model under a condition, as the `LevelDecoder` that the autoregressive sampler takes.

        Args:
            class_ids: the condition.
            sequence: the condition of sequences.
        """
        return RQTransformerDecoder(self, class_ids, sequence)


class RQTransformerDecoder:
    """`samplers.autoregressive.LevelDecoder` of an `RQTransformer`."""

    def __init__(self, model: RQTransformer, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None) -> None:
        self.model = model
        self.steps = CausalSteps(model, class_ids, sequence)

    @property
    def device(self) -> torch.device:
        """Where the codes are expected."""
        return self.model.codebooks.device

    def begin(self, guided: bool) -> None:
        """Start at the first position, with the unconditional branch if `guided`."""
        self.steps.begin(guided)
        depth = self.model.spec.depth
        self.caches = new_caches(len(self.model.depth_transformer.blocks), depth)

    def next_position(self, codes: Int[Tensor, "B S D"]) -> None:
        """Go on to the position after `codes`, which are the S positions finished since the last call."""
        self.input = self.steps.next_position(codes)
        self.known = self.model.codebooks.new_zeros(len(codes), self.model.spec.code_dim)
        self.level = 0
        for cache in self.caches:
            cache.reset()

    def next_level(self, codes: Int[Tensor, " B"] | None, guidance_scale: Weight) -> Float[Tensor, "B V"]:
        """Logits of the next level of this position, given the codes of the level above (None at level 0)."""
        model, level = self.model, self.level
        x = self.input
        if codes is not None:
            self.known = self.known + F.embedding(codes, model.codebooks[level - 1])
            x = model.depth_input(self.known.to(x.dtype))[:, None]
            x = self.steps.branches(x)
        x = x + model.level_embedding[level]
        h = model.depth_transformer(x, self.steps.modulation, causal=True, caches=self.caches)
        self.level += 1
        # The head is linear: guided hidden states are guided logits, for half of the products.
        return model.heads.at_level(self.steps.guide(h[:, -1], guidance_scale), level)
