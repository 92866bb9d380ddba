"""VALL-E's scheme, a counterpart of ResGen on the same codes (Sec. 5.1; arXiv:2301.02111): the first level code by
code, every other level at all positions at once, given those above it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError
from resgen.models.base import CodeModel, check_config
from resgen.models.maskgit import MaskGIT, MaskGITConfig
from resgen.models.rq_transformer import RQTransformer, RQTransformerConfig
from resgen.models.shared import shared_fields
from resgen.types import CodeSpec


@dataclass(frozen=True, kw_only=True)
class ValleConfig:
    """Shape of the generator: two networks of one width.

    Attributes:
        width: O, of both.
        num_layers: blocks of the causal network, which predicts level 0.
        rest_layers: blocks of the bidirectional network, which predicts one of the other levels at a time.
        num_heads: attention heads.
        mlp_width: hidden width of each block's MLP.
        condition_width: hidden width of the shared modulation MLPs.
        num_classes: classes of the condition; 0 for none.
        other_axes: classes of each other axis of the condition.
        class_dropout: share of training samples without their class and features, for guidance.
        feature_width: width of the features of each position, such as expanded text; 0 for none.
        feature_stride: rows of features per position.
    """

    tag: ClassVar[str] = "valle"
    width: int = 1024
    num_layers: int = 12
    rest_layers: int = 12
    num_heads: int = 16
    mlp_width: int = 4096
    condition_width: int = 4096
    num_classes: int = 0
    other_axes: tuple[int, ...] = ()
    class_dropout: float = 0.1
    feature_width: int = 0
    feature_stride: int = 1

    def __post_init__(self) -> None:
        check_config(self, ("width", "num_layers", "rest_layers", "num_heads", "mlp_width", "condition_width"))


@final
class Valle(CodeModel):
    """The generator: `RQTransformer` on the codes of level 0 alone, and `MaskGIT` on all, with every position of a
    level masked at once.

    Deviation: VALL-E puts text and speech into one sequence; here both networks take the features of each position, as
    all kinds do.

    Raises:
        ConfigError: fewer than two levels.
    """

    config: ValleConfig

    def __init__(self, config: ValleConfig, spec: CodeSpec) -> None:
        if spec.depth < 2:
            raise ConfigError(f"depth={spec.depth} must be at least 2: the first level and others given it")
        super().__init__(config, spec)
        common = shared_fields(config)
        first = RQTransformerConfig(num_layers=config.num_layers, depth_layers=1, **common)
        self.features = None  # either network has its own
        self.first = RQTransformer(first, replace(spec, depth=1))
        self.rest = MaskGIT(MaskGITConfig(num_layers=config.rest_layers, **common), spec)
        self.condition = self.rest.condition

    @torch.no_grad()
    def set_codebooks(
        self, codebooks: Float[Tensor, "D V H"], variances: Float[Tensor, " D"], codes: Int[Tensor, "B L D"]
    ) -> None:
        """Take over a tokenizer's codebooks; both networks have the scale of the full sums."""
        super().set_codebooks(codebooks, variances, codes)
        for part in (self.first, self.rest):
            part.codebooks.copy_(self.codebooks[: part.spec.depth])
            part.level_std.copy_(self.level_std[: part.spec.depth])
            part.latent_scale.copy_(self.latent_scale)
