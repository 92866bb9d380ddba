"""Measures of sets of features and of pairs of images, as pure functions in float64.

Sets of features are compared by the Fréchet distance (Heusel et al., arXiv:1706.08500), the kernel distance
(Binkowski et al., arXiv:1801.01401) and precision and recall (Kynkäänniemi et al., arXiv:1904.06991); logits give the
Inception score (Salimans et al., arXiv:1606.03498); pairs of images the structural similarity (Wang et al., 2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Num, UInt8
from torch import Tensor
from torch.nn import functional as F

from resgen.errors import DataError

Z_95 = 1.959963984540054
SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03


class MeanStd(NamedTuple):
    """A mean and the standard deviation of what was averaged."""

    mean: float
    std: float


class Interval(NamedTuple):
    """A 95 % interval and the standard deviation that it was made of."""

    low: float
    high: float
    std: float


class PrecisionRecall(NamedTuple):
    """Share of the generated rows within the manifold of the reference, and the other way round."""

    precision: float
    recall: float


class FeatureStatistics:
    """Count, mean and scatter of rows of features, gathered batch by batch in float64.

    Each batch is centred on its own mean before it is squared, and two parts are joined by the exact update of Chan,
    Golub and LeVeque: neither the size of the batches nor the order or number of the parts changes more than rounding.

    Attributes:
        count: rows so far.
        mean: `[F]`.
        scatter: `[F, F]`, sum of outer products of the centred rows.
    """

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64)
        self._factor: Tensor | None = None

    @classmethod
    def of(cls, features: Num[Tensor, "N F"]) -> FeatureStatistics:
        """The statistics of one set of rows."""
        statistics = cls(features.shape[1])
        statistics.update(features)
        return statistics

    @classmethod
    def from_tensors(cls, count: int, mean: Float[Tensor, " F"], scatter: Float[Tensor, "F F"]) -> FeatureStatistics:
        """Statistics that were written to a file."""
        statistics = cls(len(mean))
        statistics.count, statistics.mean, statistics.scatter = count, mean.double(), scatter.double()
        return statistics

    @property
    def num_features(self) -> int:
        """F, width of a row."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[Tensor, "F F"]:
        """Unbiased covariance.

        Raises:
            DataError: fewer than two rows.
        """
        if self.count < 2:
            raise DataError(f"{self.count} rows of features have no covariance; at least 2 are needed")
        return self.scatter / (self.count - 1)

    @property
    def factor(self) -> Float[Tensor, "F F"]:
        """A matrix `A` with `A A^T` = covariance; kept until the statistics change."""
        if self._factor is None:
            values, vectors = torch.linalg.eigh(self.covariance)
            floor = values.abs().max() * len(values) * torch.finfo(torch.float64).eps
            self._factor = vectors * torch.where(values > floor, values, 0).sqrt()
        return self._factor

    def update(self, features: Num[Tensor, "N F"]) -> None:
        """Add rows.

        Raises:
            DataError: another width, or numbers that are not finite; nothing is added then.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise DataError(f"features of shape {tuple(features.shape)} do not fit statistics of {self.num_features}")
        check_finite(features, "features")
        if not len(features):
            return
        part = FeatureStatistics(self.num_features)
        rows = features.detach().cpu().double()
        centred = rows - rows.mean(0)
        part.count, part.mean, part.scatter = len(rows), rows.mean(0), centred.T @ centred
        self.merge(part)

    def merge(self, other: FeatureStatistics) -> None:
        """Add the rows of another part: a batch, or what another process gathered.

        Raises:
            DataError: another width.
        """
        if other.num_features != self.num_features:
            raise DataError(f"statistics of {other.num_features} features cannot join those of {self.num_features}")
        if not other.count:
            return
        total = self.count + other.count
        gap = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + torch.outer(gap, gap) * (self.count * other.count / total)
        self.mean = self.mean + gap * (other.count / total)
        self.count = total
        self._factor = None


def check_finite(values: Tensor, what: str) -> None:
    """Reject numbers that are not finite.

    Raises:
        DataError: with the number of rows concerned.
    """
    if not torch.isfinite(values).all():
        rows = values.reshape(len(values), -1)
        bad = int((~torch.isfinite(rows).all(1)).sum())
        raise DataError(
            f"{bad} of {len(rows)} rows of {what} hold NaN or infinity; look at the images they were made of, "
            "and at the extractor's weights"
        )


def frechet_distance(
    first: FeatureStatistics | Num[Tensor, "N F"], second: FeatureStatistics | Num[Tensor, "M F2"]
) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features.

    `|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2`. With `S = A A^T` the last trace is the sum of the singular values
    of `A1^T A2`, which needs no root of a product and stays accurate for singular covariances: those of fewer rows than
    features + 1 give a finite, but strongly biased number. It is biased upwards for
    small sets in any case: compare only distances of equally many rows, in the same feature space.

    Raises:
        DataError: fewer than two rows, different widths, or numbers that are not finite.
    """
    a, b = (x if isinstance(x, FeatureStatistics) else _statistics(x) for x in (first, second))
    if min(a.count, b.count) < 2 or a.num_features != b.num_features:
        raise DataError(
            f"features of shapes {(a.count, a.num_features)} and {(b.count, b.num_features)} cannot be compared; "
            "two or more rows of the same width are needed"
        )
    cross = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def kernel_distance(
    first: Num[Tensor, "N F"],
    second: Num[Tensor, "M F2"],
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    stream: torch.Generator,
) -> MeanStd:
    """Kernel distance (KID): the unbiased squared maximum mean discrepancy with the kernel `(x.y / F + 1)^3`.

    Args:
        first: one set of rows.
        second: the other.
        num_subsets: pairs of subsets that are averaged.
        subset_size: rows drawn from each set, without repetition, for a pair.
        stream: draws the subsets.

    Returns:
        Mean over the pairs of subsets, and their standard deviation.

    Raises:
        DataError: different widths, fewer rows than `subset_size`, or numbers that are not finite.
    """
    _same_width(first, second)
    least = min(len(first), len(second))
    if not 2 <= subset_size <= least:
        raise DataError(f"subset_size={subset_size} must lie in 2..{least}, the rows there are; take a smaller one")
    if num_subsets < 1:
        raise DataError(f"num_subsets={num_subsets} must be at least 1")
    sets = [x.detach().cpu().double() for x in (first, second)]
    values = []
    for _ in range(num_subsets):
        x, y = (rows[torch.randperm(len(rows), generator=stream)[:subset_size]] for rows in sets)
        within = sum(float(k.sum() - k.diagonal().sum()) for k in (_kernel(x, x), _kernel(y, y)))
        values.append(within / (subset_size * (subset_size - 1)) - 2 * float(_kernel(x, y).mean()))
    return _mean_std(values)


