"""Convolutional encoder and decoder: sizes and independence of samples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from resgen.nn.conv2d import ConvDecoder, ConvEncoder, ResBlock, group_norm


@pytest.mark.parametrize(("patch_size", "multipliers"), [(1, (1,)), (2, (1, 2)), (1, (1, 1, 2)), (4, (1, 2, 2))])
def test_sizes(patch_size: int, multipliers: tuple[int, ...]) -> None:
    shape = SimpleNamespace(width=8, multipliers=multipliers, num_res_blocks=1, patch_size=patch_size, code_dim=5)
    down = patch_size * 2 ** (len(multipliers) - 1)
    images = torch.randn(2, 3, 3 * down, 2 * down)
    latents = ConvEncoder(3, shape)(images)
    assert latents.shape == (2, 5, 3, 2)
    assert ConvDecoder(3, shape)(latents).shape == images.shape


def test_the_paper_s_layers() -> None:
    """RQ-VAE: 2 residual blocks per stage in the encoder and 3 in the decoder, 32 times smaller images."""
    shape = SimpleNamespace(width=128, multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, patch_size=1, code_dim=64)
    with torch.device("meta"):
        encoder, decoder = ConvEncoder(3, shape), ConvDecoder(3, shape)
        assert encoder(torch.empty(1, 3, 256, 256)).shape == (1, 64, 8, 8)
    blocks = [sum(isinstance(m, ResBlock) for m in part.modules()) for part in (encoder, decoder)]
    assert blocks == [6 * 2 + 1, 6 * 3 + 1]


def test_residual_blocks_start_as_the_identity() -> None:
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ResBlock(8, 8)(x), x)
    wider = ResBlock(8, 12)
    assert torch.equal(wider(x), wider.skip(x))


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 1), (8, 2), (32, 8), (128, 32), (512, 32)])
def test_groups(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups
