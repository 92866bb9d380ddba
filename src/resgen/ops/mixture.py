"""Density of the Gaussian mixture over latents and its training bound (Eq. 1, App. A.2).

With z~ = (z - b) / a, per position: log p(z) = -H log a + log sum_v pi_v N(z~; mu_v, I). The paper prints -log a; a is
a scalar on R^H, so the Jacobian is H log a. Everything is computed in float32, or in float64 for float64 input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resgen.ops.blocks import rows_per_block

LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, kw_only=True)
class MixtureBound:
    """Upper bound on the negative log-likelihood per position, in nats: total = regression + classification."""

    total: Float[Tensor, " N"]
    regression: Float[Tensor, " N"]
    classification: Float[Tensor, " N"]


def at_least_float32(value: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is float64."""
    return value if value.dtype == torch.float64 else value.float()


def standardize(
    target: Float[Tensor, "N H"], log_scale: Float[Tensor, " N"], shift: Float[Tensor, "N H"]
) -> Float[Tensor, "N H"]:
    """z~ = (z - b) / a."""
    return (at_least_float32(target) - shift) * torch.exp(-log_scale)[:, None]


def log_prob_from_distance(
    distance: Float[Tensor, "N K"], logits: Float[Tensor, "N K"], log_scale: Float[Tensor, " N"], code_dim: int
) -> Float[Tensor, " N"]:
    """log p(z) from the squared distances |z~ - mu_v|^2 (App. A.2)."""
    joint = logits.log_softmax(dim=-1) - 0.5 * distance
    return joint.logsumexp(dim=-1) - code_dim * (log_scale + 0.5 * LOG_2PI)


def bound_from_distance(
    distance: Float[Tensor, "N K"],
    logits: Float[Tensor, "N K"],
    log_scale: Float[Tensor, " N"],
    code_dim: int,
    smoothing: float,
) -> MixtureBound:
    """Jensen's bound on the negative log-likelihood, the training objective, from the squared distances |z~ - mu_v|^2
    (Eq. 1).

    -log p(z) <= H log a - sum_v q(v) log N(z~; mu_v, I) + KL(q || pi), with q(v) = softmax_v(-|z~ - mu_v|^2 / 2).
    Deviation: q is held constant in the gradient and smoothed, (1 - s) q + s / K; the bound holds for every q.

    Args:
        distance: to the components of each row.
        logits: logits of the weights pi.
        log_scale: log a.
        code_dim: H.
        smoothing: s in [0, 1].
    """
    num_components = distance.shape[-1]
    with torch.no_grad():
        q = torch.softmax(-0.5 * distance, dim=-1)
        q = (1.0 - smoothing) * q + smoothing / num_components
        negative_entropy = torch.special.xlogy(q, q).sum(dim=-1)
    regression = code_dim * (log_scale + 0.5 * LOG_2PI) + 0.5 * (q * distance).sum(dim=-1)
    classification = negative_entropy - (q * logits.log_softmax(dim=-1)).sum(dim=-1)
    return MixtureBound(total=regression + classification, regression=regression, classification=classification)


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, means: Tensor, overwrite: bool) -> Tensor:
        ctx.save_for_backward(z, means)
        ctx.overwrite = overwrite
        parts = [torch.linalg.vector_norm(_difference(z, means, rows), dim=-1).square_() for rows in _blocks(means)]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, means = ctx.saved_tensors
        grad_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        grad_means = None
        if ctx.needs_input_grad[1]:
            grad_means = means if ctx.overwrite else torch.empty_like(means)
        for rows in _blocks(means):
            slope = _difference(z, means, rows).mul_(2.0 * grads[0][rows, :, None])
            if grad_z is not None:
                grad_z[rows] = -slope.sum(dim=1)
            if grad_means is not None:
                grad_means[rows] = slope
        return grad_z, grad_means, None


def _blocks(means: Tensor) -> list[slice]:
    """Row ranges whose float32 differences stay in the processor's cache, or small against a device's memory."""
    size = rows_per_block(means[:1].numel(), means.device)
    return [slice(start, start + size) for start in range(0, max(1, means.shape[0]), size)]


def _difference(z: Tensor, means: Tensor, rows: slice) -> Tensor:
    """mu_v - z~ in at least float32, a new tensor."""
    z = at_least_float32(z[rows])[:, None]
    if means.dtype == z.dtype:
        return means[rows] - z
    return means[rows].to(z.dtype).sub_(z)


def squared_distance(
    z: Float[Tensor, "N H"], means: Float[Tensor, "N K H"], *, overwrite: bool = False
) -> Float[Tensor, "N K"]:
    """|z - mu_v|^2 in float32 (float64 for float64 input).

    Autograd would keep the float32 differences [N, K, H]; this keeps the inputs only, whose means may be bfloat16, and
    takes the differences again in the backward pass, both in blocks of rows.

    Args:
        z: standardized targets.
        means: means of every row's components.
        overwrite: the backward pass may put the gradient where the means are: for a caller that alone knows them. A
            second backward pass is then refused.
    """
    return _SquaredDistance.apply(z, means, overwrite)


def low_rank_squared_distance(
    z: Float[Tensor, "N H"],
    coeff: Float[Tensor, "N K h"],
    basis: Float[Tensor, "K H h"],
    offset: Float[Tensor, "K H"],
) -> Float[Tensor, "N K"]:
    """|z - (M_v mu~_v + s_v)|^2 without a K x H mean per position (Eq. 3, App. A.2).

    z.z + mu~'(M'M)mu~ + s.s - 2 (M'z)'mu~ - 2 z.s + 2 mu~'M's, with mu~ = `coeff`, M = `basis`, s = `offset`. These are
    differences of large terms: products run in float32 even under autocast, and rounding below zero is cut off.
    """
    z, coeff, basis, offset = (at_least_float32(value) for value in (z, coeff, basis, offset))
    num_components, code_dim, rank = basis.shape
    with torch.autocast(device_type=z.device.type, enabled=False):
        gram = basis.transpose(1, 2) @ basis
        curved = torch.bmm(coeff.transpose(0, 1), gram).transpose(0, 1)
        projected = (z @ basis.permute(1, 0, 2).reshape(code_dim, -1)).view(-1, num_components, rank)
        anchored = torch.bmm(offset[:, None], basis).squeeze(1)
        varying = ((curved - 2.0 * projected + 2.0 * anchored) * coeff).sum(dim=-1)
        fixed = z.square().sum(dim=-1, keepdim=True) + offset.square().sum(dim=-1) - 2.0 * (z @ offset.T)
    return (varying + fixed).clamp(min=0.0)