def inception_score(logits: Num[Tensor, "N classes"], *, splits: int = 10, stream: torch.Generator) -> MeanStd:
    """`exp E_x KL(p(y|x) | p(y))` by parts of the rows, computed from log-probabilities, where nothing underflows.

    Args:
        logits: logits of a classifier, one row per image.
        splits: parts of equal size (to one row) that are averaged.
        stream: shuffles the rows, which may come sorted by class.

    Raises:
        DataError: fewer rows than `splits`, or numbers that are not finite.
    """
    check_finite(logits, "logits")
    if not 1 <= splits <= len(logits):
        raise DataError(f"splits={splits} must lie in 1..{len(logits)}, the rows there are")
    order = torch.randperm(len(logits), generator=stream)
    log_p = logits.detach().cpu().double().log_softmax(1)[order]
    scores = []
    for part in log_p.tensor_split(splits):
        marginal = part.logsumexp(0, keepdim=True) - torch.tensor(float(len(part)), dtype=torch.float64).log()
        scores.append(float((part.exp() * (part - marginal)).sum(1).mean().exp()))
    return _mean_std(scores)


def neighbour_radii(features: Num[Tensor, "N F"], k: int = 3, *, chunk_size: int = 1024) -> Float[Tensor, " N"]:
    """Distance of every row to its k-th nearest other row.

    Raises:
        DataError: no more than k rows, or numbers that are not finite.
    """
    check_finite(features, "features")
    if not 1 <= k < len(features):
        raise DataError(f"k={k} must lie in 1..{len(features) - 1}: {len(features)} rows have no more neighbours")
    rows = features.detach().cpu().double()
    radii = []
    for begin in range(0, len(rows), chunk_size):
        distances = torch.cdist(rows[begin : begin + chunk_size], rows)
        own = torch.arange(len(distances))
        distances[own, begin + own] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def precision_recall(
    generated: Num[Tensor, "N F"],
    reference: Num[Tensor, "M F2"],
    *,
    k: int = 3,
    reference_radii: Float[Tensor, " M"] | None = None,
    chunk_size: int = 1024,
) -> PrecisionRecall:
    """Improved precision and recall: a set's manifold is the union of balls that reach to the k-th nearest neighbour.

    Args:
        generated: rows of generated images.
        reference: rows of real images; take as many of them.
        k: neighbours.
        reference_radii: `neighbour_radii(reference, k)` where it is known already.
        chunk_size: rows whose distances exist at one time.

    Raises:
        DataError: different widths, no more than k rows, or numbers that are not finite.
    """
    _same_width(generated, reference)
    ours = neighbour_radii(generated, k, chunk_size=chunk_size)
    theirs = neighbour_radii(reference, k, chunk_size=chunk_size) if reference_radii is None else reference_radii
    rows, real = generated.detach().cpu().double(), reference.detach().cpu().double()
    inside: list[Tensor] = []
    covered: Bool[Tensor, " M"] = torch.zeros(len(real), dtype=torch.bool)
    for begin in range(0, len(rows), chunk_size):
        distances = torch.cdist(rows[begin : begin + chunk_size], real)
        inside.append((distances <= theirs).any(1))
        covered |= (distances <= ours[begin : begin + chunk_size, None]).any(0)
    return PrecisionRecall(float(torch.cat(inside).double().mean()), float(covered.double().mean()))


