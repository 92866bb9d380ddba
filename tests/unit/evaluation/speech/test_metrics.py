"""Error rates, similarities and verification have the values that counting by hand gives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resgen.errors import DataError
from resgen.evaluation.speech.metrics import (
    NORMALISER,
    centroids,
    error_rates,
    mean_interval,
    nearest_speaker,
    normalise_transcript,
    ratio_interval,
    similarity,
    stoi,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t \u2014 stop!", "dont stop"),
        ("  co-op\tCaf\u00e9\n", "co op cafe"),
        ("7 3 5", "seven three five"),
        ("the 2nd of 1,200", "the second of one thousand two hundred"),
        ("1,2,3", "one two three"),
        ("3.50", "three point five zero"),
        ("12abc", "twelve abc"),
        ("9" * 61, " ".join(["nine"] * 61)),
        ("snake_case", "snake case"),
        ("?!", ""),
    ],
)
def test_normaliser(text: str, expected: str) -> None:
    assert normalise_transcript(text) == expected
    assert NORMALISER == "resgen-english-1"  # another result is another normaliser


@given(st.text(max_size=40))
def test_normaliser_is_idempotent(text: str) -> None:
    once = normalise_transcript(text)
    assert normalise_transcript(once) == once
    assert once == once.strip() and "  " not in once


def test_error_rates_pool_over_utterances() -> None:
    rates = error_rates(["one two three four", "Five!", "six"], ["one three four four", "5", ""])
    # a deletion and an insertion, none, a deletion: 3 errors of 6 words
    assert rates.words.value == pytest.approx(3 / 6)
    assert rates.num_words == 6 and rates.exact == pytest.approx(1 / 3)
    # "two " is gone and " four" is added, and the three letters of "six" are gone
    assert rates.characters.value == pytest.approx((4 + 5 + 3) / (18 + 4 + 3))
    assert 0 <= rates.words.interval.low < 0.5 < rates.words.interval.high


def test_error_rates_may_exceed_one_and_be_zero() -> None:
    assert error_rates(["one"], ["two three four"]).words.value == 3
    right = error_rates(["one", "two"], ["one", "Two."])
    assert right.words.value == right.characters.value == 0 and right.exact == 1
    assert (right.words.interval.low, right.words.interval.high) == (0, 0)


def test_error_rates_refuse_what_has_no_rate() -> None:
    with pytest.raises(DataError, match="one transcript per text"):
        error_rates(["one"], [])
    with pytest.raises(DataError, match="one transcript per text"):
        error_rates([], [])
    with pytest.raises(DataError, match=r"text 1 is '\.\.\.'"):
        error_rates(["one", "..."], ["one", ""])


def test_intervals_are_those_of_the_bootstrap() -> None:
    stream = torch.Generator().manual_seed(0)
    errors = (torch.rand(400, generator=stream) < 0.2).float()
    result = ratio_interval(errors, torch.ones(400), num_resamples=4000, stream=stream)
    share = float(errors.mean())
    expected = math.sqrt(share * (1 - share) / 400)  # of a binomial share
    assert result.std == pytest.approx(expected, rel=0.08)
    assert result.high - share == pytest.approx(1.96 * expected, rel=0.15)
    assert share - result.low == pytest.approx(1.96 * expected, rel=0.15)
    mean = mean_interval(errors, seed=1)
    assert mean.value == pytest.approx(share) and mean.interval.low < share < mean.interval.high
    assert mean_interval(errors, seed=1) == mean != mean_interval(errors, seed=2)
    with pytest.raises(DataError, match="at least 2"):
        ratio_interval(errors, errors, num_resamples=1, stream=stream)
    with pytest.raises(DataError, match="at least one"):
        mean_interval(torch.zeros(0))


def test_similarity_is_a_cosine() -> None:
    first, second = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [-1.0, -1.0]])
    assert similarity(first, second).tolist() == pytest.approx([1, -1])
    assert similarity(first[:1], second[1:]).item() == pytest.approx(-math.sqrt(0.5))


def test_stoi_falls_with_noise() -> None:
    time = torch.arange(16000) / 16000
    tones = (1 + torch.sin(2 * math.pi * 3 * time)) * torch.sin(2 * math.pi * 500 * time)
    tones = 0.3 * tones * (1 + torch.sin(2 * math.pi * 1200 * time))
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    values = [stoi(tones, tones + level * noise, 16000) for level in (0.0, 0.1, 1.0)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[0] > values[1] > values[2]
    with pytest.raises(DataError, match=r"0\.10 s"):
        stoi(tones[:1600], tones[:1600], 16000)


def _voices() -> tuple[torch.Tensor, torch.Tensor]:
    """Three speakers near the axes, four utterances each."""
    stream = torch.Generator().manual_seed(0)
    speakers = torch.arange(3).repeat_interleave(4)
    embeddings = torch.eye(3)[speakers] + 0.1 * torch.randn(12, 3, generator=stream)
    return torch.nn.functional.normalize(embeddings, dim=1), speakers


def test_nearest_speaker_is_that_of_the_centroids() -> None:
    embeddings, speakers = _voices()
    middle = centroids(embeddings, speakers, 3)
    assert torch.allclose(middle, torch.eye(3), atol=0.15)
    assert torch.allclose(middle.norm(dim=1), torch.ones(3))
    assert nearest_speaker(embeddings, speakers, middle).all()
    assert not nearest_speaker(embeddings, (speakers + 1) % 3, middle).any()
    with pytest.raises(DataError, match="at least one"):
        centroids(embeddings, speakers, 4)
