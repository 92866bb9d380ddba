"""How much of a codebook is used."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def code_histogram(
    codes: Int[Tensor, "*batch D"], codebook_size: int, valid: Bool[Tensor, "*batch"] | None = None
) -> Int[Tensor, "D V"]:
    """Number of occurrences of each code of each level among the valid positions."""
    flat = codes.reshape(-1, codes.shape[-1])
    if valid is not None:
        flat = flat[valid.reshape(-1)]
    depth = flat.shape[-1]
    offset = torch.arange(depth, device=codes.device) * codebook_size
    return torch.bincount((flat + offset).reshape(-1), minlength=depth * codebook_size).reshape(depth, codebook_size)


def usage_and_perplexity(histogram: Int[Tensor, "D V"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Per level: the fraction of codes that occur, and the exponential of the entropy of the code frequencies
    (1..V)."""
    share = histogram.double() / histogram.sum(-1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return (histogram > 0).double().mean(-1), entropy.exp()