def bootstrap_interval(
    rows: Num[Tensor, "N F"],
    statistic: Callable[[Tensor], float],
    value: float,
    *,
    num_resamples: int = 50,
    stream: torch.Generator,
) -> Interval:
    """95 % interval of `value`, the statistic of all rows, from its spread over resamples with replacement.

    It is the value itself plus and minus 1.96 standard deviations, not the quantiles of the resamples: a resample
    repeats rows, so that the Fréchet distance of resamples is biased upwards and their quantiles may lie above the
    value.

    Raises:
        DataError: fewer than two rows or resamples.
    """
    if num_resamples < 2 or len(rows) < 2:
        raise DataError(f"num_resamples={num_resamples} and {len(rows)} rows must both be at least 2")
    values = []
    for _ in range(num_resamples):
        values.append(statistic(rows[torch.randint(len(rows), (len(rows),), generator=stream)]))
    std = float(torch.tensor(values, dtype=torch.float64).std())
    return Interval(value - Z_95 * std, value + Z_95 * std, std)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

    Raises:
        DataError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"{successes} successes of {trials} trials: an interval needs 0 <= successes <= trials >= 1")
    share, z = successes / trials, Z_95
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def ssim(first: UInt8[Tensor, "B C Y X"], second: UInt8[Tensor, "B C Y X"]) -> Float[Tensor, " B"]:
    """Structural similarity of each pair of 8-bit images, averaged over channels and windows; 1 for equal images.

    Windows are Gaussian, 11x11 with sigma 1.5, and lie within the image; K1 = 0.01, K2 = 0.03, range 255. Images with
    a side below 11 take the largest odd window that fits, with the same sigma; such values compare only among images
    of that size.
    """
    size = min(SSIM_WINDOW, *first.shape[2:])
    size -= 1 - size % 2
    offsets = torch.arange(size, dtype=torch.float64, device=first.device) - size // 2
    line = (-offsets.square() / (2 * SSIM_SIGMA**2)).exp()
    line = line / line.sum()
    channels = first.shape[1]
    column, row = (line.view(shape).expand(channels, 1, *shape[2:]) for shape in ((1, 1, size, 1), (1, 1, 1, size)))

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, column, groups=channels), row, groups=channels)

    x, y = first.double(), second.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * 255) ** 2, (SSIM_K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _statistics(features: Tensor) -> FeatureStatistics:
    if features.ndim != 2:
        raise DataError(f"features of shape {tuple(features.shape)} cannot be compared; rows are needed")
    return FeatureStatistics.of(features)


def _same_width(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(f"features of shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be compared")
    check_finite(first, "features")
    check_finite(second, "features")


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_std(values: list[float]) -> MeanStd:
    tensor = torch.tensor(values, dtype=torch.float64)
    return MeanStd(float(tensor.mean()), float(tensor.std(correction=0)))
