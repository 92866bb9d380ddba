"""Cross-entropy of codes against a slow float64 loop."""

from __future__ import annotations

import math

import pytest
import torch

from resgen.losses.tokens import masked_level_loss, token_loss


def slow(logits: torch.Tensor, code: int) -> float:
    row = logits.double().tolist()
    top = max(row)
    return top + math.log(sum(math.exp(value - top) for value in row)) - row[code]


def batch(rows: int = 7, depth: int = 3, size: int = 5, dtype: torch.dtype = torch.float32):
    stream = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(rows, depth, size, generator=stream)).to(dtype)
    codes = torch.randint(size, (rows, depth), generator=stream)
    visible = torch.arange(rows) % (depth + 1)
    return logits, codes, visible


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_loss_is_the_weighted_sum(dtype: torch.dtype) -> None:
    logits, codes, _ = batch(dtype=dtype)
    logits, codes = logits[:, 0].requires_grad_(), codes[:, 0]
    weight = 1 / (1 + torch.arange(7))
    loss = token_loss(logits, codes, weight)
    expected = sum(float(w) * slow(row, int(code)) for w, row, code in zip(weight, logits, codes, strict=True))
    assert loss.dtype == torch.float32 and math.isclose(loss.item(), expected, rel_tol=1e-5)
    loss.backward()
    one_hot = torch.nn.functional.one_hot(codes, 5)
    slope = weight[:, None] * (logits.detach().float().softmax(-1) - one_hot)
    assert torch.allclose(logits.grad.float(), slope, atol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_levels_only_and_by_level(dtype: torch.dtype) -> None:
    logits, codes, visible = batch(dtype=dtype)
    loss = masked_level_loss(logits, codes, visible)
    expected, counts = [0.0] * 3, [0] * 3
    for n in range(7):
        for level in range(int(visible[n]), 3):
            expected[level] += slow(logits[n, level], int(codes[n, level]))
            counts[level] += 1
    assert loss.total.dtype == loss.per_level.dtype == torch.float32
    assert torch.allclose(loss.per_level.double(), torch.tensor(expected).double(), rtol=1e-5)
    assert loss.counts.tolist() == counts == [2, 4, 6]
    assert math.isclose(float(loss.total), sum(expected), rel_tol=1e-5)


def test_only_masked_levels_get_a_gradient() -> None:
    logits, codes, visible = batch()
    masked = torch.arange(3) >= visible[:, None]
    logits[~masked] = torch.inf  # never looked at
    logits.requires_grad_()
    loss = masked_level_loss(logits, codes, visible)
    assert not loss.per_level.requires_grad
    loss.total.backward()
    slope = logits.detach().softmax(-1) - torch.nn.functional.one_hot(codes, 5)
    assert torch.allclose(logits.grad[masked], slope[masked], atol=1e-6)
    assert (logits.grad[~masked] == 0).all()


def test_nothing_masked_is_no_loss() -> None:
    logits, codes, _ = batch()
    loss = masked_level_loss(logits.requires_grad_(), codes, torch.full((7,), 3))
    loss.total.backward()
    assert loss.total == 0 and (loss.counts == 0).all() and (logits.grad == 0).all()


def test_sums_are_float32_for_bfloat16_logits() -> None:
    """2,000 equal losses of log 2: a sum in bfloat16 would stop at 256 or so."""
    logits = torch.zeros(2000, 1, 2, dtype=torch.bfloat16)
    codes = torch.zeros(2000, 1, dtype=torch.int64)
    loss = masked_level_loss(logits, codes, torch.zeros(2000, dtype=torch.int64))
    assert math.isclose(float(loss.total), 2000 * math.log(2), rel_tol=1e-5)


def test_decay_weighs_levels_by_their_distance_from_the_visible_ones() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    codes, visible = torch.zeros(4, 3, dtype=torch.int64), torch.tensor([0, 1, 2, 3])
    plain = masked_level_loss(logits, codes, visible)
    loss = masked_level_loss(logits, codes, visible, decay=0.5)
    nll = -logits.log_softmax(-1)[..., 0]
    expected = nll[0] @ torch.tensor([1, 0.5, 0.25]) + nll[1, 1:] @ torch.tensor([1, 0.5]) + nll[2, 2]
    assert torch.isclose(loss.total, expected) and float(loss.weight) == 1.75 + 1.5 + 1
    assert torch.equal(loss.per_level, plain.per_level) and float(plain.weight) == 6
    assert torch.isclose(plain.total, plain.per_level.sum())
