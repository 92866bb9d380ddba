"""The recogniser and the speaker encoder learn, for strangers too, and are reproducible."""

from __future__ import annotations

import math

import pytest
import torch
from judge_training import verify
from torch import Tensor
from torch.nn import functional as F
from train_speech_judges import angular_margin_loss, train_recognizer, train_speaker_network

from resgen.errors import ConfigError, DataError
from resgen.evaluation.speech.recognizer import RecognizerConfig
from resgen.evaluation.speech.speakers import SpeakerNetworkConfig
from resgen.ops.mel import MelConfig

_MEL = MelConfig(sample_rate_hz=8000, fft_size=256, window_size=200, hop_size=80, num_bands=20, max_hz=4000.0)
_SMALL = {"mel": _MEL, "front": 8, "width": 32, "num_blocks": 1}
_NETWORK = SpeakerNetworkConfig(mel=_MEL, width=24, num_blocks=2, pooled=32, embedding_size=16)


def _spoken(words: list[int], stream: torch.Generator) -> Tensor:
    """Word 0 is a hum, word 1 a whistle; pauses around them."""
    parts = [torch.zeros(1200)]
    for word in words:
        hz = (400, 2000)[word] * (0.9 + 0.2 * float(torch.rand((), generator=stream)))
        parts += [0.3 * torch.sin(2 * math.pi * hz * torch.arange(1200) / 8000), torch.zeros(1200)]
    return torch.cat(parts) + 0.003 * torch.randn(sum(map(len, parts)), generator=stream)


def _sayings(count: int, seed: int) -> tuple[list[Tensor], list[str]]:
    stream = torch.Generator().manual_seed(seed)
    said = [torch.randint(0, 2, (1 + i % 3,), generator=stream).tolist() for i in range(count)]
    return [_spoken(words, stream) for words in said], [
        " ".join(("hum", "whistle")[w] for w in words) for words in said
    ]


