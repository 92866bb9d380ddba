"""Residual finite scalar quantization: grids that follow the residuals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resgen.errors import ConfigError
from resgen.ops.code_usage import code_histogram, usage_and_perplexity
from resgen.ops.residual import residual_decode, residual_encode, residual_suffix
from resgen.quantizers import QuantizerConfig
from resgen.quantizers.rfsq import RFSQuantizer, grid_digits, grid_of


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _make(depth: int, steps: tuple[int, ...], dim: int, momentum: float = 0.9) -> RFSQuantizer:
    size = int(torch.tensor(steps).prod())
    config = QuantizerConfig(kind="rfsq", depth=depth, codebook_size=size, steps=steps, momentum=momentum)
    return RFSQuantizer(config, dim)


def _stretched(rows: int, dim: int, seed: int = 0) -> Tensor:
    """Gaussian latents off the origin, whose directions have very different sizes."""
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=_generator(99))).Q
    sizes = 2.0 ** -torch.arange(dim)
    return 3 + torch.randn(rows, dim, generator=_generator(seed)) * sizes @ turn.T


def _learn(quantizer: RFSQuantizer, latents: Tensor, count: int) -> None:
    for _ in range(count):
        quantizer.update(quantizer.quantize(latents), _generator())


def test_digits_are_all_combinations_of_steps() -> None:
    digits = grid_digits((3, 2))
    assert digits.tolist() == [[-1, -0.5], [-1, 0.5], [0, -0.5], [0, 0.5], [1, -0.5], [1, 0.5]]
    assert not grid_digits((8, 5, 4)).sum(0).any() and len(grid_digits((8, 5, 4)).unique(dim=0)) == 160


def grid_codes(coordinates: torch.Tensor, steps: tuple[int, ...]) -> torch.Tensor:
    """FSQ's own rule: the code of the nearest point of a grid of unit spacing, dimension by dimension.

    The search among the codebook's rows gives the same codes; this is its definition.
    """
    counts = torch.tensor(steps, device=coordinates.device)
    places = (coordinates + (counts - 1) / 2).round().clamp(min=0).minimum((counts - 1).to(coordinates)).long()
    weights = [math.prod(steps[place + 1 :]) for place in range(len(steps))]
    return (places * torch.tensor(weights, device=coordinates.device)).sum(-1)


@pytest.mark.parametrize("steps", [(5,), (4, 3), (8, 8, 4), (2, 2, 2, 2)])
def test_the_nearest_row_is_found_by_rounding_each_axis(steps: tuple[int, ...]) -> None:
    """The implicit codebook of FSQ: rounding and clamping, whatever lies beside the axes (deviation: no tanh)."""
    quantizer = _make(1, steps, 6)
    latents = _stretched(500, 6)
    _learn(quantizer, latents, 60)
    coordinates = (latents - quantizer.centres[0]) @ quantizer.axes[0]
    spacings = (12 * quantizer.spreads[0]).sqrt() / torch.tensor(steps)
    places = coordinates / spacings
    edge = ((places + torch.tensor(steps) / 2) % 1 - 0.5).abs().gt(0.4999).any(1)  # rounding may go either way there
    assert edge.float().mean() < 0.01
    codes = quantizer.encode(latents)[:, 0]
    assert torch.equal(codes[~edge], grid_codes(places, steps)[~edge])
    assert len(codes.unique()) > len(quantizer.codebooks[0]) / 3


def test_axes_are_orthonormal_and_find_the_leading_directions() -> None:
    latents = _stretched(4000, 6)
    quantizer = _make(2, (8, 4), 6)
    _learn(quantizer, latents, 150)
    for level in range(2):
        axes = quantizer.axes[level]
        torch.testing.assert_close(axes.T @ axes, torch.eye(2), atol=1e-5, rtol=0)
    values, vectors = torch.linalg.eigh(torch.cov(latents.T))
    for place in (0, 1):
        expected = vectors[:, -1 - place]
        assert float(quantizer.axes[0, :, place] @ expected) ** 2 > 0.99
        torch.testing.assert_close(quantizer.spreads[0, place], values[-1 - place], rtol=0.05, atol=0)
    torch.testing.assert_close(quantizer.centres[0], latents.mean(0), atol=1e-4, rtol=1e-3)


def test_grids_span_what_they_learned() -> None:
    """Steps of a uniform latent are used equally often."""
    quantizer = _make(1, (8,), 1, momentum=0.5)
    latents = torch.rand(8000, 1, generator=_generator()) * 6 + 5
    _learn(quantizer, latents, 40)
    points = quantizer.codebooks[0, :, 0].sort().values
    torch.testing.assert_close(points, 5 + 6 * (torch.arange(8) + 0.5) / 8, atol=0.05, rtol=0)
    shares = code_histogram(quantizer.encode(latents), 8)[0] / 8000
    assert (shares - 1 / 8).abs().max() < 0.01


def test_no_code_dies() -> None:
    """Latents that shrink to a thousandth and move away: the grids follow, and all codes are in use again."""
    quantizer = _make(3, (4, 4), 4)
    near = torch.randn(3000, 4, generator=_generator(1))
    _learn(quantizer, near, 30)
    far = 1e-3 * near + 0.3
    usage, _ = usage_and_perplexity(code_histogram(quantizer.encode(far), 16))
    assert usage[0] < 0.2
    _learn(quantizer, far, 250)
    usage, perplexity = usage_and_perplexity(code_histogram(quantizer.encode(far), 16))
    assert usage.min() == 1 and perplexity.min() > 11


def test_start_from_the_encoder_s_outputs() -> None:
    latents = _stretched(4000, 6)
    started, learned = _make(4, (4, 4), 6), _make(4, (4, 4), 6)
    started.initialize(latents, _generator())
    _learn(learned, latents, 300)
    errors = [float((q.quantize(latents).residuals[-1]).square().sum(-1).mean()) for q in (started, learned)]
    assert errors[0] < 0.05 * float(latents.var(0).sum())
    assert abs(errors[0] / errors[1] - 1) < 0.1, "learning goes where the start is"
    left = started.quantize(latents).residuals[1:].square().mean((1, 2))
    torch.testing.assert_close(started.variances, left)
    assert (left.diff() < 0).all(), "every level takes something"
    before = started.codebooks.clone()
    _learn(started, latents, 1)
    torch.testing.assert_close(started.codebooks, before, atol=2e-3, rtol=0.02)


def test_sampler_and_loss_see_codebooks_only() -> None:
    """Step 2 of Algorithm 2: the masked levels' sum goes back into the masked levels, whatever is visible."""
    quantizer = _make(4, (4, 4), 4)
    latents = _stretched(300, 4)
    quantizer.initialize(latents, _generator())
    codes = quantizer.encode(latents)
    visible = torch.arange(300) % 5
    target = residual_suffix(codes, quantizer.codebooks, visible)
    codes_again, errors = residual_encode(target, quantizer.codebooks, visible)
    known = residual_decode(codes, quantizer.codebooks, visible)
    both = known + residual_suffix(codes_again, quantizer.codebooks, visible)
    expected = quantizer.decode(codes)
    assert float((both - expected).square().mean()) < 0.1 * float(quantizer.variances[-1]) + 1e-6
    assert not codes_again[visible[:, None] > torch.arange(4)].any() and errors.isfinite().all()


