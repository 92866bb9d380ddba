"""The vocoder: its inverse transform undoes the mel's, padding changes nothing, and it learns."""

from __future__ import annotations

import pytest
import torch

from resgen.errors import ConfigError, DataError
from resgen.ops.mel import MelConfig, inverse_stft, log_mel, stft
from resgen.tokenizers.vocoder import PRESETS, Vocoder, VocoderConfig

MEL = MelConfig(sample_rate_hz=8000, fft_size=128, window_size=96, hop_size=24, num_bands=10, max_hz=4000.0)


def make(mel: MelConfig = MEL) -> Vocoder:
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(mel=mel, width=16, num_layers=2, hidden_multiple=2))
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return vocoder


def sounds(count: int, num_samples: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(3)
    return 0.3 * torch.randn(count, num_samples, generator=stream)


@pytest.mark.parametrize(
    "mel",
    [
        MEL,
        MelConfig(sample_rate_hz=8000, fft_size=64, window_size=64, hop_size=16, num_bands=8, max_hz=4000.0),
        MelConfig(sample_rate_hz=8000, fft_size=64, window_size=50, hop_size=20, num_bands=8, max_hz=4000.0),
        PRESETS["small"].mel,
        PRESETS["paper"].mel,
    ],
)
def test_the_inverse_undoes_the_spectrogram_of_the_mels(mel: MelConfig) -> None:
    samples = sounds(2, 12 * mel.hop_size)
    window = torch.hann_window(mel.window_size)
    restored = inverse_stft(stft(samples, mel), window, fft_size=mel.fft_size, hop_size=mel.hop_size)
    assert restored.shape == samples.shape
    assert torch.allclose(restored, samples, atol=1e-4)


@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_samples_per_frame(num_frames: int) -> None:
    vocoder = make()
    output = vocoder(torch.randn(3, 10, num_frames) - 5)
    assert output.shape == (3, num_frames * 24) and output.isfinite().all() and output.abs().sum() > 0
    assert (vocoder.sample_rate_hz, vocoder.mel) == (8000, MEL)


def test_padding_changes_nothing() -> None:
    vocoder = make()
    mels = torch.randn(3, 10, 12) - 5
    lengths = torch.tensor([12, 7, 1])
    valid = torch.arange(12) < lengths[:, None]
    padded = vocoder(mels.masked_fill(~valid[:, None], float("-inf")), valid)
    for row, length in enumerate(lengths.tolist()):
        alone = vocoder(mels[row : row + 1, :, :length])[0]
        assert torch.allclose(padded[row, : 24 * length], alone, atol=1e-5), "also under the last window"
        assert (padded[row, 24 * length :] == 0).all()


def test_without_padding_valid_is_not_needed() -> None:
    vocoder = make()
    mels = torch.randn(2, 10, 5)
    assert torch.allclose(vocoder(mels, torch.ones(2, 5, dtype=torch.bool)), vocoder(mels), atol=1e-6)


def test_magnitudes_have_a_ceiling() -> None:
    vocoder = make()
    with torch.no_grad():
        vocoder.head.weight.zero_()
        vocoder.head.bias.fill_(200.0)
    output = vocoder(torch.zeros(1, 10, 6).requires_grad_())
    assert output.isfinite().all()
    output.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vocoder.parameters())


def test_the_spectrum_is_not_rounded_to_bfloat16() -> None:
    vocoder = make()
    seen = []
    vocoder.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = vocoder(torch.randn(1, 10, 4))
    assert seen == [torch.float32] and output.dtype == torch.float32


def test_it_learns_a_sound() -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(mel=MEL, width=32, num_layers=2, hidden_multiple=2))
    target = 0.3 * torch.sin(torch.arange(24 * 20) * 2 * torch.pi * 400 / 8000)[None]
    mels = log_mel(target, MEL)
    optimizer = torch.optim.Adam(vocoder.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = (log_mel(vocoder(mels), MEL) - mels).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


def test_other_numbers_of_bands() -> None:
    with pytest.raises(DataError, match="9 bands.*10"):
        make()(torch.zeros(1, 9, 4))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 0}, "width=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"hidden_multiple": 0}, "hidden_multiple=0"),
        ({"mel": MelConfig(sample_rate_hz=8000, window_size=400, max_hz=4000.0)}, "window_size=400.*hop_size=256"),
        ({"mel": MelConfig(window_size=801, hop_size=200)}, "window_size=801.*even"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        VocoderConfig(**changes)


def test_presets() -> None:
    small = Vocoder(PRESETS["small"])
    assert small(torch.zeros(1, 80, 3)).shape == (1, 600)
    assert 2e6 < sum(p.numel() for p in small.parameters()) < 4e6
    assert PRESETS["paper"].mel == MelConfig()
