"""Nucleus sampling from given uniform numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resgen.errors import ConfigError
from resgen.ops.sampling import _descending, nucleus_choice

PROBS = [0.1, 0.4, 0.2, 0.3]  # sorted: items 1, 3, 2, 0


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(1e-6, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.89, [1, 3, 2]), (1.0, [1, 3, 2, 0])],
)
def test_frequencies_are_the_renormalised_nucleus(top_p: float, nucleus: list[int]) -> None:
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    items = nucleus_choice(torch.tensor(PROBS).log().expand(10_000, 4), uniform, top_p)
    expected = torch.zeros(4)
    expected[nucleus] = torch.tensor(PROBS)[nucleus]
    share = torch.bincount(items, minlength=4) / 10_000
    assert torch.allclose(share, expected / expected.sum(), atol=2e-4)


def test_choice_inverts_the_distribution() -> None:
    logits = torch.tensor(PROBS).log().expand(6, 4)
    uniform = torch.tensor([0.0, 0.39, 0.41, 0.69, 0.71, 0.999])
    assert nucleus_choice(logits, uniform, 1.0).tolist() == [0, 1, 1, 2, 3, 3]


def test_excluded_items_are_never_chosen() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]]).expand(3, 4)
    uniform = torch.tensor([0.0, 0.5, 1.0 - 2.0**-24])
    assert nucleus_choice(logits, uniform, 1.0).tolist() == [1, 3, 3]
    rounds_to_one = torch.tensor([1.0 - 2.0**-53], dtype=torch.float64)
    for count in range(1, 100):  # for some counts the running sum of equal probabilities ends below 1
        logits = torch.tensor([[0.0] * count + [-torch.inf]])
        assert nucleus_choice(logits, rounds_to_one, 1.0).tolist() == [count - 1]


def test_full_nucleus_keeps_the_tail() -> None:
    # The running sum of 1,024 equal probabilities passes 1 by rounding; the last items must stay reachable.
    uniform = torch.tensor([1.0 - 2.0**-24])
    logits = torch.linspace(3, 0, 1000)[None]
    assert nucleus_choice(logits, uniform, 1.0).item() >= 998
    spread = torch.zeros(4096, 1000)
    items = nucleus_choice(spread, torch.arange(4096) / 4096, 1.0)
    assert len(items.unique()) == 1000


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1.0), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_choice_is_in_the_nucleus(seed: int, top_p: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(20, 17, generator=generator)).to(dtype)
    uniform = torch.rand(20, generator=generator)
    items = nucleus_choice(logits, uniform, top_p)
    probs = logits.double().softmax(-1)
    own = probs.gather(1, items[:, None])
    mass_above = probs.where(probs > own, 0.0).sum(1)
    assert (mass_above < top_p + 1e-5).all()


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.01])
def test_top_p_out_of_range(top_p: float) -> None:
    with pytest.raises(ConfigError, match="top_p"):
        nucleus_choice(torch.zeros(1, 2), torch.zeros(1), top_p)


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
def test_sorting_as_integers_is_a_stable_sort(rounded: bool) -> None:
    probs = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).mul_(3).softmax(-1)
    probs[:, ::7] = 0.0
    if rounded:
        probs = probs.bfloat16().float()
    ordered, items = _descending(probs)
    expected = probs.double().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ordered, expected.values.float()) and torch.equal(items, expected.indices)
