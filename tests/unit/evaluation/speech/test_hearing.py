"""What the judges of speech hear does not depend on loudness, channel or padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resgen.evaluation.speech.hearing import (
    MEL,
    hear,
    normalise,
)


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tone(hz: float, seconds: float = 0.5) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(int(16000 * seconds)) / 16000)


def test_hearing_ignores_loudness_and_channel() -> None:
    samples = torch.randn(1, 8000, generator=_stream())
    lengths = torch.tensor([8000])
    features, valid = hear(samples, lengths, MEL)
    assert features.shape == (1, 80, 50) and valid.all()
    assert torch.allclose(hear(0.1 * samples, lengths, MEL)[0], features, atol=1e-3)
    assert torch.allclose(features.mean(2), torch.zeros(()), atol=1e-5)
    log_mels = 0.5 * torch.randn(1, 80, 50, generator=_stream(1))
    channel = 0.3 * torch.randn(1, 80, 1, generator=_stream(2))
    valid = torch.ones(1, 50, dtype=torch.bool)
    assert torch.allclose(normalise(log_mels + channel, valid), normalise(log_mels, valid), atol=1e-5)


def test_words_keep_the_mean_of_their_bands() -> None:
    log_mels = torch.tensor([[[2.0, -1.5, -20.0, 9.0]]])
    valid = torch.tensor([[True, True, True, False]])  # the loudest is no padding
    assert normalise(log_mels, valid, centred=False).flatten().tolist() == pytest.approx([1, 0, -1, 0])
    samples = torch.randn(1, 8000, generator=_stream())
    features, _ = hear(samples, torch.tensor([8000]), MEL, centred=False)
    assert float(features.max()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(hear(0.1 * samples, torch.tensor([8000]), MEL, centred=False)[0], features, atol=1e-3)


def test_hearing_ignores_padding_and_takes_any_length() -> None:
    samples = torch.randn(2, 8000, generator=_stream())
    samples[1, 4000:] = 0
    features, valid = hear(samples, torch.tensor([8000, 4000]), MEL)
    alone, _ = hear(samples[1:, :4000], torch.tensor([4000]), MEL)
    assert valid.sum(1).tolist() == [50, 25]
    assert not features[1, :, 25:].any()
    assert torch.allclose(features[1, :, :20], alone[0, :, :20], atol=0.05)  # the end sees padding, not a reflection
    for size in (1, 159, 161):
        features, valid = hear(samples[:1, :size], torch.tensor([size]), MEL)
        assert features.shape[2] == -(-size // 160) and features.isfinite().all()


def test_silence_has_a_floor() -> None:
    samples = torch.cat([_tone(500), torch.zeros(8000)])[None]
    noisy = samples + 1e-5 * torch.randn(1, 16000, generator=_stream())
    first, second = (hear(x, torch.tensor([16000]), MEL)[0] for x in (samples, noisy))
    assert torch.allclose(first, second, atol=0.05)
