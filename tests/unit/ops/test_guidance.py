"""Classifier-free guidance."""

from __future__ import annotations

import pytest
import torch

from resgen.ops.guidance import guidance_weights, guide


def test_guide_extrapolates_away_from_the_unconditional() -> None:
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert guide(cond, uncond, 0.0).tolist() == [1.0, 2.0]
    assert guide(cond, uncond, 1.5).tolist() == [2.5, -1.0]


def test_each_row_has_its_own_weight_and_the_dtype_stays() -> None:
    cond, uncond = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    assert guide(cond, uncond, torch.tensor([[0.0], [1.0]])).tolist() == [[1.0, 2.0], [6.0, 8.0]]
    half = guide(cond.bfloat16(), uncond.bfloat16(), torch.tensor([[0.0], [1.0]]))
    assert half.dtype == torch.bfloat16


def test_weights_grow_linearly() -> None:
    weights = guidance_weights(5, 0.0, 2.0)
    assert weights == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert guidance_weights(1, 0.02, 2.4) == [2.4]
    assert guidance_weights(3, 0.02, 2.4)[-1] == pytest.approx(2.4)
    assert guidance_weights(3, 1.5, 0.0) == [0.0, 0.0, 0.0]


def test_weights_are_off_outside_of_the_interval() -> None:
    assert guidance_weights(4, 0.0, 3.0, (0.25, 0.8)) == pytest.approx([0.0, 1.0, 2.0, 0.0])
    assert guidance_weights(4, 0.0, 3.0, (0.0, 0.5)) == pytest.approx([0.0, 1.0, 0.0, 0.0])


def test_a_single_step_is_guided_whatever_the_interval() -> None:
    assert guidance_weights(1, 0.0, 3.0, (0.75, 1.0)) == [3.0]
    assert guidance_weights(2, 0.0, 3.0, (0.8, 1.0)) == [0.0, 0.0]
