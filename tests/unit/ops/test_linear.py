"""Linear maps in one kernel: the same numbers as in several."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from resgen.ops import linear as ops_linear
from resgen.ops.linear import feed_forward, fuses, linear

BF16 = torch.bfloat16


def inputs(dtype: torch.dtype, rows: int = 70) -> tuple[torch.Tensor, ...]:
    stream = torch.Generator().manual_seed(0)
    shapes = ((rows, 2, 32), (64, 32), (64,), (16, 64), (16,))
    return tuple(torch.randn(shape, generator=stream).mul_(0.3).to(dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BF16], ids=str)
def test_linear(dtype: torch.dtype) -> None:
    x, weight, bias, *_ = inputs(dtype)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    with_gelu = linear(x, weight, bias, gelu=True)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    assert with_gelu.dtype == dtype and with_gelu.shape == (70, 2, 64)
    assert torch.allclose(with_gelu.double(), exact, atol=2e-2 if dtype == BF16 else 1e-6)


def test_one_kernel_rounds_once() -> None:
    x, weight, bias, *_ = inputs(BF16)
    if not fuses(x, weight):
        pytest.skip("this processor or build has no such kernel")
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    once, twice = linear(x, weight, bias, gelu=True), F.gelu(F.linear(x, weight, bias), approximate="tanh")
    errors = [(value.double() - exact).abs().mean() for value in (once, twice)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_feed_forward_in_parts(dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, up, up_bias, down, down_bias = inputs(dtype, rows)
    expected = F.linear(F.gelu(F.linear(x, up, up_bias), approximate="tanh"), down, down_bias)
    for elements in (1 << 22, 64 * 48):
        monkeypatch.setattr(ops_linear, "CHUNK_ELEMENTS", elements)
        value = feed_forward(x, up, up_bias, down, down_bias)
        assert value.shape == (rows, 2, 16) and value.dtype == dtype
        assert torch.allclose(value, expected, atol=3e-2 if dtype == BF16 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_gradients_flow(dtype: torch.dtype) -> None:
    values = [value.requires_grad_() for value in inputs(dtype)]
    assert not fuses(values[0], values[1])
    copies = [value.detach().clone().requires_grad_() for value in values]
    feed_forward(*values).float().square().sum().backward()
    x, up, up_bias, down, down_bias = copies
    out = F.linear(F.gelu(F.linear(x, up, up_bias), approximate="tanh"), down, down_bias)
    out.float().square().sum().backward()
    for one, other in zip(values, copies, strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)
