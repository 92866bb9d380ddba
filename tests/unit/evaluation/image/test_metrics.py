"""Measures against closed forms; what they refuse; that batches and processes change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resgen.errors import DataError
from resgen.evaluation.image.metrics import (
    FeatureStatistics,
    bootstrap_interval,
    frechet_distance,
    inception_score,
    kernel_distance,
    neighbour_radii,
    precision_recall,
    ssim,
    wilson_interval,
)


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _white(count: int = 4000, width: int = 5) -> Tensor:
    """Rows whose sample mean is 0 and whose sample covariance is the unit matrix, but for rounding."""
    base = torch.randn(count, width, generator=_stream(), dtype=torch.float64)
    return (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T


def test_frechet_distance_of_known_gaussians() -> None:
    white = _white()
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    moved = white * scale + 2
    # Diagonal covariances: sum of squared differences of means and of standard deviations.
    expected = 5 * 4 + float((scale - 1).square().sum())
    assert frechet_distance(white, moved) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moved, white) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(white, white) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(moved, moved) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_rotated_gaussians() -> None:
    # Between N(0, diag(a^2, 1)) and itself turned by an angle: tr 2S - 2 tr(S S')^1/2, with for 2 x 2 matrices
    # (tr M^1/2)^2 = tr M + 2 det(M)^1/2.
    white = _white(width=2)
    scale = torch.tensor([3.0, 1.0], dtype=torch.float64)
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    trace = (81 + 1) * math.cos(angle) ** 2 + (9 + 9) * math.sin(angle) ** 2
    expected = 2 * (9 + 1) - 2 * math.sqrt(trace + 2 * 9)
    assert frechet_distance(white * scale, white * scale @ turn) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_with_itself_even_if_singular() -> None:
    few = 10 * torch.randn(20, 64, generator=_stream())
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)
    other = torch.randn(20, 64, generator=_stream(1))
    assert math.isfinite(frechet_distance(few, other)) and frechet_distance(few, other) > 1


def test_frechet_distance_refuses() -> None:
    with pytest.raises(DataError, match="compared"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(DataError, match="compared"):
        frechet_distance(torch.zeros(5, 2), torch.zeros(5, 3))
    rows = torch.zeros(5, 3)
    rows[2, 1], rows[4, 0] = math.nan, math.inf
    with pytest.raises(DataError, match="2 of 5 rows of features hold NaN"):
        frechet_distance(rows, torch.zeros(5, 3))


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_statistics_do_not_depend_on_batches_or_processes(batch_size: int, offset: float) -> None:
    """Also far from the origin, where sums of squares would lose what matters."""
    rows = (
        torch.randn(300, 6, generator=_stream(), dtype=torch.float64) @ torch.randn(6, 6, generator=_stream(1)).double()
    )
    rows = rows + offset
    parts = [FeatureStatistics(6) for _ in range(3)]  # three processes, of different loads
    for number, batch in enumerate(rows.split(batch_size)):
        parts[0 if number % 4 < 2 else number % 3].update(batch)
    orders = ([0, 1, 2], [2, 1, 0])
    for order in orders:
        total = FeatureStatistics(6)
        for index in order:
            total.merge(parts[index])
        assert total.count == 300
        assert torch.allclose(total.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
        assert torch.allclose(total.covariance, torch.cov(rows.T), rtol=1e-9, atol=1e-9)


def test_statistics_forget_their_factor_when_they_change() -> None:
    statistics = FeatureStatistics.of(torch.randn(50, 3, generator=_stream()))
    before = statistics.factor
    statistics.update(5 * torch.randn(50, 3, generator=_stream(1)))
    assert not torch.allclose(statistics.factor, before)
    assert torch.allclose(statistics.factor @ statistics.factor.T, statistics.covariance)


def test_statistics_refuse() -> None:
    statistics = FeatureStatistics(3)
    with pytest.raises(DataError, match="do not fit"):
        statistics.update(torch.zeros(4, 2))
    with pytest.raises(DataError, match="cannot join"):
        statistics.merge(FeatureStatistics(2))
    with pytest.raises(DataError, match="at least 2"):
        FeatureStatistics.of(torch.zeros(1, 3)).covariance  # noqa: B018
    rows = torch.zeros(3, 3)
    rows[1] = math.nan
    with pytest.raises(DataError, match="1 of 3 rows"):
        statistics.update(rows)
    assert statistics.count == 0, "nothing is added of a batch that is refused"
    statistics.update(torch.zeros(0, 3))
    statistics.merge(FeatureStatistics(3))
    assert statistics.count == 0


def test_kernel_distance_of_constant_sets() -> None:
    # All rows x on one side, y on the other: k(x, x) + k(y, y) - 2 k(x, y), whatever the subsets.
    x, y = torch.tensor([[1.0, 2.0]]).repeat(30, 1), torch.tensor([[0.0, -1.0]]).repeat(40, 1)
    expected = (5 / 2 + 1) ** 3 + (1 / 2 + 1) ** 3 - 2 * (-2 / 2 + 1) ** 3
    result = kernel_distance(x, y, num_subsets=3, subset_size=10, stream=_stream())
    assert result == pytest.approx((expected, 0.0))


def test_kernel_distance_is_unbiased() -> None:
    """Two sets of one distribution: zero on average, of either sign; never below zero were the diagonal counted."""
    a, b = torch.randn(2, 2000, 4, generator=_stream())
    result = kernel_distance(a, b, num_subsets=200, subset_size=50, stream=_stream())
    assert abs(result.mean) < 4 * result.std / math.sqrt(200)
    single = [kernel_distance(a, b, num_subsets=1, subset_size=50, stream=_stream(i)).mean for i in range(20)]
    assert min(single) < 0 < max(single)
    again = kernel_distance(a, b, num_subsets=200, subset_size=50, stream=_stream())
    assert again == result


def test_kernel_distance_refuses() -> None:
    rows = torch.randn(20, 3, generator=_stream())
    for size in (1, 21):
        with pytest.raises(DataError, match=rf"subset_size={size} must lie in 2\.\.20"):
            kernel_distance(rows, rows, subset_size=size, stream=_stream())
    with pytest.raises(DataError, match="num_subsets=0"):
        kernel_distance(rows, rows, num_subsets=0, subset_size=5, stream=_stream())
    with pytest.raises(DataError, match="compared"):
        kernel_distance(rows, torch.zeros(20, 2), subset_size=5, stream=_stream())
    with pytest.raises(DataError, match="NaN"):
        kernel_distance(rows, rows * math.nan, subset_size=5, stream=_stream())


def test_inception_score_of_known_predictions() -> None:
    certain = 1000.0 * torch.eye(4).repeat(10, 1)  # probabilities underflow to 0
    assert inception_score(certain, splits=1, stream=_stream()) == pytest.approx((4.0, 0.0))
    assert inception_score(torch.zeros(12, 5), splits=3, stream=_stream()) == pytest.approx((1.0, 0.0))
    assert inception_score(certain[:1].repeat(8, 1), splits=2, stream=_stream()).mean == pytest.approx(1.0)


def test_inception_score_shuffles_sorted_rows() -> None:
    by_class = 1000.0 * torch.eye(4).repeat_interleave(200, 0)
    assert inception_score(by_class, splits=4, stream=_stream()).mean > 3.9, "unshuffled, each part has one class"


def test_inception_score_refuses() -> None:
    for splits in (0, 6):
        with pytest.raises(DataError, match=rf"splits={splits} must lie in 1\.\.5"):
            inception_score(torch.zeros(5, 3), splits=splits, stream=_stream())
    with pytest.raises(DataError, match="logits hold NaN"):
        inception_score(torch.full((5, 3), math.nan), splits=1, stream=_stream())


def test_precision_and_recall_of_known_sets() -> None:
    line = torch.arange(10.0)[:, None]
    assert precision_recall(line, line) == (1.0, 1.0)
    assert precision_recall(line, line + 1000) == (0.0, 0.0)
    # Half of the reference's line: every sample is on it, and its balls (radius 3 at the ends) reach to 4 + 3 = 7.
    assert precision_recall(line[:5], line) == (1.0, 0.8)
    assert precision_recall(line, line[:5]) == (0.8, 1.0)
    assert neighbour_radii(line, 3).tolist() == [3, 2, 2, 2, 2, 2, 2, 2, 2, 3]
    assert neighbour_radii(line, 1).tolist() == [1] * 10


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_precision_and_recall_in_chunks(chunk_size: int) -> None:
    a, b = torch.randn(2, 60, 3, generator=_stream())
    b = b[:50] + 0.7
    expected = precision_recall(a, b, k=2)
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1
    assert precision_recall(a, b, k=2, chunk_size=chunk_size) == expected
    radii = neighbour_radii(b, 2, chunk_size=chunk_size)
    assert precision_recall(a, b, k=2, reference_radii=radii) == expected


def test_precision_and_recall_refuse() -> None:
    with pytest.raises(DataError, match=r"k=3 must lie in 1\.\.2"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(DataError, match="compared"):
        precision_recall(torch.zeros(9, 2), torch.zeros(9, 3))
    with pytest.raises(DataError, match="NaN"):
        neighbour_radii(torch.full((9, 2), math.nan))


def test_bootstrap_interval_of_a_mean() -> None:
    rows = torch.randn(400, 1, generator=_stream(), dtype=torch.float64)
    mean = float(rows.mean())
    result = bootstrap_interval(rows, lambda part: float(part.mean()), mean, num_resamples=400, stream=_stream())
    expected = float(rows.std()) / 20  # the standard error of a mean
    assert result.std == pytest.approx(expected, rel=0.15)
    assert (result.low + result.high) / 2 == pytest.approx(mean, abs=1e-12)
    assert result.high - result.low == pytest.approx(2 * 1.96 * result.std, rel=1e-4)
    for count, resamples in ((400, 1), (1, 5)):
        with pytest.raises(DataError, match="at least 2"):
            bootstrap_interval(rows[:count], lambda part: 0.0, 0.0, num_resamples=resamples, stream=_stream())


def test_bootstrap_interval_holds_the_distance() -> None:
    """The quantiles of the resampled distances lie above it: each resample repeats rows."""
    rows, real = torch.randn(2, 60, 8, generator=_stream())
    reference = FeatureStatistics.of(real)
    seen = []

    def statistic(part: Tensor) -> float:
        seen.append(frechet_distance(part, reference))
        return seen[-1]

    value = frechet_distance(rows, reference)
    result = bootstrap_interval(rows, statistic, value, num_resamples=40, stream=_stream())
    assert result.low < value < result.high
    assert len(seen) == 40, "the statistic of all rows is not computed again"
    assert sum(resampled > value for resampled in seen) > 35


def test_ssim_of_known_pictures() -> None:
    stream = _stream()
    pictures = torch.randint(0, 256, (3, 3, 16, 16), generator=stream, dtype=torch.uint8)
    assert ssim(pictures, pictures).tolist() == pytest.approx([1, 1, 1])
    # Constant images have no structure to lose: what is left is the luminance.
    dark, light = (torch.full((1, 1, 12, 12), v, dtype=torch.uint8) for v in (50, 100))
    c1 = (0.01 * 255) ** 2
    assert float(ssim(dark, light)) == pytest.approx((2 * 5000 + c1) / (2500 + 10000 + c1))
    noisy = (pictures.float() + 20 * torch.randn(3, 3, 16, 16, generator=stream)).clamp(0, 255).to(torch.uint8)
    assert (ssim(pictures, noisy) < 1).all() and (ssim(pictures, noisy) > 0.5).all()
    assert torch.allclose(ssim(pictures, noisy), ssim(noisy, pictures))


@pytest.mark.parametrize("side", [1, 2, 8, 10, 11])
def test_ssim_of_small_pictures(side: int) -> None:
    pictures = torch.randint(0, 256, (2, 1, side, side), generator=_stream(), dtype=torch.uint8)
    assert ssim(pictures, pictures).tolist() == pytest.approx([1, 1])
    assert (ssim(pictures, 255 - pictures) < 0.9).all()


def test_wilson_interval_published_values() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-6)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611252, 1.0), abs=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses(successes: int, trials: int) -> None:
    with pytest.raises(DataError, match="successes"):
        wilson_interval(successes, trials)
