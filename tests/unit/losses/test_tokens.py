"""Cross-entropy of codes against a slow float64 loop."""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any

import pytest
import torch

from resgen.losses.tokens import level_weight, masked_level_loss, token_loss
from resgen.ops import blocks


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


WIDTH, DEPTH, SIZE, DIM, ROWS = 6, 3, 5, 4, 11


def head_batch(dtype: torch.dtype = torch.float64, steered: bool = True) -> dict[str, Any]:
    """Arguments of `masked_level_loss`; what is trained requires its gradient."""
    stream = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64).to(dtype)

    given = {
        "hidden": drawn(ROWS, WIDTH).requires_grad_(),
        "codes": torch.randint(SIZE, (ROWS, DEPTH), generator=stream),
        "visible": torch.arange(ROWS) % (DEPTH + 1),
        "weight": drawn(DEPTH, SIZE, WIDTH).requires_grad_(),
        "bias": drawn(DEPTH, SIZE).requires_grad_(),
    }
    if steered:
        given |= {"above": drawn(ROWS, DEPTH, DIM), "steering": drawn(DEPTH, DIM, SIZE).requires_grad_()}
    return given


def trained(given: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in given.values() if isinstance(value, torch.Tensor) and value.requires_grad]


def plain(given: dict[str, Any], decay: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits at once, and the weighted and plain sums of the masked ones."""
    logits = torch.einsum("no,dvo->ndv", given["hidden"], given["weight"]) + given["bias"]
    if "above" in given:
        logits = logits + torch.einsum("ndh,dhv->ndv", given["above"], given["steering"])
    nll = -logits.log_softmax(-1).gather(2, given["codes"][..., None]).squeeze(2)
    beyond = torch.arange(DEPTH) - given["visible"][:, None]
    nll = nll * (beyond >= 0)
    return (nll * decay ** beyond.clamp(min=0)).sum(), nll.sum(0)


@pytest.mark.parametrize("steered", [True, False])
@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("block", [None, 2 * SIZE])
def test_masked_levels_equal_autograd_through_all_logits(
    steered: bool, decay: float, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block is not None:
        monkeypatch.setattr(blocks, "CPU_BLOCK", ContextVar("CPU_BLOCK", default=block))
    given = head_batch(steered=steered)
    loss = masked_level_loss(**given, decay=decay)
    total, per_level = plain(given, decay)
    assert loss.total.dtype == torch.float64 and not loss.per_level.requires_grad
    assert torch.allclose(loss.total, total, rtol=1e-12) and torch.allclose(loss.per_level, per_level, rtol=1e-12)
    expected_weight = {1.0: 18, 0.5: 3 * 1.75 + 3 * 1.5 + 3}[decay]
    assert float(level_weight(given["visible"], DEPTH, decay)) == expected_weight
    grads = torch.autograd.grad(3 * loss.total, trained(given))
    expected = torch.autograd.grad(3 * total, trained(given))
    assert len(grads) == 3 + steered
    for grad, reference in zip(grads, expected, strict=True):
        assert torch.allclose(grad, reference, rtol=1e-10, atol=1e-12)


def test_masked_levels_equal_the_slow_formula() -> None:
    given = head_batch(torch.float32, steered=False)
    logits = torch.einsum("no,dvo->ndv", given["hidden"], given["weight"]) + given["bias"]
    loss = masked_level_loss(**given)
    expected = sum(
        slow(logits[n, level], int(given["codes"][n, level]))
        for n in range(ROWS)
        for level in range(int(given["visible"][n]), DEPTH)
    )
    assert loss.total.dtype == loss.per_level.dtype == torch.float32
    assert math.isclose(float(loss.total.detach()), expected, rel_tol=1e-5)


def test_visible_levels_are_never_looked_at() -> None:
    given = head_batch()
    hidden = given["hidden"].detach().clone()
    hidden[given["visible"] == DEPTH] = torch.nan
    loss = masked_level_loss(**given | {"hidden": hidden.requires_grad_()})
    loss.total.backward()
    assert loss.total.isfinite() and (hidden.grad[given["visible"] == DEPTH] == 0).all()
    assert given["weight"].grad.isfinite().all()


def test_nothing_masked_is_no_loss() -> None:
    given = head_batch() | {"visible": torch.full((ROWS,), DEPTH)}
    loss = masked_level_loss(**given)
    loss.total.backward()
    assert loss.total == 0 and level_weight(given["visible"], DEPTH, 0.5) == 0 and (given["weight"].grad == 0).all()


def test_products_in_bfloat16_and_sums_in_float32() -> None:
    """Under autocast: as near as its rounding to float32, gradients in the type of their parameter; and 2,000 losses
    of log 2 are summed in float32 (a sum in bfloat16 would stop at 256 or so)."""
    given = head_batch(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_level_loss(**given)
    assert loss.total.dtype == torch.float32 and torch.allclose(loss.total, plain(given)[0], rtol=0.02)
    grads = torch.autograd.grad(loss.total, trained(given))
    exact = torch.autograd.grad(plain(given)[0], trained(given))
    for grad, reference in zip(grads, exact, strict=True):
        assert grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(grad.flatten(), reference.flatten(), dim=0) > 0.999
    rows, zeros = torch.zeros(2000, 3), torch.zeros(2000, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_level_loss(rows, zeros[:, None], zeros, torch.zeros(1, 2, 3), torch.zeros(1, 2))
    assert math.isclose(float(loss.total), 2000 * math.log(2), rel_tol=1e-5) and not loss.total.requires_grad
