"""Masking of residual codes, deepest level first (Sec. 3.1 and 3.2).

The visible levels of a position are always a prefix, so `visible[b, i]` in 0..D is the whole mask; the
paper's number of masked levels is k_i = D - visible[i].
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.errors import ConfigError, unknown

SCHEDULES = ("circle", "cosine", "linear", "exponential", "power")
MAX_STEPS = 10_000
"""Of a sampler: the random numbers of all steps are drawn before the first."""


def mask_schedule(name: str, progress: Tensor | float, num_tokens: Tensor | int) -> Tensor:
    """Fraction of the tokens that is masked: the paper's gamma(r), 1 at r=0 and 0 at r=1 (Sec. 3.1, App. C.3).

    Args:
        name: one of `SCHEDULES`. The paper trains with "circle".
        progress: r in [0, 1], a number or a tensor of any shape.
        num_tokens: L x D; used by "exponential" only. A tensor is broadcast with `progress`.

    Returns:
        float64, of the shape of `progress` (for "exponential" broadcast with `num_tokens`).

    Raises:
        ConfigError: for an unknown name or a number outside [0, 1].
    """
    if not isinstance(progress, Tensor) and not 0.0 <= progress <= 1.0:
        raise ConfigError(f"progress={progress} must lie in [0, 1]")
    r = torch.as_tensor(progress, dtype=torch.float64)
    if name == "circle":
        gamma = (1.0 - r.square()).clamp(min=0.0).sqrt()
    elif name == "cosine":
        gamma = torch.cos(r * (math.pi / 2.0))
    elif name == "linear":
        gamma = 1.0 - r
    elif name == "exponential":
        # The paper names it without a formula. 1 - N^-(1-r) is 1 - 1/N at r=0 and would leave one token unmasked,
        # so it is divided by that value; its limit at N=1 is linear.
        rate = torch.as_tensor(num_tokens, dtype=torch.float64, device=r.device).clamp(min=1.0).log()
        gamma = torch.where(rate > 0.0, torch.expm1((r - 1.0) * rate) / torch.expm1(-rate), 1.0 - r)
    elif name == "power":
        gamma = (1.0 - r**3).clamp(min=0.0) ** (1.0 / 3.0)
    else:
        raise ConfigError(unknown("mask schedule", name, SCHEDULES))
    return gamma.clamp(0.0, 1.0)


def num_masked(name: str, progress: Tensor | float, num_tokens: Tensor | int) -> Tensor:
    """Number of masked tokens, n = ceil(gamma(r) L D) (Sec. 3.1): all at r=0, at least one for r<1, none at r=1.

    Args:
        name: one of `SCHEDULES`.
        progress: r in [0, 1], a number or a tensor of any shape.
        num_tokens: L x D, or as many as there are to begin with; a tensor is broadcast with `progress`.

    Returns:
        int64, of the shape of `progress` and `num_tokens` together.
    """
    gamma = mask_schedule(name, progress, num_tokens)
    # A product such as 0.6 * 5 may exceed its exact value by rounding, which the ceiling would turn into a token.
    count = torch.ceil(gamma * num_tokens - 1e-9).long()
    at_least = (torch.as_tensor(progress, dtype=torch.float64) < 1).long()
    return torch.maximum(count, at_least).clamp(max=num_tokens)


def given_codes(
    codes: Int[Tensor, "B L D"] | None,
    visible: Int[Tensor, "B L"] | None,
    shape: tuple[int, int, int],
    device: torch.device,
) -> tuple[Int[Tensor, "B L D"], Int[Tensor, "B L"]]:
    """Codes to start from and how many levels of each position are visible: by default none; masked codes are 0.

    Raises:
        ConfigError: only one of `codes` and `visible` is given.
    """
    if (codes is None) != (visible is None):
        raise ConfigError("codes and visible must be given together")
    if codes is None or visible is None:
        codes, visible = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape[:2], dtype=torch.int64)
    codes, visible = codes.to(device), visible.to(device)
    return torch.where(torch.arange(shape[2], device=device) < visible[..., None], codes, 0), visible


def reveal_plan(name: str, num_steps: int, masked: Int[Tensor, " B"]) -> list[Int[Tensor, " B"]]:
    """Number of tokens that each sample reveals in each step, from `masked` tokens at the start: differences of
    `ceil(gamma(t/T) masked)`, known before the first step, so that no step waits for the device."""
    left = masked
    plan = []
    for step in range(1, num_steps + 1):
        stay = torch.minimum(num_masked(name, step / num_steps, masked), left)
        plan.append(left - stay)
        left = stay
    return plan


def reveal(
    scores: Float[Tensor, "B L D"], visible: Int[Tensor, "B L"], num_reveal: Int[Tensor, " B"]
) -> Int[Tensor, "B L"]:
    """Reveal the best masked tokens of each sample (Algorithm 2, the unmasking step).

    The best `num_reveal` masked tokens over the whole grid are counted per position, and that many of the
    position's *shallowest* masked levels become visible.

    Args:
        scores: one score per token, larger first; scores of visible tokens are ignored. Uniform noise gives the
            random unmasking `BinaryUnmask`.
        visible: visible levels per position; D at padding, which is never counted.
        num_reveal: tokens to reveal per sample; everything is revealed where it exceeds what is masked.

    Returns:
        The new `visible`, nowhere smaller than the old one.
    """
    batch, positions, depth = scores.shape
    masked = torch.arange(depth, device=visible.device) >= visible[..., None]
    floor = torch.finfo(scores.dtype).min
    scores = torch.where(masked, scores.clamp(min=floor), -torch.inf).reshape(batch, -1)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    best = torch.arange(positions * depth, device=visible.device) < num_reveal[:, None]
    best = best & masked.reshape(batch, -1).gather(1, order)
    counts = torch.zeros_like(visible).scatter_add_(1, order // depth, best.to(visible.dtype))
    return visible + counts


def sample_visible(
    num_masked: Int[Tensor, " B"],
    num_positions: int,
    depth: int,
    generator: torch.Generator,
    valid: Bool[Tensor, "B L"] | None = None,
) -> Int[Tensor, "B L"]:
    """Draw a mask with exactly `num_masked` masked tokens per sample (Sec. 3.1).

    The counts per position follow the multivariate hypergeometric law: tokens drawn without replacement from L urns
    of D balls. Equivalently, each of the L x D cells gets a uniform number and the cells with the largest ones are
    counted as visible.

    Args:
        num_masked: n per sample; capped at the number of valid tokens.
        num_positions: L.
        depth: D.
        generator: source of the noise; its device may differ from that of `num_masked`.
        valid: False at padding, which has no tokens: its `visible` is D.

    Returns:
        Visible levels per position, int64, on the device of `num_masked`.
    """
    device = num_masked.device
    shape = (num_masked.shape[0], num_positions)
    noise = torch.rand((*shape, depth), generator=generator, device=generator.device).to(device)
    visible = torch.zeros(shape, dtype=torch.long, device=device)
    if valid is not None:
        visible = visible.masked_fill(~valid, depth)
    num_visible = (depth - visible).sum(dim=1) - num_masked
    return reveal(noise, visible, num_visible)
