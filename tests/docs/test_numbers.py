"""Numbers that users read are those of the reports: each sentence here stands on its page with the report's value."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CARDS = "src/resgen/assets"
SENTENCES = "speech/english-small-sentences"
UNSEEN = "speech/english-small-teacher-unseen"
# Page, sentence, report, where in it, format: digits after the point, with % for shares.
NUMBERS = [
    ("README.md", "style in {} (real faces", "avatars64-attributes", "axes style guided share", "1%"),
    ("README.md", "hair colour in {}, skin", "avatars64-attributes", "axes hair guided share", "0%"),
    ("README.md", "skin colour in {}; `thumbs`", "avatars64-attributes", "axes skin guided share", "0%"),
    ("README.md", "class recognised in {} of guided", "evaluate-fashion-mnist-small", "generation 0 recognised", "0%"),
    (
        "README.md",
        "class recognised in {} (real images: 91 %)",
        "evaluate-cifar10-8x8",
        "generation 0 recognised",
        "0%",
    ),
    ("README.md", "{} of words misheard by a recogniser", SENTENCES, "scores all wer value", "0%"),
    ("README.md", "({} in long sentences", SENTENCES, "scores kind long wer value", "0%"),
    ("README.md", "{} in very short ones", SENTENCES, "scores kind short wer value", "0%"),
    (
        "README.md",
        "{} of samples (an unseen real",
        "speech/spoken-digits-small-test_unseen",
        "scores 0 nearest value",
        "0%",
    ),
    ("docs/results/avatars.md", "| guided | **{}**", "evaluate-avatars64", "generation 0 recognised", "1%"),
    ("docs/results/avatars.md", "| **{}** (2.2 to 7.0)", "evaluate-avatars64", "generation 0 distance", "1"),
    ("docs/results/avatars.md", "held-out faces, {} dB", "evaluate-avatars64-tokenizer", "reconstruction psnr_db", "1"),
    (
        "docs/results/avatars.md",
        "missed**: rFD {} (2,000",
        "evaluate-avatars64-tokenizer",
        "reconstruction distance",
        "1",
    ),
    (
        "docs/results/comparisons.md",
        "to **{}** ([report]",
        "evaluate-fashion-mnist-decoder",
        "reconstruction distance",
        "1",
    ),
    ("docs/results/images.md", "16 guided steps | {} |", "fashion-mnist-class-accuracy", "runs 1 share", "1%"),
    ("docs/results/speech.md", "in turn | **{} (", SENTENCES, "scores all wer value", "1%"),
    ("docs/results/speech.md", "60 sentences | **{} (", UNSEEN, "scores 0 wer value", "1%"),
    ("docs/results/speech.md", "mixtures of the same voices) {} |", UNSEEN, "scores 0 nearest value", "0%"),
    ("docs/faq.md", "54 synthetic voices | {} (1,254", UNSEEN, "scores 0 nearest value", "0%"),
    ("docs/results/README.md", "`english-small`: word error rate | **{}** (", SENTENCES, "scores all wer value", "0%"),
    (f"{CARDS}/english-small/README.md", "in its own voices | {} (", SENTENCES, "scores all wer value", "1%"),
    (f"{CARDS}/english-small/README.md", "60 sentences | {} (", UNSEEN, "scores 0 wer value", "1%"),
    (f"{CARDS}/english-small/README.md", "in {} of cases (recordings", UNSEEN, "scores 0 nearest value", "0%"),
]


@pytest.mark.parametrize(("page", "sentence", "report", "place", "form"), NUMBERS)
def test_a_page_gives_the_number_of_the_report(page: str, sentence: str, report: str, place: str, form: str) -> None:
    value = found(load(report), place.split())
    number = f"{100 * value:.{form[:-1]}f} %" if form.endswith("%") else f"{value:.{form}f}"
    assert sentence.format(number) in (ROOT / page).read_text(encoding="utf-8"), f"{report} has {value}"


def test_candidates_are_counted() -> None:
    assert len(load(UNSEEN)["protocol"]["candidates"]) == 1254  # as FAQ, card and results say


@cache
def load(report: str) -> Any:
    return json.loads((ROOT / "docs/results" / f"{report}.json").read_text(encoding="utf-8"))


def found(document: Any, place: list[str]) -> float:
    """What lies at a path; keys may hold a space."""
    while place:
        if isinstance(document, list):
            document, place = document[int(place[0])], place[1:]
        else:
            size = next(size for size in (1, 2) if " ".join(place[:size]) in document)
            document, place = document[" ".join(place[:size])], place[size:]
    return float(document)
