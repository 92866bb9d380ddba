"""The mel tokenizer: padding, causality, lengths, its training pass, its errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from resgen.devices import cast_parameters
from resgen.errors import ConfigError, DataError
from resgen.ops.mel import MelConfig
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.mel import PRESETS, MelTokenizer, MelTokenizerConfig
from resgen.types import CodeSpec


def make(**changes) -> MelTokenizer:
    values = {
        "mel": MelConfig(num_bands=12),
        "width": 16,
        "num_blocks": 1,
        "code_dim": 6,
        "max_positions": 9,
        "quantizer": QuantizerConfig(depth=5, codebook_size=16),
    }
    torch.manual_seed(0)
    tokenizer = MelTokenizer(MelTokenizerConfig(**(values | changes)))
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    latents = tokenizer.latents(sounds(4, 9)).detach().flatten(0, 1)
    with torch.no_grad():  # codebooks at the latents' place and scale, so that codes differ between positions
        spread = latents.std(0)
        tokenizer.quantizer.codebooks.mul_(2 * spread).add_(0.2 * latents.mean(0))
    return tokenizer


def sounds(count: int, positions: int, seed: int = 5) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(count, 12, 8 * positions, generator=stream) * 2 - 5


def padded(mels: list[torch.Tensor], frames: int, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.full((len(mels), 12, frames), fill)
    valid = torch.zeros(len(mels), frames, dtype=torch.bool)
    for row, mel in enumerate(mels):
        batch[row, :, : mel.shape[1]], valid[row, : mel.shape[1]] = mel, True
    return batch, valid


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fill", [0.0, 50.0, -math.inf])
def test_padding_changes_nothing_of_the_real_part(causal: bool, fill: float) -> None:
    tokenizer = make(causal=causal).requires_grad_(False)
    mels = [sounds(1, positions, seed=positions)[0] for positions in (9, 4, 1)]
    batch, valid = padded(mels, 72, fill)
    latents, codes = tokenizer.latents(batch, valid), tokenizer.encode(batch, valid)
    decoded = tokenizer.decode(codes, valid=valid[:, ::8])
    trained = tokenizer(batch, valid)
    assert codes[0].unique().numel() > 5
    for row, mel in enumerate(mels):
        length, alone = mel.shape[1] // 8, tokenizer.encode(mel[None])
        assert torch.allclose(latents[row, :length], tokenizer.latents(mel[None])[0], atol=1e-5)
        assert torch.equal(codes[row, :length], alone[0]) and (codes[row, length:] == 0).all()
        assert torch.allclose(decoded[row, :, : mel.shape[1]], tokenizer.decode(alone)[0], atol=1e-5)
        assert torch.allclose(trained.mels[row, :, : mel.shape[1]], tokenizer(mel[None]).mels[0], atol=1e-5)
        assert torch.allclose(decoded[row, :, mel.shape[1] :], torch.tensor(math.log(1e-5)))
    assert torch.equal(trained.quantization.codes, codes)
    assert trained.quantization.valid_codes.shape[0] == 9 + 4 + 1


def test_a_position_is_valid_if_its_first_frame_is() -> None:
    tokenizer = make()
    batch, _ = padded([sounds(1, 3)[0]], 24, 0.0)
    silence = batch.clone()
    silence[..., 17:] = -5.0  # what is zero after the normalisation
    valid = torch.arange(24)[None] < 17
    codes = tokenizer.encode(batch, valid)
    assert torch.equal(codes, tokenizer(batch, valid).quantization.codes) and (codes[0, 2] != 0).any()
    assert (tokenizer.encode(batch, torch.arange(24)[None] < 16)[0, 2] == 0).all()
    changed = batch.clone()
    changed[..., 17:] += 3
    assert torch.equal(tokenizer.latents(batch, valid), tokenizer.latents(changed, valid))
    assert not torch.allclose(tokenizer.latents(batch, valid)[0, 2], tokenizer.latents(batch)[0, 2], atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_later_frames_change_earlier_positions_only_without_causality(causal: bool) -> None:
    tokenizer = make(causal=causal)
    mels = sounds(2, 9)
    changed = mels.clone()
    changed[..., 40:] += 2
    before, after = tokenizer.latents(mels), tokenizer.latents(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6) == causal
    assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-2), "a position sees its own frames"
    assert torch.equal(tokenizer.encode(mels)[:, :5], tokenizer.encode(changed)[:, :5]) == causal
    codes = tokenizer.encode(mels)
    other = codes.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 16
    before, after = tokenizer.decode(codes)[..., :40], tokenizer.decode(other)[..., :40]
    assert torch.allclose(before, after, atol=1e-6) == causal


def test_levels_and_identities() -> None:
    tokenizer = make().requires_grad_(False)
    mels = sounds(3, 6)
    result, codes = tokenizer(mels), tokenizer.encode(mels)
    assert codes.shape == (3, 6, 5) and codes.dtype == torch.int64 and torch.equal(result.quantization.codes, codes)
    quantized = tokenizer.quantizer.decode(codes)
    assert torch.allclose(quantized, result.quantization.quantized, atol=1e-5)
    assert torch.allclose(
        tokenizer.latents(mels) - quantized, result.quantization.residuals[-1].reshape(3, 6, 6), atol=1e-5
    )
    floor = math.log(1e-5)
    assert torch.allclose(tokenizer.decode(codes), result.mels.clamp(min=floor), atol=1e-4)
    assert torch.equal(tokenizer.decode(codes, 5), tokenizer.decode(codes))
    changed = codes.clone()
    changed[..., 2:] = 0
    assert torch.equal(tokenizer.decode(codes, 2), tokenizer.decode(changed, 2))
    assert not torch.allclose(tokenizer.decode(codes, 2), tokenizer.decode(codes, 3), atol=1e-3)


def test_decoded_mels_are_no_lower_than_the_floor_and_training_ones_may_be() -> None:
    tokenizer = make().requires_grad_(False)
    tokenizer.decoder.head.linear.bias.fill_(-10.0)
    mels = sounds(1, 2)
    assert tokenizer.decode(tokenizer.encode(mels)).min() == pytest.approx(math.log(1e-5))
    assert tokenizer(mels).mels.min() < -15, "clamping would stop the gradient"


def test_normalisation() -> None:
    """Mels are shifted and scaled on the way in and back on the way out."""
    plain, other = make(mel_shift=0.0, mel_scale=1.0), make()
    other.load_state_dict(plain.state_dict())
    mels = sounds(2, 3)
    assert torch.allclose(other.latents(mels), plain.latents((mels + 5) / 2.5), atol=1e-5)
    codes = plain.encode(mels)
    inner = plain(mels).mels  # not clamped
    assert torch.equal(codes, plain.quantizer.encode(plain.latents(mels)))
    assert torch.allclose(other(mels * 2.5 - 5).mels, inner * 2.5 - 5, atol=1e-3)


def test_the_gradient_passes_the_quantizer() -> None:
    tokenizer = make()
    mels, valid = padded([sounds(1, 3)[0], sounds(1, 2)[0]], 24, 0.0)
    output, quantization = tokenizer(mels, valid)
    (output - mels)[valid.unsqueeze(1).expand_as(mels)].abs().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())
    assert not tokenizer.quantizer.codebooks.requires_grad
    tokenizer.zero_grad()
    tokenizer(mels, valid).quantization.commitment.backward()
    assert all(p.grad is None for p in tokenizer.decoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in tokenizer.encoder.parameters())


def test_parameters_in_bfloat16() -> None:
    tokenizer = make().requires_grad_(False)
    mels, valid = padded([sounds(1, 3)[0], sounds(1, 2)[0]], 24, 0.0)
    codes = tokenizer.encode(mels, valid)
    exact = tokenizer.decode(codes, valid=valid[:, ::8])
    cast_parameters(tokenizer, torch.bfloat16)
    assert tokenizer.quantizer.codebooks.dtype == torch.float32
    assert (tokenizer.encode(mels, valid)[..., 0] == codes[..., 0]).float().mean() > 0.8
    decoded = tokenizer.decode(codes, valid=valid[:, ::8])
    assert decoded.dtype == torch.float32 and (decoded - exact).abs().mean() < 0.1
    assert tokenizer(mels, valid).mels.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1, 11, 16), "11 bands.*takes 12"),
        ((1, 12, 17), "17 frames.*multiple of 8 up to 72"),
        ((1, 12, 80), "80 frames.*multiple of 8 up to 72"),
        ((1, 12, 0), "0 frames"),
    ],
)
def test_mels_that_do_not_fit(shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(DataError, match=named):
        make().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 0}, "width=0"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"code_dim": 0}, "code_dim=0"),
        ({"max_positions": 0}, "max_positions=0"),
        ({"strides": ()}, "strides"),
        ({"strides": (2, 0)}, "strides"),
        ({"mel_scale": 0.0}, "mel_scale=0.0"),
        ({"mel_scale": math.nan}, "mel_scale=nan"),
        ({"mel_shift": math.inf}, "mel_shift=inf"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MelTokenizerConfig(**changes)


def test_presets() -> None:
    with torch.device("meta"):
        paper = MelTokenizer(PRESETS["paper"])
    assert (paper.spec.depth, paper.spec.codebook_size, paper.spec.code_dim, paper.spec.shape) == (
        32,
        1024,
        512,
        (1024,),
    )
    assert (paper.sample_rate_hz, paper.frames_per_position, paper.samples_per_position) == (22050, 8, 2048)
    assert sum(p.numel() for p in paper.parameters()) == pytest.approx(56e6, rel=0.01)
    small = MelTokenizer(PRESETS["small"])
    assert small.spec == CodeSpec(depth=32, codebook_size=256, code_dim=64, shape=(256,))
    assert (small.sample_rate_hz, small.samples_per_position) == (16000, 1600)
    assert small.encode(torch.zeros(1, 80, 16)).shape == (1, 2, 32)
    other = MelTokenizer(dataclasses.replace(PRESETS["small"], strides=(5, 2)))
    assert other.frames_per_position == 10 and other.encode(torch.zeros(1, 80, 20)).shape == (1, 2, 32)
