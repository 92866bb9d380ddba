"""Measures of generated speech: recognition errors, speaker similarity, intelligibility.

Word and character error rates compare a recogniser's transcript with the requested text, both through one
normaliser; similarities compare embeddings of a speaker encoder (Sec. 5.1 of the paper: SIM-o against the prompt as
it was recorded, SIM-r against the prompt after it went through the tokenizer).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.errors import DataError
from resgen.evaluation.image.metrics import Interval
from resgen.extras import import_extra
from resgen.ops.random import generator

NORMALISER = "resgen-english-1"
"""Name of what `normalise_transcript` does; raised with every change that alters a result."""

NUM_RESAMPLES = 1000
MIN_STOI_SECONDS = 0.4
_MAX_DIGITS = 60

_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.(\d+)|(st|nd|rd|th)\b)?")
_APOSTROPHES = re.compile(r"['\u2018\u2019\u02bc`\u00b4]")
_NOT_WORDS = re.compile(r"[^\w]|_")


class Rate(NamedTuple):
    """An error rate with its 95 % interval by bootstrap over the utterances."""

    value: float
    interval: Interval

    def percent(self) -> str:
        """For people."""
        return f"{self.value:.1%} ({self.interval.low:.1%} to {self.interval.high:.1%})"

    def document(self) -> dict[str, float]:
        """As JSON values."""
        return {"value": self.value, "low": self.interval.low, "high": self.interval.high}


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """How far transcripts are from the texts; rates are errors per word or character and may exceed 1.

    Attributes:
        words: word error rate.
        characters: character error rate; spaces count as characters.
        exact: share of the utterances without any error.
        num_words: words of all texts.
    """

    words: Rate
    characters: Rate
    exact: float
    num_words: int


def normalise_transcript(text: str) -> str:
    """The form in which texts and transcripts are compared.

    Lower case, Latin letters without accents, numbers and ordinals as words ("1,200" and "2nd" too), apostrophes
    dropped ("don't" is "dont"), other punctuation as a space, single spaces between words, none at the ends.

    Raises:
        MissingExtraError: there are digits and num2words is not installed.
    """
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = _NUMBER.sub(_spoken, text)
    text = _NOT_WORDS.sub(" ", _APOSTROPHES.sub("", text))
    return " ".join(text.split())


def error_rates(texts: Sequence[str], transcripts: Sequence[str]) -> ErrorRates:
    """Word and character error rates of transcripts, pooled over all utterances.

    Args:
        texts: what should have been said.
        transcripts: what was understood, one per text; may be empty.

    Raises:
        DataError: no texts, not one transcript per text, or a text without a word.
        MissingExtraError: jiwer is not installed.
    """
    jiwer = import_extra("jiwer", "speech-eval")
    if not texts or len(texts) != len(transcripts):
        raise DataError(f"{len(texts)} texts and {len(transcripts)} transcripts; one transcript per text is needed")
    counts = torch.zeros(4, len(texts), dtype=torch.float64)  # word errors, words, character errors, characters
    for i, (text, transcript) in enumerate(zip(texts, transcripts, strict=True)):
        expected, actual = normalise_transcript(text), normalise_transcript(transcript)
        if not expected:
            raise DataError(f"text {i} is {text!r}: it holds no word to be compared; leave it out")
        for row, result in (
            (0, jiwer.process_words(expected, actual)),
            (2, jiwer.process_characters(expected, actual)),
        ):
            counts[row, i] = result.substitutions + result.deletions + result.insertions
            counts[row + 1, i] = result.substitutions + result.deletions + result.hits
    stream = generator("error_rates", 0)
    return ErrorRates(
        words=_rate(counts[0], counts[1], stream),
        characters=_rate(counts[2], counts[3], stream),
        exact=float((counts[0] == 0).double().mean()),
        num_words=int(counts[1].sum()),
    )


def ratio_interval(
    numerators: Float[Tensor, " N"], denominators: Float[Tensor, " N"], *, num_resamples: int, stream: torch.Generator
) -> Interval:
    """95 % interval of `sum(numerators) / sum(denominators)`: quantiles over resamples of the N pairs.

    Raises:
        DataError: no pairs, or fewer than two resamples.
    """
    if num_resamples < 2 or len(numerators) < 1:
        raise DataError(f"num_resamples={num_resamples} must be at least 2 and {len(numerators)} pairs at least 1")
    rows = torch.randint(len(numerators), (num_resamples, len(numerators)), generator=stream)
    values = numerators.double()[rows].sum(1) / denominators.double()[rows].sum(1)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high, float(values.std()))


def similarity(first: Float[Tensor, "N E"], second: Float[Tensor, "N E"]) -> Float[Tensor, " N"]:
    """Cosine of the angle between the embeddings of each pair, -1..1.

    SIM-o where `second` is of the original prompts, SIM-r where it is of the prompts as the tokenizer returns them.
    """
    return torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=1).float()


def mean_interval(values: Float[Tensor, " N"], *, seed: int = 0) -> Rate:
    """Mean of values, one per utterance, with its 95 % interval by bootstrap.

    Raises:
        DataError: no values.
    """
    return _rate(values, torch.ones_like(values), generator("mean_interval", seed))


def stoi(reference: Float[Tensor, " S"], degraded: Float[Tensor, " S"], sample_rate_hz: int) -> float:
    """Short-time objective intelligibility (Taal et al., 2011): about 0 for unrelated sounds, 1 for equal ones.

    Raises:
        DataError: shorter than 0.4 s, of which the measure is made.
        MissingExtraError: pystoi is not installed.
    """
    pystoi = import_extra("pystoi", "speech-eval")
    seconds = len(reference) / sample_rate_hz
    if seconds < MIN_STOI_SECONDS:
        raise DataError(f"{seconds:.2f} s of sound are too short; STOI needs at least {MIN_STOI_SECONDS} s")
    first, second = (x.detach().cpu().double().numpy() for x in (reference, degraded))
    return float(pystoi.stoi(first, second, sample_rate_hz))


def centroids(embeddings: Float[Tensor, "N E"], speakers: Int[Tensor, " N"], num_speakers: int) -> Float[Tensor, "P E"]:
    """Mean embedding of each of P = `num_speakers` speakers, scaled to unit length.

    Raises:
        DataError: a speaker without an utterance.
    """
    counts = torch.bincount(speakers, minlength=num_speakers)
    if len(counts) != num_speakers or not bool((counts > 0).all()):
        raise DataError(f"speakers have {counts.tolist()} utterances; each of {num_speakers} needs at least one")
    sums = embeddings.new_zeros(num_speakers, embeddings.shape[1]).index_add_(0, speakers, embeddings)
    return torch.nn.functional.normalize(sums, dim=1)


def nearest_speaker(
    embeddings: Float[Tensor, "N E"], speakers: Int[Tensor, " N"], candidates: Float[Tensor, "P E"]
) -> Bool[Tensor, " N"]:
    """Whether the centroid of the right speaker is the nearest of all.

    Args:
        embeddings: unit length, of generated speech or of other recordings than the centroids were made of.
        speakers: right rows of `candidates`.
        candidates: `centroids` of every speaker to choose from.
    """
    return (embeddings.double() @ candidates.double().T).argmax(1) == speakers


def _rate(numerators: Tensor, denominators: Tensor, stream: torch.Generator) -> Rate:
    if not len(numerators):
        raise DataError("0 values; a mean needs at least one")
    value = float(numerators.double().sum() / denominators.double().sum())
    interval = ratio_interval(numerators, denominators, num_resamples=NUM_RESAMPLES, stream=stream)
    return Rate(value, interval)


def _spoken(number: re.Match[str]) -> str:
    """A number in words: cardinal, ordinal or with decimals; digit by digit where it is too long to have a name."""
    num2words = import_extra("num2words", "speech-eval").num2words
    whole, decimals, ordinal = number[1].replace(",", ""), number[2] or "", number[3]
    if len(whole) > _MAX_DIGITS:
        words = [num2words(int(c)) for c in whole]
    else:
        words = [num2words(int(whole), to="ordinal" if ordinal else "cardinal")]
    if decimals:
        words += ["point", *(num2words(int(c)) for c in decimals)]
    return f" {' '.join(words)} "
