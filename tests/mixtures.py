"""Eq. 1 on whole mixtures, for tests: log-likelihood and bound from all means at once."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from resgen.ops.mixture import (
    MixtureBound,
    bound_from_distance,
    log_prob_from_distance,
    squared_distance,
    standardize,
)


def mixture_log_prob(
    target: Float[Tensor, "N H"],
    logits: Float[Tensor, "N K"],
    means: Float[Tensor, "N K H"],
    log_scale: Float[Tensor, " N"],
    shift: Float[Tensor, "N H"],
) -> Float[Tensor, " N"]:
    """Exact log-likelihood log p(z) of each target, in nats (App. A.2)."""
    distance = squared_distance(standardize(target, log_scale, shift), means)
    return log_prob_from_distance(distance, logits, log_scale, target.shape[-1])


def mixture_bound(
    target: Float[Tensor, "N H"],
    logits: Float[Tensor, "N K"],
    means: Float[Tensor, "N K H"],
    log_scale: Float[Tensor, " N"],
    shift: Float[Tensor, "N H"],
    smoothing: float,
) -> MixtureBound:
    """Jensen's bound on the negative log-likelihood, the training objective (Eq. 1).

    -log p(z) <= H log a - sum_v q(v) log N(z~; mu_v, I) + KL(q || pi), with q(v) = softmax_v(-|z~ - mu_v|^2 / 2).
    Deviation: q is held constant in the gradient and smoothed, (1 - s) q + s / K; the bound holds for every q.

    Args:
        target: z, the sum of the masked levels' embeddings.
        logits: of the weights pi.
        means: mu_v, may be bfloat16.
        log_scale: log a.
        shift: b.
        smoothing: s in [0, 1].
    """
    distance = squared_distance(standardize(target, log_scale, shift), means)
    return bound_from_distance(distance, logits, log_scale, target.shape[-1], smoothing)
