"""Classifier-free guidance on the input of the mixture head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from resgen.errors import ConfigError


def guide(cond: Float[Tensor, "*shape"], uncond: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """h = h_c + w (h_c - h_u), with w the `guidance_scale`; 0 is no guidance.

    The paper does not state the form. The head is linear, so logits, means, shift and log-scale are extrapolated alike.
    """
    return cond + scale * (cond - uncond)


def guidance_weights(num_steps: int, first: float, last: float) -> list[float]:
    """Guidance scales that grow linearly from `first` to `last` over the sampling steps (Table 4).

    A single step takes `last`.

    Raises:
        ConfigError: if `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps} must be at least 1")
    if num_steps == 1:
        return [float(last)]
    return [first + (last - first) * step / (num_steps - 1) for step in range(num_steps)]
