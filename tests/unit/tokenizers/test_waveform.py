"""The waveform tokenizer: spectra and back, padding, its training pass, its size, its errors."""

from __future__ import annotations

import pytest
import torch

from resgen.devices import cast_parameters
from resgen.errors import ConfigError, DataError
from resgen.ops.mel import inverse_stft
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.waveform import PRESETS, WaveformTokenizer, WaveformTokenizerConfig, stft
from resgen.types import CodeSpec

STEP = 24  # samples per position of the tokenizer below


def make(**changes) -> WaveformTokenizer:
    values = {
        "sample_rate_hz": 8000,
        "window_size": 16,
        "hop_size": 4,
        "widths": (12, 16),
        "strides": (3, 2),
        "num_blocks": 1,
        "code_dim": 6,
        "max_positions": 9,
        "quantizer": QuantizerConfig(depth=5, codebook_size=16),
    }
    torch.manual_seed(0)
    tokenizer = WaveformTokenizer(WaveformTokenizerConfig(**(values | changes)))
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        latents = tokenizer.latents(sounds(4, 9)).flatten(0, 1)  # codebooks at the latents' place and scale
        tokenizer.quantizer.codebooks.mul_(2 * latents.std(0)).add_(0.2 * latents.mean(0))
    return tokenizer


def sounds(count: int, positions: int, seed: int = 5) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(count, STEP * positions, generator=stream).mul(0.3).clamp(-1, 1)


def undone(spectrum: torch.Tensor, size: int, hop_size: int, valid: torch.Tensor | None = None) -> torch.Tensor:
    """The inverse of this module's `stft`."""
    return inverse_stft(spectrum, torch.hann_window(size), fft_size=size, hop_size=hop_size, valid=valid)


@pytest.mark.parametrize(("window_size", "hop_size"), [(32, 8), (100, 25), (8, 4), (12, 3), (9, 3), (6, 3)])
def test_spectra_and_back(window_size: int, hop_size: int) -> None:
    """Exact up to both ends, for odd margins too."""
    samples = torch.randn(2, 12 * hop_size)
    spectrum = stft(samples, window_size=window_size, hop_size=hop_size)
    assert spectrum.shape == (2, window_size // 2 + 1, 12)
    back = undone(spectrum, window_size, hop_size)
    assert back.shape == samples.shape and torch.allclose(back, samples, atol=1e-5)


def test_the_inverse_is_torch_s() -> None:
    """Away from the ends, where the two differ in what they cut."""
    spectrum = torch.randn(2, 17, 20, dtype=torch.complex64)
    spectrum[:, [0, -1]] = spectrum[:, [0, -1]].real.to(spectrum.dtype)
    expected = torch.istft(spectrum, 32, 8, window=torch.hann_window(32), center=True)[:, 32 - 16 : -32]
    ours = undone(spectrum, 32, 8)
    start = 32 - 12  # torch cuts half a window (16) from the left end, this one half the overlap (12)
    assert torch.allclose(ours[:, start : start + expected.shape[1]], expected, atol=1e-5)


def test_spectra_that_are_not_valid_take_no_part() -> None:
    spectrum = torch.randn(1, 9, 10, dtype=torch.complex64)
    alone = undone(spectrum[..., :6], 16, 4)
    together = undone(spectrum, 16, 4, torch.arange(10)[None] < 6)
    assert torch.allclose(together[:, :24], alone, atol=1e-6) and (together[:, 24:] == 0).all()
    assert not torch.allclose(undone(spectrum, 16, 4)[:, :24], alone, atol=1e-3)


@pytest.mark.parametrize("garbage", [0.0, 0.7, float("nan")])
def test_padding_changes_nothing_of_the_real_part(garbage: float) -> None:
    tokenizer = make().requires_grad_(False)
    waves = [sounds(1, positions, seed=positions)[0] for positions in (9, 4, 1)]
    batch = torch.full((3, 9 * STEP), garbage)
    for row, wave in enumerate(waves):
        batch[row, : len(wave)] = wave
    valid = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    latents, codes = tokenizer.latents(batch, valid), tokenizer.encode(batch, valid)
    decoded = tokenizer.decode(codes, valid=valid)
    trained = tokenizer(batch, valid)
    assert codes[0].unique().numel() > 5
    for row, wave in enumerate(waves):
        length, alone = len(wave) // STEP, tokenizer.encode(wave[None])
        assert torch.allclose(latents[row, :length], tokenizer.latents(wave[None])[0], atol=1e-5)
        assert torch.equal(codes[row, :length], alone[0]) and (codes[row, length:] == 0).all()
        assert torch.allclose(decoded[row, : len(wave)], tokenizer.decode(alone)[0], atol=1e-5)
        assert torch.allclose(trained.samples[row, : len(wave)], tokenizer(wave[None]).samples[0], atol=1e-5)
        assert (decoded[row, len(wave) :] == 0).all()
    assert torch.equal(trained.quantization.codes, codes)
    assert trained.quantization.valid_codes.shape[0] == 9 + 4 + 1


def test_without_valid_the_padding_is_seen() -> None:
    tokenizer = make().requires_grad_(False)
    batch = sounds(1, 9)
    assert not torch.allclose(tokenizer.latents(batch)[:, :4], tokenizer.latents(batch[:, : 4 * STEP]), atol=1e-3)
    codes = tokenizer.encode(batch)
    assert not torch.allclose(tokenizer.decode(codes)[:, : 4 * STEP], tokenizer.decode(codes[:, :4]), atol=1e-3)


def test_levels_and_identities() -> None:
    tokenizer = make().requires_grad_(False)
    samples = sounds(3, 6)
    result, codes = tokenizer(samples), tokenizer.encode(samples)
    assert codes.shape == (3, 6, 5) and codes.dtype == torch.int64 and torch.equal(result.quantization.codes, codes)
    quantized = tokenizer.quantizer.decode(codes)
    assert torch.allclose(quantized, result.quantization.quantized, atol=1e-5)
    residuals = result.quantization.residuals[-1].reshape(3, 6, 6)
    assert torch.allclose(tokenizer.latents(samples) - quantized, residuals, atol=1e-5)
    assert torch.allclose(tokenizer.decode(codes), result.samples.clamp(-1, 1), atol=1e-4)
    assert result.samples.shape == samples.shape
    assert torch.equal(tokenizer.decode(codes, 5), tokenizer.decode(codes))
    changed = codes.clone()
    changed[..., 2:] = 0
    assert torch.equal(tokenizer.decode(codes, 2), tokenizer.decode(changed, 2))
    assert not torch.allclose(tokenizer.decode(codes, 2), tokenizer.decode(codes, 3), atol=1e-3)


def test_loud_magnitudes() -> None:
    """The logarithm is clamped before the exponential: samples are within range, gradients are numbers."""
    tokenizer = make()
    with torch.no_grad():
        tokenizer.decoder.head.linear.bias[:9] = 1000.0
    samples = sounds(1, 2)
    assert tokenizer.decode(tokenizer.encode(samples)).abs().max() == 1
    output = tokenizer(samples).samples
    assert output.isfinite().all() and output.abs().max() > 1, "clamping would stop the gradient"
    output.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tokenizer.parameters())


