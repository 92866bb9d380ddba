"""Layers over time: what padding may not change, what causality hides, and what the layers compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resgen.errors import ConfigError
from resgen.nn.conv1d import (
    Conv1d,
    ConvDecoder1d,
    ConvEncoder1d,
    ConvNeXtBlock1d,
    Downsample1d,
    Upsample1d,
    coarse_valid,
    fine_valid,
)

SHAPE = {"widths": (6, 8, 10), "strides": (2, 3), "num_blocks": 1}


def layers(causal: bool = False) -> dict[str, tuple[nn.Module, int]]:
    """Every layer over 6 channels, and how many frames of its input one frame of its output stands for (-n: 1 / n)."""
    torch.manual_seed(0)
    made: dict[str, tuple[nn.Module, int]] = {
        "conv": (Conv1d(6, 5, causal=causal), 1),
        "block": (ConvNeXtBlock1d(6, causal=causal, layer_scale=1.0), 1),
        "down": (Downsample1d(6, 5, 3), 3),
        "up": (Upsample1d(6, 5, 3), -3),
        "encoder": (ConvEncoder1d(in_channels=6, out_channels=4, causal=causal, **SHAPE), 6),
        "encoder without tail": (ConvEncoder1d(in_channels=6, out_channels=4, **SHAPE | {"widths": (6, 8)}), 6),
        "decoder": (ConvDecoder1d(in_channels=6, out_channels=4, causal=causal, **SHAPE), -6),
        "decoder without tail": (ConvDecoder1d(in_channels=6, out_channels=4, **SHAPE | {"widths": (6, 8)}), -6),
    }
    for layer, _ in made.values():
        for parameter in layer.parameters():  # biases and scales that matter
            nn.init.normal_(parameter, std=0.3)
    return made


NAMES = list(layers())


def length(frames: int, rate: int) -> int:
    return frames // rate if rate > 0 else frames * -rate


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_of_the_real_part(name: str, causal: bool) -> None:
    layer, rate = layers(causal)[name]
    x = torch.randn(1, 6, 18)
    alone = layer(x)
    assert alone.shape[2] == length(18, rate)
    padded = torch.cat([x, 100 * torch.randn(1, 6, 12)], 2)
    valid = torch.arange(30)[None] < 18
    together = layer(padded, valid)
    assert together.shape[2] == length(30, rate)
    assert torch.allclose(together[..., : alone.shape[2]], alone, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_padding_holds_changes_nothing_at_all(name: str) -> None:
    """Not even where a group of frames is valid in part."""
    layer, _ = layers()[name]
    x = torch.randn(2, 6, 18)
    valid = torch.arange(18) < torch.tensor([[18], [13]])
    changed = x.masked_fill(~valid[:, None], 7.0)
    assert torch.equal(layer(x, valid), layer(changed, valid))
    assert not torch.allclose(layer(x), layer(changed), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("down", "up")])
def test_without_valid_the_padding_is_seen(name: str) -> None:
    """The test above can fail: layers that do look beyond the end."""
    layer, rate = layers()[name]
    x = torch.randn(1, 6, 30)
    alone = layer(x[..., :18])
    assert not torch.allclose(layer(x)[..., : alone.shape[2]], alone, atol=1e-3)


@pytest.mark.parametrize("name", ["conv", "block", "encoder", "decoder"])
@pytest.mark.parametrize("causal", [False, True])
def test_causal_layers_do_not_look_ahead(name: str, causal: bool) -> None:
    layer, rate = layers(causal)[name]
    x = torch.randn(2, 6, 36)
    changed = x.clone()
    changed[..., 24:] += 1
    before, after = (layer(y)[..., : length(24, rate)] for y in (x, changed))
    assert torch.allclose(before, after, atol=1e-6) == causal


def test_a_causal_frame_sees_itself() -> None:
    layer = layers(causal=True)["conv"][0]
    x = torch.randn(1, 6, 9)
    changed = x.clone()
    changed[..., -1] += 1
    assert not torch.allclose(layer(x)[..., -1], layer(changed)[..., -1], atol=1e-3)


def test_convolutions_are_torch_s() -> None:
    x = torch.randn(2, 6, 12)
    conv = layers()["conv"][0].conv
    assert torch.allclose(layers()["conv"][0](x), F.conv1d(x, conv.weight, conv.bias, padding=3), atol=1e-5)
    causal = layers(causal=True)["conv"][0].conv
    expected = F.conv1d(F.pad(x, (6, 0)), causal.weight, causal.bias)
    assert torch.allclose(layers(causal=True)["conv"][0](x), expected, atol=1e-5)
    down = layers()["down"][0]
    weight = down.linear.weight.unflatten(1, (3, 6)).transpose(1, 2)
    assert torch.allclose(down(x), F.conv1d(x, weight, down.linear.bias, stride=3), atol=1e-5)
    up = layers()["up"][0]
    weight = up.linear.weight.unflatten(0, (3, 5)).permute(2, 1, 0)
    expected = F.conv_transpose1d(x, weight, stride=3) + up.linear.bias.reshape(3, 5).T.repeat(1, 12)
    assert torch.allclose(up(x), expected, atol=1e-5)


def test_the_block_is_convnext_s() -> None:
    block = layers()["block"][0]
    x = torch.randn(2, 6, 12)
    h = F.conv1d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=6).transpose(1, 2)
    h = F.layer_norm(h, (6,), block.norm.weight, block.norm.bias, eps=1e-6)
    h = block.down(F.gelu(block.up(h))) * block.scale
    assert torch.allclose(block(x), x + h.transpose(1, 2), atol=1e-5)


def test_the_layer_scale() -> None:
    x = torch.randn(2, 6, 12)
    assert torch.equal(ConvNeXtBlock1d(6, layer_scale=0.0)(x), x)
    assert ConvNeXtBlock1d(6, hidden_multiple=3).up.out_features == 18
    encoder = ConvEncoder1d(in_channels=6, out_channels=4, **SHAPE | {"num_blocks": 2})
    assert torch.allclose(encoder.stages[0][0].scale, torch.full((6,), 1 / 6))


@pytest.mark.parametrize("layer", [Downsample1d(64, 256, 4), Upsample1d(256, 64, 4)])
def test_samplers_keep_the_variance(layer: nn.Module) -> None:
    x = torch.randn(4, layer.linear.in_features // (4 if isinstance(layer, Downsample1d) else 1), 64)
    assert layer(x).std().item() == pytest.approx(1, rel=0.05)


def test_channels_stay_side_by_side() -> None:
    """What makes pointwise maps plain matrix products; a copy per layer would be slower and go unnoticed."""
    x = layers()["conv"][0](torch.randn(2, 6, 12))
    assert x.stride(1) == 1
    x = torch.randn(2, 12, 6).transpose(1, 2)
    for name in ("block", "down", "up"):
        assert layers()[name][0](x).stride(1) == 1


def test_validity_along_strides() -> None:
    valid = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    assert coarse_valid(valid, 3).tolist() == [[True, True], [True, False]]
    assert torch.equal(fine_valid(valid[:, ::3], 3)[1], valid[1])
    assert coarse_valid(None, 3) is None and fine_valid(None, 3) is None


def test_the_gradient_at_padding_is_zero() -> None:
    x = torch.randn(1, 6, 18, requires_grad=True)
    valid = torch.arange(18)[None] < 12
    layers()["encoder"][0](x, valid)[..., :2].sum().backward()
    assert (x.grad[..., 12:] == 0).all() and (x.grad[..., :12] != 0).any()


@pytest.mark.parametrize("make", [lambda k, c: Conv1d(2, 2, k, c), lambda k, c: ConvNeXtBlock1d(2, 4, k, c)])
def test_kernels_that_have_no_centre(make) -> None:
    with pytest.raises(ConfigError, match="kernel_size=4"):
        make(4, False)
    with pytest.raises(ConfigError, match="kernel_size=0"):
        make(0, True)
    assert make(4, True)(torch.randn(1, 2, 5)).shape == (1, 2, 5)
