"""Confidence of freshly quantized tokens (Sec. 6 of the method notes; App. B.1 of the paper)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cumulative_confidence(
    errors: Float[Tensor, "N D"], visible: Int[Tensor, " N"], level_std: Float[Tensor, " D"]
) -> Float[Tensor, "N D"]:
    """Score every masked token by the likelihood of its position's codes up to its level (App. B.1).

    The score of level j is the sum over the masked levels d <= j of log N(residual before d; e(x_d; d), sigma_d^2 I).
    Deviation: the Gaussian's constant is dropped, which leaves -|residual after d|^2 / (2 sigma_d^2), so that scores
    never grow with depth and the order stays coarse-first. The caller adds Gumbel noise times the choice temperature.

    Args:
        errors: squared norm of the residual left after each level; entries of visible levels are ignored.
        visible: visible levels per position.
        level_std: sigma_d, the running standard deviation of the residual after each level.

    Returns:
        float32 (float64 for float64 errors); -inf at visible levels.
    """
    if errors.dtype != torch.float64:
        errors = errors.float()
    masked = torch.arange(errors.shape[-1], device=errors.device) >= visible[:, None]
    scores = torch.where(masked, errors * confidence_unit(level_std.to(errors.dtype)), 0.0).cumsum(dim=-1)
    return torch.where(masked, scores, -torch.inf)


def confidence_unit(level_std: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """What a squared error of each level is multiplied by: -1 / (2 sigma_d^2)."""
    return -0.5 / level_std.square().clamp(min=torch.finfo(level_std.dtype).tiny)
