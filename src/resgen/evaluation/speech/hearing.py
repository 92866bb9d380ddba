"""Input of the networks that judge speech, recogniser and speaker encoder: normalised log-mels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from resgen.errors import DataError
from resgen.ops.mel import MelConfig, log_mel

MEL = MelConfig(sample_rate_hz=16000, fft_size=512, window_size=400, hop_size=160)
"""Default input of both networks: 100 frames per second."""

_RANGE = 7.0  # nats below the loudest, 61 dB: what is softer, digital silence too, is heard as equally soft
_SCALE = 2.0


def check_sound(samples: Float[Tensor, " S"]) -> None:
    """Reject a sound without samples.

    Raises:
        DataError: there are none.
    """
    if not len(samples):
        raise DataError("0 samples given; there is nothing to recognise")


def hear(
    samples: Float[Tensor, "B S"], lengths: Int[Tensor, " B"], mel: MelConfig, *, centred: bool = True
) -> tuple[Float[Tensor, "B F T"], Bool[Tensor, "B T"]]:
    """Normalised log-mels of sounds, and which of their frames are not padding.

    Args:
        samples: -1..1, at the rate of `mel`, zero-padded at the end.
        lengths: real samples of each, at least 1.
        mel: shape of the spectrogram.
        centred: see `normalise`.

    Raises:
        DataError: no samples.
    """
    check_sound(samples[0])
    log_mels, valid = framed_log_mel(samples, lengths, mel)
    return normalise(log_mels, valid, centred=centred), valid


def normalise(
    log_mels: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"], *, centred: bool = True
) -> Float[Tensor, "B F T"]:
    """Take loudness out of log-mels and, where `centred`, the colour of the channel: each band's mean over the valid
    frames is 0.

    Of a sound as short as a word the mean is its own vowel, so whoever listens for words keeps it: then the loudest
    band of a sound is 1, and what is 61 dB softer -1. Padding becomes 0. Frames more than 61 dB below the loudest band
    of the sound count as that soft.
    """
    keep = valid[:, None]
    loudest = log_mels.masked_fill(~keep, -torch.inf).amax((1, 2), keepdim=True)
    x = torch.maximum(log_mels, loudest - _RANGE)
    if not centred:
        return ((x - loudest) * (2 / _RANGE) + 1) * keep
    mean = (x * keep).sum(2, keepdim=True) / keep.sum(2, keepdim=True)
    return (x - mean) * keep / _SCALE


def framed_log_mel(
    samples: Float[Tensor, "B S"], lengths: Int[Tensor, " B"], mel: MelConfig
) -> tuple[Float[Tensor, "B F T"], Bool[Tensor, "B T"]]:
    """Log-mels of zero-padded sounds, and which of their frames are not padding."""
    frames = -(-int(lengths.max()) // mel.hop_size)
    size = max(frames * mel.hop_size, mel.fft_size)  # reflection at the ends needs that much
    log_mels = log_mel(F.pad(samples, (0, max(0, size - samples.shape[1])))[:, :size], mel)[:, :, :frames]
    ends = (lengths.to(samples.device) + mel.hop_size - 1) // mel.hop_size
    return log_mels, torch.arange(frames, device=samples.device)[None] < ends[:, None]
