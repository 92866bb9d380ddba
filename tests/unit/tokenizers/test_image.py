"""The image tokenizer: any square size, its training pass, its errors."""

from __future__ import annotations

import pytest
import torch

from resgen.devices import cast_parameters
from resgen.errors import ConfigError, DataError
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig


def make(**changes) -> ImageTokenizer:
    values = {
        "image_size": 8,
        "channels": 1,
        "width": 8,
        "multipliers": (1, 2),
        "num_res_blocks": 1,
        "code_dim": 4,
        "quantizer": QuantizerConfig(depth=3, codebook_size=16),
    }
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**(values | changes)))
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return tokenizer


def pictures(tokenizer: ImageTokenizer, count: int = 3) -> torch.Tensor:
    config = tokenizer.config
    stream = torch.Generator().manual_seed(5)
    return torch.rand(count, config.channels, config.image_size, config.image_size, generator=stream) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "patch_size", "multipliers", "side"),
    [
        (8, 1, (1, 2), 4),
        (7, 1, (1, 2), 4),
        (28, 2, (1, 2, 4), 4),
        (17, 4, (1, 1), 3),
        (5, 5, (1,), 1),
        (9, 8, (2,), 2),
        (33, 1, (1, 1, 1, 1, 1, 1), 2),
    ],
)
def test_any_square_size(channels: int, size: int, patch_size: int, multipliers: tuple[int, ...], side: int) -> None:
    tokenizer = make(channels=channels, image_size=size, patch_size=patch_size, multipliers=multipliers, width=4)
    assert tokenizer.spec.shape == (side, side)
    images = pictures(tokenizer, 2)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, side * side, 3) and codes.dtype == torch.int64
    assert tokenizer.decode(codes).shape == images.shape
    output, quantization = tokenizer(images)
    assert output.shape == images.shape and torch.equal(quantization.codes, codes)


def test_positions_are_row_major() -> None:
    """A change in one corner of an image changes the latents of that corner."""
    tokenizer = make(image_size=64, width=4)
    images = pictures(tokenizer, 1)
    changed = images.clone()
    changed[..., :4, -4:] += 1
    # GroupNorm carries a trace of every change everywhere; the place itself moves the most.
    moved = (tokenizer.latents(changed) - tokenizer.latents(images)).abs().sum(-1)[0]
    row, column = divmod(int(moved.argmax()), 32)
    assert row <= 2 and column >= 29


def test_padding_of_odd_sizes_is_by_repetition_at_the_lower_and_right_edge() -> None:
    odd = make(image_size=7)
    even = ImageTokenizer(ImageTokenizerConfig(**{**odd.config.__dict__, "image_size": 8}))
    even.load_state_dict(odd.state_dict())
    images = pictures(odd)
    padded = torch.cat([images, images[..., -1:]], -1)
    padded = torch.cat([padded, padded[..., -1:, :]], -2)
    assert torch.allclose(odd.latents(images), even.latents(padded), atol=1e-6)
    codes = odd.encode(images)
    assert torch.allclose(odd.decode(codes), even.decode(codes)[..., :7, :7])


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 8)])
def test_pictures_of_another_shape(shape: tuple[int, ...]) -> None:
    tokenizer = make()
    with pytest.raises(DataError, match=rf"\({shape[0]}, {shape[1]}, {shape[2]}\).*\(1, 8, 8\)"):
        tokenizer.encode(torch.zeros(2, *shape))


def test_decoded_pictures_lie_within_range_and_training_ones_are_not_clamped() -> None:
    tokenizer = make()
    with torch.no_grad():
        tokenizer.decoder.out.bias.fill_(3.0)
    images = pictures(tokenizer)
    assert tokenizer.decode(tokenizer.encode(images)).max() == 1
    assert tokenizer(images).images.max() > 1.5, "clamping would stop the gradient"


def test_the_gradient_passes_the_quantizer() -> None:
    tokenizer = make()
    images = pictures(tokenizer)
    output, quantization = tokenizer(images)
    (output - images).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.encoder.layers[-1].parameters())
    assert not tokenizer.quantizer.codebooks.requires_grad
    tokenizer.zero_grad()
    tokenizer(images).quantization.commitment.backward()
    assert all(p.grad is None for p in tokenizer.decoder.parameters())
    assert tokenizer.encoder.layers[-1].weight.grad.abs().sum() > 0


def test_parameters_in_bfloat16() -> None:
    """What a pipeline does on hardware with bfloat16: codes stay close, codebooks stay float32."""
    tokenizer = make().requires_grad_(False)
    images = pictures(tokenizer)
    codes = tokenizer.encode(images)
    exact = tokenizer.decode(codes)
    cast_parameters(tokenizer, torch.bfloat16)
    assert tokenizer.quantizer.codebooks.dtype == torch.float32
    assert (tokenizer.encode(images)[..., 0] == codes[..., 0]).float().mean() > 0.9
    decoded = tokenizer.decode(codes)
    assert decoded.dtype == torch.float32 and torch.allclose(decoded, exact, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channels": 2}, "channels=2"),
        ({"image_size": 0}, "image_size=0"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"image_size": 3, "multipliers": (1, 1, 1)}, "image_size=3.*downsampling 4"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"code_dim": 0}, "code_dim=0"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ImageTokenizerConfig(**changes)


def test_the_paper_s_shape_is_the_default() -> None:
    config = ImageTokenizerConfig()
    assert config.downsampling == 32
    assert (config.spec.shape, config.spec.code_dim, config.spec.codebook_size) == ((8, 8), 64, 1024)
