"""Cross-entropy of codes, the objective of the generators with logits (Eq. 2); all after the logits is float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from resgen.ops.blocks import rows_per_block
from resgen.ops.mixture import at_least_float32


class LevelLoss(NamedTuple):
    """Sums over the masked tokens of a batch, in nats.

    Attributes:
        total: weighted; carries the gradient. The caller divides by `level_weight`.
        per_level: plain sums by level, for logs.
    """

    total: Float[Tensor, ""]
    per_level: Float[Tensor, " D"]


def token_loss(
    logits: Float[Tensor, "N V"], codes: Int[Tensor, " N"], weight: Float[Tensor, " N"]
) -> Float[Tensor, ""]:
    """`sum_n weight_n * (-log p_n(code_n))`, in nats.

    Args:
        logits: unnormalised log probabilities, any floating type.
        codes: targets; any valid code where the weight is 0.
        weight: weight of each row. The caller divides by the number of rows that count.
    """
    return (functional.cross_entropy(at_least_float32(logits), codes, reduction="none") * weight).sum()


def masked_level_loss(
    hidden: Float[Tensor, "N O"],
    codes: Int[Tensor, "N D"],
    visible: Int[Tensor, " N"],
    weight: Float[Tensor, "D V O"],
    bias: Float[Tensor, "D V"],
    *,
    above: Float[Tensor, "N D H"] | None = None,
    steering: Float[Tensor, "D H V"] | None = None,
    decay: float = 1.0,
) -> LevelLoss:
    """Cross-entropy over the masked levels (`level >= visible`) of each row, with the logits of `TokenHead.forward`.

    The logits, N x D x V numbers, are the largest tensor of the model. They are therefore made a level and a block of
    rows at a time, only where masked, and their gradients are taken on the spot; the backward pass only scales.

    Args:
        hidden: input of the head.
        codes: targets.
        visible: first masked level of each row.
        weight: weight of every level's linear map; it may run in bfloat16 under autocast.
        bias: bias of every level's linear map.
        above: with `steering`, what every level sees of the ones above it; no gradient flows to it.
        steering: as in `TokenHead`.
        decay: weight of a masked level relative to the one above it, in (0, 1]. Below 1 the levels that are revealed
            next count most; the deepest ones are nearly noise given the few that are known.
    """
    return LevelLoss(*_LevelSums.apply(hidden, codes, visible, above, decay, weight, bias, steering))


def level_weight(visible: Int[Tensor, "*b"], depth: int, decay: float) -> Float[Tensor, ""]:
    """Sum of the weights that `masked_level_loss` gives the masked levels of all rows."""
    beyond = torch.arange(depth, device=visible.device) - visible[..., None]
    return (decay ** beyond.clamp(min=0).float() * (beyond >= 0)).sum()


def residual_above(
    codes: Int[Tensor, "*batch D"], codebooks: Float[Tensor, "D V H"], visible: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch D H"]:
    """For every level, the sum of the embeddings of the *masked* levels above it (0 up to the first masked one)."""
    total = codebooks.new_zeros(*codes.shape[:-1], codebooks.shape[-1])
    sums = []
    for level in range(codes.shape[-1]):
        sums.append(total)
        embedded = torch.nn.functional.embedding(codes[..., level], codebooks[level])
        total = total + embedded * (visible <= level).unsqueeze(-1)
    return torch.stack(sums, dim=-2)


def _masked_blocks(
    visible: Int[Tensor, " N"], depth: int, elements: int
) -> tuple[Int[Tensor, " N"], Iterator[tuple[int, slice]]]:
    """Blocks of the rows in which each level is masked, coarse to fine.

    Args:
        visible: first masked level of each row, 0..D.
        depth: D.
        elements: numbers of a row and level, see `rows_per_block`.

    Returns:
        An order of the rows by their first masked level, under which the rows of a level are the first ones; and pairs
        of a level and a slice of the ordered rows.
    """
    size = rows_per_block(elements, visible.device)
    active = torch.bincount(visible, minlength=depth + 1).cumsum(0).tolist()
    blocks = (
        (level, slice(begin, min(begin + size, active[level])))
        for level in range(depth)
        for begin in range(0, active[level], size)
    )
    return visible.argsort(stable=True), blocks


class _LevelSums(torch.autograd.Function):
    """The weighted sum and the plain sums by level; gradients of the first are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        codes: Tensor,
        visible: Tensor,
        above: Tensor | None,
        decay: float,
        weight: Tensor,
        bias: Tensor,
        steering: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        device_type = hidden.device.type
        low = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype
        wide = at_least_float32(hidden[:0]).dtype
        order, blocks = _masked_blocks(visible, len(weight), weight.shape[1])
        first, inputs, targets = visible[order], hidden[order].to(low), codes[order]
        sums_above = None if above is None else above[order].to(low)
        needs_grad = ctx.needs_input_grad
        hidden_grad = hidden.new_zeros(hidden.shape, dtype=wide) if needs_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=wide) if needs_grad[5] else None
        bias_grad = torch.zeros_like(bias, dtype=wide) if needs_grad[6] else None
        steering_grad = torch.zeros_like(steering, dtype=wide) if steering is not None and needs_grad[7] else None
        total, per_level = hidden.new_zeros((), dtype=wide), hidden.new_zeros(len(weight), dtype=wide)
        for level, rows in blocks:
            x, true = inputs[rows], targets[rows, level, None]
            logits = at_least_float32(functional.linear(x, weight[level], bias[level]))
            if steering is not None and sums_above is not None:
                logits += sums_above[rows, level] @ steering[level]
            log_prob = logits.log_softmax(-1)
            nll = -log_prob.gather(1, true).squeeze(1)
            scale = decay ** (level - first[rows]).to(wide)
            total += (nll * scale).sum()
            per_level[level] += nll.sum()
            if not any(needs_grad):
                continue
            slope = log_prob.exp_().scatter_add_(1, true, log_prob.new_full(true.shape, -1.0))
            slope *= scale[:, None]
            if bias_grad is not None:
                bias_grad[level] += slope.sum(0)
            slope = slope.to(low)
            if hidden_grad is not None:
                hidden_grad[rows] += torch.mm(slope, weight[level].to(low))
            if weight_grad is not None:
                weight_grad[level] += torch.mm(slope.T, x)
            if steering_grad is not None and sums_above is not None:
                steering_grad[level] += torch.mm(sums_above[rows, level].T, slope)
        if hidden_grad is not None:
            hidden_grad = torch.empty_like(hidden_grad).index_copy_(0, order, hidden_grad)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad, steering_grad)
        ctx.mark_non_differentiable(per_level)
        return total, per_level

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Autograd casts each gradient to the type of its input.
        hidden, *weights = (None if grad is None else grad * slope for grad in ctx.saved_tensors)
        return hidden, None, None, None, None, *weights
