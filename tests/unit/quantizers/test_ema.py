"""Moving averages, k-means start and restart of dead codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from resgen.quantizers import QuantizerConfig
from resgen.quantizers.ema import EMAQuantizer


def _make(depth: int, size: int, dim: int, **settings: Any) -> EMAQuantizer:
    options = {"momentum": 0.9, "variance_momentum": 0.9} | settings
    return EMAQuantizer(QuantizerConfig(kind="ema", depth=depth, codebook_size=size, **options), dim)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _on_a_line(entries: list[float], **settings: Any) -> EMAQuantizer:
    quantizer = _make(1, len(entries), 1, **settings)
    quantizer.codebooks[0, :, 0] = torch.tensor(entries)
    quantizer.sums[0] = quantizer.codebooks[0] / len(entries)
    return quantizer


def _column(*numbers: float) -> Tensor:
    return torch.tensor(numbers)[:, None]


def _error(quantizer: EMAQuantizer, latents: Tensor, levels: int | None = None) -> float:
    return float((latents - quantizer.decode(quantizer.encode(latents), levels)).square().mean())


def _update(quantizer: EMAQuantizer, latents: Tensor, seed: int = 0) -> dict[str, Tensor]:
    return quantizer.update(quantizer.quantize(latents), _generator(seed))


def test_moving_average_known_answer() -> None:
    quantizer = _on_a_line([0.0, 10.0], dead_threshold=0.0)
    latents = _column(1.0, 2.0, 3.0, 12.0)
    _update(quantizer, latents)
    shares = [0.9 * 0.5 + 0.1 * 0.75, 0.9 * 0.5 + 0.1 * 0.25]
    sums = [0.1 * 6 / 4, 0.9 * 5 + 0.1 * 12 / 4]
    torch.testing.assert_close(quantizer.shares[0], torch.tensor(shares))
    torch.testing.assert_close(quantizer.codebooks[0], _column(sums[0] / shares[0], sums[1] / shares[1]))
    torch.testing.assert_close(quantizer.shares.sum(-1), torch.ones(1))


def test_codes_become_the_means_of_their_latents() -> None:
    quantizer = _on_a_line([0.0, 10.0], momentum=0.5)
    for _ in range(60):
        _update(quantizer, _column(1.0, 2.0, 3.0, 12.0))
    torch.testing.assert_close(quantizer.codebooks[0], _column(2.0, 12.0))


def test_dead_code_restarts_at_a_latent_and_stays_there() -> None:
    quantizer = _on_a_line([0.0, 5.0, 1e6], dead_threshold=0.1)
    quantizer.shares[0, 2] = 0.0
    quantizer.sums[0, 2] = 777.0  # a stale average
    latents = _column(-1.0, 1.0, 4.0, 6.0)
    statistics = _update(quantizer, latents)
    assert statistics["restarted"].tolist() == [1.0]
    restarted = quantizer.codebooks[0, 2].clone()
    assert (restarted == latents).any()
    assert quantizer.shares[0, 2] == pytest.approx(1 / 3)
    # A batch that does not choose the restarted code leaves it where it is: its average is as fresh as the code itself.
    far = _column(1000.0, 1000.0)
    quantizer.codebooks[0, 0] = 1000.0
    statistics = _update(quantizer, far)
    assert statistics["restarted"].tolist() == [0.0]
    torch.testing.assert_close(quantizer.codebooks[0, 2], restarted)


def test_restarts_take_distinct_latents() -> None:
    quantizer = _make(1, 8, 2, dead_threshold=0.9, momentum=0.0)
    quantizer.codebooks[0] = 1e3
    quantizer.codebooks[0, 0] = 0.0
    latents = torch.randn(20, 2, generator=_generator())
    statistics = _update(quantizer, latents)
    assert statistics["restarted"].tolist() == [7.0]
    fresh = quantizer.codebooks[0, 1:]
    assert (fresh[:, None] == latents).all(-1).any(1).all()
    assert fresh.unique(dim=0).shape[0] == 7
    other = _make(1, 8, 2, dead_threshold=0.9, momentum=0.0)
    other.codebooks[0] = 1e3
    other.codebooks[0, 0] = 0.0
    _update(other, latents, seed=1)
    assert not torch.equal(other.codebooks[0, 1:], fresh), "the generator chooses"


@pytest.mark.parametrize("copies", [1, 2, 50])
def test_threshold_is_a_share(copies: int) -> None:
    """Shares 10/16, 1/16, 3/16, 2/16 against 0.5/4 = 2/16: one code is dead at every batch size."""
    quantizer = _on_a_line([0.0, 10.0, 20.0, 30.0], dead_threshold=0.5, momentum=0.0)
    latents = _column(*[0.0] * 10, *[10.0], *[20.0] * 3, *[30.0] * 2).repeat(copies, 1)
    statistics = _update(quantizer, latents)
    assert statistics["restarted"].tolist() == [1.0]
    torch.testing.assert_close(quantizer.shares[0], torch.tensor([10 / 16, 1 / 4, 3 / 16, 2 / 16]))
    assert quantizer.codebooks[0, [0, 2, 3], 0].tolist() == [0.0, 20.0, 30.0]


def test_no_restarts_with_threshold_zero() -> None:
    """An unused code keeps its place for ever, although its share falls to 0."""
    quantizer = _on_a_line([0.0, 50.0], dead_threshold=0.0, momentum=0.1)
    for _ in range(100):
        assert _update(quantizer, _column(1.0, 3.0))["restarted"].tolist() == [0.0]
    assert quantizer.shares[0, 1] == 0
    torch.testing.assert_close(quantizer.codebooks[0], _column(2.0, 50.0))
    quantizer.initialize(_column(1.0), _generator())
    _update(quantizer, _column(1.0, 3.0))
    assert torch.isfinite(quantizer.codebooks).all()


def test_kmeans_finds_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    noise = 0.1 * torch.randn(400, 2, generator=_generator(1))
    latents = centres.repeat(100, 1) + noise
    results = []
    for seed in range(8):
        quantizer = _make(1, 4, 2, kmeans_iterations=20)
        quantizer.initialize(latents, _generator(seed))
        results.append(_error(quantizer, latents))
    assert min(results) < 0.011, "at least one start must reach the global optimum"
    assert max(results) < 60


def test_kmeans_start_lowers_the_error() -> None:
    latents = torch.randn(500, 6, generator=_generator(3)) * 3 + 5
    quantizer, rows_only, refined = (_make(3, 16, 6, kmeans_iterations=n) for n in (10, 0, 10))
    before = _error(quantizer, latents)
    rows_only.initialize(latents, _generator())
    refined.initialize(latents, _generator())
    assert _error(rows_only, latents) < 0.5 * before
    assert _error(refined, latents, 1) < 0.9 * _error(rows_only, latents, 1)
    errors = [_error(refined, latents, level) for level in range(4)]
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(refined.variances, torch.tensor(errors[1:]))


def test_kmeans_start_is_a_fixed_point_of_one_update() -> None:
    """Shares and sums fit the codes, so an update on the same latents moves a converged start nowhere."""
    latents = torch.randn(80, 2, generator=_generator(4))
    quantizer = _make(2, 4, 2, kmeans_iterations=100)
    quantizer.initialize(latents, _generator())
    started = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    assert _update(quantizer, latents)["restarted"].tolist() == [0.0, 0.0]
    for name, buffer in quantizer.named_buffers():
        torch.testing.assert_close(buffer, started[name], rtol=1e-4, atol=1e-5)


def test_kmeans_with_fewer_latents_than_codes() -> None:
    latents = torch.randn(3, 2, generator=_generator(5))
    quantizer = _make(2, 8, 2)
    quantizer.initialize(latents, _generator())
    assert _error(quantizer, latents) < 1e-12
    assert (quantizer.codebooks[0][:, None] == latents).all(-1).any(1).all()
    for step in range(5):
        _update(quantizer, latents, seed=step)
    assert torch.isfinite(quantizer.codebooks).all()
