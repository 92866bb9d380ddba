"""The chunked loss equals plain autograd, in bounded memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resgen.errors import ConfigError
from resgen.losses import mixture_loss
from resgen.models.head_choice import make_head
from resgen.models.heads import MixtureHead
from resgen.models.metric import MetricHead
from resgen.models.resgen import ResGenConfig
from resgen.types import CodeSpec

WIDTH, COMPONENTS, DIM, DEPTH, ROWS = 12, 7, 6, 3, 11


class _Watch(TorchDispatchMode):
    """Records the size of the largest output and the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return out


def _problem(
    rank: int | None = None, dtype: torch.dtype = torch.float32, metric: str = "triangular", fixed: bool = False
) -> tuple[MixtureHead | MetricHead, list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    sizes = {"num_components": COMPONENTS, "mean_rank": rank, "metric": metric, "fixed_means": fixed}
    config = ResGenConfig(width=WIDTH, num_heads=1, **sizes)
    head = make_head(config, CodeSpec(depth=DEPTH, codebook_size=9, code_dim=DIM, shape=(2,)))
    with torch.no_grad():
        for param in head.parameters():
            param.add_(0.1 * torch.randn_like(param))
    weight = torch.rand(ROWS)
    weight[3] = 0.0
    data = [torch.randn(ROWS, WIDTH), torch.randn(ROWS, DIM), weight]
    return head.to(dtype), [value.to(dtype) for value in data], torch.arange(ROWS) % DEPTH


def _gradients(head: MixtureHead, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    grads = {name: param.grad for name, param in head.named_parameters()} | {"hidden": hidden.grad}
    assert all(grad is not None for grad in grads.values())
    return {name: grad for name, grad in grads.items() if grad is not None}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["none", "triangular", "fixed"])
def test_equal_to_autograd(rank: int | None, chunk_size: int | None, dtype: torch.dtype, metric: str) -> None:
    fixed = metric == "fixed"
    head, (hidden, target, weight), visible = _problem(rank, dtype, "triangular" if fixed else metric, fixed)
    plain_head = copy.deepcopy(head)
    plain_hidden = hidden.clone().requires_grad_()
    hidden.requires_grad_()
    bound = plain_head(plain_hidden, target, visible, 0.02)
    plain = (bound.total * weight).sum()
    (3.0 * plain).backward()
    result = mixture_loss(head, hidden, target, visible, weight, 0.02, chunk_size)
    (3.0 * result.loss).backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    assert result.loss.dtype == dtype
    assert torch.allclose(result.loss, plain, **tolerance)
    assert torch.allclose(result.regression, (bound.regression * weight).sum(), **tolerance)
    assert torch.allclose(result.classification, (bound.classification * weight).sum(), **tolerance)
    assert not result.regression.requires_grad and not result.classification.requires_grad
    expected = _gradients(plain_head, plain_hidden)
    for name, grad in _gradients(head, hidden).items():
        assert torch.allclose(grad, expected[name], **tolerance), name
    assert (hidden.grad[3] == 0).all()


def test_under_autocast() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    full = mixture_loss(head, hidden, target, visible, weight, 0.01)
    full.loss.backward()
    expected = {name: param.grad.clone() for name, param in head.named_parameters()}
    head.zero_grad()
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = mixture_loss(head, hidden * 1, target, visible, weight, 0.01, 3)
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert torch.allclose(result.loss, full.loss, rtol=2e-2)
    for name, param in head.named_parameters():
        assert param.grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(param.grad.flatten(), expected[name].flatten(), dim=0) > 0.999


def test_hidden_in_bfloat16_gets_a_bfloat16_gradient() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    hidden = hidden.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixture_loss(head, hidden, target, visible, weight, 0.01, 4).loss.backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_frozen_parameters_get_no_gradient() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    head.means.weight.requires_grad_(False)
    mixture_loss(head, hidden, target, visible, weight, 0.01, 4).loss.backward()
    assert head.means.weight.grad is None
    assert head.means.bias.grad is not None and head.means.bias.grad.abs().sum() > 0
    head.requires_grad_(False)
    hidden.requires_grad_()
    mixture_loss(head, hidden, target, visible, weight, 0.01, 4).loss.backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert head.means.bias.grad is not None


def test_frozen_parameters_cost_nothing() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    counts = []
    for trained in (True, False):
        head.means.weight.requires_grad_(trained)
        with _Watch() as watch:
            mixture_loss(head, hidden, target, visible, weight, 0.01, 4)
        counts.append(sum("mm" in name for name in watch.names))
    assert counts[1] == counts[0] - 3  # one product per chunk


def test_no_rows() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    hidden = hidden[:0].requires_grad_()
    result = mixture_loss(head, hidden, target[:0], visible[:0], weight[:0], 0.01)
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    for grad in _gradients(head, hidden).values():
        assert (grad == 0).all()


def test_weights_of_zero() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    result = mixture_loss(head, hidden, target, visible, torch.zeros_like(weight), 0.01, 4)
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    assert all((param.grad == 0).all() for param in head.parameters())


@pytest.mark.parametrize("grad", [True, False])
def test_never_more_than_one_chunk_of_means(grad: bool) -> None:
    head = MixtureHead(width=2, num_components=16, code_dim=8)
    hidden, target, weight = torch.randn(64, 2), torch.randn(64, 8), torch.ones(64)
    visible = torch.zeros(64, dtype=torch.int64)
    with _Watch() as watch, torch.set_grad_enabled(grad):
        result = mixture_loss(head, hidden, target, visible, weight, 0.01, chunk_size=4)
        if grad:
            result.loss.backward()
    # The full logits or targets (64 x 16) are larger than this chunk; the full means would be 8,192 numbers.
    assert watch.largest <= max(4 * 16 * 8, 64 * 16)


def test_no_gradient_work_without_grad() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    hidden.requires_grad_()
    with _Watch() as watch, torch.no_grad():
        result = mixture_loss(head, hidden, target, visible, weight, 0.01, 4)
    assert not result.loss.requires_grad
    assert not any("backward" in name for name in watch.names)
    with _Watch() as watch:
        again = mixture_loss(head, hidden, target, visible, weight, 0.01, 4)
    assert any("backward" in name for name in watch.names)
    assert torch.equal(result.loss, again.loss.detach())
    assert torch.equal(result.regression, again.regression)


def test_retained_graph_may_run_twice() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    loss = mixture_loss(head, hidden, target, visible, weight, 0.01, 4).loss
    first = torch.autograd.grad(loss, head.means.bias, retain_graph=True)[0]
    second = torch.autograd.grad(2 * loss, head.means.bias)[0]
    assert torch.allclose(2 * first, second)


def test_wrong_arguments() -> None:
    head, (hidden, target, weight), visible = _problem(metric="none")
    with pytest.raises(ConfigError, match="chunk_size=0"):
        mixture_loss(head, hidden, target, visible, weight, 0.01, 0)
