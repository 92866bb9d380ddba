"""The probabilistic codebook update against a slow float64 NumPy transcription of its five steps (App. A.1)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resgen.quantizers import QuantizerConfig
from resgen.quantizers.probabilistic import ProbabilisticQuantizer

Array = NDArray[np.float64]


def _softmax(scores: list[float]) -> list[float]:
    peak = max(scores)
    weights = [np.exp(score - peak) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _reference_step(
    codebooks: Array, variances: Array, latents: Array, momentum: float, variance_momentum: float
) -> tuple[Array, Array, NDArray[np.int64], float]:
    """One update; returns the new codebooks and variances, the codes and the commitment loss."""
    depth, size, dim = codebooks.shape
    rows = len(latents)
    new_books, new_variances = codebooks.copy(), variances.copy()
    codes = np.zeros((rows, depth), dtype=np.int64)
    commitment = 0.0
    before = latents.copy()
    for level in range(depth):
        after = before.copy()
        distance = np.zeros((rows, size))
        for n in range(rows):
            for v in range(size):
                distance[n, v] = sum((before[n, i] - codebooks[level, v, i]) ** 2 for i in range(dim))
            codes[n, level] = int(np.argmin(distance[n]))
            after[n] -= codebooks[level, codes[n, level]]
        s2 = float(np.mean(after**2))
        commitment += s2
        new_variances[level] = variance_momentum * variances[level] + (1 - variance_momentum) * s2
        logq = np.zeros((rows, size))
        for n in range(rows):
            logq[n] = np.log(_softmax([-distance[n, v] / (2 * s2) for v in range(size)]))
        for v in range(size):
            weights = _softmax([logq[n, v] for n in range(rows)])
            mean = sum(weights[n] * before[n] for n in range(rows))
            new_books[level, v] = momentum * codebooks[level, v] + (1 - momentum) * mean
        before = after
    return new_books, new_variances, codes, commitment


@pytest.mark.parametrize(("momentum", "variance_momentum"), [(0.999, 0.999), (0.7, 0.5), (0.0, 0.0)])
def test_equals_the_reference_over_several_steps(momentum: float, variance_momentum: float) -> None:
    depth, size, dim = 3, 6, 4
    quantizer = ProbabilisticQuantizer(
        QuantizerConfig(depth=depth, codebook_size=size, momentum=momentum, variance_momentum=variance_momentum), dim
    )
    books, variances = quantizer.codebooks.double().numpy(), quantizer.variances.double().numpy()
    start = books.copy()
    for step in range(5):
        latents = torch.randn(20 + step, dim, generator=torch.Generator().manual_seed(step)) + 0.3
        books, variances, codes, commitment = _reference_step(
            books, variances, latents.double().numpy(), momentum, variance_momentum
        )
        result = quantizer.quantize(latents)
        quantizer.update(result, torch.Generator())
        np.testing.assert_array_equal(result.codes.numpy(), codes)
        assert float(result.commitment) == pytest.approx(commitment, rel=1e-5)
        np.testing.assert_allclose(quantizer.codebooks.numpy(), books, rtol=0, atol=2e-6)
        np.testing.assert_allclose(quantizer.variances.numpy(), variances, rtol=2e-6)
    moved = np.abs(books - start).max(axis=-1)
    assert moved.min() > 10 * 2e-6, "every code moves by more than the tolerance, so the comparison says something"
