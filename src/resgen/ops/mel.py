"""Log-mel spectrograms as vocoders use them, and their inversion to a waveform without a network.

The convention is HiFi-GAN's (arXiv:2010.05646, `meldataset.py` of its code) over librosa's mel filters, so that mels
made here fit vocoders trained elsewhere: Hann window, frame `t` centred on sample `(t + 1/2) hop`, natural logarithm.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.nn import functional as F

from resgen.errors import ConfigError, DataError, check_range

_SLANEY_STEP = math.log(6.4) / 27  # growth of the frequency per mel from 1,000 Hz = 15 mel on; below, 200/3 Hz per mel
_POWER_EPSILON = 1e-9  # HiFi-GAN's: keeps the gradient of the square root finite where a bin is silent
_MOMENTUM = 0.99  # the alpha of fast Griffin-Lim; its authors find values near 1 best
_INVERSION_STEPS = 50  # multiplicative updates; they leave an error of about 0.001 in the log-mel of a harmonic sound


MAX_FFT_SIZE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Frames and bands of a mel spectrogram; the defaults are the usual ones at 22,050 Hz (method: Mel-VAE, App. A.1).

    Attributes:
        sample_rate_hz: samples per second.
        fft_size: points of the Fourier transform; `fft_size // 2 + 1` frequency bins.
        window_size: samples under the Hann window, at most `fft_size`; a shorter one lies in the middle of the frame.
        hop_size: samples from frame to frame, at most `window_size`.
        num_bands: F, mel bands.
        min_hz: lower edge of the lowest band.
        max_hz: upper edge of the highest band, at most half of `sample_rate_hz`.
        floor: smallest magnitude of a band before the logarithm.
    """

    sample_rate_hz: int = 22050
    fft_size: int = 1024
    window_size: int = 1024
    hop_size: int = 256
    num_bands: int = 80
    min_hz: float = 0.0
    max_hz: float = 8000.0
    floor: float = 1e-5

    def __post_init__(self) -> None:
        check_range(self, 1, "sample_rate_hz", "hop_size", "num_bands")
        if not self.hop_size <= self.window_size <= self.fft_size:
            raise ConfigError(
                f"window_size={self.window_size} must lie between hop_size={self.hop_size} and fft_size={self.fft_size}"
            )
        if self.fft_size > MAX_FFT_SIZE or self.num_bands > self.fft_size:
            raise ConfigError(
                f"fft_size={self.fft_size} must be at most {MAX_FFT_SIZE}, num_bands={self.num_bands} at most fft_size"
            )
        if not 0 <= self.min_hz < self.max_hz <= self.sample_rate_hz / 2:
            raise ConfigError(
                f"min_hz={self.min_hz} and max_hz={self.max_hz} must be rising and lie in "
                f"0..{self.sample_rate_hz / 2:g}, half of sample_rate_hz={self.sample_rate_hz}"
            )
        if not 0 < self.floor < math.inf:
            raise ConfigError(f"floor={self.floor} must be positive and finite")
        empty = np.flatnonzero(_filter_matrix(self).max(axis=1) <= 0)
        if len(empty):
            raise ConfigError(
                f"num_bands={self.num_bands} leaves band {empty[0]} without a frequency bin at "
                f"fft_size={self.fft_size}; use fewer bands or a larger fft_size"
            )

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate_hz / self.hop_size


def mel_filters(config: MelConfig) -> Float[Tensor, "F bins"]:
    """Triangles on Slaney's mel scale, each of area 1 in Hz: librosa's `filters.mel(htk=False, norm="slaney")`."""
    return _filters(config, torch.device("cpu"), torch.float32).clone()


