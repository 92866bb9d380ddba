"""The mixture bound summed over a batch in bounded memory (Eq. 1, App. A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from resgen.errors import ConfigError
from resgen.ops.mixture import MixtureBound, at_least_float32


@dataclass(frozen=True, kw_only=True)
class MixtureLoss:
    """Weighted sums over positions, in nats; `loss` carries the gradient, its two parts are for logging."""

    loss: Float[Tensor, ""]
    regression: Float[Tensor, ""]
    classification: Float[Tensor, ""]


@runtime_checkable
class BoundHead(Protocol):
    """What the loss knows of a head: a module whose call gives the bound of every row."""

    @property
    def rows_per_chunk(self) -> int:
        """Rows to compute at once."""
        ...

    @property
    def rounded(self) -> frozenset[str]:
        """Parameters that autocast rounds wherever they are used; others may stand in operations that it leaves
        alone."""
        ...

    def __call__(
        self, hidden: Float[Tensor, "N O"], target: Float[Tensor, "N H"], visible: Int[Tensor, " N"], smoothing: float
    ) -> MixtureBound:
        """Bound on the negative log-likelihood per row."""
        ...

    def log_prob(
        self, hidden: Float[Tensor, "N O"], target: Float[Tensor, "N H"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Exact log-likelihood per row."""
        ...


def mixture_loss(
    head: BoundHead,
    hidden: Float[Tensor, "N O"],
    target: Float[Tensor, "N H"],
    visible: Int[Tensor, " N"],
    weight: Float[Tensor, " N"],
    smoothing: float,
    chunk_size: int | None = None,
) -> MixtureLoss:
    """sum_n weight_n * bound_n, equal to the head's bound followed by a weighted sum, in bounded memory.

    The means of all components, N x K x H numbers, are the largest tensor of the model. The gradients are therefore
    taken chunk by chunk within the forward pass: each chunk's means are projected once and gone before the next chunk.
    The backward pass only scales the stored gradients.

    Args:
        head: the mixture head; all its parameters get their gradient.
        hidden: input of the head.
        target: z; no gradient flows to it, nor to `weight`.
        visible: levels that are visible at each position.
        weight: weight of each position's bound. The caller divides by the number of masked tokens.
        smoothing: smoothing of q, see `bound_from_distance`.
        chunk_size: rows per chunk; by default `head.rows_per_chunk`.

    Raises:
        ConfigError: if the lengths differ or `chunk_size` is below 1.
    """
    lengths = {"hidden": len(hidden), "target": len(target), "visible": len(visible), "weight": len(weight)}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"lengths differ: {', '.join(f'{name} {length}' for name, length in lengths.items())}")
    size = head.rows_per_chunk if chunk_size is None else chunk_size
    if size < 1:
        raise ConfigError(f"chunk_size={size} must be at least 1")
    names, params = zip(*cast(nn.Module, head).named_parameters(), strict=True)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (hidden, *params)):
        sums = _ChunkedBound.apply(head, names, size, smoothing, hidden, target, visible, weight, *params)
    else:
        sums = _zero_sums(hidden)
        for rows in _chunks(len(hidden), size):
            sums = _add(sums, head(hidden[rows], target[rows], visible[rows], smoothing), weight[rows])
    return MixtureLoss(loss=sums[0], regression=sums[1], classification=sums[2])


@torch.no_grad()
def target_log_prob(
    head: BoundHead,
    hidden: Float[Tensor, "N O"],
    target: Float[Tensor, "N H"],
    visible: Int[Tensor, " N"],
    chunk_size: int | None = None,
) -> Float[Tensor, " N"]:
    """Exact log-likelihood of each target in nats, in bounded memory and without gradients; arguments as for
    `mixture_loss`."""
    parts = [
        head.log_prob(hidden[rows], target[rows], visible[rows])
        for rows in _chunks(len(hidden), chunk_size or head.rows_per_chunk)
    ]
    return torch.cat([torch.zeros(0, device=hidden.device), *parts])


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _zero_sums(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    zero = torch.zeros((), dtype=at_least_float32(hidden[:0]).dtype, device=hidden.device)
    return zero, zero.clone(), zero.clone()


def _add(sums: tuple[Tensor, Tensor, Tensor], bound: MixtureBound, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        sums[0] + (bound.total * weight).sum(),
        sums[1] + (bound.regression * weight).sum().detach(),
        sums[2] + (bound.classification * weight).sum().detach(),
    )


class _ChunkedBound(torch.autograd.Function):
    """The three sums; gradients of the first one are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        head: BoundHead,
        names: tuple[str, ...],
        size: int,
        smoothing: float,
        hidden: Tensor,
        target: Tensor,
        visible: Tensor,
        weight: Tensor,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        module = cast(nn.Module, head)
        # The same leaves serve every chunk. What autocast would round is rounded before and once: the gradient of a
        # chunk is then as small as that, and only the sum over the chunks is in float32.
        device_type = hidden.device.type
        rounded = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        leaves = [
            param.detach().to(rounded if name in head.rounded else None).requires_grad_(param.requires_grad)
            for name, param in zip(names, params, strict=True)
        ]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        totals: list[Tensor | None] = [None] * len(trained)
        hidden_grad = torch.zeros_like(at_least_float32(hidden)) if hidden.requires_grad else None
        sums = _zero_sums(hidden)
        for rows in _chunks(len(hidden), size):
            part = hidden[rows].detach().requires_grad_(hidden_grad is not None)
            with torch.enable_grad():
                arguments = (part, target[rows], visible[rows], smoothing)
                bound = functional_call(module, dict(zip(names, leaves, strict=True)), arguments)
                chunk_loss = (bound.total * weight[rows]).sum()
            inputs = [*trained, part] if hidden_grad is not None else trained
            grads = torch.autograd.grad(chunk_loss, inputs)
            with torch.no_grad():
                sums = _add(sums, bound, weight[rows])
                for i, (total, grad) in enumerate(zip(totals, grads, strict=False)):
                    totals[i] = at_least_float32(grad) if total is None else total.add_(grad)
                if hidden_grad is not None:
                    hidden_grad[rows] = grads[-1]
            del grads, bound, chunk_loss  # before the next chunk makes its own
        remaining = (torch.zeros_like(p) if t is None else t for p, t in zip(trained, totals, strict=True))
        ctx.grads = (hidden_grad, *(next(remaining) if leaf.requires_grad else None for leaf in leaves))
        ctx.mark_non_differentiable(sums[1], sums[2])
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Autograd casts each gradient to the type of its input.
        scaled = [None if grad is None else grad * grads[0] for grad in ctx.grads]
        return None, None, None, None, scaled[0], None, None, None, *scaled[1:]
