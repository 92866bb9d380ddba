"""Spectral distances: zero for equals, finite in silence, blind to padding."""

from __future__ import annotations

import math

import pytest
import torch

from resgen.errors import ConfigError
from resgen.losses.spectral import frame_mean, multi_resolution_stft, multi_scale_mel_l1
from resgen.ops.mel import MelConfig, log_mel

RATE = 16_000
RESOLUTIONS = ((128, 16, 64), (256, 32, 128))


def noise(count: int = 2, size: int = 3000, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def mel(x: torch.Tensor, y: torch.Tensor, **kwargs) -> torch.Tensor:
    return multi_scale_mel_l1(x, y, RATE, **kwargs)


def spectra(x: torch.Tensor, y: torch.Tensor, **kwargs) -> torch.Tensor:
    return multi_resolution_stft(x, y, resolutions=RESOLUTIONS, **kwargs)


BOTH = pytest.mark.parametrize("distance", [mel, spectra])


@BOTH
def test_zero_for_equal_sounds_and_growing_with_the_difference(distance) -> None:
    x = noise()
    assert float(distance(x, x)) == 0
    near, far = (float(distance(x + scale * noise(seed=1), x)) for scale in (0.1, 1.0))
    assert 0 < near < far


@BOTH
def test_gradients_are_finite_in_silence(distance) -> None:
    for target in (torch.zeros(2, 3000), noise()):
        for start in (torch.zeros(2, 3000), target.clone()):
            x = start.requires_grad_()
            loss = distance(x, target)
            loss.backward()
            assert loss.isfinite() and x.grad.isfinite().all()


@BOTH
def test_gradients_lead_to_the_target(distance) -> None:
    target = noise(1, 2000)
    x = noise(1, 2000, seed=5).mul(3).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.01)
    first = None
    for _ in range(30):
        loss = distance(x, target)
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.6 * first


@BOTH
def test_padding_does_not_count(distance) -> None:
    x, y = noise(), noise(seed=1)
    lengths = torch.tensor([3000, 1500])
    expected = distance(x, y, lengths=lengths)
    for seed in (2, 3):
        changed = [value.clone() for value in (x, y)]
        for value in changed:
            value[1, 1500:] = noise(1, 1500, seed)
            seed += 10
        changed[0].requires_grad_()
        assert torch.allclose(distance(*changed, lengths=lengths), expected)
        distance(*changed, lengths=lengths).backward()
        assert (changed[0].grad[1, 1500:] == 0).all() and changed[0].grad[1, :1500].abs().sum() > 0
    longer = [torch.cat([value, torch.zeros(2, 3000)], 1) for value in (x, y)]
    assert float(distance(*longer, lengths=lengths)) == pytest.approx(float(expected), rel=0.02)


@BOTH
def test_no_real_samples_is_no_loss(distance) -> None:
    assert float(distance(noise(), noise(seed=1), lengths=torch.zeros(2, dtype=torch.int64))) < 1e-5


@BOTH
def test_arithmetic_is_float32(distance) -> None:
    x, y = noise(), noise(seed=1)
    expected = distance(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = distance(x, y)
    assert result.dtype == torch.float32 and torch.allclose(result, expected, rtol=1e-5)


def test_mel_scales_are_dacs() -> None:
    x, y = noise(), noise(seed=1)
    total = 0.0
    for size, bands in ((256, 40), (512, 80)):
        sizes = {"fft_size": size, "window_size": size, "hop_size": size // 4, "num_bands": bands}
        config = MelConfig(sample_rate_hz=RATE, max_hz=8000.0, **sizes)
        total += float((log_mel(x, config) - log_mel(y, config)).abs().mean()) / math.log(10)
    assert float(mel(x, y, windows=(256, 512))) == pytest.approx(total, rel=1e-5)


def test_what_is_longer_than_the_sound_is_dropped() -> None:
    x, y = noise(size=300), noise(size=300, seed=1)
    assert torch.equal(mel(x, y, windows=(128, 256, 512)), mel(x, y, windows=(128, 256)))
    some = multi_resolution_stft(x, y, resolutions=((128, 16, 64), (2048, 240, 1200)))
    assert torch.equal(some, multi_resolution_stft(x, y, resolutions=((128, 16, 64),)))
    assert multi_resolution_stft(x, y).isfinite() and mel(x[:, :20], y[:, :20]) > 0, "the shortest always stays"


def test_high_rates_have_fewer_bands_in_the_shortest_window() -> None:
    assert multi_scale_mel_l1(noise(), noise(seed=1), 44_100).isfinite()


def test_spectral_convergence_and_log_magnitude() -> None:
    """Twice the target: the convergence is 1, the log magnitudes differ by log 2."""
    y = noise()
    assert float(spectra(2 * y, y)) == pytest.approx(1 + math.log(2), rel=1e-2)


def test_mean_over_real_frames() -> None:
    values = torch.tensor([[[1.0, 2.0, 100.0], [3.0, 4.0, 100.0]]])
    assert float(frame_mean(values, 4, torch.tensor([5]))) == 2.5
    assert float(frame_mean(values, 4)) == 35
    assert float(frame_mean(values, 4, torch.tensor([0]))) == 0
    assert float(frame_mean(values, 4, torch.tensor([400, 5]), slice(1, 2))) == pytest.approx(10 / (102 * 2)), "a share"


@pytest.mark.parametrize("windows", [(), (12,), (34,)])
def test_windows_out_of_range(windows: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="window"):
        mel(noise(), noise(), windows=windows)


def test_no_resolutions() -> None:
    with pytest.raises(ConfigError, match="resolutions"):
        multi_resolution_stft(noise(), noise(), resolutions=())
