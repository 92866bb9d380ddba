"""Attention and blocks against their formulas."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from resgen.nn.attention import Attention
from resgen.nn.positions import rotary_angles
from resgen.nn.transformer import Block, SharedModulation, Transformer, modulate


def noisy(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return module.double()


def test_attention_is_softmax_over_allowed_positions() -> None:
    attention = noisy(Attention(8, 2))
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    allowed = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    q, k, v = attention.qkv(x).chunk(3, -1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2
        heads.append(scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ v[..., part])
    expected = attention.out(torch.cat(heads, -1))
    assert torch.allclose(attention(x, None, allowed), expected)
    assert not torch.allclose(attention(x), expected)


def test_rotary_angles_are_applied() -> None:
    attention = noisy(Attention(8, 2))
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    angles = rotary_angles(5, 4)
    plain, rotated = attention(x), attention(x, angles)
    assert not torch.allclose(plain, rotated, atol=1e-3)
    assert torch.allclose(attention(x, 0 * angles), plain)
    assert torch.allclose(attention(x, angles + 1.3), rotated, atol=1e-6), "only differences count"


def test_block_formula() -> None:
    block = noisy(Block(8, 2, 16))
    x, modulation = torch.randn(2, 5, 8).double(), torch.randn(2, 8, 8).double()
    s1, a1, g1, s2, a2, g2 = (part[:, None] for part in (modulation[:, :6] + block.bias).unbind(1))
    h = x + g1 * block.attention(F.layer_norm(x, (8,), eps=1e-6) * (1 + a1) + s1)
    inner = F.gelu(block.up(F.layer_norm(h, (8,), eps=1e-6) * (1 + a2) + s2), approximate="tanh")
    assert torch.allclose(block(x, modulation), h + g2 * block.down(inner))


def test_transformer_ends_with_its_own_modulation() -> None:
    model = noisy(Transformer(width=8, num_layers=3, num_heads=2, mlp_width=16))
    x, modulation = torch.randn(2, 5, 8).double(), torch.randn(2, 8, 8).double()
    h = x
    for block in model.blocks:
        h = block(h, modulation)
    shift, scale = (modulation[:, 6:] + model.out_bias).unbind(1)
    assert torch.allclose(model(x, modulation), modulate(h, shift, scale))
    blocks = [tuple(p.flatten()[:3].tolist()) for p in (block.up.weight for block in model.blocks)]
    assert len(set(blocks)) == 3, "every block has its own weights"


def test_one_modulation_for_all_layers() -> None:
    """App. A.1: no linear map per layer; a block's own share is 6 vectors."""
    modulation = SharedModulation(8, 12)
    assert (modulation(torch.randn(4, 8)) == 0).all(), "starts at zero"
    assert noisy(modulation)(torch.randn(4, 8).double()).shape == (4, 8, 8)
    assert Block(8, 2, 16).bias.shape == (6, 8)
