"""Monotonic alignment against a slow dynamic programme and against all paths; expansion; the prior."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resgen.errors import ConfigError, DataError
from resgen.ops import alignment
from resgen.ops.alignment import alignment_prior, expand, fitted_durations, monotonic_alignment, timed_alignment


def slow_durations(scores: Tensor) -> list[int]:
    """Durations of one sample, [N, T], by the plain recursion of Glow-TTS; of equal paths the earlier move wins."""
    num_tokens, num_frames = scores.shape
    best = [[-math.inf] * num_frames for _ in range(num_tokens)]
    for t in range(num_frames):
        for n in range(min(t + 1, num_tokens)):
            stay = best[n][t - 1] if t else (0.0 if n == 0 else -math.inf)
            move = best[n - 1][t - 1] if t and n else -math.inf
            best[n][t] = max(stay, move) + float(scores[n, t])
    durations, n = [0] * num_tokens, num_tokens - 1
    for t in range(num_frames - 1, -1, -1):
        durations[n] += 1
        if t and n and (n == t or best[n - 1][t - 1] > best[n][t - 1]):
            n -= 1
    return durations


def path_score(scores: Tensor, durations: list[int]) -> float:
    token = [n for n, count in enumerate(durations) for _ in range(count)]
    return sum(float(scores[n, t]) for t, n in enumerate(token))


@st.composite
def batches(draw) -> tuple[Tensor, Tensor, Tensor]:
    batch = draw(st.integers(1, 4))
    texts = [draw(st.integers(1, 7)) for _ in range(batch)]
    frames = [count + draw(st.integers(0, 9)) for count in texts]
    shape = (batch, max(texts) + draw(st.integers(0, 2)), max(frames) + draw(st.integers(0, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(-3, 4, shape) if draw(st.booleans()) else rng.normal(size=shape)  # with and without ties
    return torch.tensor(values, dtype=torch.float64), torch.tensor(texts), torch.tensor(frames)


def divisions(total: int, count: int) -> list[tuple[int, ...]]:
    """All ways to give `total` frames to `count` tokens, at least one to each."""
    cuts = itertools.combinations(range(1, total), count - 1)
    return [tuple(b - a for a, b in itertools.pairwise((0, *cut, total))) for cut in cuts]


@settings(max_examples=100, deadline=None)
@given(batches(), st.sampled_from([0.0, 0.3, 4.0, 100.0]), st.integers(0, 2**32 - 1))
def test_timed_alignment_is_the_best_of_all_divisions(case: tuple[Tensor, Tensor, Tensor], weight: float, seed) -> None:
    scores, texts, frames = case
    expected = torch.tensor(np.random.default_rng(seed).normal(1.0, 0.7, scores.shape[:2]))
    durations = timed_alignment(scores, texts, frames, expected, weight)
    assert durations.dtype == torch.int64

    def value(sample: int, division: tuple[int, ...]) -> float:
        off = sum((math.log(d) - float(m)) ** 2 for d, m in zip(division, expected[sample], strict=False))
        return path_score(scores[sample], list(division)) - weight / 2 * off

    for b, (count, total) in enumerate(zip(texts.tolist(), frames.tolist(), strict=True)):
        chosen = tuple(durations[b, :count].tolist())
        assert sum(chosen) == total and min(chosen) >= 1 and not durations[b, count:].any()
        best = max(value(b, division) for division in divisions(total, count))
        assert value(b, chosen) == pytest.approx(best, abs=1e-9)


def test_timed_alignment_follows_what_is_expected_where_the_scores_say_nothing() -> None:
    expected = torch.tensor([[2.0, 7.0, 3.0], [5.0, 4.0, 99.0]]).log()
    durations = timed_alignment(torch.zeros(2, 3, 12), torch.tensor([3, 2]), torch.tensor([12, 9]), expected, 1.0)
    assert durations.tolist() == [[2, 7, 3], [5, 4, 0]]


def test_timed_alignment_keeps_long_pauses_and_padding_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "LONGEST_FRAMES", 4)
    scores = torch.full((1, 3, 40), -5.0)
    scores[0, 0, :3], scores[0, 1, 3:26], scores[0, 2, 26:30] = 0.0, 0.0, 0.0
    scores[:, :, 30:] = math.nan  # padding
    durations = timed_alignment(scores, torch.tensor([3]), torch.tensor([30]), torch.ones(1, 3), 0.1)
    # No token is longer than twice what is even: 20 of 30 frames. Of the 3 others that suit the second, its neighbours
    # take some.
    assert durations.sum() == 30 and durations.max() == 20 and durations[0, 1] == 20


def test_timed_alignment_does_not_know_the_rest_of_its_batch() -> None:
    """Not even where another sample has fewer tokens and more frames, so that its tokens may be longer."""
    scores = torch.zeros(2, 10, 400)
    scores[0, :, :200] = -5.0
    ends = [8, 16, 24, 32, 152, 160, 168, 176, 184, 200]
    for token, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        scores[0, token, begin:end] = 0.0
    texts, frames, expected = torch.tensor([10, 2]), torch.tensor([200, 400]), torch.full((2, 10), math.log(20))
    both = timed_alignment(scores, texts, frames, expected, 0.1)
    alone = timed_alignment(scores[:1, :, :200], texts[:1], frames[:1], expected[:1], 0.1)
    assert both[0].tolist() == alone[0].tolist() and alone.max() == alignment.LONGEST_FRAMES


def test_timed_alignment_refuses_what_it_cannot_compare() -> None:
    one, zeros = torch.tensor([1]), torch.zeros(1, 1)
    with pytest.raises(DataError, match="NaN or infinity"):
        timed_alignment(torch.full((1, 1, 2), -math.inf), one, torch.tensor([2]), zeros, 1.0)
    with pytest.raises(DataError, match="NaN or infinity"):
        timed_alignment(torch.zeros(1, 1, 2), one, torch.tensor([2]), zeros + math.nan, 1.0)
    with pytest.raises(DataError, match="2 text tokens but only 1 frames"):
        timed_alignment(torch.zeros(1, 2, 2), torch.tensor([2]), one, torch.zeros(1, 2), 1.0)
    assert timed_alignment(torch.zeros(0, 3, 5), one[:0], one[:0], torch.zeros(0, 3), 1.0).shape == (0, 3)


@settings(max_examples=150, deadline=None)
@given(batches())
def test_equals_the_slow_recursion(case: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, texts, frames = case
    durations = monotonic_alignment(scores, texts, frames)
    assert durations.dtype == torch.int64
    for b, (count, total) in enumerate(zip(texts.tolist(), frames.tolist(), strict=True)):
        assert durations[b, :count].tolist() == slow_durations(scores[b, :count, :total])
        assert not durations[b, count:].any()
        assert int(durations[b].sum()) == total


def test_best_of_all_paths() -> None:
    scores = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(3))
    durations = monotonic_alignment(scores, torch.tensor([4]), torch.tensor([9]))[0].tolist()
    cuts = itertools.combinations(range(1, 9), 3)
    paths = [[b - a for a, b in itertools.pairwise((0, *cut, 9))] for cut in cuts]
    assert durations == max(paths, key=lambda path: path_score(scores[0], path))


def test_as_many_tokens_as_frames_and_a_single_token() -> None:
    scores = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    durations = monotonic_alignment(scores, torch.tensor([5, 1]), torch.tensor([5, 5]))
    assert durations.tolist() == [[1, 1, 1, 1, 1], [5, 0, 0, 0, 0]]


def test_what_is_beyond_the_lengths_is_ignored() -> None:
    scores = torch.randn(3, 6, 12, generator=torch.Generator().manual_seed(1))
    texts, frames = torch.tensor([4, 6, 1]), torch.tensor([9, 12, 3])
    expected = monotonic_alignment(scores, texts, frames)
    for b in range(3):
        scores[b, texts[b] :] = math.nan
        scores[b, :, frames[b] :] = math.nan
    assert torch.equal(monotonic_alignment(scores, texts, frames), expected)


def test_forbidden_pairs_are_avoided_where_that_is_possible() -> None:
    scores = torch.zeros(1, 2, 4)
    scores[0, 0, 1] = -math.inf
    scores[0, 1, 3] = 5.0
    assert monotonic_alignment(scores, torch.tensor([2]), torch.tensor([4])).tolist() == [[1, 3]]
    scores[0, :, 1] = -math.inf
    durations = monotonic_alignment(scores, torch.tensor([2]), torch.tensor([4]))
    assert int(durations.min()) >= 1 and int(durations.sum()) == 4


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_every_kind_of_score_gives_a_best_path(kind: torch.dtype) -> None:
    scores = torch.randn(2, 20, 300, generator=torch.Generator().manual_seed(4)).to(kind)
    durations = monotonic_alignment(scores, torch.tensor([20, 13]), torch.tensor([300, 211]))
    for b, (count, total) in enumerate(((20, 300), (13, 211))):
        exact = scores[b, :count, :total].double()
        best = path_score(exact, slow_durations(exact))
        assert path_score(exact, durations[b, :count].tolist()) == pytest.approx(best, abs=1e-3)


def test_alignment_errors_name_the_numbers() -> None:
    scores = torch.zeros(2, 5, 6)
    with pytest.raises(DataError, match="sample 1 has 5 text tokens but only 4 frames"):
        monotonic_alignment(scores, torch.tensor([2, 5]), torch.tensor([6, 4]))
    with pytest.raises(ConfigError, match=r"text_lengths span 0\.\.5; allowed: 1\.\.5"):
        monotonic_alignment(scores, torch.tensor([0, 5]), torch.tensor([6, 6]))
    with pytest.raises(ConfigError, match=r"frame_lengths span 6\.\.7; allowed: 1\.\.6"):
        monotonic_alignment(scores, torch.tensor([1, 5]), torch.tensor([6, 7]))
    scores[0, 0, 0] = math.nan
    with pytest.raises(DataError, match="NaN"):
        monotonic_alignment(scores, torch.tensor([5, 5]), torch.tensor([6, 6]))


def test_no_samples() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    assert monotonic_alignment(torch.zeros(0, 3, 4), empty, empty).shape == (0, 3)


@settings(max_examples=50, deadline=None)
@given(
    durations=st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=3),
    num_frames=st.integers(1, 24),
)
def test_expand_repeats_then_zeros(durations: list[list[int]], num_frames: int) -> None:
    hidden = torch.arange(1.0, len(durations) * 10 + 1).reshape(-1, 5, 2)
    result = expand(hidden, torch.tensor(durations), num_frames)
    for b, counts in enumerate(durations):
        expected = torch.zeros(num_frames, 2)
        repeated = hidden[b].repeat_interleave(torch.tensor(counts), dim=0)[:num_frames]
        expected[: len(repeated)] = repeated
        assert torch.equal(result[b], expected)


def test_expand_passes_gradients_and_refuses_no_frames() -> None:
    hidden = torch.ones(1, 3, 2, requires_grad=True)
    expand(hidden, torch.tensor([[2, 0, 5]]), 4).sum().backward()
    assert hidden.grad is not None and hidden.grad[0, :, 0].tolist() == [2.0, 0.0, 2.0]
    with pytest.raises(ConfigError, match="num_frames=0"):
        expand(hidden, torch.tensor([[1, 1, 1]]), 0)


@pytest.mark.parametrize("strength", [0.2, 1.0, 3.0])
def test_prior_is_the_beta_binomial_law(strength: float) -> None:
    from scipy.stats import betabinom

    texts, frames = torch.tensor([5, 1, 3]), torch.tensor([11, 7, 3])
    prior = alignment_prior(texts, frames, 6, 12, strength=strength)
    assert prior.dtype == torch.float64
    for b, (count, total) in enumerate(zip(texts.tolist(), frames.tolist(), strict=True)):
        time = np.arange(1, total + 1)
        law = betabinom(count - 1, strength * time, strength * (total + 1 - time))
        expected = law.logpmf(np.arange(count)[:, None])
        np.testing.assert_allclose(prior[b, :count, :total].numpy(), expected, atol=1e-9)
        assert not prior[b, count:].any() and not prior[b, :, total:].any()


def test_prior_alone_aligns_evenly() -> None:
    texts, frames = torch.tensor([8]), torch.tensor([64])
    durations = monotonic_alignment(alignment_prior(texts, frames, 8, 64), texts, frames)
    assert int(durations.min()) >= 5 and int(durations.max()) <= 11


def test_prior_errors() -> None:
    with pytest.raises(ConfigError, match="strength=0.0"):
        alignment_prior(torch.tensor([1]), torch.tensor([1]), 1, 1, strength=0.0)
    with pytest.raises(ConfigError, match=r"text_lengths span 4\.\.4; allowed: 1\.\.3"):
        alignment_prior(torch.tensor([4]), torch.tensor([5]), 3, 5)


@given(st.lists(st.floats(0.01, 30.0), min_size=1, max_size=12), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_fitted_durations_sum_up(exact: list[float], more: int) -> None:
    durations = fitted_durations(torch.tensor(exact), len(exact) + more)
    assert int(durations.min()) >= 1 and int(durations.sum()) == len(exact) + more


def test_fitted_durations_keep_proportions() -> None:
    exact = torch.tensor([1.0, 3.0, 5.0, 0.5])
    assert fitted_durations(exact, 10).tolist() == [1, 3, 5, 1], "as they are, where they fit"
    assert fitted_durations(exact, 22).tolist() == [1, 7, 13, 1], "what is beyond 1 is stretched"
    assert fitted_durations(exact, 4).tolist() == [1, 1, 1, 1]
    assert fitted_durations(torch.tensor([0.2, 0.6]), 10).tolist() == [3, 7], "none is beyond 1"
    assert fitted_durations(torch.full((6,), 4 / 3), 8).tolist() == [1, 2, 1, 1, 2, 1], "ends are rounded"
    with pytest.raises(ConfigError, match="total=3 must be at least 4"):
        fitted_durations(exact, 3)
