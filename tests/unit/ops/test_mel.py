"""Mel spectrograms against slow references, gradients, short sounds, and the way back to a waveform."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resgen.errors import ConfigError, DataError
from resgen.ops.mel import (
    MelConfig,
    griffin_lim,
    inverse_stft,
    log_mel,
    log_mel_before_silence,
    mel_filters,
    spectrogram,
    stft,
)
from resgen.ops.random import generator

PAPER = MelConfig()
SMALL = MelConfig(sample_rate_hz=16000, fft_size=256, window_size=200, hop_size=50, num_bands=20)
ODD = MelConfig(
    sample_rate_hz=8000, fft_size=125, window_size=101, hop_size=32, num_bands=9, min_hz=50.0, max_hz=4000.0
)


def voice(config: MelConfig, seconds: float) -> Tensor:
    """Harmonics of a wavering fundamental over a little noise."""
    count = int(seconds * config.frame_rate_hz) * config.hop_size
    time = torch.arange(count) / config.sample_rate_hz
    pitch = 150 + 30 * torch.sin(2 * math.pi * 3 * time)
    phase = 2 * math.pi * pitch.cumsum(0) / config.sample_rate_hz
    tones = torch.stack([torch.sin(k * phase) / k for k in range(1, 20)]).sum(0)
    noise = torch.randn(count, generator=generator("noise"))
    return (0.1 * tones * (0.6 + 0.4 * torch.sin(2 * math.pi * 4 * time)) + 1e-3 * noise)[None]


def slow_spectrogram(samples: np.ndarray, config: MelConfig) -> np.ndarray:
    """HiFi-GAN's spectrogram as one explicit sum per frame, float64."""
    size, hop, width = config.fft_size, config.hop_size, config.window_size
    left = (size - hop) // 2
    padded = np.pad(samples.astype(np.float64), (left, size - hop - left), mode="reflect")
    window = np.zeros(size)
    begin = (size - width) // 2
    window[begin : begin + width] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size)
    frames = [turns @ (window * padded[t * hop : t * hop + size]) for t in range(len(samples) // hop)]
    return np.sqrt(np.abs(np.stack(frames, axis=1)) ** 2 + 1e-9)


@pytest.mark.parametrize("config", [PAPER, SMALL, ODD], ids=["paper", "small", "odd"])
def test_filters_equal_those_of_transformers(config: MelConfig) -> None:
    audio = pytest.importorskip("transformers.audio_utils")
    bins = config.fft_size // 2 + 1
    expected: Any
    if config.fft_size % 2:  # their frequencies assume an even size: take ours by stretching the rate
        rate = round((bins - 1) * 2 * config.sample_rate_hz / config.fft_size)
        assert rate * config.fft_size == (bins - 1) * 2 * config.sample_rate_hz
    else:
        rate = config.sample_rate_hz
    expected = audio.mel_filter_bank(
        num_frequency_bins=bins,
        num_mel_filters=config.num_bands,
        min_frequency=config.min_hz,
        max_frequency=config.max_hz,
        sampling_rate=rate,
        norm="slaney",
        mel_scale="slaney",
    )
    filters = mel_filters(config)
    assert filters.dtype == torch.float32 and filters.shape == (config.num_bands, bins)
    np.testing.assert_allclose(filters.numpy(), expected.T, atol=1e-6)


def test_filters_have_area_one() -> None:
    fine = MelConfig(fft_size=8192, window_size=8192)
    areas = mel_filters(fine).sum(1) * (fine.sample_rate_hz / fine.fft_size)
    torch.testing.assert_close(areas, torch.ones(80), atol=0.02, rtol=0)


def test_changing_the_filters_does_not_change_the_mel() -> None:
    samples = voice(SMALL, 0.1)
    before = log_mel(samples, SMALL)
    mel_filters(SMALL).zero_()
    assert torch.equal(log_mel(samples, SMALL), before)


@pytest.mark.parametrize("config", [PAPER, SMALL, ODD], ids=["paper", "small", "odd"])
def test_log_mel_equals_a_slow_fourier_transform(config: MelConfig) -> None:
    spoken = voice(config, 0.12)
    samples = torch.cat([spoken, 0.3 * torch.randn(spoken.shape, generator=generator(1))])
    samples = torch.cat([samples, samples[:, : config.hop_size // 3]], dim=1)  # no whole number of hops
    magnitude, mel = spectrogram(samples, config), log_mel(samples, config)
    num_frames = samples.shape[1] // config.hop_size
    assert magnitude.shape == (2, config.fft_size // 2 + 1, num_frames)
    assert mel.shape == (2, config.num_bands, num_frames)
    assert magnitude.dtype == mel.dtype == torch.float32
    for row in range(2):
        expected = slow_spectrogram(samples[row].numpy(), config)
        np.testing.assert_allclose(magnitude[row].numpy(), expected, atol=1e-4)
        bands = np.log(np.maximum(mel_filters(config).double().numpy() @ expected, config.floor))
        np.testing.assert_allclose(mel[row].numpy(), bands, atol=1e-4)


def test_frames_are_centred_on_the_middle_of_their_hop() -> None:
    samples = torch.zeros(1, 20 * SMALL.hop_size)
    samples[0, 7 * SMALL.hop_size + SMALL.hop_size // 2] = 1
    energy = spectrogram(samples, SMALL).sum(1)[0]
    assert energy.argmax() == 7
    torch.testing.assert_close(energy[6], energy[8])


@pytest.mark.parametrize("length", [0, 1, 49, 50, 103, 104, 130, 256])
def test_short_sounds(length: int) -> None:
    samples = torch.randn(2, length, generator=generator(length))
    mel = log_mel(samples, SMALL)
    assert mel.shape == (2, 20, length // 50) and mel.isfinite().all()
    if 50 <= length <= 103:  # reflection takes 103 samples at either end
        extended = torch.cat([samples, torch.zeros(2, 104 - length)], dim=1)
        assert torch.equal(mel, log_mel(extended, SMALL)[..., : length // 50])


def test_silence_lies_at_the_floor_with_finite_gradients() -> None:
    samples = torch.zeros(1, 800, requires_grad=True)
    mel = log_mel(samples, SMALL)
    assert (mel == math.log(SMALL.floor)).all()
    (mel.sum() + spectrogram(samples, SMALL).sum()).backward()
    assert samples.grad is not None and samples.grad.isfinite().all()


def test_gradients_are_those_of_the_function() -> None:
    config = MelConfig(sample_rate_hz=8000, fft_size=32, window_size=24, hop_size=8, num_bands=4, max_hz=4000.0)
    samples = torch.randn(2, 48, dtype=torch.float64, generator=generator(3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_mel(x, config), samples)


def undone(samples: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """There and back."""
    window = torch.hann_window(config.window_size)
    return inverse_stft(stft(samples, config), window, fft_size=config.fft_size, hop_size=config.hop_size)


def test_a_first_use_in_inference_mode_leaves_training_possible() -> None:
    config = MelConfig(sample_rate_hz=8000, fft_size=62, window_size=62, hop_size=16, num_bands=5, max_hz=3999.0)
    with torch.inference_mode():
        log_mel(torch.ones(1, 200), config)
    samples = torch.randn(1, 200, generator=generator(4), requires_grad=True)
    (log_mel(samples, config).sum() + undone(samples, config).sum()).backward()
    assert samples.grad is not None and samples.grad.abs().sum() > 0


def test_full_precision_under_autocast_and_for_half_inputs() -> None:
    samples = voice(SMALL, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = log_mel(samples, SMALL)
    assert torch.equal(inside, log_mel(samples, SMALL))
    assert torch.equal(log_mel(samples.bfloat16(), SMALL), log_mel(samples.bfloat16().float(), SMALL))
    assert log_mel(samples.double(), SMALL).dtype == torch.float64


@pytest.mark.parametrize("config", [PAPER, SMALL, ODD], ids=["paper", "small", "odd"])
@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_inverse_transform_undoes_the_transform(config: MelConfig, num_frames: int) -> None:
    samples = torch.randn(2, num_frames * config.hop_size, generator=generator(num_frames))
    torch.testing.assert_close(undone(samples, config), samples, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [PAPER, MelConfig(sample_rate_hz=16000, window_size=800, hop_size=200)])
def test_griffin_lim_returns_near_to_its_mel(config: MelConfig) -> None:
    mel = log_mel(voice(config, 1.0), config)
    errors = {}
    for iterations in (0, 32):
        samples = griffin_lim(mel, config, iterations=iterations, generator=generator("phases"))
        assert samples.shape == (1, mel.shape[2] * config.hop_size) and samples.dtype == torch.float32
        errors[iterations] = (log_mel(samples, config) - mel).abs().mean().item()
    assert errors[32] < 0.15 and errors[0] > 0.5


def test_griffin_lim_depends_on_its_generator_alone() -> None:
    mel = log_mel(voice(SMALL, 0.1), SMALL).requires_grad_()
    state = torch.get_rng_state()
    first, again, other = (griffin_lim(mel, SMALL, iterations=2, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state) and not first.requires_grad


@pytest.mark.parametrize("num_frames", [0, 1, 2])
def test_griffin_lim_of_few_frames_and_of_silence(num_frames: int) -> None:
    silence = torch.full((2, 20, num_frames), math.log(SMALL.floor))
    samples = griffin_lim(silence, SMALL, iterations=3, generator=generator(0))
    assert samples.shape == (2, 50 * num_frames) and samples.isfinite().all()
    assert samples.abs().sum() < 0.1


def test_griffin_lim_refuses_other_bands_and_negative_iterations() -> None:
    with pytest.raises(DataError, match="19 bands given, but num_bands=20"):
        griffin_lim(torch.zeros(1, 19, 3), SMALL, generator=generator(0))
    with pytest.raises(ConfigError, match="iterations=-1"):
        griffin_lim(torch.zeros(1, 20, 3), SMALL, iterations=-1, generator=generator(0))


def test_frame_rate() -> None:
    assert MelConfig(sample_rate_hz=16000, window_size=800, hop_size=200).frame_rate_hz == 80
    assert PAPER.frame_rate_hz / 8 == pytest.approx(10.76, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate_hz": 0}, "sample_rate_hz=0 must be at least 1"),
        ({"hop_size": 0}, "hop_size=0 must be at least 1"),
        ({"num_bands": 0}, "num_bands=0 must be at least 1"),
        ({"window_size": 2048}, "window_size=2048 must lie between hop_size=256 and fft_size=1024"),
        ({"window_size": 255}, "window_size=255 must lie between hop_size=256"),
        ({"max_hz": 12000.0}, "max_hz=12000.0 must be rising and lie in 0..11025, half of sample_rate_hz=22050"),
        ({"min_hz": -1.0}, "min_hz=-1.0"),
        ({"min_hz": 8000.0}, "min_hz=8000.0 and max_hz=8000.0"),
        ({"max_hz": math.nan}, "max_hz=nan"),
        ({"floor": 0.0}, "floor=0.0 must be positive"),
        ({"floor": math.inf}, "floor=inf"),
        ({"num_bands": 300}, "num_bands=300 leaves band 0 without a frequency bin at fft_size=1024"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        MelConfig(**changes)
    assert "\n" not in str(caught.value)


def test_before_silence_the_last_frames_are_those_of_any_batch() -> None:
    samples = torch.randn(1, 20 * SMALL.hop_size, generator=generator(3))
    longer = F.pad(samples, (0, 9 * SMALL.hop_size))
    torch.testing.assert_close(log_mel_before_silence(samples, SMALL), log_mel(longer, SMALL)[..., :20])
