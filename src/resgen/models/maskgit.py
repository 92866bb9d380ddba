"""MaskGIT, depth by depth: a bidirectional transformer that predicts one residual level at a time, masked over
positions, given all coarser levels (Sec. 5.2.1, Table 1; a counterpart of ResGen on the same tokens)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.models.base import INIT_STD, CodeModel, check_config
from resgen.models.conditions import ClassCondition
from resgen.models.guided import GuidedEvaluation
from resgen.models.level_head import LevelHead
from resgen.nn.positions import Positions
from resgen.nn.transformer import SharedModulation, Transformer
from resgen.types import CodeSpec, SequenceCondition


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig:
    """Shape of the generator; the defaults are `xl`, the paper's 580M.

    Attributes:
        width: O.
        num_layers: transformer blocks.
        num_heads: attention heads.
        mlp_width: hidden width of each block's MLP.
        condition_width: hidden width of the shared modulation MLP.
        num_classes: classes of the condition; 0 for none.
        other_axes: classes of each other axis of the condition.
        class_dropout: share of training samples without their class, features and prompt, for guidance.
        feature_width: width of the features of each position, such as expanded text; 0 for none.
        feature_stride: rows of features per position.
    """

    tag: ClassVar[str] = "maskgit"
    width: int = 1152
    num_layers: int = 32
    num_heads: int = 16
    mlp_width: int = 4608
    condition_width: int = 4608
    num_classes: int = 0
    other_axes: tuple[int, ...] = ()
    class_dropout: float = 0.1
    feature_width: int = 0
    feature_stride: int = 1

    def __post_init__(self) -> None:
        check_config(self, "width num_layers num_heads mlp_width condition_width".split())


@final
class MaskGIT(CodeModel):
    """The generator. While level d is decoded every position has d or d+1 visible levels; `visible` is the whole state.

    The condition is the class plus the current level, both learned vectors, through the modulation that all blocks
    share (**Default**: the paper does not say how the level enters).
    """

    def __init__(self, config: MaskGITConfig, spec: CodeSpec) -> None:
        super().__init__(config, spec)
        self.positions = Positions(spec.shape, config.width, config.num_heads)
        self.input = nn.Linear(spec.code_dim, config.width)
        self.visible_embedding = nn.Embedding(spec.depth + 1, config.width)
        self.condition = ClassCondition(config.num_classes, config.width, config.other_axes)
        self.modulation = SharedModulation(config.width, config.condition_width)
        self.transformer = Transformer(
            width=config.width, num_layers=config.num_layers, num_heads=config.num_heads, mlp_width=config.mlp_width
        )
        nn.init.normal_(self.visible_embedding.weight, std=INIT_STD)
        self.level_embedding = nn.Embedding(spec.depth, config.width)
        self.head = LevelHead(config.width, spec.depth, spec.codebook_size)
        nn.init.normal_(self.level_embedding.weight, std=INIT_STD)

    def forward(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        level: Int[Tensor, " B"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None = None,
    ) -> Float[Tensor, "B L V"]:
        """Logits of each sample's own level at all its positions."""
        x = self.embed(codes, visible)  # [B, L, O]
        features = self.feature_vectors(sequence)
        x = x if features is None else x + features
        m = self.modulation(self.condition(class_ids) + self.level_embedding(level))  # [B, 8, O]
        valid = None if sequence is None else sequence.attended
        return self.head(self.transformer(x, m, self.positions.angles(x.shape[1]), valid), level)  # [B, L, V]

    def embed(self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"]) -> Float[Tensor, "B L O"]:
        """Network input, as of ResGen; codes of masked levels are never looked at."""
        known = self.known(codes, visible)
        return self.positions.add(self.input(known.to(self.input.weight.dtype)) + self.visible_embedding(visible))

    def predictor(self, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None = None) -> MaskGITPredictor:
        """This model under a condition, as the callable that `samplers.depthwise` takes."""
        return MaskGITPredictor(self, class_ids, sequence)


class MaskGITPredictor:
    """`samplers.depthwise.LevelPredictor` of a `MaskGIT`.

    Classes are embedded once and the modulation is computed once per level; both guidance branches run as one batch.
    """

    def __init__(self, model: MaskGIT, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None) -> None:
        self.model = model
        null_ids = torch.full_like(class_ids[:1], model.condition.null_id)
        self.condition = model.condition(torch.cat([class_ids, null_ids]))
        self.level = -1
        self.modulation = self.condition[:0]
        self.evaluate = GuidedEvaluation(model, model.embed, sequence)

    def __call__(
        self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"], level: int, guidance_scale: float
    ) -> Float[Tensor, "B L V"]:
        """Logits of `level` from one evaluation; a scale of 0 runs the conditional branch only."""
        model = self.model
        if level != self.level:
            self.modulation = model.modulation(self.condition + model.level_embedding.weight[level])
            self.level = level
        branches = [self.modulation[:-1], self.modulation[-1:]]
        hidden = self.evaluate(codes, visible, branches, guidance_scale)
        return model.head.at_level(hidden, level)
