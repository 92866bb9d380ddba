"""Configurations of the generators by size, at the paper's shape of image codes: 16 levels of 1,024 codes of width 64,
1,000 classes. MaskGIT, RQ-Transformer and AR-ResGen have about as many parameters as ResGen of the same name. The
residual head and direct tokens have ResGen's width and layers, and fewer parameters at `base` (121M, 120M) and `xl`
(515M, 514M), because the mixture's means are its largest matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from resgen.models.ar_resgen import ARResGenConfig
from resgen.models.maskgit import MaskGITConfig
from resgen.models.resgen import ResGenConfig
from resgen.models.rq_transformer import RQTransformerConfig

C = TypeVar("C")


def _preset(config: Callable[..., C], width: int, num_layers: int, num_heads: int, **others: Any) -> C:
    sizes = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
    return config(**sizes, mlp_width=4 * width, condition_width=4 * width, **others)


# 4.1M, 26M, 158M, 572M.
RESGEN: dict[str, ResGenConfig] = {
    "tiny": _preset(ResGenConfig, 192, 4, 6, num_components=64),
    "small": _preset(ResGenConfig, 384, 8, 6, num_components=256),
    "base": _preset(ResGenConfig, 768, 12, 12, num_components=1024),
    "xl": _preset(ResGenConfig, 1152, 28, 16, num_components=1024),
}

# Width and K of ResGen's; where three MLP blocks are added, two transformer blocks are left out (they have the same
# number of parameters).
AR_RESGEN: dict[str, ARResGenConfig] = {
    "tiny": _preset(ARResGenConfig, 192, 3, 6, head_layers=2, head_width=768, num_components=64),
    "small": _preset(ARResGenConfig, 384, 6, 6, head_layers=3, head_width=1536, num_components=256),
    "base": _preset(ARResGenConfig, 768, 10, 12, head_layers=3, head_width=3072, num_components=1024),
    "xl": _preset(ARResGenConfig, 1152, 28, 16, head_layers=5, head_width=4608, num_components=1024),
}

# The paper gives MaskGIT's size, 580M, and no widths. Default: the width and heads of ResGen and as many layers as fill
# the budget: 32 of width 1152 are 578M. At `tiny` the 16 output matrices weigh most, hence the smaller width.
MASKGIT: dict[str, MaskGITConfig] = {
    "tiny": _preset(MaskGITConfig, 128, 6, 4),
    "small": _preset(MaskGITConfig, 384, 8, 6),
    "base": _preset(MaskGITConfig, 768, 17, 12),
    "xl": _preset(MaskGITConfig, 1152, 32, 16),
}

# 4.3M, 26M, 155M, 626M. The classifiers of 16 levels weigh more than a mixture head in the small ones, so these are
# narrower or shallower.
RQ_TRANSFORMER: dict[str, RQTransformerConfig] = {
    "tiny": _preset(RQTransformerConfig, 144, 3, 6, depth_layers=1),
    "small": _preset(RQTransformerConfig, 384, 6, 6, depth_layers=2),
    "base": _preset(RQTransformerConfig, 768, 14, 12, depth_layers=3),
    "xl": _preset(RQTransformerConfig, 1152, 30, 16, depth_layers=5),
}