def stft(samples: Float[Tensor, "B S"], config: MelConfig) -> Complex[Tensor, "B bins T"]:
    """Short-time Fourier transform of T = S // hop frames, in float32 (float64 for float64 samples).

    Both ends are extended by reflection, by (fft_size - hop_size) / 2 samples. A sound that is too short for that (as
    long as the extension, or shorter) is first extended by zeros at its end.
    """
    samples = samples if samples.dtype == torch.float64 else samples.float()
    left = (config.fft_size - config.hop_size) // 2
    right = config.fft_size - config.hop_size - left
    num_frames = samples.shape[1] // config.hop_size
    missing = max(right + 1, config.hop_size) - samples.shape[1]
    if missing > 0:
        samples = F.pad(samples, (0, missing))
    spectrum = torch.stft(
        F.pad(samples, (left, right), mode="reflect"),
        config.fft_size,
        config.hop_size,
        config.window_size,
        _window(config.window_size, samples.device, samples.dtype),
        center=False,
        return_complex=True,
    )
    return spectrum[..., :num_frames]


def inverse_stft(
    spectrum: Complex[Tensor, "B bins T"],
    window: Float[Tensor, " W"],
    *,
    fft_size: int,
    hop_size: int,
    valid: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B S"]:
    """The waveform of S = T * hop samples whose frames are nearest (least squares; Griffin and Lim 1984).

    It undoes `stft` for a sound of S samples; what extends both ends is dropped ("same" padding of Vocos). Frames that
    are not valid take part neither in the sum of the overlapping windows nor in what divides it, so the samples of the
    valid ones are those that they would give alone. Samples of the others are 0.

    Args:
        spectrum: one-sided.
        window: window of the synthesis; it lies in the middle of a frame, which is 0 outside of it.
        fft_size: samples of a frame.
        hop_size: samples from one frame to the next.
        valid: True where a frame is not padding; all by default.
    """
    num_frames, before = spectrum.shape[-1], (fft_size - len(window)) // 2
    if not num_frames:
        return spectrum.real.new_zeros(spectrum.shape[0], 0)
    window = F.pad(window, (before, fft_size - len(window) - before))[:, None]
    frames = torch.fft.irfft(spectrum, n=fft_size, dim=1) * window
    weights = window.square().expand(1, -1, num_frames)
    if valid is not None:
        frames, weights = frames.masked_fill(~valid[:, None], 0.0), weights * valid[:, None]
    # At the zeros of the outermost windows nothing is known of a sample, which then stays 0.
    samples = _overlap_add(frames, hop_size) / _overlap_add(weights, hop_size).clamp(min=1e-8)
    return samples if valid is None else samples * valid.repeat_interleave(hop_size, dim=1)


def spectrogram(samples: Float[Tensor, "B S"], config: MelConfig) -> Float[Tensor, "B bins T"]:
    """Magnitudes of `stft`: `sqrt(re^2 + im^2 + 1e-9)`, which has a gradient (of zero) also in silence."""
    real, imaginary = torch.view_as_real(stft(samples, config)).unbind(-1)  # `sum` over two numbers is slow
    return real.square().add_(imaginary.square()).add_(_POWER_EPSILON).sqrt_()


def log_mel(samples: Float[Tensor, "B S"], config: MelConfig) -> Float[Tensor, "B F T"]:
    """`log(max(filters @ spectrogram, floor))`, T = S // hop; bands at the floor have no gradient."""
    with torch.autocast(device_type=samples.device.type, enabled=False):
        magnitude = spectrogram(samples, config)
        mel = _filters(config, magnitude.device, magnitude.dtype) @ magnitude
    return mel.clamp(min=config.floor).log()


def log_mel_before_silence(samples: Float[Tensor, "B S"], config: MelConfig) -> Float[Tensor, "B F T"]:
    """`log_mel` of sounds that silence follows, also the longest, so that no sound's last frames depend on its batch.

    Args:
        samples: zero beyond the end of a sound.
        config: the mel's.
    """
    silence = -(-config.fft_size // (2 * config.hop_size)) * config.hop_size
    return log_mel(F.pad(samples, (0, silence)), config)[..., : samples.shape[1] // config.hop_size]


@torch.no_grad()
def griffin_lim(
    log_mel: Float[Tensor, "B F T"], config: MelConfig, *, iterations: int = 32, generator: torch.Generator
) -> Float[Tensor, "B S"]:
    """A waveform of S = T * hop samples for a log-mel: fast Griffin-Lim (Perraudin et al. 2013).

    It stands in where there is no vocoder: words are intelligible, voices sound metallic. No gradient.

    Args:
        log_mel: natural-log mel, as `log_mel` makes it.
        config: the mel's.
        iterations: transforms there and back; 0 keeps the random phases.
        generator: draws the starting phases, on any device.

    Raises:
        ConfigError: `iterations` below 0.
        DataError: a mel of another number of bands than the config's.
    """
    if iterations < 0:
        raise ConfigError(f"iterations={iterations} must be at least 0")
    if log_mel.shape[1] != config.num_bands:
        raise DataError(f"a mel of {log_mel.shape[1]} bands given, but num_bands={config.num_bands}")
    magnitude = _invert_filters(log_mel.float().exp(), config)
    turns = torch.rand(magnitude.shape, generator=generator, device=generator.device).to(magnitude.device)
    phase = torch.polar(torch.ones_like(turns), 2 * math.pi * turns)
    previous = torch.zeros_like(phase)
    window = _window(config.window_size, magnitude.device, magnitude.dtype)

    def waveform(phase: Tensor) -> Tensor:
        return inverse_stft(magnitude * phase, window, fft_size=config.fft_size, hop_size=config.hop_size)

    for _ in range(iterations):
        consistent = stft(waveform(phase), config)
        moved = consistent + _MOMENTUM * (consistent - previous)
        phase = moved / moved.abs().clamp(min=1e-12)
        previous = consistent
    return waveform(phase)


def _invert_filters(mel: Float[Tensor, "B F T"], config: MelConfig) -> Float[Tensor, "B bins T"]:
    """Non-negative magnitudes whose mel is near the given one (least squares).

    The pseudo-inverse, clamped, then multiplicative updates (Lee and Seung 2001, Eq. 4 with the basis fixed).
    """
    filters = _filters(config, mel.device, mel.dtype)
    with torch.autocast(device_type=mel.device.type, enabled=False):
        magnitude = (torch.linalg.pinv(filters.double()).to(mel.dtype) @ mel).clamp(min=1e-6)
        target = filters.T @ mel
        for _ in range(_INVERSION_STEPS):
            magnitude = magnitude * target / (filters.T @ (filters @ magnitude)).clamp(min=1e-12)
    return magnitude


def _overlap_add(frames: Float[Tensor, "B N T"], hop_size: int) -> Float[Tensor, "B S"]:
    """Sum the frames at their places and keep the T * hop samples in the middle."""
    _, size, num_frames = frames.shape
    total = (num_frames - 1) * hop_size + size
    summed = F.fold(frames, (1, total), (1, size), stride=(1, hop_size))[:, 0, 0]
    left = (size - hop_size) // 2
    return summed[:, left : left + num_frames * hop_size]


def _filter_matrix(config: MelConfig) -> Float[np.ndarray, "F bins"]:
    low, high = (_mel_of_hz(edge) for edge in (config.min_hz, config.max_hz))
    edges = _hz_of_mel(np.linspace(low, high, config.num_bands + 2))
    bins = np.arange(config.fft_size // 2 + 1) * (config.sample_rate_hz / config.fft_size)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.minimum(rising, falling).clip(min=0)
    return triangles * (2 / (edges[2:] - edges[:-2]))[:, None]


def _mel_of_hz(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + math.log(hz / 1000) / _SLANEY_STEP


def _hz_of_mel(mel: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(_SLANEY_STEP * (mel - 15)))


# The caches below hold constants that nothing changes in place. A constant made while inference mode is on could not be
# used in training afterwards, so the mode is off while they are made.


@functools.lru_cache(maxsize=64)
def _filters(config: MelConfig, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "F bins"]:
    with torch.inference_mode(False):
        return torch.from_numpy(_filter_matrix(config)).to(device, dtype)


@functools.lru_cache(maxsize=64)
def _window(size: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " W"]:
    with torch.inference_mode(False):
        return torch.hann_window(size, dtype=torch.float64, device="cpu").to(device, dtype)
