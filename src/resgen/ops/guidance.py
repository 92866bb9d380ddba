"""Classifier-free guidance on hidden states or logits."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Weight = float | Float[Tensor, "B 1"]  # a guidance scale, of all samples or of each


def guide(cond: Float[Tensor, "B ..."], uncond: Float[Tensor, "B ..."], scale: Weight) -> Float[Tensor, "B ..."]:
    """h = h_c + w (h_c - h_u), with w the `guidance_scale`, of all or of each row; 0 is no guidance.

    The paper does not state the form. The head is linear, so logits, means, shift and log-scale are extrapolated alike.
    """
    return cond + (scale * (cond - uncond)).to(cond.dtype)


def guidance_weights(
    num_steps: int, first: float, last: float, interval: tuple[float, float] = (0.0, 1.0)
) -> list[float]:
    """Guidance scales that grow linearly from `first` to `last` over the sampling steps (Table 4), 0 outside of an
    interval of them (arXiv:2404.07724).

    A single step takes `last`, whatever the interval; a `last` of 0 switches guidance off altogether.

    Args:
        num_steps: T, at least 1.
        first: scale of the first step.
        last: scale of the last step.
        interval: where guidance is on, as shares of the steps; step t of T lies at (t + 1/2) / T, counted from 0.
    """
    if num_steps == 1 or not last:
        return [float(last)] * num_steps
    begin, end = interval
    weights = [first + (last - first) * step / (num_steps - 1) for step in range(num_steps)]
    return [weight if begin <= (step + 0.5) / num_steps <= end else 0.0 for step, weight in enumerate(weights)]
