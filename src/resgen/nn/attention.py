"""Bidirectional multi-head self-attention."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.nn.positions import rotate

MAX_PLAIN_LENGTH = 512


class Attention(nn.Module):
    """Multi-head self-attention over positions, with rotary embeddings where angles are given."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "B L O"],
        angles: Float[Tensor, "L h"] | None = None,
        attn_mask: Bool[Tensor, "B 1 1 L"] | None = None,
    ) -> Float[Tensor, "B L O"]:
        """`attn_mask` is True where a position may be attended to."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        # The fused kernel's backward pass on CPUs takes 2 to 12 times as long as plain products at these lengths.
        train_on_cpu = q.requires_grad and q.device.type == "cpu" and q.shape[2] <= MAX_PLAIN_LENGTH
        attend = plain_attention if train_on_cpu else F.scaled_dot_product_attention
        h = attend(q, k, v, attn_mask=attn_mask)
        return self.out(h.transpose(1, 2).flatten(2))


def plain_attention(
    q: Float[Tensor, "B heads L E"],
    k: Float[Tensor, "B heads M E"],
    v: Float[Tensor, "B heads M E"],
    attn_mask: Bool[Tensor, "B 1 1 M"] | None = None,
) -> Float[Tensor, "B heads L E"]:
    """Attention as two products and a float32 softmax."""
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v
