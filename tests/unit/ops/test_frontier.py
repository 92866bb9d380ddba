"""Levels out of reach are not drawn, and that changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resgen.ops.confidence import confidence_unit, cumulative_confidence
from resgen.ops.frontier import Frontier, LevelsUntil
from resgen.ops.masking import reveal
from resgen.ops.residual import codebook_norms, residual_encode

PROBLEMS = {
    "batch": st.integers(1, 4),
    "positions": st.integers(1, 7),
    "depth": st.integers(1, 9),
    "scale": st.sampled_from((0.0, 0.3, 2.0, 30.0)),
    "seed": st.integers(0, 2**31),
}


def _problem(batch: int, positions: int, depth: int, scale: float, seed: int) -> tuple[Tensor, ...]:
    """What is visible, flat numbers of the unfinished positions, noise, how many to reveal, log-probabilities."""
    stream = torch.Generator().manual_seed(seed)
    visible = torch.randint(0, depth + 1, (batch, positions), generator=stream)
    masked = (depth - visible).sum(1)
    num_reveal = (torch.rand(batch, generator=stream) * (masked + 1)).long()
    noise = -scale * torch.rand(batch, positions, depth, generator=stream).log().neg().log()
    rows = (visible.flatten() < depth).nonzero().squeeze(1)
    return visible, rows, noise, num_reveal, -torch.rand(len(rows), depth, generator=stream) * 5


def _walk(walk: LevelsUntil, truth: Tensor, masked: Tensor, elements: int = 1) -> Tensor:
    values = torch.zeros_like(truth).masked_fill_(masked, -torch.inf)
    for level, rows in walk.blocks(values, elements):
        assert values[rows, level].eq(-torch.inf).all(), "a level is drawn once, and only where it is masked"
        values[rows, level] = truth[rows, level]
    return values


def _revealed(values: Tensor, visible: Tensor, rows: Tensor, noise: Tensor, num_reveal: Tensor) -> Tensor:
    confidence = torch.zeros_like(noise).flatten(0, 1)
    confidence[rows] = values.cumsum(1)
    return reveal(confidence.view_as(noise) + noise, visible, num_reveal)


@settings(deadline=None, max_examples=200)
@given(**PROBLEMS)
def test_the_same_tokens_are_revealed_and_all_of_them_were_drawn(
    batch: int, positions: int, depth: int, scale: float, seed: int
) -> None:
    visible, rows, noise, num_reveal, truth = _problem(batch, positions, depth, scale, seed)
    start = visible.flatten()[rows]
    masked = torch.arange(depth) >= start[:, None]
    truth = torch.where(masked, truth, 0.0)
    drawn = _walk(Frontier(visible, rows, noise, num_reveal), truth, masked)
    wanted = _revealed(truth, visible, rows, noise, num_reveal)
    assert torch.equal(_revealed(drawn, visible, rows, noise, num_reveal), wanted)
    needed = masked & (torch.arange(depth) < wanted.flatten()[rows][:, None])
    assert drawn[needed].isfinite().all()


def test_what_is_drawn_follows_what_is_revealed_and_not_the_depth() -> None:
    drawn = []
    for depth in (16, 64):
        visible, rows = torch.zeros(1, 64, dtype=torch.int64), torch.arange(64)
        noise = torch.zeros(1, 64, depth)
        truth = -torch.rand(64, depth, generator=torch.Generator().manual_seed(depth)) - 1
        walk = Frontier(visible, rows, noise, torch.tensor([32]))
        drawn.append(int(_walk(walk, truth, torch.ones(64, depth, dtype=torch.bool)).isfinite().sum()))
    assert drawn[0] == drawn[1] < 64 + 32 + 1


def test_a_sample_that_reveals_nothing_is_not_drawn() -> None:
    visible, rows = torch.zeros(2, 3, dtype=torch.int64), torch.arange(6)
    walk = Frontier(visible, rows, torch.zeros(2, 3, 4), torch.tensor([0, 12]))
    drawn = _walk(walk, -torch.ones(6, 4), torch.ones(6, 4, dtype=torch.bool)).isfinite()
    assert not drawn[:3].any() and drawn[3:].all()


@settings(deadline=None, max_examples=100)
@given(**PROBLEMS)
def test_quantized_sums_end_where_they_cannot_be_revealed(
    batch: int, positions: int, depth: int, scale: float, seed: int
) -> None:
    visible, rows, noise, num_reveal, _ = _problem(batch, positions, depth, scale, seed)
    stream = torch.Generator().manual_seed(seed)
    codebooks = torch.randint(-3, 4, (depth, 5, 2), generator=stream).float()
    latents = torch.randint(-5, 6, (len(rows), 2), generator=stream).float()
    level_std = torch.rand(depth, generator=stream) + 0.5
    start = visible.flatten()[rows]
    whole = residual_encode(latents, codebooks, start)
    walk = Frontier(visible, rows, noise, num_reveal, confidence_unit(level_std))
    part = residual_encode(latents, codebooks, start, walk=walk, norms=codebook_norms(codebooks))
    now = []
    for found in (whole, part):
        confidence = torch.zeros_like(noise).flatten(0, 1)
        confidence[rows] = cumulative_confidence(found.errors, start, level_std)
        now.append(reveal(confidence.view_as(noise) + noise, visible, num_reveal))
    assert torch.equal(now[0], now[1])
    levels = torch.arange(depth)
    revealed = (levels >= start[:, None]) & (levels < now[0].flatten()[rows][:, None])
    assert torch.equal(part.codes[revealed], whole.codes[revealed])


@pytest.mark.parametrize("elements", [1, 1 << 19, 1 << 20])
def test_levels_until_an_end_in_blocks(elements: int) -> None:
    start, end = torch.tensor([0, 2, 1, 3]), torch.tensor([2, 3, 1, 3])
    masked = torch.arange(3) >= start[:, None]
    drawn = _walk(LevelsUntil(start, end), -torch.ones(4, 3), masked, elements)
    assert drawn.eq(-1).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