def test_learns_what_is_said() -> None:
    config = RecognizerConfig(symbols=("hum", "whistle"), **_SMALL)
    sounds, texts = _sayings(48, 0)
    losses: list[float] = []
    model = train_recognizer(
        sounds,
        texts,
        config,
        num_steps=120,
        batch_seconds=4.0,
        learning_rate=1e-2,
        report=lambda step, share, loss: losses.append(loss),
    )
    assert len(losses) == 120 and losses[-1] < 0.3 * losses[0]
    unheard, expected = _sayings(20, 1)
    right = sum(model.transcribe(x) == text for x, text in zip(unheard, expected, strict=True))
    assert right >= 17, right
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_recognizer_is_reproducible() -> None:
    config = RecognizerConfig(symbols=("hum", "whistle"), **_SMALL)
    sounds, texts = _sayings(8, 0)
    first, second, other = (train_recognizer(sounds, texts, config, num_steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.out.weight, second.out.weight)
    assert not torch.equal(first.out.weight, other.out.weight)


def test_training_refuses_what_it_cannot_learn_from() -> None:
    config = RecognizerConfig(symbols=("hum", "whistle"), **_SMALL)
    sounds, texts = _sayings(2, 0)
    with pytest.raises(DataError, match="each recording needs its text"):
        train_recognizer(sounds, texts[:1], config, num_steps=1)
    with pytest.raises(DataError, match="'jump' is none of the 2 words"):
        train_recognizer(sounds, [texts[0], "jump"], config, num_steps=1)
    with pytest.raises(ConfigError, match="num_steps or max_minutes"):
        train_recognizer(sounds, texts, config)
    with pytest.raises(ConfigError, match="batch_seconds=0"):
        train_recognizer(sounds, texts, config, num_steps=1, batch_seconds=0.0)


def _voice(speaker: int, stream: torch.Generator, seconds: float = 0.8) -> Tensor:
    """Noise whose two resonances, unlike its rhythm, are the speaker's."""
    size = int(8000 * seconds)
    hz = torch.fft.rfftfreq(size, 1 / 8000)
    shape = sum(torch.exp(-(((hz - f) / 120) ** 2)) for f in (400 + 330 * speaker, 3500 - 210 * speaker))
    noise = torch.fft.irfft(torch.fft.rfft(torch.randn(size, generator=stream)) * shape, n=size)
    rate = 3 + 4 * float(torch.rand((), generator=stream))
    return (
        0.1
        * F.normalize(noise, dim=0)
        * math.sqrt(size)
        * (0.6 + 0.4 * torch.sin(2 * math.pi * rate * torch.arange(size) / 8000))
    )


def _voices(speakers: list[int], each: int, seed: int) -> tuple[list[Tensor], Tensor]:
    stream = torch.Generator().manual_seed(seed)
    labels = [s for s in speakers for _ in range(each)]
    return [_voice(s, stream) for s in labels], torch.tensor(labels)


def test_learns_voices_and_hears_strangers() -> None:
    sounds, labels = _voices([0, 1, 2, 3, 5, 6], 6, 0)
    numbers = torch.unique(labels, return_inverse=True)[1]
    losses: list[float] = []
    model = train_speaker_network(
        sounds,
        numbers,
        _NETWORK,
        num_steps=220,
        batch_size=10,
        crop_seconds=(0.3, 0.6),
        learning_rate=5e-3,
        report=lambda step, share, loss: losses.append(loss),
    )
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0]  # although the margin grew
    unheard, who = _voices([0, 3, 4, 7], 5, 1)  # 4 and 7 were never learned
    embeddings = torch.stack([model.embed(x) for x in unheard])
    rates = verify(embeddings, torch.unique(who, return_inverse=True)[1])
    assert rates.nearest > 0.85 and rates.equal_error_rate < 0.2
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(20), atol=1e-5)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_training_is_reproducible_and_checks_its_data() -> None:
    sounds, labels = _voices([0, 1], 2, 0)
    first, second, other = (
        train_speaker_network(sounds, labels, _NETWORK, num_steps=2, batch_size=2, crop_seconds=(0.2, 0.3), seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.out.weight, second.out.weight)
    assert not torch.equal(first.out.weight, other.out.weight)
    with pytest.raises(DataError, match="each needs its speaker"):
        train_speaker_network(sounds[:1], labels, _NETWORK, num_steps=1)
    with pytest.raises(DataError, match="without gaps"):
        train_speaker_network(sounds, 2 * labels, _NETWORK, num_steps=1)
    with pytest.raises(DataError, match="two at least"):
        train_speaker_network(sounds, 0 * labels, _NETWORK, num_steps=1)
    with pytest.raises(ConfigError, match="crop_seconds"):
        train_speaker_network(sounds, labels, _NETWORK, num_steps=1, crop_seconds=(2.0, 1.0))
    with pytest.raises(ConfigError, match="num_steps or max_minutes"):
        train_speaker_network(sounds, labels, _NETWORK)
    with pytest.raises(ConfigError, match="embedding_size=0"):
        SpeakerNetworkConfig(embedding_size=0)


def test_margin_makes_the_right_angle_harder() -> None:
    embeddings = F.normalize(torch.tensor([[1.0, 0.9], [0.8, 1.0]]), dim=1)
    classes, right = torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 1])
    cosines = embeddings @ F.normalize(classes, dim=1).T
    plain = angular_margin_loss(embeddings, classes, right, margin=0.0)
    assert torch.allclose(plain, F.cross_entropy(30 * cosines, right))
    target = (cosines.diagonal().acos() + 0.2).cos()
    expected = torch.log1p(torch.exp(30 * (torch.stack([cosines[0, 1], cosines[1, 0]]) - target))).mean()
    harder = angular_margin_loss(embeddings, classes, right, margin=0.2)
    assert torch.allclose(harder, expected, rtol=1e-4) and harder > plain + 1
