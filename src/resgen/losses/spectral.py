"""Distances of waveforms in the spectral domain: multi-scale log-mel (DAC) and multi-resolution magnitudes.

Both are differentiable, run in float32 whatever the surrounding precision, and are finite in silence. With `lengths`
only real samples count: both waveforms are set to zero beyond them, and frames that begin there are left out. With
`rows`, which say where in a larger batch these waveforms stand and whose lengths are all given, the result is their
share in the batch's distance.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from resgen.errors import ConfigError
from resgen.ops.mel import MelConfig, log_mel

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
STFT_RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))

_MAGNITUDE_FLOOR = 10**-3.5  # Parallel WaveGAN's: powers below 1e-7 count as 1e-7
_SMALLEST_NORM = 1.0  # a target that is all but silent would otherwise divide by nothing

ALL = slice(None)


def multi_scale_mel_l1(
    outputs: Float[Tensor, "B S"],
    targets: Float[Tensor, "B S"],
    sample_rate_hz: int,
    *,
    lengths: Int[Tensor, " G"] | None = None,
    rows: slice = ALL,
    windows: Sequence[int] = MEL_WINDOWS,
) -> Float[Tensor, ""]:
    """Mean absolute difference of decimal-log mels, summed over windows (DAC, arXiv:2306.06546, Sec. 3.4).

    A window of w samples has a hop of w / 4 and 5 w / 32 bands, or the most that leave no band without a frequency
    bin. Windows longer than the sound are dropped, but never all.

    Args:
        outputs: waveforms in [-1, 1].
        targets: what they should be.
        sample_rate_hz: rate of both.
        lengths: real samples of each waveform of the batch, the rest is padding; all by default.
        rows: which of the batch these waveforms are.
        windows: multiples of 4.

    Raises:
        ConfigError: no windows, or a window that is not a multiple of 4 or below 16.
    """
    if not windows:
        raise ConfigError("windows=() must hold at least one window")
    for window in windows:
        if window < 16 or window % 4:
            raise ConfigError(f"window={window} must be a multiple of 4, 16 or more")
    outputs, targets = outputs.float(), targets.float()
    outputs, targets = (_without_padding(samples, lengths, rows) for samples in (outputs, targets))
    windows = _fitting(windows, outputs.shape[1])
    if lengths is not None:  # a frame for every hop that begins within the real part
        missing = -outputs.shape[1] % (max(windows) // 4)
        outputs, targets = (functional.pad(samples, (0, missing)) for samples in (outputs, targets))
    total = outputs.new_zeros(())
    for window in windows:
        config = _mel_config(sample_rate_hz, window)
        difference = (log_mel(outputs, config) - log_mel(targets, config)).abs()
        total = total + frame_mean(difference, config.hop_size, lengths, rows)
    return total / math.log(10)


def multi_resolution_stft(
    outputs: Float[Tensor, "B S"],
    targets: Float[Tensor, "B S"],
    *,
    lengths: Int[Tensor, " G"] | None = None,
    rows: slice = ALL,
    resolutions: Sequence[tuple[int, int, int]] = STFT_RESOLUTIONS,
) -> Float[Tensor, ""]:
    """Spectral convergence of every waveform plus mean absolute difference of log magnitudes, averaged over resolutions
    (Parallel WaveGAN, arXiv:1910.11480, Eqs. 4 to 6).

    Resolutions whose transform is longer than the sound are dropped, but never all.

    Args:
        outputs: waveforms in [-1, 1].
        targets: what they should be.
        lengths: real samples of each waveform of the batch, the rest is padding; all by default.
        rows: which of the batch these waveforms are.
        resolutions: transform, hop and window in samples.

    Raises:
        ConfigError: no resolutions.
    """
    if not resolutions:
        raise ConfigError("resolutions=() must hold at least one (transform, hop, window)")
    outputs, targets = outputs.float(), targets.float()
    outputs, targets = (_without_padding(samples, lengths, rows) for samples in (outputs, targets))
    fitting = _fitting([size for size, _, _ in resolutions], outputs.shape[1])
    resolutions = [resolution for resolution in resolutions if resolution[0] in fitting]
    count = len(outputs) if lengths is None else len(lengths)
    total = outputs.new_zeros(())
    for fft_size, hop_size, window_size in resolutions:
        output = _magnitude(outputs, fft_size, hop_size, window_size)
        target = _magnitude(targets, fft_size, hop_size, window_size)
        if lengths is not None:
            real = _real_frames(lengths[rows], hop_size, output.shape[-1])[:, None]
            output, target = output * real, target * real
        # the norm's own gradient is 0 where it is 0, that of a square root would be infinite
        convergence = (output - target).norm(dim=(1, 2)) / target.norm(dim=(1, 2)).clamp(min=_SMALLEST_NORM)
        logarithms = (_log(output) - _log(target)).abs()
        total = total + convergence.sum() / count + frame_mean(logarithms, hop_size, lengths, rows)
    return total / len(resolutions)


def frame_mean(
    values: Float[Tensor, "B F T"], hop_size: int, lengths: Int[Tensor, " G"] | None = None, rows: slice = ALL
) -> Float[Tensor, ""]:
    """Mean over bands and the frames that begin within the real part; 0 where there are none.

    Args:
        values: values of each frame.
        hop_size: samples from one frame to the next.
        lengths: real samples of each sound of the batch; all by default.
        rows: which of the batch these are; the result is their share in its mean.
    """
    if lengths is None:
        return values.mean()
    real = _real_frames(lengths[rows], hop_size, values.shape[2])
    frames = -(-lengths // hop_size)  # of all, however far others are padded
    return (values * real[:, None]).sum() / (frames.sum() * values.shape[1]).clamp(min=1)


def _real_frames(lengths: Int[Tensor, " B"], hop_size: int, count: int) -> Bool[Tensor, "B T"]:
    """Which frames begin within the real part."""
    return torch.arange(count, device=lengths.device) * hop_size < lengths[:, None]


def _without_padding(
    samples: Float[Tensor, "B S"], lengths: Int[Tensor, " G"] | None, rows: slice
) -> Float[Tensor, "B S"]:
    if lengths is None:
        return samples
    return samples.masked_fill(torch.arange(samples.shape[1], device=samples.device) >= lengths[rows, None], 0.0)


def _fitting(sizes: Sequence[int], num_samples: int) -> list[int]:
    fitting = [size for size in sizes if size <= num_samples]
    return fitting or [min(sizes)]


@functools.lru_cache(maxsize=128)
def _mel_config(sample_rate_hz: int, window: int) -> MelConfig:
    """The most bands up to 5 w / 32 that all hold a frequency bin; at high rates w = 32 has no room for 5."""
    sizes = {"fft_size": window, "window_size": window, "hop_size": window // 4}
    for num_bands in range(5 * window // 32, 1, -1):
        with contextlib.suppress(ConfigError):
            return MelConfig(sample_rate_hz=sample_rate_hz, **sizes, num_bands=num_bands, max_hz=sample_rate_hz / 2)
    return MelConfig(sample_rate_hz=sample_rate_hz, **sizes, num_bands=1, max_hz=sample_rate_hz / 2)


def _magnitude(samples: Tensor, fft_size: int, hop_size: int, window_size: int) -> Float[Tensor, "B bins T"]:
    window = torch.hann_window(window_size, device=samples.device)
    # zeros beyond both ends: reflection would need more samples than half of the transform
    spectrum = torch.stft(
        samples, fft_size, hop_size, window_size, window, center=True, pad_mode="constant", return_complex=True
    )
    return spectrum.abs()


def _log(magnitude: Tensor) -> Tensor:
    return magnitude.clamp(min=_MAGNITUDE_FLOOR).log()
