"""Residual quantization: against a loop over rows, with starts per row, chunks, ties and precisions."""

from __future__ import annotations

import math
from contextvars import ContextVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resgen.ops import blocks
from resgen.ops.blocks import walk_levels
from resgen.ops.code_usage import code_histogram, usage_and_perplexity
from resgen.ops.residual import (
    confidence_unit,
    consistent_codes,
    first_least,
    residual_decode,
    residual_encode,
    residual_suffix,
)

PROBLEMS = {
    "rows": st.integers(0, 9),
    "depth": st.integers(1, 4),
    "size": st.integers(1, 6),
    "dim": st.integers(1, 4),
    "seed": st.integers(0, 2**31),
}
problems = given(**PROBLEMS)
quick = settings(deadline=None, max_examples=40)


def _integers(rows: int, depth: int, size: int, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, codebooks and starts of small integers: float32 is exact on them and ties are frequent."""
    stream = torch.Generator().manual_seed(seed)
    latents = torch.randint(-5, 6, (rows, dim), generator=stream).float()
    codebooks = torch.randint(-3, 4, (depth, size, dim), generator=stream).float()
    return latents, codebooks, torch.randint(0, depth + 1, (rows,), generator=stream)


def _brute_force(latents: Tensor, codebooks: Tensor, start: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    books = codebooks.double().numpy()
    all_codes, all_errors = [], []
    for row, first in zip(latents.double().numpy(), start.tolist(), strict=True):
        codes, errors = [0] * len(books), [0.0] * len(books)
        residual = row
        for level in range(first, len(books)):
            distances = [float(((residual - entry) ** 2).sum()) for entry in books[level]]
            codes[level] = distances.index(min(distances))
            residual = residual - books[level][codes[level]]
            errors[level] = float((residual**2).sum())
        all_codes.append(codes)
        all_errors.append(errors)
    return all_codes, all_errors


@quick
@problems
def test_equals_brute_force_with_ties(rows: int, depth: int, size: int, dim: int, seed: int) -> None:
    latents, codebooks, start = _integers(rows, depth, size, dim, seed)
    for first in (None, start):
        codes, errors = residual_encode(latents, codebooks, first)
        wanted_codes, wanted_errors = _brute_force(
            latents, codebooks, torch.zeros_like(start) if first is None else first
        )
        assert codes.dtype == torch.int64 and errors.dtype == torch.float32
        assert codes.shape == errors.shape == (rows, depth)
        assert codes.tolist() == wanted_codes
        assert errors.tolist() == wanted_errors


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(64, 130),
    size=st.sampled_from([512, 576, 1024]),
    depth=st.integers(1, 3),
    scale=st.sampled_from([1e-40, 1e-25, 1e-6, 1.0, 1e6, 1e15]),
    nearness=st.sampled_from([0.0, 1e-7, 1e-3, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_codes_of_many_rows_and_hard_codebooks_are_the_nearest(
    rows: int, size: int, depth: int, scale: float, nearness: float, seed: int
) -> None:
    """Codes that are equal or nearly so, rows of zeros, huge, tiny and denormal numbers: against float64."""
    stream = torch.Generator().manual_seed(seed)
    codebooks = torch.randn(depth, 1, 7, generator=stream) + nearness * torch.randn(depth, size, 7, generator=stream)
    codebooks[:, torch.randperm(size, generator=stream)[: size // 8]] = 0.0
    codebooks, latents = codebooks * scale, torch.randn(rows, 7, generator=stream) * scale
    codes, _ = residual_encode(latents, codebooks)
    residual, books = latents.double(), codebooks.double()
    for level in range(depth):
        largest = residual.norm(dim=1) + books[level].norm(dim=1).max()
        distance = (residual[:, None] - books[level]).square().sum(2)
        chosen = distance.gather(1, codes[:, level, None]).squeeze(1)
        assert (chosen - distance.amin(1) <= 32 * 2**-24 * largest.square() + 1e-44).all()
        residual = residual - books[level][codes[:, level]]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(64, 130),
    size=st.sampled_from([512, 576, 1024]),
    values=st.integers(1, 1000),
    exponent=st.integers(-149, 100),
    infinite=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_the_first_least_of_many(rows: int, size: int, values: int, exponent: int, infinite: float, seed: int) -> None:
    """With every kind of tie: few values, equal columns, signs, denormal numbers, infinities."""
    stream = torch.Generator().manual_seed(seed)
    distance = torch.randint(-values, values + 1, (rows, size), generator=stream).double() * 2.0**exponent
    distance = distance[:, torch.randint(0, size, (size,), generator=stream)].float()
    distance[torch.rand(rows, size, generator=stream) < infinite] = torch.inf
    assert first_least(distance).tolist() == distance.numpy().argmin(1).tolist()


def test_many_rows_take_the_lower_of_equal_codes() -> None:
    """As few rows do, which are searched in one stage."""
    stream = torch.Generator().manual_seed(3)
    latents = torch.randint(-5, 6, (200, 3), generator=stream).float()
    codebooks = torch.randint(-3, 4, (2, 512, 3), generator=stream).float()  # 343 codes at most: many are equal
    codes, _ = _brute_force(latents, codebooks, torch.zeros(200, dtype=torch.int64))
    assert residual_encode(latents, codebooks).codes.tolist() == codes
    assert residual_encode(latents[:50], codebooks).codes.tolist() == codes[:50]


def test_codebooks_that_are_trained_by_gradients_are_searched() -> None:
    stream = torch.Generator().manual_seed(0)
    codebooks, latents = torch.randn(2, 512, 4, generator=stream), torch.randn(100, 4, generator=stream)
    codes, errors = residual_encode(latents, codebooks)
    again = residual_encode(latents, torch.nn.Parameter(codebooks))
    assert torch.equal(again.codes, codes) and torch.equal(again.errors, errors) and not again.errors.requires_grad


def test_equals_brute_force_on_gaussians() -> None:
    stream = torch.Generator().manual_seed(0)
    latents = torch.randn(50, 8, generator=stream)
    codebooks = torch.randn(5, 32, 8, generator=stream) * torch.tensor([1, 0.8, 0.6, 0.4, 0.2])[:, None, None]
    codes, errors = residual_encode(latents, codebooks)
    wanted_codes, wanted_errors = _brute_force(latents, codebooks, torch.zeros(50, dtype=torch.int64))
    assert codes.tolist() == wanted_codes
    np.testing.assert_allclose(errors.numpy(), wanted_errors, rtol=1e-5, atol=1e-6)


@quick
@given(**PROBLEMS, chunk=st.integers(1, 10))
def test_chunks_change_nothing(rows: int, depth: int, size: int, dim: int, seed: int, chunk: int) -> None:
    latents, codebooks, start = _integers(rows, depth, size, dim, seed)
    for first in (None, start):
        whole = residual_encode(latents, codebooks, first)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "CPU_BLOCK", ContextVar("CPU_BLOCK", default=chunk * size))
            parts = residual_encode(latents, codebooks, first)
        assert torch.equal(whole.codes, parts.codes)
        assert torch.equal(whole.errors, parts.errors)


@quick
@problems
def test_start_per_row_equals_each_row_alone(rows: int, depth: int, size: int, dim: int, seed: int) -> None:
    latents, codebooks, start = _integers(rows, depth, size, dim, seed)
    together = residual_encode(latents, codebooks, start)
    for row, first in enumerate(start.tolist()):
        alone = residual_encode(latents[row : row + 1], codebooks[first:]) if first < depth else None
        for got, expected in zip(together, alone or (torch.zeros(1, 0), torch.zeros(1, 0)), strict=True):
            assert got[row, :first].eq(0).all()
            assert got[row, first:].tolist() == expected[0].tolist()


def test_inputs_stay_as_they_are() -> None:
    stream = torch.Generator().manual_seed(1)
    latents = torch.randn(6, 3, generator=stream, requires_grad=True)
    codebooks = torch.randn(2, 4, 3, generator=stream)
    start = torch.tensor([0, 1, 2, 0, 1, 2])
    copies = latents.detach().clone(), codebooks.clone(), start.clone()
    for first in (None, start):
        errors = residual_encode(latents, codebooks, first).errors
        assert not errors.requires_grad
    assert torch.equal(latents.detach(), copies[0])
    assert torch.equal(codebooks, copies[1])
    assert torch.equal(start, copies[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    stream = torch.Generator().manual_seed(2)
    latents = torch.randn(200, 8, generator=stream).to(dtype)
    codebooks = torch.randn(4, 64, 8, generator=stream)
    result, expected = residual_encode(latents, codebooks), residual_encode(latents.float(), codebooks)
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.errors, expected.errors)


def test_autocast_changes_nothing() -> None:
    stream = torch.Generator().manual_seed(3)
    latents, codebooks = torch.randn(300, 16, generator=stream), torch.randn(4, 128, 16, generator=stream)
    expected = residual_encode(latents, codebooks)
    with torch.autocast("cpu", torch.bfloat16):
        result = residual_encode(latents, codebooks)
        decoded = residual_decode(result.codes, codebooks)
        assert (latents @ codebooks[0].T).dtype == torch.bfloat16, "autocast is not active: the test shows nothing"
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.errors, expected.errors)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, residual_decode(expected.codes, codebooks))


@quick
@problems
def test_decode_identities(rows: int, depth: int, size: int, dim: int, seed: int) -> None:
    latents, codebooks, visible = _integers(rows, depth, size, dim, seed)
    codes, errors = residual_encode(latents, codebooks)
    everything = residual_decode(codes, codebooks)
    assert torch.equal(everything, residual_decode(codes, codebooks, depth))
    assert torch.equal(everything, residual_decode(codes, codebooks, depth + 3))
    for level in range(depth + 1):
        prefix = residual_decode(codes, codebooks, level)
        explicit = sum((codebooks[j][codes[:, j]] for j in range(level)), torch.zeros(rows, dim))
        assert torch.equal(prefix, explicit)
        assert torch.equal(prefix + residual_decode(codes[:, level:], codebooks[level:]), everything)
        if level:
            assert torch.equal((latents - prefix).square().sum(-1), errors[:, level - 1])
    mixed = residual_decode(codes, codebooks, visible)
    for row, count in enumerate(visible.tolist()):
        assert torch.equal(mixed[row], residual_decode(codes[row], codebooks, count))
    assert torch.equal(mixed + residual_suffix(codes, codebooks, visible), everything)


def test_suffix_encodes_to_the_same_codes_from_its_start() -> None:
    """The sampler's round: the exact sum of well separated masked levels gives back the masked codes."""
    stream = torch.Generator().manual_seed(4)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    codebooks = signs[None] * torch.tensor([9.0, 3.0, 1.0])[:, None, None]
    codes = torch.randint(0, 4, (40, 3), generator=stream)
    visible = torch.randint(0, 4, (40,), generator=stream)
    codes_again, errors = residual_encode(residual_suffix(codes, codebooks, visible), codebooks, visible)
    masked = torch.arange(3) >= visible[:, None]
    assert torch.equal(codes_again[masked], codes[masked])
    assert errors[visible < 3, -1].eq(0).all()


def test_decode_keeps_leading_shape() -> None:
    codebooks = torch.arange(24.0).reshape(2, 3, 4)
    codes = torch.tensor([[[0, 2], [1, 0]], [[2, 1], [0, 0]], [[1, 1], [2, 2]]])
    decoded = residual_decode(codes, codebooks)
    assert decoded.shape == (3, 2, 4)
    assert decoded[1, 0].tolist() == (codebooks[0, 2] + codebooks[1, 1]).tolist()


def test_histogram_counts_valid_positions_only() -> None:
    codes = torch.tensor([[[0, 1], [2, 1], [2, 0]], [[1, 2], [2, 2], [0, 0]]])
    assert code_histogram(codes, 3).tolist() == [[2, 1, 3], [2, 2, 2]]
    valid = torch.tensor([[True, True, False], [False, True, False]])
    assert code_histogram(codes, 3, valid).tolist() == [[1, 0, 2], [0, 2, 1]]
    assert code_histogram(codes, 4, torch.zeros_like(valid)).tolist() == [[0] * 4, [0] * 4]


def test_usage_and_perplexity_known_answers() -> None:
    histogram = torch.tensor([[5, 5, 5, 5], [7, 0, 0, 0], [0, 3, 0, 3], [4, 2, 1, 1], [0, 0, 0, 0]])
    usage, perplexity = usage_and_perplexity(histogram)
    assert usage.tolist() == [1.0, 0.25, 0.5, 1.0, 0.0]
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 0.25 * math.log(8)
    assert perplexity.tolist() == pytest.approx([4.0, 1.0, 2.0, math.exp(entropy), 1.0], rel=1e-12)


# Scores of the sampler.


def test_scores_are_errors_in_the_unit_of_their_level() -> None:
    """Of 8 = 7 + 1 + 0 and of 1.5 from level 1 on: |residual|^2 / (2 sigma^2), negative; 0 at visible levels."""
    codebooks = torch.tensor([[[7.0]], [[1.0]], [[0.5]]])
    unit = confidence_unit(torch.tensor([2.0, 1.0, 0.5]))
    assert unit.tolist() == [-0.125, -0.5, -2.0]
    codes, scores = residual_encode(torch.tensor([[9.0], [3.0]]), codebooks, torch.tensor([0, 1]), unit=unit)
    assert codes.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert scores.tolist() == [[-0.5, -0.5, -0.5], [0.0, -2.0, -4.5]]


def test_what_is_not_drawn_has_the_least_score() -> None:
    start, end = torch.tensor([0, 1]), torch.tensor([1, 1])
    scores = residual_encode(
        torch.zeros(2, 1), torch.zeros(3, 2, 1), start, walk=walk_levels(start, end), unit=-torch.ones(3)
    ).errors
    assert scores.tolist() == [[0.0, -torch.inf, -torch.inf], [0.0, -torch.inf, -torch.inf]]


def test_a_deviation_of_zero_is_finite_for_exact_codes() -> None:
    codebooks = torch.tensor([[[2.0]]])
    scores = residual_encode(torch.tensor([[2.0]]), codebooks, torch.tensor([0]), unit=confidence_unit(torch.zeros(1)))
    assert scores.errors.tolist() == [[0.0]]


@quick
@given(**{**PROBLEMS, "rounds": st.integers(0, 30)})
def test_consistent_codes_are_the_codes_of_their_sum(
    rows: int, depth: int, size: int, dim: int, seed: int, rounds: int
) -> None:
    latents, codebooks, start = _integers(rows, depth, size, dim, seed)
    codes = residual_encode(latents, codebooks).codes
    expected = codes.clone()
    for _ in range(rounds):  # all rows in every round; those that have settled stay
        expected = residual_encode(residual_decode(expected, codebooks), codebooks).codes
    settled = consistent_codes(codes, codebooks, rounds)
    assert torch.equal(settled, expected)
    again = residual_encode(residual_decode(settled, codebooks), codebooks).codes
    rows_settled = (again == settled).all(1)
    exact = residual_encode(residual_suffix(settled, codebooks, start), codebooks, start).codes
    masked = torch.arange(depth) >= start[:, None]
    assert torch.equal(
        (exact == settled)[rows_settled] | ~masked[rows_settled],
        torch.ones_like(settled[rows_settled], dtype=torch.bool),
    )


def test_consistent_codes_settle() -> None:
    """Codes of an encoder's output mostly do not belong to their sum; a few rounds later nearly all do."""
    stream = torch.Generator().manual_seed(0)
    codebooks = torch.randn(4, 32, 8, generator=stream) / torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1)
    codes = residual_encode(torch.randn(2000, 8, generator=stream), codebooks).codes

    def share_changed(codes: Tensor) -> float:
        return float(
            (residual_encode(residual_decode(codes, codebooks), codebooks).codes != codes).any(1).float().mean()
        )

    assert share_changed(codes) > 0.1 and share_changed(consistent_codes(codes, codebooks, 50)) < 0.01
