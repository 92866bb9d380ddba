"""What every tokenizer keeps to, whatever signals it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig


def grey_digits(kind: str) -> tuple[ImageTokenizer, torch.Tensor]:
    config = ImageTokenizerConfig(
        image_size=9,
        channels=1,
        width=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        code_dim=6,
        quantizer=QuantizerConfig(kind=kind, depth=4, codebook_size=12),
    )
    return ImageTokenizer(config), torch.rand(5, 1, 9, 9, generator=torch.Generator().manual_seed(3)) * 2 - 1


def colour_patches(kind: str) -> tuple[ImageTokenizer, torch.Tensor]:
    config = ImageTokenizerConfig(
        image_size=16,
        channels=3,
        patch_size=4,
        width=16,
        multipliers=(1,),
        num_res_blocks=2,
        code_dim=8,
        quantizer=QuantizerConfig(kind=kind, depth=2, codebook_size=40),
    )
    return ImageTokenizer(config), torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


Case = tuple[ImageTokenizer, torch.Tensor]


@pytest.fixture(params=["probabilistic", "ema", "rfsq"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[grey_digits, colour_patches])
def case(request: pytest.FixtureRequest, kind: str) -> Case:
    torch.manual_seed(0)
    build: Callable[[str], Case] = request.param
    tokenizer, signals = build(kind)
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        tokenizer.quantizer.initialize(tokenizer.latents(signals).flatten(0, 1), stream)
    return tokenizer.eval().requires_grad_(False), signals


def test_codes_have_the_promised_shape(case: Case) -> None:
    tokenizer, signals = case
    codes, spec = tokenizer.encode(signals), tokenizer.spec
    assert codes.shape == (len(signals), spec.num_positions, spec.depth) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < spec.codebook_size
    assert codes[..., 0].unique().numel() > 1
    assert tokenizer.quantizer.codebooks.shape == (spec.depth, spec.codebook_size, spec.code_dim)


def test_decoding_gives_signals_back(case: Case) -> None:
    tokenizer, signals = case
    decoded = tokenizer.decode(tokenizer.encode(signals))
    assert decoded.shape == signals.shape and decoded.dtype == torch.float32
    assert decoded.isfinite().all() and decoded.abs().max() <= 1


def test_prefixes_of_levels(case: Case) -> None:
    """Decoding `n` levels looks at these levels only; all of them is the default."""
    tokenizer, signals = case
    codes, depth = tokenizer.encode(signals), tokenizer.spec.depth
    assert torch.equal(tokenizer.decode(codes, depth), tokenizer.decode(codes))
    for num_levels in range(1, depth):
        other = codes.clone()
        other[..., num_levels:] = (other[..., num_levels:] + 1) % tokenizer.spec.codebook_size
        assert torch.equal(tokenizer.decode(other, num_levels), tokenizer.decode(codes, num_levels))
        assert not torch.equal(tokenizer.decode(codes, num_levels), tokenizer.decode(codes))


def test_batches_change_nothing(case: Case) -> None:
    tokenizer, signals = case
    codes = tokenizer.encode(signals)
    alone = torch.cat([tokenizer.encode(signal[None]) for signal in signals])
    assert torch.equal(alone, codes)
    decoded = torch.cat([tokenizer.decode(row[None]) for row in codes])
    assert torch.allclose(decoded, tokenizer.decode(codes), atol=1e-5)


def test_encoding_changes_nothing_and_repeats(case: Case) -> None:
    tokenizer, signals = case
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    given = signals.clone()
    codes = tokenizer.encode(signals)
    tokenizer.decode(codes)
    assert torch.equal(tokenizer.encode(signals), codes) and torch.equal(signals, given)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_more_levels_are_nearer_to_the_latents(case: Case) -> None:
    tokenizer, signals = case
    quantization = tokenizer.quantizer.quantize(tokenizer.latents(signals))
    norms = quantization.residuals.square().mean((1, 2))
    assert norms[-1] < norms[0]
    assert torch.allclose(tokenizer.quantizer.decode(quantization.codes), quantization.quantized, atol=1e-5), (
        "decoding codes is the quantizer's own output"
    )
