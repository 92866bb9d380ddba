"""Voices made of other voices: formants moved without the pitch, another microphone, a narrow band, a noise floor.

Playing a sound faster or slower moves pitch and formants together, and leaves the sound of the microphone, by which
recordings are told apart as well as by throats. What is drawn here belongs to the voice, not to the utterance: all
utterances of a voice are altered alike.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from resgen.data.sound.decode import resample

FORMANTS = (0.87, 1.15)
MICROPHONE_DB = 4.0
"""Standard deviation of the gain at each of the frequencies below; between them it is a straight line in octaves."""
MICROPHONE_HZ = (62.5, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)
NARROW_HZ = (3300.0, 4000.0)
"""Where a telephone's or an 8 kHz recording's band ends; half of the voices have such a band."""
NOISE_DB = (-50.0, -28.0)
"""Noise against speech; a third of the voices have a floor of it, through the same microphone."""
MAX_GAIN_DB = 20.0
_WINDOW, _HOP = 512, 128
_LIFTER_S = 0.002  # finer structure of a spectrum than this is the pitch's


class Alteration(NamedTuple):
    """What is done to every utterance of a voice.

    Attributes:
        formants: how much higher the formants are.
        gains_db: of the microphone at `MICROPHONE_HZ`.
        band_hz: end of the band; None leaves it.
        noise_db: of the floor against the speech; None leaves it.
    """

    formants: float
    gains_db: tuple[float, ...]
    band_hz: float | None
    noise_db: float | None


def draw_alteration(rng: random.Random) -> Alteration:
    """An alteration at random."""
    formants = math.exp(rng.uniform(*map(math.log, FORMANTS)))
    gains = tuple(rng.gauss(0, MICROPHONE_DB) for _ in MICROPHONE_HZ)
    band, noise = rng.uniform(*NARROW_HZ), rng.uniform(*NOISE_DB)
    return Alteration(formants, gains, band if rng.random() < 1 / 2 else None, noise if rng.random() < 1 / 3 else None)


def alter(samples: Tensor, rate_hz: int, alteration: Alteration, rng: random.Random) -> Tensor:
    """The sound as the altered voice.

    Args:
        samples: float32 (S,).
        rate_hz: samples per second.
        alteration: of the voice.
        rng: source of the noise.

    Returns:
        float32 (S,).
    """
    if alteration.noise_db is not None:
        noise = torch.randn(len(samples), generator=torch.Generator().manual_seed(rng.getrandbits(62)))
        samples = samples + noise * samples.square().mean().sqrt() * 10 ** (alteration.noise_db / 20)
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(samples, _WINDOW, _HOP, window=window, return_complex=True)
    gains = _formant_gains_db(spectrum, rate_hz, alteration.formants) + _microphone_db(rate_hz, alteration)[:, None]
    spectrum = spectrum * 10 ** (gains / 20)
    return torch.istft(spectrum, _WINDOW, _HOP, window=window, length=len(samples))


def as_voice(samples: Tensor, rate_hz: int, speed: float, alteration: Alteration | None, rng: random.Random) -> Tensor:
    """The sound at `speed` times the speed it was recorded at (pitch and formants rise by that much), then altered.

    Args:
        samples: float32 (S,).
        rate_hz: samples per second.
        speed: over the recording's.
        alteration: of the voice; None leaves it.
        rng: source of the noise.

    Returns:
        float32 (about S / speed,).
    """
    samples = resample(samples, rate_hz, round(rate_hz / speed))
    return samples if alteration is None else alter(samples, rate_hz, alteration, rng)


def _formant_gains_db(spectrum: Tensor, rate_hz: int, ratio: float) -> Tensor:
    """What moves the smooth envelope of every frame (F, T) to frequencies `ratio` times as high."""
    level = 20 * spectrum.abs().clamp_min(1e-5).log10()
    cepstrum = torch.fft.irfft(level, dim=0)
    width = round(_LIFTER_S * rate_hz)
    lifter = torch.zeros(len(cepstrum), 1)
    lifter[: width + 1, 0] = torch.linspace(0, math.pi, width + 1).cos().add(1).div(2)
    lifter[-width:] = lifter[1 : width + 1].flip(0)
    envelope = torch.fft.rfft(cepstrum * lifter, dim=0).real
    source = (torch.arange(len(envelope)) / ratio).clamp_max(len(envelope) - 1)
    low = source.floor().long().clamp_max(len(envelope) - 2)
    part = (source - low)[:, None]
    moved = envelope[low] * (1 - part) + envelope[low + 1] * part
    return (moved - envelope).clamp(-MAX_GAIN_DB, MAX_GAIN_DB)


def _microphone_db(rate_hz: int, alteration: Alteration) -> Tensor:
    """Gain of the microphone and of the band's end at every frequency (F,)."""
    hz = torch.linspace(0, rate_hz / 2, _WINDOW // 2 + 1)
    place = (hz.clamp(MICROPHONE_HZ[0], MICROPHONE_HZ[-1]) / MICROPHONE_HZ[0]).log2()
    low = place.floor().long().clamp_max(len(MICROPHONE_HZ) - 2)
    knots, part = torch.tensor(alteration.gains_db), place - low
    gains = knots[low] * (1 - part) + knots[low + 1] * part
    if alteration.band_hz is not None:
        gains = gains - 60 * ((hz - alteration.band_hz) / 200).clamp(0, 1)
    return gains