def test_default_grids() -> None:
    for size, steps in ((256, (8, 8, 4)), (1024, (8, 8, 8, 2)), (12, (6, 2)), (7, (7,)), (22, (11, 2))):
        assert grid_of(QuantizerConfig(kind="rfsq", codebook_size=size)) == steps
    assert grid_of(QuantizerConfig(kind="rfsq", codebook_size=240, steps=(8, 6, 5))) == (8, 6, 5)


def test_steps_that_do_not_fit() -> None:
    for size, steps in ((256, (8, 8)), (8, (8, 1)), (1, ())):
        with pytest.raises(ConfigError, match=f"and their product codebook_size={size}"):
            grid_of(QuantizerConfig(kind="rfsq", codebook_size=size, steps=steps))
    with pytest.raises(ConfigError, match="kind='ema' has no grid"):
        QuantizerConfig(kind="ema", codebook_size=4, steps=(2, 2))
    with pytest.raises(ConfigError, match=r"steps=\[8, 8, 4\] are for 3 dimensions, but the latents have 2"):
        RFSQuantizer(QuantizerConfig(kind="rfsq", codebook_size=256), 2)


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_centres_and_spreads_are_moving_averages(momentum: float) -> None:
    quantizer = _make(1, (8, 4), 6, momentum)
    _learn(quantizer, _stretched(500, 6), 20)
    centre, spreads, axes = (part[0].clone() for part in (quantizer.centres, quantizer.spreads, quantizer.axes))
    latents = _stretched(400, 6, seed=5) + 2
    _learn(quantizer, latents, 1)
    variances = ((latents - centre) @ axes).square().mean(0)
    torch.testing.assert_close(quantizer.centres[0], momentum * centre + (1 - momentum) * latents.mean(0))
    torch.testing.assert_close(quantizer.spreads[0], momentum * spreads + (1 - momentum) * variances)
