"""The heads that predict codes: every level on its own, or each given the ones above it."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import torch

from resgen.errors import ConfigError
from resgen.kinds import heads as kind_heads
from resgen.kinds.objective import GeneratorLossConfig
from resgen.losses.tokens import residual_above
from resgen.models import token_head
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.models.token_head import TokenHead
from resgen.ops import blocks
from resgen.ops.blocks import walk_levels
from resgen.ops.residual import Codebooks
from resgen.types import CodeSpec, ProposalNoise

WIDTH, DEPTH, SIZE, ROWS, DIM = 6, 3, 5, 40, 4
BOOKS = (
    torch.randn(DEPTH, SIZE, DIM, generator=torch.Generator().manual_seed(8))
    / torch.tensor([1.0, 2.0, 4.0])[:, None, None]
)


@pytest.fixture(params=[None, DIM], ids=["direct", "residual"])
def head(request: pytest.FixtureRequest) -> TokenHead:
    torch.manual_seed(0)
    head = TokenHead(WIDTH, DEPTH, SIZE, request.param)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=stream)
    uniform = torch.rand(ROWS, DEPTH, dtype=torch.float64, generator=stream)
    return hidden, torch.arange(ROWS) % (DEPTH + 1), uniform


def propose(
    head: TokenHead, hidden: torch.Tensor, visible: torch.Tensor, uniform: torch.Tensor, books=BOOKS, **settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """All masked levels."""
    noise = ProposalNoise(uniform, uniform.new_zeros(len(uniform), 0))
    walk = walk_levels(visible, torch.full_like(visible, head.depth))
    return head.propose(hidden, visible, Codebooks.of(books, torch.ones(len(books))), noise, walk, **settings)


def logits_of(head: TokenHead, hidden: torch.Tensor, codes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Teacher-forced logits."""
    return head(hidden, residual_above(codes, BOOKS, visible)).detach()


def test_logits_are_the_formula(head: TokenHead) -> None:
    """Against the docstring's formula, one number at a time, in float64."""
    hidden, visible, _ = inputs()
    codes = torch.randint(SIZE, (ROWS, DEPTH), generator=torch.Generator().manual_seed(5))
    logits = logits_of(head, hidden, codes, visible)
    assert logits.shape == (ROWS, DEPTH, SIZE) and logits.dtype == torch.float32
    for n in (0, 1, 2, 3, 17):
        for level in range(DEPTH):
            above = torch.zeros(DIM, dtype=torch.float64)
            for i in range(int(visible[n]), level):
                above += BOOKS[i, codes[n, i]].double()
            for v in range(SIZE):
                row = level * SIZE + v
                value = head.logits.weight[row].double() @ hidden[n].double() + head.logits.bias[row].double()
                if head.steering is not None:
                    value = value + above @ head.steering[level, :, v].double()
                assert abs(float(logits[n, level, v]) - float(value.detach())) < 1e-4


