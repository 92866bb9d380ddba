"""Drawing from categorical distributions with given noise."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError


def nucleus_choice(logits: Float[Tensor, "N K"], uniform: Float[Tensor, " N"], top_p: float) -> Int[Tensor, " N"]:
    """Choose one item per row by nucleus (top-p) sampling (Algorithm 2, step 1).

    The nucleus is the smallest set of most likely items whose mass reaches `top_p`; it always holds the most likely
    item. The choice inverts the cumulative distribution of the renormalised nucleus, sorted from most to least
    likely, so it is a function of `uniform` alone.

    Args:
        logits: unnormalised log probabilities; -inf excludes an item.
        uniform: one number in [0, 1) per row.
        top_p: in (0, 1]; 1 keeps every item.

    Raises:
        ConfigError: if `top_p` is outside (0, 1].
    """
    if not 0.0 < top_p <= 1.0:
        raise ConfigError(f"top_p={top_p} must lie in (0, 1]")
    if logits.dtype != torch.float64:
        logits = logits.float()
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(dim=-1)
    upto = probs.cumsum(dim=-1)
    kept = (probs > 0) & (upto - probs < top_p)
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    threshold = uniform[:, None].to(upto.dtype) * upto.gather(1, last)
    rank = torch.searchsorted(upto, threshold, right=True).minimum(last)
    return order.gather(1, rank).squeeze(1)
