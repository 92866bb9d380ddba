"""Voices made of other voices: what is altered, and what is left as it is."""

from __future__ import annotations

import random

import pytest
import torch
from altered_voices import FORMANTS, MICROPHONE_HZ, NARROW_HZ, Alteration, alter, draw_alteration
from torch import Tensor

RATE = 16_000
FLAT = (0.0,) * len(MICROPHONE_HZ)
SAME = Alteration(1.0, FLAT, None, None)


def vowel(pitch_hz: float = 120.0, formant_hz: float = 900.0) -> Tensor:
    """One second of harmonics under one formant."""
    time = torch.arange(RATE) / RATE
    harmonics = torch.arange(1, int(6000 / pitch_hz)) * pitch_hz
    level = 1 / (1 + ((harmonics - formant_hz) / 150) ** 2) + 0.01
    return 0.05 * (level[:, None] * torch.cos(2 * torch.pi * harmonics[:, None] * time)).sum(0)


def spectrum(samples: Tensor) -> Tensor:
    """Power by hertz."""
    return torch.fft.rfft(samples[:RATE] * torch.hann_window(RATE)).abs().square()


def altered(samples: Tensor, alteration: Alteration) -> Tensor:
    return alter(samples, RATE, alteration, random.Random(0))


def test_nothing_altered_is_the_same_sound() -> None:
    assert torch.allclose(altered(vowel(), SAME), vowel(), atol=1e-5)


@pytest.mark.parametrize("ratio", FORMANTS)
def test_formants_move_and_the_pitch_stays(ratio: float) -> None:
    power = spectrum(altered(vowel(), SAME._replace(formants=ratio)))
    harmonics = power[120:6000:120]
    assert (harmonics.sum() / power[:6000].sum()).item() > 0.6  # with a window of 4 bins; at another pitch it is 0.04
    peak = 120 * (1 + int(harmonics.argmax()))
    assert abs(peak - 900 * ratio) < 90


def test_a_microphone_has_its_gains() -> None:
    gains = tuple(float(index) for index in range(len(MICROPHONE_HZ)))
    noise = 0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    change = 10 * (spectrum(altered(noise, SAME._replace(gains_db=gains))) / spectrum(noise)).log10()
    for hz, gain in zip(MICROPHONE_HZ[2:-1], gains[2:-1], strict=True):
        assert change[int(hz * 0.9) : int(hz * 1.1)].median().item() == pytest.approx(gain, abs=0.5)


def test_nothing_is_left_beyond_the_band() -> None:
    noise = 0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    change = spectrum(altered(noise, SAME._replace(band_hz=3500.0))) / spectrum(noise)
    assert change[4000:].median() < 1e-5 and change[:3300].median() == pytest.approx(1.0, abs=0.05)


def test_noise_has_the_level_that_was_drawn() -> None:
    sound = vowel()
    added = altered(sound, SAME._replace(noise_db=-30.0)) - sound
    assert 10 * (added.square().mean() / sound.square().mean()).log10() == pytest.approx(-30, abs=0.3)


def test_alterations_are_drawn_from_their_ranges_and_repeatable() -> None:
    drawn = [draw_alteration(random.Random(seed)) for seed in range(300)]
    assert drawn[7] == draw_alteration(random.Random(7))
    assert all(FORMANTS[0] <= one.formants <= FORMANTS[1] for one in drawn)
    bands = [one.band_hz for one in drawn if one.band_hz is not None]
    assert all(NARROW_HZ[0] <= band <= NARROW_HZ[1] for band in bands) and 110 < len(bands) < 190
    assert 70 < sum(one.noise_db is not None for one in drawn) < 130
