"""Confidence scores of masked tokens."""

from __future__ import annotations

import torch

from resgen.ops.confidence import cumulative_confidence

INF = float("inf")


def test_scores_sum_over_the_masked_levels() -> None:
    errors = torch.tensor([[8.0, 4.0, 2.0], [8.0, 4.0, 2.0], [8.0, 4.0, 2.0]])
    scores = cumulative_confidence(errors, torch.tensor([0, 1, 3]), torch.tensor([2.0, 1.0, 0.5]))
    expected = [[-1.0, -3.0, -7.0], [-INF, -2.0, -6.0], [-INF, -INF, -INF]]
    assert scores.tolist() == expected


def test_scores_never_grow_with_depth() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(50, 6, generator=generator)
    std = torch.rand(6, generator=generator) + 0.1
    scores = cumulative_confidence(errors, torch.zeros(50, dtype=torch.long), std)
    assert (scores.diff(dim=1) <= 0).all()


def test_visible_levels_may_hold_anything() -> None:
    errors = torch.tensor([[float("nan"), 1.0]]).bfloat16()
    scores = cumulative_confidence(errors, torch.tensor([1]), torch.ones(2))
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[-INF, -0.5]]


def test_zero_deviation_is_finite_for_exact_codes() -> None:
    scores = cumulative_confidence(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2))
    assert scores.tolist() == [[0.0, 0.0]]
