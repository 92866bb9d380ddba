"""Probabilities of masks and of masking steps in closed form (Sec. 3.2), which drawn masks are compared with.

Tokens are masked without replacement: from urns of D balls, one urn for each position.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError


def _log_binomial(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k) in float64, -inf where k < 0 or k > n."""
    n, k = n.double(), k.double()
    possible = (k >= 0) & (k <= n)
    k = torch.where(possible, k, 0.0)
    value = torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(n - k + 1.0)
    return torch.where(possible, value, -torch.inf)


def _log_draw(urns: Int[Tensor, "B L"], counts: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """log prod_i C(urns_i, counts_i) / C(sum urns, sum counts): the multivariate hypergeometric law."""
    impossible = ((counts < 0) | (counts > urns)).any(dim=1)
    value = _log_binomial(urns, counts).sum(dim=1) - _log_binomial(urns.sum(dim=1), counts.sum(dim=1))
    return torch.where(impossible, -torch.inf, value)


def step_log_prob(visible: Int[Tensor, "B L"], next_visible: Int[Tensor, "B L"], depth: int) -> Float[Tensor, " B"]:
    """Log probability of one masking step t -> t+1, given how many tokens it masks (Sec. 3.2).

    q(k' | x_t) = prod_i C(D - K_i, k'_i) / C(LD - N, n'), where K_i levels of position i are masked before the step
    and k'_i by it.

    Args:
        visible: visible levels before the step.
        next_visible: visible levels after it; -inf results where any is larger than before.
        depth: D.

    Returns:
        float64.
    """
    _check_range(visible, next_visible, depth=depth)
    return _log_draw(visible, visible - next_visible)


def marginal_log_prob(visible: Int[Tensor, "B L"], depth: int) -> Float[Tensor, " B"]:
    """Log probability of a mask given its number of masked tokens: prod_i C(D, K_i) / C(LD, N) (Sec. 3.2).

    Returns:
        float64.
    """
    _check_range(visible, depth=depth)
    return _log_draw(torch.full_like(visible, depth), depth - visible)


def posterior_log_prob(
    visible_t: Int[Tensor, "B L"], visible_t1: Int[Tensor, "B L"], depth: int
) -> Float[Tensor, " B"]:
    """Log probability of one unmasking step, q(x_t | x_{t+1}, x_0), given how many tokens it reveals (Sec. 3.2).

    prod_i C(K_i^{t+1}, k_i^{t+1}) / C(N^{t+1}, n^{t+1}), where K_i^{t+1} levels of position i are masked at t+1 and
    k_i^{t+1} of them are visible at t.

    Args:
        visible_t: visible levels at t, the less masked state.
        visible_t1: visible levels at t+1; -inf results where any is larger than at t.
        depth: D.

    Returns:
        float64.
    """
    _check_range(visible_t, visible_t1, depth=depth)
    return _log_draw(depth - visible_t1, visible_t - visible_t1)


def _check_range(*states: Tensor, depth: int) -> None:
    for visible in states:
        if visible.numel() and not 0 <= int(visible.min()) <= int(visible.max()) <= depth:
            raise ConfigError(f"visible spans {int(visible.min())}..{int(visible.max())}; allowed: 0..depth={depth}")
