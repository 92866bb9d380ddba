"""Measures of images against slow versions in NumPy, written from their definitions, and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resgen.evaluation.image.metrics import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    ssim,
)


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _features(count: int, width: int, seed: int) -> Tensor:
    stream = _stream(seed)
    mixing = torch.randn(width, width, generator=stream)
    return torch.relu(torch.randn(count, width, generator=stream) @ mixing + torch.randn(width, generator=stream))


def naive_frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """By the eigenvalues of the product of the covariances, which is similar to a symmetric matrix."""
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(s1) + np.trace(s2) - 2 * roots.sum())


@pytest.mark.parametrize("width", [3, 16, 64])
def test_frechet_distance(width: int) -> None:
    first, second = _features(500, width, 0), _features(300, width, 1)
    expected = naive_frechet_distance(first.double().numpy(), second.double().numpy())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    halves = FeatureStatistics.of(first[:123])
    halves.merge(FeatureStatistics.of(first[123:]))
    assert frechet_distance(halves, second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_by_a_matrix_root() -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg")
    first, second = _features(300, 6, 2), _features(200, 6, 3)
    s1, s2 = (torch.cov(x.double().T) for x in (first, second))
    root = torch.from_numpy(scipy_linalg.sqrtm((s1 @ s2).numpy()).real)
    gap = (first.double().mean(0) - second.double().mean(0)).square().sum()
    expected = float(gap + s1.trace() + s2.trace() - 2 * root.trace())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance() -> None:
    first, second = _features(40, 5, 0).double(), _features(30, 5, 1).double()
    result = kernel_distance(first, second, num_subsets=4, subset_size=9, stream=_stream(7))
    stream = _stream(7)
    values = []
    for _ in range(4):
        x = first[torch.randperm(40, generator=stream)[:9]].numpy()
        y = second[torch.randperm(30, generator=stream)[:9]].numpy()
        kernel = lambda a, b: (float(a @ b) / 5 + 1) ** 3  # noqa: E731
        within = [sum(kernel(s[i], s[j]) for i in range(9) for j in range(9) if i != j) / 72 for s in (x, y)]
        across = sum(kernel(a, b) for a in x for b in y) / 81
        values.append(sum(within) - 2 * across)
    assert result == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)


def test_inception_score() -> None:
    logits = 3 * torch.randn(50, 7, generator=_stream())
    result = inception_score(logits, splits=4, stream=_stream(3))
    shuffled = logits[torch.randperm(50, generator=_stream(3))].double().numpy()
    scores = []
    for part in np.array_split(shuffled, 4):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        marginal = p.mean(0)
        kl = [sum(row[c] * math.log(row[c] / marginal[c]) for c in range(7)) for row in p]
        scores.append(math.exp(np.mean(kl)))
    assert result == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall(k: int) -> None:
    generated, reference = _features(40, 4, 0), _features(60, 4, 0) * 1.3

    def share(points: np.ndarray, manifold: np.ndarray) -> float:
        radii = [sorted(np.linalg.norm(m - other) for other in manifold)[k] for m in manifold]  # [0] is itself
        inside = [any(np.linalg.norm(p - m) <= r for m, r in zip(manifold, radii, strict=True)) for p in points]
        return float(np.mean(inside))

    a, b = generated.double().numpy(), reference.double().numpy()
    result = precision_recall(generated, reference, k=k)
    assert result == pytest.approx((share(a, b), share(b, a)))
    assert 0 < result.precision < 1 and 0 < result.recall < 1


@pytest.mark.parametrize(("side", "window"), [(13, 11), (8, 7)])
def test_ssim(side: int, window: int) -> None:
    first = torch.randint(0, 256, (2, 3, side, side), generator=_stream(), dtype=torch.uint8)
    noise = torch.randint(-60, 61, first.shape, generator=_stream(1))
    second = (first.int() + noise).clamp(0, 255).to(torch.uint8)
    half = window // 2
    weights = np.array(
        [[math.exp(-((i - half) ** 2 + (j - half) ** 2) / (2 * 1.5**2)) for j in range(window)] for i in range(window)]
    )
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = []
    for x, y in zip(first.double().numpy(), second.double().numpy(), strict=True):
        values = []
        for channel in range(3):
            for row in range(side - window + 1):
                for column in range(side - window + 1):
                    a = x[channel, row : row + window, column : column + window]
                    b = y[channel, row : row + window, column : column + window]
                    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                    both = (weights * (a - mean_a) * (b - mean_b)).sum()
                    values.append(
                        (2 * mean_a * mean_b + c1)
                        * (2 * both + c2)
                        / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                    )
        expected.append(np.mean(values))
    assert ssim(first, second).tolist() == pytest.approx(expected, rel=1e-9)


class _Pixels(nn.Module):
    """Features for torchmetrics: the pixels themselves."""

    num_features = 12

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1).float()


def test_against_torchmetrics() -> None:
    theirs = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    kernel = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is not installed")
    real, fake = (torch.randint(low, 256, (300, 3, 2, 2), generator=_stream(low), dtype=torch.uint8) for low in (0, 60))
    network = _Pixels()
    a, b = network(fake), network(real)
    fid = theirs.FrechetInceptionDistance(feature=network, input_img_size=(3, 2, 2))
    fid.update(real, real=True)
    fid.update(fake, real=False)
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-3)
    kid = kernel.KernelInceptionDistance(feature=network, subsets=1, subset_size=300)
    kid.update(real, real=True)
    kid.update(fake, real=False)
    ours = kernel_distance(a, b, num_subsets=1, subset_size=300, stream=_stream()).mean
    assert ours == pytest.approx(float(kid.compute()[0]), rel=1e-3)
