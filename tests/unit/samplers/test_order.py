"""Levels out of reach are not drawn, and that changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resgen.ops.blocks import walk_levels
from resgen.ops.residual import codebook_norms, confidence_unit, residual_encode
from resgen.samplers.order import ConfidenceOrder, RandomOrder
from resgen.types import LevelWalk

PROBLEMS = {
    "batch": st.integers(1, 4),
    "positions": st.integers(1, 7),
    "depth": st.integers(1, 9),
    "temperature": st.sampled_from((0.0, 0.3, 2.0, 30.0)),
    "seed": st.integers(0, 2**31),
}


def _problem(batch: int, positions: int, depth: int, temperature: float, seed: int) -> tuple[Tensor, ...]:
    """What is visible, flat numbers of the unfinished positions, uniform noise, how many to reveal, scores."""
    stream = torch.Generator().manual_seed(seed)
    visible = torch.randint(0, depth + 1, (batch, positions), generator=stream)
    masked = (depth - visible).sum(1)
    num_reveal = (torch.rand(batch, generator=stream) * (masked + 1)).long()
    choice = torch.rand(batch, positions, depth, generator=stream).clamp(min=1e-30)
    rows = (visible.flatten() < depth).nonzero().squeeze(1)
    return visible, rows, choice, num_reveal, -torch.rand(len(rows), depth, generator=stream) * 5


def _walk(walk: LevelWalk, truth: Tensor, masked: Tensor, elements: int = 1) -> Tensor:
    values = torch.zeros_like(truth).masked_fill_(masked, -torch.inf)
    for level, rows in walk(values, elements):
        assert values[rows, level].eq(-torch.inf).all(), "a level is drawn once, and only where it is masked"
        values[rows, level] = truth[rows, level]
    return values


@settings(deadline=None, max_examples=200)
@given(**PROBLEMS)
def test_the_same_tokens_are_revealed_and_all_of_them_were_drawn(
    batch: int, positions: int, depth: int, temperature: float, seed: int
) -> None:
    visible, rows, choice, num_reveal, truth = _problem(batch, positions, depth, temperature, seed)
    start = visible.flatten()[rows]
    masked = torch.arange(depth) >= start[:, None]
    truth = torch.where(masked, truth, 0.0)
    order = ConfidenceOrder(visible, rows, choice, num_reveal, temperature)
    drawn = _walk(order.walk, truth, masked)
    expected = order.reveal(truth)
    assert torch.equal((expected - visible).sum(1), num_reveal)
    assert torch.equal(order.reveal(drawn), expected)
    needed = masked & (torch.arange(depth) < expected.flatten()[rows][:, None])
    assert drawn[needed].isfinite().all()


@settings(deadline=None, max_examples=50)
@given(**PROBLEMS)
def test_at_random_what_is_revealed_is_drawn_and_nothing_else(
    batch: int, positions: int, depth: int, temperature: float, seed: int
) -> None:
    visible, rows, choice, num_reveal, truth = _problem(batch, positions, depth, temperature, seed)
    start, levels = visible.flatten()[rows], torch.arange(depth)
    masked = levels >= start[:, None]
    order = RandomOrder(visible, rows, choice, num_reveal, temperature)
    drawn = _walk(order.walk, torch.where(masked, truth, 0.0), masked)
    after = order.reveal(drawn)
    assert torch.equal((after - visible).sum(1), num_reveal)
    assert torch.equal(drawn.isfinite(), ~masked | (levels < after.flatten()[rows][:, None]))


def test_what_is_drawn_follows_what_is_revealed_and_not_the_depth() -> None:
    drawn = []
    for depth in (16, 64):
        visible, rows = torch.zeros(1, 64, dtype=torch.int64), torch.arange(64)
        truth = -torch.rand(64, depth, generator=torch.Generator().manual_seed(depth)) - 1
        order = ConfidenceOrder(visible, rows, torch.full((1, 64, depth), 0.5), torch.tensor([32]), 0.0)
        drawn.append(int(_walk(order.walk, truth, torch.ones(64, depth, dtype=torch.bool)).isfinite().sum()))
    assert drawn[0] == drawn[1] < 64 + 32 + 1


def test_a_sample_that_reveals_nothing_is_not_drawn() -> None:
    visible, rows = torch.zeros(2, 3, dtype=torch.int64), torch.arange(6)
    order = ConfidenceOrder(visible, rows, torch.full((2, 3, 4), 0.5), torch.tensor([0, 12]), 0.0)
    drawn = _walk(order.walk, -torch.ones(6, 4), torch.ones(6, 4, dtype=torch.bool)).isfinite()
    assert not drawn[:3].any() and drawn[3:].all()


@settings(deadline=None, max_examples=100)
@given(**PROBLEMS)
def test_quantized_sums_end_where_they_cannot_be_revealed(
    batch: int, positions: int, depth: int, temperature: float, seed: int
) -> None:
    visible, rows, choice, num_reveal, _ = _problem(batch, positions, depth, temperature, seed)
    stream = torch.Generator().manual_seed(seed)
    codebooks = torch.randint(-3, 4, (depth, 5, 2), generator=stream).float()
    latents = torch.randint(-5, 6, (len(rows), 2), generator=stream).float()
    unit = confidence_unit(torch.rand(depth, generator=stream) + 0.5)
    start = visible.flatten()[rows]
    order = ConfidenceOrder(visible, rows, choice, num_reveal, temperature)
    whole = residual_encode(latents, codebooks, start, unit=unit)
    part = residual_encode(latents, codebooks, start, walk=order.walk, norms=codebook_norms(codebooks), unit=unit)
    after = order.reveal(whole.errors)
    assert torch.equal(order.reveal(part.errors), after)
    levels = torch.arange(depth)
    revealed = (levels >= start[:, None]) & (levels < after.flatten()[rows][:, None])
    assert torch.equal(part.codes[revealed], whole.codes[revealed])


@pytest.mark.parametrize("elements", [1, 1 << 19, 1 << 20])
def test_levels_until_an_end_in_blocks(elements: int) -> None:
    start, end = torch.tensor([0, 2, 1, 3]), torch.tensor([2, 3, 1, 3])
    masked = torch.arange(3) >= start[:, None]
    drawn = _walk(walk_levels(start, end), -torch.ones(4, 3), masked, elements)
    assert drawn.eq(-1).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
