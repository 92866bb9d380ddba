"""The mixture head: precision, sampling law, memory and the start from data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mixtures import mixture_bound, mixture_log_prob
from resgen.errors import ConfigError
from resgen.losses.mixture import target_log_prob
from resgen.models import heads
from resgen.models.head_start import start_mixture
from resgen.models.heads import MixtureHead
from resgen.types import ProposalNoise

RANKS = pytest.mark.parametrize("rank", [None, 2])


def _head(rank: int | None, width: int = 10, components: int = 6, dim: int = 4) -> MixtureHead:
    torch.manual_seed(0)
    head = MixtureHead(width=width, num_components=components, code_dim=dim, rank=rank)
    with torch.no_grad():
        for param in head.parameters():
            param.add_(0.2 * torch.randn_like(param))
    return head


def nothing(rows: torch.Tensor) -> torch.Tensor:
    """No visible level of any row."""
    return torch.zeros(len(rows), dtype=torch.int64)


def _means(head: MixtureHead, hidden: torch.Tensor) -> torch.Tensor:
    """All means [N, K, H], which the head itself never builds for sampling or at low rank."""
    out = head.means(hidden).unflatten(-1, (head.num_components, -1))
    if head.basis is None:
        return out
    return torch.einsum("khr,nkr->nkh", head.basis, out) + head.offset


@RANKS
def test_density_and_bound_are_those_of_the_mixture(rank: int | None) -> None:
    head = _head(rank).double()
    hidden, target = torch.randn(5, 10).double(), torch.randn(5, 4).double()
    logits, log_scale, shift = head.affine_parameters(hidden)
    params = target, logits, _means(head, hidden), log_scale, shift
    exact = mixture_log_prob(*params)
    assert torch.allclose(head.log_prob(hidden, target, nothing(target)), exact)
    assert torch.allclose(target_log_prob(head, hidden, target, nothing(target), chunk_size=2), exact)
    assert torch.allclose(head(hidden, target, nothing(target), 0.1).total, mixture_bound(*params, smoothing=0.1).total)


@RANKS
def test_low_rank_projects_only_the_coefficients(rank: int | None) -> None:
    head = _head(rank)
    assert head.means.out_features == 6 * (rank or 4)


@RANKS
def test_float32_inside_a_bfloat16_network(rank: int | None) -> None:
    head = _head(rank)
    hidden, target = torch.randn(5, 10), torch.randn(5, 4)
    plain = head.affine_parameters(hidden)
    expected = head.log_prob(hidden, target, nothing(target))
    with torch.autocast("cpu", torch.bfloat16):
        inside = head.affine_parameters(hidden)
        value = head.log_prob(hidden, target, nothing(target))
        total = head(hidden, target, nothing(target), 0.01).total
    for one, other in zip(plain, inside, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)
    assert value.dtype == total.dtype == torch.float32
    assert torch.allclose(value, expected, rtol=0.02, atol=0.1)
    noise = ProposalNoise(torch.rand(5, 1), torch.randn(5, 4))
    drawn = head.bfloat16().sample(hidden.bfloat16(), nothing(hidden), noise, top_p=0.9, temperature=1.0)[0]
    assert drawn.dtype == torch.float32


def test_log_scale_is_clamped() -> None:
    head = MixtureHead(width=2, num_components=3, code_dim=2)
    head.affine.bias.data[3] = -50.0
    assert head.affine_parameters(torch.zeros(1, 2))[1].tolist() == [-4.0]
    head.affine.bias.data[3] = 50.0
    assert head.affine_parameters(torch.zeros(1, 2))[1].tolist() == [10.0]
    bound = head(torch.zeros(1, 2), torch.ones(1, 2), nothing(torch.ones(1)), 0.01)
    assert torch.isfinite(bound.total).all()


@RANKS
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_samples_have_the_moments_of_the_mixture(rank: int | None, temperature: float) -> None:
    head = _head(rank)
    draws = 40_000
    hidden = torch.randn(1, 10)
    generator = torch.Generator().manual_seed(1)
    noise = ProposalNoise(torch.rand(draws, 1, generator=generator), torch.randn(draws, 4, generator=generator))
    everywhere = hidden.expand(draws, -1)
    sample = head.sample(everywhere, nothing(everywhere), noise, temperature=temperature)[0].double()
    logits, log_scale, shift = (value[0].detach().double() for value in head.affine_parameters(hidden))
    pi, means, scale = logits.softmax(-1), _means(head, hidden)[0].detach().double(), log_scale.exp()
    centre = pi @ means
    spread = (means - centre).T @ ((means - centre) * pi[:, None]) + temperature**2 * torch.eye(4)
    assert torch.allclose(sample.mean(0), shift + scale * centre, atol=0.03 * float(scale))
    assert torch.allclose(sample.T.cov(), scale**2 * spread, atol=0.06 * float(scale**2))


def test_samples_stay_in_the_nucleus() -> None:
    head = _head(None)
    head.affine.bias.data[:6] = torch.tensor([5.0, 0, 0, 0, 0, 0])
    hidden = torch.randn(200, 10) * 0.01
    noise = ProposalNoise(torch.rand(200, 1), torch.randn(200, 4))
    sample = head.sample(hidden, nothing(hidden), noise, top_p=0.5, temperature=0.0)[0]
    _, log_scale, shift = head.affine_parameters(hidden)
    expected = shift + log_scale.exp()[:, None] * _means(head, hidden)[:, 0]
    assert torch.allclose(sample, expected, atol=1e-5)


@RANKS
@pytest.mark.parametrize("limit", [1, 500, 1 << 25])
def test_component_mean_picks_the_right_rows(rank: int | None, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "GATHER_BYTES", limit)
    head = _head(rank)
    hidden, component = torch.randn(9, 10), torch.tensor([5, 0, 3, 3, 1, 0, 2, 4, 5])
    expected = _means(head, hidden)[torch.arange(9), component]
    assert torch.allclose(head.component_mean(hidden, component), expected, atol=1e-5)


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@RANKS
def test_sampling_never_builds_all_means(rank: int | None) -> None:
    rows, components, dim, width = 32, 64, 8, 4
    head = MixtureHead(width=width, num_components=components, code_dim=dim, rank=rank)
    hidden, noise = torch.randn(rows, width), ProposalNoise(torch.rand(rows, 1), torch.randn(rows, dim))
    with _Largest() as largest:
        head.sample(hidden, nothing(hidden), noise, top_p=0.9, temperature=1.0)
    # One mean's weights per row, or the logits; all means would be 16,384 numbers, all low-rank coefficients 4,096.
    assert largest.numel <= rows * max(dim * width, components + 1 + dim)


def test_memory_of_gathered_weights_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "GATHER_BYTES", 4 * 8 * 40 * 3)  # three of the 14 tiles of two rows at a time
    head = MixtureHead(width=40, num_components=8, code_dim=8)
    hidden = torch.randn(20, 40)
    with _Largest() as largest:
        head.component_mean(hidden, torch.randint(0, 8, (20,)))
    # The weight itself; the weights of all tiles would be 4,480 numbers.
    assert largest.numel <= head.means.weight.numel()


@RANKS
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 40), kinds=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_component_mean_of_any_number_of_rows(rank: int | None, rows: int, kinds: int, seed: int) -> None:
    head = _head(rank)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 10, generator=generator)
    component = torch.randint(0, kinds, (rows,), generator=generator)
    expected = _means(head, hidden)[torch.arange(rows), component]
    assert torch.allclose(head.component_mean(hidden, component), expected, atol=1e-5)


@RANKS
@pytest.mark.parametrize("rows", [1, 15, 16, 80])
def test_component_mean_with_few_rows_and_many_components(rank: int | None, rows: int) -> None:
    head = MixtureHead(width=10, num_components=64, code_dim=4, rank=rank)
    head.reset_parameters(torch.Generator().manual_seed(0))
    hidden, component = torch.randn(rows, 10), torch.arange(rows) * 37 % 64
    expected = _means(head, hidden)[torch.arange(rows), component]
    assert torch.allclose(head.component_mean(hidden, component), expected, atol=1e-5)


@RANKS
def test_initialize_finds_the_clusters(rank: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 4.0 * torch.randn(3, 4, generator=generator)
    label = torch.randint(0, 3, (900,), generator=generator)
    samples = centres[label] + 0.1 * torch.randn(900, 4, generator=generator)
    head = MixtureHead(width=10, num_components=24, code_dim=4, rank=rank)
    hidden = torch.zeros(900, 10)
    before = -target_log_prob(head, hidden, samples, nothing(samples)).mean()
    start_mixture(head, lambda _: samples, generator)
    after = -target_log_prob(head, hidden, samples, nothing(samples)).mean()
    # The entropy of the truth is 4 (log 0.1 + 1.419) + log 3 = -2.44 nats; the random start is far above 0.
    assert after < 0.0 < before
    assert after < head(hidden, samples, nothing(samples), 0.01).total.mean()
    noise = ProposalNoise(torch.rand(900, 1, generator=generator), torch.zeros(900, 4))
    drawn = head.sample(hidden, nothing(hidden), noise, top_p=1.0, temperature=0.0)[0]
    assert torch.cdist(drawn, centres).min(dim=1).values.max() < 0.6
    counts = torch.bincount(torch.cdist(drawn, centres).argmin(1), minlength=3) / 900
    assert torch.allclose(counts, torch.bincount(label, minlength=3) / 900, atol=0.06)


def test_initialize_lets_components_depend_on_the_input() -> None:
    head = MixtureHead(width=10, num_components=8, code_dim=4)
    start_mixture(head, lambda _: torch.randn(100, 4), torch.Generator().manual_seed(0))
    one, other = _means(head, torch.randn(2, 10)).detach()
    assert (one - other).abs().mean() > 1e-3
    assert torch.equal(head.affine.weight[8:], torch.zeros(5, 10))


@pytest.mark.parametrize("rows", [1, 5])
def test_initialize_from_fewer_samples_than_components(rows: int) -> None:
    head = MixtureHead(width=3, num_components=12, code_dim=4)
    samples = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    start_mixture(head, lambda _: samples, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(param).all() for param in head.parameters())
    centres = head.means.bias.detach().view(12, 4) * head.affine.bias.detach()[12].exp()
    assert len(centres.unique(dim=0)) == 12
    assert torch.cdist(centres, samples).min(dim=1).values.max() < 0.5


def test_initialize_is_a_function_of_the_generator() -> None:
    states = []
    samples = torch.randn(50, 4)
    for seed in (0, 0, 1):
        head = MixtureHead(width=3, num_components=5, code_dim=4)
        start_mixture(head, lambda _: samples, torch.Generator().manual_seed(seed))
        states.append(torch.cat([param.detach().flatten() for param in head.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_errors() -> None:
    with pytest.raises(ConfigError, match="rank=5"):
        MixtureHead(width=3, num_components=4, code_dim=4, rank=5)
    with pytest.raises(ConfigError, match="num_components=0"):
        MixtureHead(width=3, num_components=0, code_dim=4)
    head = MixtureHead(width=3, num_components=4, code_dim=2)
    with pytest.raises(ConfigError, match="temperature=-1"):
        head.sample(
            torch.zeros(1, 3),
            nothing(torch.zeros(1)),
            ProposalNoise(torch.zeros(1, 1), torch.zeros(1, 2)),
            temperature=-1.0,
        )
    with pytest.raises(ConfigError, match="rows of 2"):
        start_mixture(head, lambda _: torch.zeros(4, 3), torch.Generator())
