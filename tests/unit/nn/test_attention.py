"""Causal attention, segments and the key-value cache."""

from __future__ import annotations

import pytest
import torch

from resgen.errors import ConfigError
from resgen.nn.attention import Attention, plain_attention
from resgen.nn.cache import KeyValueCache, new_caches
from resgen.nn.positions import rotary_angles
from resgen.nn.transformer import Transformer


def noisy(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return module


@pytest.mark.parametrize("trained", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("masked", [False, True])
def test_causal_attention_is_attention_to_each_prefix(trained: bool, masked: bool) -> None:
    attention = noisy(Attention(8, 2)).requires_grad_(trained)
    x = torch.randn(3, 6, 8)
    allowed = (torch.arange(6) < torch.tensor([6, 4, 2])[:, None]) if masked else None
    out = attention(x, None, allowed, causal=True)
    for i in range(6):
        prefix = attention(x[:, : i + 1], None, None if allowed is None else allowed[..., : i + 1])
        assert torch.allclose(out[:, i], prefix[:, i], atol=1e-5)
    assert not torch.allclose(out[:, 0], attention(x, None, allowed)[:, 0], atol=1e-2)


@pytest.mark.parametrize("trained", [False, True], ids=["fused", "plain"])
def test_segments_are_sequences_of_their_own(trained: bool) -> None:
    attention = noisy(Attention(8, 2)).requires_grad_(trained)
    x, angles = torch.randn(2, 12, 8), rotary_angles(4, 4)
    out = attention(x, angles, causal=True, segment=4)
    assert out.shape == x.shape
    for part in range(3):
        piece = slice(4 * part, 4 * part + 4)
        assert torch.allclose(out[:, piece], attention(x[:, piece], angles, causal=True), atol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * 7, [3, 1, 2, 1], [7]], ids=str)
@pytest.mark.parametrize("rotary", [False, True])
def test_a_cache_gives_what_the_whole_sequence_gives(pieces: list[int], rotary: bool) -> None:
    model = noisy(Transformer(width=8, num_layers=3, num_heads=2, mlp_width=16)).requires_grad_(False)
    x, modulation = torch.randn(2, 7, 8), torch.randn(2, 8, 8)
    angles = rotary_angles(7, 4) if rotary else None
    whole = model(x, modulation, angles, causal=True)
    caches = new_caches(len(model.blocks), 7)
    for _ in range(2):  # the second time in the buffers of the first
        parts, begin = [], 0
        for size in pieces:
            piece = slice(begin, begin + size)
            here = None if angles is None else angles[piece]
            parts.append(model(x[:, piece], modulation, here, causal=True, caches=caches))
            begin += size
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
        for cache in caches:
            cache.reset()


def test_a_cache_is_written_in_place_and_has_an_end() -> None:
    cache = KeyValueCache(3)
    keys, values = cache.append(torch.ones(2, 4, 2, 5), torch.zeros(2, 4, 2, 5))
    where = keys.data_ptr()
    keys, values = cache.append(torch.full((2, 4, 1, 5), 2.0), torch.full((2, 4, 1, 5), 3.0))
    assert keys.data_ptr() == where and cache.length == 3
    assert keys[0, 0, :, 0].tolist() == [1, 1, 2] and values[0, 0, :, 0].tolist() == [0, 0, 3]
    with pytest.raises(ConfigError, match="4 positions do not fit into a cache for 3"):
        cache.append(torch.ones(2, 4, 1, 5), torch.ones(2, 4, 1, 5))
    cache.reset()
    assert cache.append(torch.ones(2, 4, 1, 5), torch.ones(2, 4, 1, 5))[0].shape == (2, 4, 1, 5)


@pytest.mark.parametrize("masked", [False, True])
def test_sampling_in_bfloat16_rounds_as_training_does(masked: bool) -> None:
    attention = noisy(Attention(16, 2)).bfloat16()
    x = torch.randn(3, 6, 16).bfloat16()
    allowed = (torch.arange(6) < torch.tensor([6, 4, 2])[:, None]) if masked else None
    trained = attention.requires_grad_(True)(x, None, allowed)
    with torch.inference_mode():
        assert torch.equal(attention(x, None, allowed), trained)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_query_that_may_attend_to_nothing_poisons_nothing(gradients: bool) -> None:
    x = torch.randn(2, 3, 16, requires_grad=gradients)
    out = Attention(16, 2).requires_grad_(gradients)(x, None, torch.tensor([[True] * 3, [False] * 3]))
    assert out.isfinite().all()
    if gradients:
        out.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()


def test_the_softmax_of_a_training_step_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: seen.append(x.dtype) or softmax(x, dim))
    q, k, v = torch.randn(3, 1, 2, 5, 4).bfloat16().requires_grad_().unbind()
    assert plain_attention(q, k, v).dtype == torch.bfloat16
    assert seen == [torch.float32]
