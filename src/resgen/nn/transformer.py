"""Transformer whose adaptive layer norm has one bias per layer instead of one linear map per layer (App. A.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.nn.attention import Attention, Cache
from resgen.ops.linear import feed_forward


def modulate(
    x: Float[Tensor, "B L O"], shift: Float[Tensor, "B O"], scale: Float[Tensor, "B O"]
) -> Float[Tensor, "B L O"]:
    """Layer norm without parameters, then `x (1 + scale) + shift`."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class SharedModulation(nn.Module):
    """The one MLP that turns the condition into 6 vectors for all blocks and 2 for the output norm; starts at zero."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden_width)
        self.down = nn.Linear(hidden_width, 8 * width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, condition: Float[Tensor, "B O"]) -> Float[Tensor, "B 8 O"]:
        return self.down(F.silu(self.up(F.silu(condition)))).unflatten(-1, (8, -1))


class Block(nn.Module):
    """Attention (with its options) and MLP, each in `x + gate * f(modulate(x))`; the modulation is the shared one plus
    this block's bias."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(6, width))
        self.attention = Attention(width, num_heads)
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)

    def forward(
        self,
        x: Float[Tensor, "B L O"],
        modulation: Float[Tensor, "B 8 O"],
        *scope: Any,
        **options: Any,
    ) -> Float[Tensor, "B L O"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[:, :6] + self.bias).unbind(1)
        h = modulate(x, shift1, scale1)
        x = x + gate1[:, None] * self.attention(h, *scope, **options)
        h = modulate(x, shift2, scale2)
        h = feed_forward(h, self.up.weight, self.up.bias, self.down.weight, self.down.bias)
        return x + gate2[:, None] * h


class Transformer(nn.Module):
    """Blocks and the modulated output norm."""

    def __init__(self, *, width: int, num_layers: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_width) for _ in range(num_layers))
        self.out_bias = nn.Parameter(torch.zeros(2, width))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Float[Tensor, "B L O"],
        modulation: Float[Tensor, "B 8 O"],
        angles: Float[Tensor, "S h"] | None = None,
        valid: Bool[Tensor, "B M"] | None = None,
        *,
        causal: bool = False,
        segment: int | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "B L O"]:
        """All blocks; see `Attention` for the options. `caches` holds one cache per block."""
        for i, block in enumerate(self.blocks):
            cache = None if caches is None else caches[i]
            x = block(x, modulation, angles, valid, causal=causal, segment=segment, cache=cache)
        shift, scale = (modulation[:, 6:] + self.out_bias).unbind(1)
        return modulate(x, shift, scale)
