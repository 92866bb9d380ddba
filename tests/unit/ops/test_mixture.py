"""Mixture: the bound's inequality, precision and memory."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures import mixture_bound, mixture_log_prob
from resgen.ops import blocks
from resgen.ops.mixture import low_rank_squared_distance, squared_distance


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 5),
    components=st.integers(1, 8),
    dim=st.integers(1, 6),
    spread=st.floats(0.0, 5.0),
    smoothing=st.floats(0.0, 1.0),
)
def test_bound_is_never_below_the_exact_value(
    seed: int, rows: int, components: int, dim: int, spread: float, smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    params = draw(rows, dim), draw(rows, components), draw(rows, components, dim), draw(rows) / 5, draw(rows, dim)
    bound = mixture_bound(*params, smoothing=smoothing)
    exact = -mixture_log_prob(*params)
    assert (bound.total >= exact - 1e-9 * exact.abs() - 1e-9).all()
    assert (bound.classification >= -1e-9).all()
    assert torch.allclose(bound.total, bound.regression + bound.classification)


def test_one_component_makes_the_bound_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 3), (6, 1), (6, 1, 3), (6,), (6, 3)]
    params = [torch.randn(shape, generator=generator) for shape in shapes]
    assert torch.allclose(mixture_bound(*params, smoothing=0.01).total, -mixture_log_prob(*params), atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_distance_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", ContextVar("CPU_BLOCK", default=block))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(9, 3, generator=generator, requires_grad=True)
    means = torch.randn(9, 2, 3, generator=generator, requires_grad=True)
    slope = torch.randn(9, 2, generator=generator)
    plain = (means - z[:, None]).square().sum(-1)
    expected = torch.autograd.grad((plain * slope).sum(), (z, means))
    value = squared_distance(z, means)
    actual = torch.autograd.grad((value * slope).sum(), (z, means))
    assert torch.allclose(value, plain, rtol=1e-5)
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_distance_of_bfloat16_means_is_exact_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 8, generator=generator)
    means = (30 + torch.randn(4, 3, 8, generator=generator)).bfloat16().requires_grad_()
    value = squared_distance(z, means)
    exact = (means.double() - z.double()[:, None]).square().sum(-1)
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), exact, rtol=1e-6)
    value.sum().backward()
    assert means.grad is not None and means.grad.dtype == torch.bfloat16


def test_distance_keeps_its_inputs_only() -> None:
    kept = []
    z, means = torch.randn(4, 8, requires_grad=True), torch.randn(4, 3, 8).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        squared_distance(z, means)
    assert sorted(t.data_ptr() for t in kept) == sorted(t.data_ptr() for t in (z, means))


def test_distance_of_no_rows() -> None:
    z, means = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    value = squared_distance(z, means)
    assert value.shape == (0, 3)
    value.sum().backward()
    assert means.grad is not None and means.grad.shape == means.shape


def test_low_rank_distance_is_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 16), (4, 5, 3), (5, 16, 3), (5, 16)]
    z, coeff, basis, offset = (torch.randn(shape, generator=generator) for shape in shapes)
    means = torch.einsum("khr,nkr->nkh", basis, coeff) + offset
    with torch.autocast("cpu", torch.bfloat16):
        value = low_rank_squared_distance(z, coeff, basis, offset)
    assert value.dtype == torch.float32
    assert torch.allclose(value, (means - z[:, None]).square().sum(-1), rtol=1e-4, atol=1e-4)


def test_low_rank_distance_is_never_negative() -> None:
    offset = 1000 * torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    value = low_rank_squared_distance(offset, torch.zeros(64, 64, 2), torch.zeros(64, 48, 2), offset)
    assert (value >= 0).all()