def test_the_likelihood_of_codes(head: TokenHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over the masked levels; independent ones do without the sums above, which are N x D x H numbers."""
    hidden, visible, _ = inputs()
    codes = torch.randint(SIZE, (ROWS, DEPTH), generator=torch.Generator().manual_seed(5))
    log_prob = logits_of(head, hidden, codes, visible).log_softmax(-1).gather(2, codes[..., None]).squeeze(2)
    masked = torch.arange(DEPTH) >= visible[:, None]
    if head.steering is None:
        monkeypatch.setattr(kind_heads, "residual_above", None)
    monkeypatch.setattr(kind_heads, "VALIDATION_ROWS", 3)
    name = "tokens" if head.steering is None else "residual"
    config = ResGenConfig(width=WIDTH, num_layers=1, num_heads=1, head=name)
    model = ResGen(config, CodeSpec(depth=DEPTH, codebook_size=SIZE, code_dim=DIM, shape=(2,)), head)
    model.codebooks = BOOKS
    loss = kind_heads.CodesLoss(model, head, GeneratorLossConfig())
    with torch.no_grad():
        assert torch.allclose(loss.nll(hidden, codes, visible), -(log_prob * masked).sum(1), rtol=1e-5, atol=1e-5)
        assert loss.loss((hidden, codes, visible), visible[None])[0].isfinite()


def test_only_masked_levels_above_matter(head: TokenHead) -> None:
    hidden, visible, _ = inputs()
    codes = torch.zeros(ROWS, DEPTH, dtype=torch.int64)
    other = codes.clone()
    other[:, 1] = 3
    first, second = (logits_of(head, hidden, value, visible) for value in (codes, other))
    assert torch.equal(first[:, :2], second[:, :2]), "a level sees itself or what lies below"
    changed = (first[:, 2] != second[:, 2]).any(1)
    assert torch.equal(changed, (visible <= 1) & (head.steering is not None))


def test_a_residual_head_starts_as_one_of_independent_levels() -> None:
    assert not TokenHead(WIDTH, DEPTH, SIZE, DIM).steering.any()


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (1.0, 0.5), (0.6, 1.0)])
def test_codes_are_drawn_from_each_levels_logits(head: TokenHead, top_p: float, temperature: float) -> None:
    """Against inversion by hand; log-probabilities are the head's own whatever the settings."""
    hidden, visible, uniform = inputs()
    codes, log_probs = propose(head, hidden, visible, uniform, top_p=top_p, temperature=temperature)
    logits = logits_of(head, hidden, codes, visible)
    own = logits.log_softmax(-1)
    probs = (logits.double() / temperature).softmax(-1)
    for n in range(ROWS):
        for level in range(DEPTH):
            if level < visible[n]:
                assert codes[n, level] == 0 and log_probs[n, level] == 0
                continue
            code = int(codes[n, level])
            assert torch.isclose(log_probs[n, level], own[n, level, code], atol=1e-5)
            p = probs[n, level]
            if top_p == 1:
                assert p[:code].sum() - 1e-6 <= uniform[n, level] <= p[: code + 1].sum() + 1e-6
            else:
                assert p[p > p[code]].sum() < top_p + 1e-6, "outside the nucleus"


def test_draws_follow_the_distribution(head: TokenHead) -> None:
    hidden = inputs()[0][:1].expand(20_000, -1)
    uniform = torch.rand(20_000, DEPTH, generator=torch.Generator().manual_seed(2))
    start = torch.zeros(20_000, dtype=torch.int64)
    codes, _ = propose(head, hidden, start, uniform, temperature=2.0)
    every = torch.cartesian_prod(*(torch.arange(SIZE) for _ in range(DEPTH)))
    logits = logits_of(head, hidden[: len(every)], every, start[: len(every)]) / 2
    probs = logits.log_softmax(-1).gather(2, every[..., None]).sum((1, 2)).exp()
    assert torch.isclose(probs.sum(), torch.tensor(1.0), atol=1e-4)
    place = (codes * torch.tensor([SIZE**2, SIZE, 1])).sum(1)
    assert torch.allclose(torch.bincount(place, minlength=SIZE**DEPTH) / 20_000, probs, atol=0.012)


def test_chunks_and_other_rows_change_nothing(head: TokenHead, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, visible, uniform = inputs()
    codes, log_probs = propose(head, hidden, visible, uniform)
    assert codes.unique().numel() == SIZE
    monkeypatch.setattr(blocks, "CPU_BLOCK", ContextVar("CPU_BLOCK", default=3 * SIZE))
    for rows in (slice(None), slice(7, 8), slice(30, 40)):
        some = propose(head, hidden[rows], visible[rows], uniform[rows])
        assert torch.equal(some[0], codes[rows]) and torch.allclose(some[1], log_probs[rows], atol=1e-6)
    none = propose(head, hidden[:0], visible[:0], uniform[:0])
    assert none[0].shape == none[1].shape == (0, DEPTH)


def test_memory_is_bounded_at_the_papers_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 levels of 1024: no more logits at one time than `CPU_BLOCK`."""
    seen = []
    choice = token_head.nucleus_choice
    monkeypatch.setattr(
        token_head, "nucleus_choice", lambda logits, *rest: (seen.append(logits.numel()), choice(logits, *rest))[1]
    )
    monkeypatch.setattr(blocks, "CPU_BLOCK", ContextVar("CPU_BLOCK", default=1 << 16))
    head = TokenHead(8, 16, 1024)
    visible = torch.zeros(200, dtype=torch.int64)
    propose(head, torch.randn(200, 8), visible, torch.rand(200, 16), torch.randn(16, 1024, 3))
    assert max(seen) == 1 << 16 and sum(seen) == 200 * 16 * 1024


def test_a_bfloat16_head_gives_float32(head: TokenHead) -> None:
    hidden, visible, uniform = inputs()
    codes, log_probs = propose(head.bfloat16(), hidden.bfloat16(), visible, uniform)
    logits = logits_of(head, hidden.bfloat16(), codes, visible)
    assert logits.dtype == log_probs.dtype == torch.float32
    drawn = logits.log_softmax(-1).gather(2, codes[..., None]).squeeze(2)
    assert torch.allclose(torch.where(torch.arange(DEPTH) >= visible[:, None], drawn, 0), log_probs, atol=0.15)


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_settings_are_refused(head: TokenHead, changes: dict[str, float]) -> None:
    (name, value) = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        propose(head, *inputs(), **changes)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="depth=0"):
        TokenHead(4, 0, 5)
