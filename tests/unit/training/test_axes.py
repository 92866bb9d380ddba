"""Which axes of the class a sample keeps in training."""

from __future__ import annotations

import pytest
import torch

from resgen.models.conditions import class_digits
from resgen.ops.axes import count_ids
from resgen.training.generator_task import draw_kept, keep_axes

COUNT = 200_000


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_one_axis_is_dropped_as_it_always_was_and_takes_no_more_random_numbers() -> None:
    generator = stream()
    kept = draw_kept(1000, 1, 0.1, generator)
    same = stream()
    assert torch.equal(kept[:, 0], torch.rand(1000, generator=same) >= 0.1)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=same))


@pytest.mark.parametrize("num_axes", [2, 3, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_how_often_axes_are_kept(num_axes: int, dropout: float) -> None:
    kept = draw_kept(COUNT, num_axes, dropout, stream())
    number = kept.sum(1)
    tolerance = 5 * (0.25 / COUNT) ** 0.5  # five standard errors of a share of one half, the largest
    shares = torch.bincount(number, minlength=num_axes + 1) / COUNT
    assert abs(float(shares[0]) - dropout) < tolerance
    assert (shares[1:] - (1 - dropout) / num_axes).abs().max() < tolerance, "every number of axes alike"
    each = kept.double().mean(0)
    assert (each - (1 - dropout) * (num_axes + 1) / (2 * num_axes)).abs().max() < tolerance, "every axis alike"
    alone = kept[number == 1].double().mean(0)
    assert (alone - 1 / num_axes).abs().max() < 5 * (0.25 / int((number == 1).sum())) ** 0.5


def test_what_is_not_kept_says_nothing() -> None:
    sizes = (3, 2, 4)
    ids = torch.arange(count_ids(sizes))
    keep = torch.rand(len(ids), 3, generator=stream()) < 0.5
    digits, before = class_digits(keep_axes(ids, keep, sizes), sizes), class_digits(ids, sizes)
    for axis, nothing in enumerate((3, 0, 0)):
        assert torch.equal(digits[axis], torch.where(keep[:, axis], before[axis], nothing))
    assert torch.equal(keep_axes(ids, torch.ones_like(keep), sizes), ids)
    assert (keep_axes(ids, torch.zeros_like(keep), sizes) == 3).all()
