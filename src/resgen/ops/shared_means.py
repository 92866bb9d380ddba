"""Squared distances to means that many rows share."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _SharedDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, tables: Tensor, group: Tensor) -> Tensor:
        order = group.argsort()
        ends = torch.bincount(group, minlength=len(tables)).cumsum(0).tolist()
        ctx.spans = [(g, slice(a, b)) for g, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if b > a]
        rows = z[order]
        norms = tables.square().sum(-1)
        parts = [torch.addmm(norms[g], rows[span], tables[g].T, alpha=-2.0) for g, span in ctx.spans]
        distance = torch.cat([tables.new_zeros(0, tables.shape[1]), *parts]).add_(rows.square().sum(1, keepdim=True))
        ctx.save_for_backward(rows, tables, order)
        return torch.empty_like(distance).index_copy_(0, order, distance.clamp_(min=0.0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, tables, order = ctx.saved_tensors
        # Gradients may be taken where autocast is on, as those of a chunk are.
        with torch.autocast(device_type=rows.device.type, enabled=False):
            grad = 2.0 * grads[0][order]
            slope, grad_tables = rows * grad.sum(1, keepdim=True), torch.zeros_like(tables)
            for g, span in ctx.spans:
                slope[span].addmm_(grad[span], tables[g], alpha=-1.0)
                grad_tables[g] = torch.addmm(
                    tables[g] * grad[span].sum(0)[:, None], grad[span].T, rows[span], alpha=-1.0
                )
        return torch.empty_like(slope).index_copy_(0, order, slope), grad_tables, None


def shared_squared_distance(
    z: Float[Tensor, "N H"], tables: Float[Tensor, "G K H"], group: Int[Tensor, " N"]
) -> Float[Tensor, "N K"]:
    """|z - mu_v|^2 to the K means of each row's group, in the type of z and without N x K x H numbers.

    z.z - 2 z.mu + mu.mu, one product per group. These are differences of large terms: in float32 a distance is wrong
    by a few 1e-7 of z.z + mu.mu. Rounding below zero is cut off; the gradient does not notice.

    Args:
        z: standardized targets, float32 or float64.
        tables: means of every group, of the same type.
        group: 0..G-1. One wait for the device tells how many rows each has.
    """
    with torch.autocast(device_type=z.device.type, enabled=False):
        result: Tensor = _SharedDistance.apply(z, tables, group)
    return result
