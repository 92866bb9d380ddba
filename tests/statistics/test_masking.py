"""Mask counts against the multivariate hypergeometric law, and the closed forms against enumeration (Sec. 3.2)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from masking_law import marginal_log_prob, posterior_log_prob, step_log_prob
from resgen.ops.masking import reveal, sample_visible


def _states(positions: int, depth: int, total: int) -> torch.Tensor:
    """Every `visible` [S, L] whose sum is `total`."""
    rows = [s for s in itertools.product(range(depth + 1), repeat=positions) if sum(s) == total]
    return torch.tensor(rows)


def _chi_square(drawn: torch.Tensor, states: torch.Tensor, probs: torch.Tensor) -> float:
    """P-value of the observed states [N, L] under `probs` [S]."""
    match = (drawn[:, None] == states[None]).all(-1)
    assert match.sum(1).eq(1).all()
    observed = match.sum(0).double()
    return float(stats.chisquare(observed.numpy(), (probs * len(drawn)).numpy()).pvalue)


@pytest.mark.parametrize(("positions", "depth", "masked"), [(3, 2, 3), (4, 3, 5), (2, 5, 4), (5, 1, 2)])
def test_sampled_masks_follow_the_marginal(positions: int, depth: int, masked: int) -> None:
    draws = 20_000
    visible = sample_visible(torch.full((draws,), masked), positions, depth, torch.Generator().manual_seed(7))
    states = _states(positions, depth, positions * depth - masked)
    # The law from scipy, not from the code under test.
    law = stats.multivariate_hypergeom([depth] * positions, masked)
    probs = torch.tensor([law.pmf((depth - s).tolist()) for s in states]).double()
    assert _chi_square(visible, states, probs) > 1e-3
    assert torch.allclose(marginal_log_prob(states, depth).exp(), probs, rtol=1e-9)


def test_masks_of_padded_samples_follow_the_law_of_the_valid_part() -> None:
    draws, depth, masked = 20_000, 3, 4
    valid = torch.tensor([True, False, True, True]).expand(draws, 4)
    visible = sample_visible(torch.full((draws,), masked), 4, depth, torch.Generator().manual_seed(8), valid)
    states = _states(3, depth, 3 * depth - masked)
    probs = marginal_log_prob(states, depth).exp()
    assert _chi_square(visible[:, [0, 2, 3]], states, probs) > 1e-3


def test_random_reveals_follow_the_posterior() -> None:
    draws, depth = 20_000, 3
    before = torch.tensor([[0, 2, 1]]).expand(draws, 3)
    noise = torch.rand(draws, 3, depth, generator=torch.Generator().manual_seed(9))
    after = reveal(noise, before, torch.full((draws,), 3))
    states = _states(3, depth, 6)
    logs = posterior_log_prob(states, before[: len(states)], depth)
    possible = logs > -math.inf
    assert _chi_square(after, states[possible], logs[possible].exp()) > 1e-3


@pytest.mark.parametrize(("positions", "depth"), [(2, 2), (3, 2), (2, 3), (4, 1)])
def test_laws_sum_to_one(positions: int, depth: int) -> None:
    tokens = positions * depth
    for total in range(tokens + 1):
        states = _states(positions, depth, total)
        assert float(marginal_log_prob(states, depth).exp().sum()) == pytest.approx(1.0)
        for other in range(tokens + 1):
            others = _states(positions, depth, other)
            for state in states:
                here = state.expand(len(others), -1)
                if other <= total:
                    assert float(step_log_prob(here, others, depth).exp().sum()) == pytest.approx(1.0)
                if other >= total:
                    assert float(posterior_log_prob(others, here, depth).exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(("positions", "depth"), [(3, 2), (2, 3)])
def test_marginal_is_the_sum_over_the_paths_of_steps(positions: int, depth: int) -> None:
    """Vandermonde's identity: it does not matter in how many steps a number of tokens is masked."""
    tokens = positions * depth
    start = torch.full((1, positions), depth)
    for path in [(tokens - 1, tokens - 3), (tokens - 2, 2, 1), (tokens - 1, tokens - 2, tokens - 3, 0)]:
        states, probs = start, torch.ones(1, dtype=torch.float64)
        for total in path:
            reached = _states(positions, depth, total)
            logs = torch.stack([step_log_prob(s.expand(len(reached), -1), reached, depth) for s in states])
            states, probs = reached, probs @ logs.exp()
        assert torch.allclose(probs, marginal_log_prob(states, depth).exp(), rtol=1e-9)


@pytest.mark.parametrize(("positions", "depth"), [(3, 2), (2, 3)])
def test_posterior_is_bayes_rule(positions: int, depth: int) -> None:
    """q(x_t | x_{t+1}) = q(x_{t+1} | x_t) q(x_t) / q(x_{t+1}), the number of masked tokens at each time being fixed."""
    tokens = positions * depth
    for total, fewer in [(tokens - 1, tokens - 3), (tokens // 2, 1), (tokens, 2)]:
        for after in _states(positions, depth, fewer):
            before = _states(positions, depth, total)
            after = after.expand(len(before), -1)
            joint = step_log_prob(before, after, depth) + marginal_log_prob(before, depth)
            bayes = joint - marginal_log_prob(after, depth)
            posterior = posterior_log_prob(before, after, depth)
            assert torch.allclose(posterior.exp(), bayes.exp(), rtol=1e-9, atol=1e-15)
