"""The paper's quantizer: every code learns from every batch."""

from __future__ import annotations

import torch

from resgen.ops.code_usage import code_histogram, usage_and_perplexity
from resgen.quantizers import QuantizerConfig
from resgen.quantizers.probabilistic import ProbabilisticQuantizer


def _make(depth: int, size: int, dim: int, momentum: float) -> ProbabilisticQuantizer:
    return ProbabilisticQuantizer(QuantizerConfig(depth=depth, codebook_size=size, momentum=momentum), dim)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_code_moves_to_a_weighted_mean_of_the_latents() -> None:
    """On a line: what a code moves to lies between the least and the greatest latent, however far away the code is."""
    quantizer = _make(1, 6, 1, momentum=0.75)
    start = torch.tensor([-50.0, -1.0, 0.2, 0.9, 2.0, 400.0])
    quantizer.codebooks[0, :, 0] = start
    latents = torch.linspace(-1, 1, 30)[:, None]
    quantizer.update(quantizer.quantize(latents), _generator())
    expected = (quantizer.codebooks[0, :, 0] - 0.75 * start) / 0.25
    assert (expected > -1.001).all() and (expected < 1.001).all()
    assert (expected.diff() > -1e-3).all(), "nearer latents weigh more"
    assert expected[1] < -0.3 and expected[4] > 0.3


def test_weights_of_a_code_sum_to_one() -> None:
    """When all latents agree each code goes exactly 1 - momentum of the way, however many they are."""
    point = torch.tensor([0.3, -0.2, 0.7])
    for rows in (1, 5, 100):
        quantizer = _make(1, 8, 3, momentum=0.9)
        start = quantizer.codebooks.clone()
        quantizer.update(quantizer.quantize(point.expand(rows, 3)), _generator())
        torch.testing.assert_close(quantizer.codebooks, 0.9 * start + 0.1 * point)


def test_no_code_dies() -> None:
    """All codes but one start far from the data; the hard assignment alone would never choose them."""
    quantizer = _make(1, 32, 2, momentum=0.9)
    quantizer.codebooks[0] = 20 + 0.1 * torch.randn(32, 2, generator=_generator(1))
    quantizer.codebooks[0, 0] = 0.0
    latents = torch.rand(600, 2, generator=_generator(2)) * 2 - 1
    usage, _ = usage_and_perplexity(code_histogram(quantizer.encode(latents), 32))
    assert usage.item() == 1 / 32
    for _ in range(300):
        quantizer.update(quantizer.quantize(latents), _generator())
    usage, perplexity = usage_and_perplexity(code_histogram(quantizer.encode(latents), 32))
    assert usage.item() > 0.9
    assert perplexity.item() > 16


def test_start_is_the_given_one() -> None:
    quantizer = _make(2, 8, 3, momentum=0.9)
    before = quantizer.codebooks.clone()
    quantizer.initialize(torch.randn(50, 3, generator=_generator()), _generator())
    assert torch.equal(before, quantizer.codebooks)


def test_latents_equal_to_codes_leave_them_there() -> None:
    """The residual is 0 and the softmax infinitely sharp: each code keeps its own latent."""
    quantizer = _make(1, 8, 3, momentum=0.5)
    before = quantizer.codebooks.clone()
    quantizer.update(quantizer.quantize(before[0]), _generator())
    torch.testing.assert_close(quantizer.codebooks, before)
