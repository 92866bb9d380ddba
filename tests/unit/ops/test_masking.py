"""Masking: schedules, exact counts and prefix rules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking_law import marginal_log_prob, posterior_log_prob, step_log_prob
from resgen.errors import ConfigError
from resgen.ops.masking import (
    SCHEDULES,
    mask_schedule,
    num_masked,
    reveal,
    sample_visible,
)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_tokens", [1, 5, 512])
def test_schedule_falls_from_one_to_zero(name: str, num_tokens: int) -> None:
    gamma = mask_schedule(name, torch.linspace(0, 1, 101), num_tokens)
    assert gamma.dtype == torch.float64
    assert gamma[0] == pytest.approx(1.0, abs=1e-12)
    assert gamma[-1] == pytest.approx(0.0, abs=1e-12)
    assert (gamma.diff() < 0).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("circle", math.sqrt(1 - 0.36)),
        ("cosine", math.cos(0.3 * math.pi)),
        ("linear", 0.4),
        ("exponential", (1 - 512**-0.4) / (1 - 1 / 512)),
        ("power", (1 - 0.216) ** (1 / 3)),
    ],
)
def test_schedule_values(name: str, expected: float) -> None:
    assert float(mask_schedule(name, 0.6, 512)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 512, 100_000])
def test_num_masked_ends(name: str, num_tokens: int) -> None:
    assert int(num_masked(name, 0.0, num_tokens)) == num_tokens
    assert int(num_masked(name, 1.0, num_tokens)) == 0
    last_float32 = torch.tensor([0.0, 1.0 - 2.0**-24, 1.0 - 2.0**-53], dtype=torch.float64)
    counts = num_masked(name, last_float32, num_tokens)
    assert counts.dtype == torch.int64
    assert (counts >= 1).all() and (counts <= num_tokens).all()


def test_num_masked_ignores_rounding() -> None:
    # (1 - 0.1) * 10 and the like are a rounding error above or below a whole number.
    counts = [int(num_masked("linear", step / 10, 10)) for step in range(11)]
    assert counts == list(range(10, -1, -1))
    counts = [int(num_masked("linear", step / 60, 1920)) for step in range(61)]
    assert counts == [1920 - 32 * step for step in range(61)]


def test_schedule_errors() -> None:
    with pytest.raises(ConfigError, match="did you mean 'circle'"):
        mask_schedule("circel", 0.5, 8)
    with pytest.raises(ConfigError, match="progress=1.5"):
        mask_schedule("circle", 1.5, 8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_sample_visible_masks_exactly(batch: int, positions: int, depth: int, seed: int, padded: bool) -> None:
    generator = _generator(seed)
    valid = torch.rand(batch, positions, generator=generator) < 0.7 if padded else None
    tokens = depth * (valid.sum(1) if valid is not None else torch.full((batch,), positions))
    counts = (torch.rand(batch, generator=generator) * (tokens + 1)).long()
    visible = sample_visible(counts, positions, depth, generator, valid)
    assert visible.shape == (batch, positions) and visible.dtype == torch.int64
    assert visible.min() >= 0 and visible.max() <= depth
    assert torch.equal((depth - visible).sum(1), counts)
    if valid is not None:
        assert (visible[~valid] == depth).all()


def test_sample_visible_caps_at_valid_tokens() -> None:
    valid = torch.tensor([[True, False, False]])
    visible = sample_visible(torch.tensor([9]), 3, 4, _generator(0), valid)
    assert visible.tolist() == [[0, 4, 4]]


def test_sample_visible_is_a_function_of_the_generator() -> None:
    counts = torch.tensor([20, 31])
    first, again, other = (sample_visible(counts, 16, 4, _generator(seed), None) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def _reveal_slowly(scores: torch.Tensor, visible: torch.Tensor, num_reveal: torch.Tensor) -> torch.Tensor:
    new = visible.clone()
    for sample in range(scores.shape[0]):
        cells = [
            (-float(scores[sample, i, d]), i, d)
            for i in range(scores.shape[1])
            for d in range(int(visible[sample, i]), scores.shape[2])
        ]
        for _, position, _ in sorted(cells)[: int(num_reveal[sample])]:
            new[sample, position] += 1
    return new


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_reveal_takes_the_best(batch: int, positions: int, depth: int, seed: int) -> None:
    generator = _generator(seed)
    scores = torch.randn(batch, positions, depth, generator=generator)
    visible = torch.randint(0, depth + 1, (batch, positions), generator=generator)
    count = torch.randint(0, positions * depth + 3, (batch,), generator=generator)
    new = reveal(scores, visible, count)
    assert torch.equal(new, _reveal_slowly(scores, visible, count))
    assert torch.equal((new - visible).sum(1), count.minimum((depth - visible).sum(1)))


def test_reveal_counts_tokens_of_worthless_score() -> None:
    scores = torch.full((1, 2, 2), -torch.inf)
    scores[0, 0] = torch.nan  # visible tokens: their scores must not matter
    visible = torch.tensor([[2, 0]])
    assert reveal(scores, visible, torch.tensor([1])).tolist() == [[2, 1]]
    assert reveal(scores, visible, torch.tensor([99])).tolist() == [[2, 2]]
    assert reveal(scores, visible, torch.tensor([-1])).tolist() == [[2, 0]]


def test_impossible_moves_have_no_probability() -> None:
    less, more = torch.tensor([[1, 2]]), torch.tensor([[2, 1]])
    assert step_log_prob(less, more, 3).tolist() == [-math.inf]
    assert posterior_log_prob(less, more, 3).tolist() == [-math.inf]
    assert step_log_prob(less, less + 1, 3).tolist() == [-math.inf]
    assert posterior_log_prob(less, less + 1, 3).tolist() == [-math.inf]


def test_states_outside_the_depth_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"visible spans 1\.\.4; allowed: 0\.\.depth=3"):
        marginal_log_prob(torch.tensor([[1, 4]]), 3)
