"""Cross-entropy of codes, the objective of the generators with logits (Eq. 2); all after the logits is float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from resgen.ops.mixture import at_least_float32


class LevelLoss(NamedTuple):
    """Sums over the masked tokens of a batch, in nats.

    Attributes:
        total: weighted; carries the gradient. The caller divides by `weight`.
        weight: sum of the weights of the masked tokens.
        per_level: plain sums by level, for logs.
        counts: masked tokens of each level.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    per_level: Float[Tensor, " D"]
    counts: Int[Tensor, " D"]


def token_loss(
    logits: Float[Tensor, "N V"], codes: Int[Tensor, " N"], weight: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """`sum_n weight_n * (-log p_n(code_n))`, in nats.

    Args:
        logits: unnormalised log probabilities, any floating type.
        codes: targets; any valid code where the weight is 0.
        weight: of each row. The caller divides by the number of rows that count.
    """
    return (functional.cross_entropy(at_least_float32(logits), codes, reduction="none") * weight).sum()


def masked_level_loss(
    logits: Float[Tensor, "N D V"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"], decay: float = 1.0
) -> LevelLoss:
    """Cross-entropy over the masked levels (`level >= visible`) of each row; visible levels are not computed.

    Args:
        logits: unnormalised log probabilities.
        codes: targets.
        visible: first masked level of each row.
        decay: weight of a masked level relative to the one above it, in (0, 1]. Below 1 the levels that are revealed
            next count most; the deepest ones are nearly noise given the few that are known.
    """
    beyond = torch.arange(codes.shape[1], device=codes.device) - visible[:, None]
    masked = beyond >= 0
    chosen = functional.cross_entropy(at_least_float32(logits[masked]), codes[masked], reduction="none")
    weight = decay ** beyond[masked].to(chosen.dtype)
    per_level = chosen.detach().new_zeros(codes.shape).masked_scatter(masked, chosen.detach()).sum(0)
    return LevelLoss((chosen * weight).sum(), weight.sum(), per_level, masked.sum(0))
