"""Multi-head self-attention, bidirectional or causal, and the keys and values it may keep between calls."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.nn.positions import rotate
from resgen.ops.linear import linear


class Cache(Protocol):
    """Keys and values of earlier positions; see `nn.cache.KeyValueCache`."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new positions; returns all."""
        ...


class Attention(nn.Module):
    """Multi-head self-attention over positions, with rotary embeddings where angles are given."""

    max_plain_length = 512

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "B L O"],
        angles: Float[Tensor, "S h"] | None = None,
        valid: Bool[Tensor, "B M"] | None = None,
        *,
        causal: bool = False,
        segment: int | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L O"]:
        """Attention over all positions, or over those that the options leave.

        Args:
            x: all positions; with a cache only those that follow the positions in it.
            angles: rotary angles of the positions of `x` (of one segment, if there are segments).
            valid: True where a position may be attended to.
            causal: a position attends to itself and to earlier ones only.
            segment: length of consecutive pieces of `x`, each a sequence of its own; all of `x` by default.
            cache: keys and values of earlier positions, for causal attention; those of `x` are added.
        """
        shape = x.shape
        if segment is not None:
            x = x.reshape(-1, segment, shape[-1])
        qkv = linear(x, self.qkv.weight, self.qkv.bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = qkv[:2] if angles is None else rotate(qkv[:2], angles)
        v = qkv[2]
        if cache is not None:
            k, v = cache.append(k, v)
        length, num_keys = q.shape[2], k.shape[2]
        attn_mask = None if valid is None else valid[:, None, None]
        is_causal = causal and length == num_keys and attn_mask is None
        if causal and not is_causal and length > 1:
            earlier = torch.ones(length, num_keys, dtype=torch.bool, device=x.device).tril(num_keys - length)
            attn_mask = earlier if attn_mask is None else attn_mask & earlier
        attend = plain_attention if self._plain_is_faster(q, num_keys) else F.scaled_dot_product_attention
        h = attend(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return linear(h.transpose(1, 2).flatten(2), self.out.weight, self.out.bias).view(shape)

    def _plain_is_faster(self, q: Tensor, num_keys: int) -> bool:
        """On CPUs up to `max_plain_length` positions: the fused kernel's backward pass takes 2 to 12 times as long as
        plain products, and in bfloat16 its forward pass over whole sequences twice as long."""
        if q.device.type != "cpu" or num_keys > self.max_plain_length:
            return False
        return q.requires_grad or (q.dtype == torch.bfloat16 and q.shape[2] > 1)


def plain_attention(
    q: Float[Tensor, "B heads L E"],
    k: Float[Tensor, "B heads M E"],
    v: Float[Tensor, "B heads M E"],
    attn_mask: Bool[Tensor, "*mask M"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "B heads L E"]:
    """Attention as two products and a softmax in float32 or better; `is_causal` is for as many queries as keys."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if scores.requires_grad:  # without, softmax itself rounds only its result: the same numbers in one pass
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if attn_mask is not None:  # the least number, not -inf: finite even where nothing may be attended to
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v
