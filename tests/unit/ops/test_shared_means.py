"""Distances to means that rows share, against differences in float64."""

from __future__ import annotations

import pytest
import torch

from resgen.ops.mixture import squared_distance
from resgen.ops.shared_means import shared_squared_distance

GROUPS, COMPONENTS, DIM = 4, 5, 6


def _case(count: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets near their means, which are `spread` from the origin; no row is of group 2."""
    stream = torch.Generator().manual_seed(0)
    tables = spread * torch.randn(GROUPS, COMPONENTS, DIM, generator=stream, dtype=torch.float64)
    group = torch.tensor([3, 0, 1])[torch.randint(3, (count,), generator=stream)]
    z = tables[group, 0] + torch.randn(count, DIM, generator=stream, dtype=torch.float64)
    return z, tables, group, torch.randn(count, COMPONENTS, generator=stream, dtype=torch.float64)


def _both(
    z: torch.Tensor, tables: torch.Tensor, group: torch.Tensor, slope: torch.Tensor, shared: bool
) -> list[torch.Tensor]:
    z, tables = z.clone().requires_grad_(), tables.clone().requires_grad_()
    distance = shared_squared_distance(z, tables, group) if shared else squared_distance(z, tables[group])
    return [distance.detach(), *torch.autograd.grad(distance, (z, tables), slope)]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_equal_to_differences(count: int) -> None:
    z, tables, group, slope = _case(count)
    if count == 0:
        assert shared_squared_distance(z, tables, group).shape == (0, COMPONENTS)
        return
    for value, expected in zip(
        _both(z, tables, group, slope, True), _both(z, tables, group, slope, False), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spread", [1.0, 8.0, 100.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_float32_is_wrong_by_its_rounding_of_the_squares(spread: float, autocast: bool) -> None:
    """The large terms cancel; autocast must round neither the products nor their gradients."""
    z, tables, group, slope = _case(40, spread)
    exact, exact_z, exact_tables = _both(z, tables, group, slope, False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        distance, grad_z, grad_tables = _both(z.float(), tables.float(), group, slope.float(), True)
    squares = z.square().sum(1, keepdim=True) + tables[group].square().sum(2)
    assert ((distance - exact).abs() <= 1e-6 * squares + 1e-6).all() and (distance >= 0).all()
    largest = float(squares.max().sqrt())
    torch.testing.assert_close(grad_z.double(), exact_z, rtol=1e-5, atol=1e-5 * largest)
    torch.testing.assert_close(grad_tables.double(), exact_tables, rtol=1e-5, atol=1e-5 * largest)