def test_the_head_gives_magnitude_and_phase() -> None:
    tokenizer = make().requires_grad_(False)
    head = tokenizer.decoder.head.linear
    torch.nn.init.zeros_(head.weight)
    head.bias.copy_(torch.cat([torch.full((9,), -50.0), torch.zeros(9)]))
    head.bias[2], head.bias[9 + 2] = torch.tensor(3.0).log(), 0.5
    spectrum = torch.zeros(1, 9, 12, dtype=torch.complex64)
    spectrum[:, 2] = torch.polar(torch.tensor(3.0), torch.tensor(0.5))
    expected = undone(spectrum, 16, 4)
    assert torch.allclose(tokenizer(sounds(1, 2)).samples, expected, atol=1e-5)


def test_the_encoder_sees_real_and_imaginary_parts() -> None:
    tokenizer = make().requires_grad_(False)
    seen: list[torch.Tensor] = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    samples = sounds(2, 3)
    tokenizer.latents(samples)
    spectrum = stft(samples, window_size=16, hop_size=4)
    assert torch.equal(seen[0], torch.cat([spectrum.real, spectrum.imag], 1))


def test_the_gradient_passes_the_quantizer() -> None:
    tokenizer = make()
    samples, valid = sounds(2, 4), torch.arange(4) < torch.tensor([4, 3])[:, None]
    (tokenizer(samples, valid).samples - samples).abs().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())
    assert not tokenizer.quantizer.codebooks.requires_grad
    tokenizer.zero_grad()
    tokenizer(samples, valid).quantization.commitment.backward()
    assert all(p.grad is None for p in tokenizer.decoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in tokenizer.encoder.parameters())


def test_parameters_in_bfloat16() -> None:
    tokenizer = make().requires_grad_(False)
    samples = sounds(3, 6)
    codes = tokenizer.encode(samples)
    exact = tokenizer.decode(codes)
    cast_parameters(tokenizer, torch.bfloat16)
    assert tokenizer.quantizer.codebooks.dtype == torch.float32
    assert (tokenizer.encode(samples)[..., 0] == codes[..., 0]).float().mean() > 0.8
    decoded = tokenizer.decode(codes)
    assert decoded.dtype == torch.float32 and (decoded - exact).abs().mean() < 0.1


@pytest.mark.parametrize("length", [0, 25, 240])
def test_waveforms_that_do_not_fit(length: int) -> None:
    with pytest.raises(DataError, match=rf"{length} samples.*multiple of 24 up to 216"):
        make().encode(torch.zeros(1, length))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sample_rate_hz": 0}, "sample_rate_hz=0"),
        ({"hop_size": 1}, "hop_size=1"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"code_dim": 0}, "code_dim=0"),
        ({"max_positions": 0}, "max_positions=0"),
        ({"window_size": 30}, "window_size=30.*hop_size=8"),
        ({"window_size": 8}, "window_size=8.*hop_size=8"),
        ({"widths": (), "strides": ()}, "widths"),
        ({"strides": (8, 0, 8)}, "strides"),
        ({"strides": (8, 8)}, r"widths=\(384, 768, 1536\) and strides=\(8, 8\)"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WaveformTokenizerConfig(**changes)


def test_the_paper_s_size() -> None:
    with torch.device("meta"):
        paper = WaveformTokenizer(PRESETS["paper"])
    assert sum(p.numel() for p in paper.parameters()) == pytest.approx(185e6, rel=0.02)
    assert (paper.spec.depth, paper.spec.codebook_size, paper.spec.code_dim, paper.spec.shape) == (
        72,
        1024,
        512,
        (1024,),
    )
    assert paper.samples_per_position == 4096
    assert paper.sample_rate_hz / paper.samples_per_position == pytest.approx(10.77, abs=0.005)


def test_the_small_preset_has_the_grid_of_the_small_mel_tokenizer() -> None:
    small = WaveformTokenizer(PRESETS["small"])
    assert (small.sample_rate_hz, small.samples_per_position) == (16000, 1600)
    assert small.spec == CodeSpec(depth=32, codebook_size=256, code_dim=64, shape=(256,))
    assert small.encode(torch.zeros(1, 3200)).shape == (1, 2, 32)
