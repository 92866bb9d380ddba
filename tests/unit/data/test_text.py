"""Text for speech: normalised words, byte tokens, sentences."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resgen.data.text import (
    BOUNDARY,
    FIRST_BYTE,
    NUM_TOKENS,
    alphabet_of,
    as_bytes,
    check_symbols,
    normalise_text,
    pad_texts,
    split_sentences,
    token_ids,
)
from resgen.errors import ConfigError, DataError
from resgen.extras import MissingExtraError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!\n", "hello, world!"),
        ("the 1st, 22nd and 103RD", "the first, twenty second and one hundred and third"),
        ("in 1984, 2005 or 1900.", "in nineteen eighty four, two thousand and five or nineteen hundred."),
        ("1,000 of 1,234", "one thousand of one thousand two hundred and thirty four"),
        ("3.14, .5 and 0.50", "three point one four, point five and zero point five zero"),
        ("$5 and $1", "five dollars and one dollar"),
        ("$5.50, $0.01", "five dollars and fifty cents, one cent"),
        ("£2.01 or €3.5 million", "two pounds and one penny or three point five million euros"),
        ("50% of 4", "fifty percent of four"),
        ("agent 007", "agent zero zero seven"),
        ("at 10:30, 9:05 and 7:00", "at ten thirty, nine oh five and seven o'clock"),
        ("the 1990s and '80s", "the nineteen nineties and eighties"),
        ("1990-1995, 555-1", "nineteen ninety to nineteen ninety five, five hundred and fifty five one"),
        ("-5, 24/7, 2½ and 3/4", "minus five, twenty four seven, two and one half and three quarters"),
        ("COVID-19, 4x4", "covid nineteen, four x four"),
        ("Dr. Who, Mr. and Mrs. Jones", "doctor who, mister and missus jones"),
        ("St. Paul, 12 Elm St. He left.", "saint paul, twelve elm street. he left."),
        ("cats, etc. Then dogs, etc., and so on, etc.", "cats, et cetera. then dogs, et cetera, and so on, et cetera."),
        ("e.g. the U.S. army, J. R. R. Tolkien", "for example the u s army, j r r tolkien"),
        ("No. 5 & no more", "number five and no more"),
        ("“Don’t,” she said; ‘it’s the dogs’ bone’…", "don't, she said, it's the dogs bone."),
        ("wait -- what?!! (really) no – yes", "wait, what? really no, yes"),
        ("well-known, ,. twenty-one", "well known. twenty one"),
        ("... so", "so"),
        ("zero\u200bwidth soft\u00adhyphen tab\there", "zerowidth softhyphen tab here"),
        ("Café 日本 😀", "café 日本 😀"),
        (
            "10² is 100, 10⁵ and 10^6",
            "ten squared is one hundred, ten to the power of five and ten to the power of six",
        ),
        ("1\u202f000 and 2\u00a0000\u00a0000", "one thousand and two million"),
        ("10 \u2212 3, 10\u22123 and \u22123", "ten minus three, ten minus three and minus three"),
        ("5 m², 3km³ at 10⁻³", "five m squared, three km cubed at ten to the power of minus three"),
        ("(2)², x¹, a note¹² in 2024¹ or 2024²", "two squared, x, a note in twenty twenty four or twenty twenty four"),
        ("①② ⑩❶ Ⅷ ㉑", "one two ten one eight twenty one"),
        ("H₂O, ٣ and 𝟏𝟐, 4ᵗʰ №\u00a05™", "h two o, three and twelve, fourth number five"),
        ("It costs 5€.", "it costs five euros."),
        (
            "5 €, 5,50 €, 5.01€, 3 million €",
            "five euros, five euros and fifty cents, five euros and one cent, three million euros",
        ),
        (
            "$5M, $5k, $1.5bn, $2 Thousand",
            "five million dollars, five thousand dollars, one point five billion dollars, two thousand dollars",
        ),
        ("¥500, ₹1, 5¢, a € or $", "five hundred yen, one rupee, five cents, a euro or dollar"),
        ("-$5, $-5.50", "minus five dollars, minus five dollars and fifty cents"),
        (
            "10%-20%, 10-20%, 10% – 20%",
            "ten to twenty percent, ten to twenty percent, ten to twenty percent",
        ),
        (
            "$5-10 or $5M–$10M or 1.5€-2€",
            "five to ten dollars or five million dollars to ten million dollars or one point five to two euros",
        ),
        ("5°-10°, 20%-10%", "five to ten degrees, twenty to ten percent"),
        (
            "$½, £¾, €2½, $½ million",
            "half a dollar, three quarters of a pound, two and one half euros, one half million dollars",
        ),
        ("2×3 ÷ 4 ± 1‰", "two times three divided by four plus or minus one per mille"),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise_text(text) == expected


PIECES = [
    *"ab Zs.,?!'\"-–&%$€:/()_^²⁻①°×",
    "Dr",
    "St",
    "etc",
    "12",
    "1984",
    "0",
    "½",
    "é",
    "th",
    "e.g.",
    "\u200d",
    "´",
    "İ",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_normalised_text_stays_and_has_only_words_and_pauses(text: str) -> None:
    result = normalise_text(text)
    assert normalise_text(result) == result
    assert result == " ".join(result.split())
    ascii_part = {character for character in result if character < "\x80"}
    assert ascii_part <= set("abcdefghijklmnopqrstuvwxyz .,?!'")


DIGITS = "9" * 4301
FORMS = [
    "{}",
    "${}",
    "{}€",
    "${}.{}M",
    "{}th",
    "1 {}/2",
    "{}/2",
    "{}%-{}%",
    "10^{}",
    "x²{}",
    "0{}s",
    "{}:30",
    "1,{}",
    "{}-{}",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_number_of_any_length_is_read(form: str) -> None:
    result = normalise_text(form.replace("{}", DIGITS))
    assert result.count("nine") >= 4301 and normalise_text(result) == result


UNITS = [
    " ",
    ".",
    "A. ",
    "a.",
    "U.",
    "St. A ",
    "st. ",
    "'",
    " -",
    "1,111",
    "1",
    "$1",
    "½",
    "5€-",
    "²",
    "\n ",
    ".'",
    "a, ",
]


@pytest.mark.parametrize("read", [normalise_text, lambda text: split_sentences(text, 200)], ids=["normalise", "split"])
@pytest.mark.parametrize("unit", [*UNITS, "\u0301\u0316"])
def test_twice_the_text_takes_about_twice_the_time(read: Callable[[str], object], unit: str) -> None:
    def seconds(length: int) -> float:
        text, taken = "$a" + unit * (length // len(unit)) + "b", []
        for _ in range(3):
            begin = time.process_time()
            read(text)
            taken.append(time.process_time() - begin)
        return min(taken)

    assert seconds(8_000) < 3 * seconds(4_000) + 0.02


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert normalise_text("No numbers here") == "no numbers here"
    with pytest.raises(MissingExtraError, match=r"num2words.*\[speech\]"):
        normalise_text("7 numbers")


def test_tokens_are_those_of_byt5_between_boundaries() -> None:
    assert token_ids("a é".encode()).tolist() == [BOUNDARY, 100, 35, 198, 172, BOUNDARY]
    assert token_ids(b"").tolist() == [BOUNDARY, BOUNDARY]
    with pytest.raises(DataError, match=r"'\\ud800' at character 1"):
        as_bytes("a\ud800")


def decode_text(tokens: torch.Tensor) -> str:
    """The text of token ids; what is no byte is left out, and bytes that are no UTF-8 become U+FFFD."""
    return bytes(token - FIRST_BYTE for token in tokens.tolist() if FIRST_BYTE <= token < NUM_TOKENS).decode(
        errors="replace"
    )


@given(st.text(max_size=30))
def test_tokens_and_back(text: str) -> None:
    tokens = token_ids(text.encode())
    assert tokens.dtype == torch.int64 and int(tokens.max()) < NUM_TOKENS
    assert decode_text(tokens) == text
    padded, valid = pad_texts([tokens, token_ids(b"a longer text than that one, surely")])
    assert decode_text(padded[0]) == text and torch.equal(padded[0][valid[0]], tokens)


def test_padding() -> None:
    tokens, valid = pad_texts([torch.tensor([1, 50, 1]), torch.tensor([1, 1])])
    assert tokens.tolist() == [[1, 50, 1], [1, 1, 0]]
    assert valid.tolist() == [[True, True, True], [True, True, False]]
    with pytest.raises(DataError, match="at least one text"):
        pad_texts([])


def test_check_symbols_names_what_is_out_of_reach() -> None:
    alphabet = alphabet_of(["one two", "three."])
    assert alphabet == " .ehnortw"
    check_symbols("now there", alphabet)
    with pytest.raises(DataError, match=r"cannot speak 'z' \(U\+007A\), '日' \(U\+65E5\); it knows: ' \.ehnortw'"):
        check_symbols("zoo 日 zoo", alphabet)
    with pytest.raises(DataError, match="and 2 more"):
        check_symbols("abcdfgijkl", alphabet)
    for nothing in ("", " . ,"):
        with pytest.raises(DataError, match="no letters"):
            check_symbols(nothing, alphabet)


def test_sentences_then_clauses_then_words() -> None:
    text = (
        'Dr. Smith came. He said "No!" Then, after a long while of careful thought, he left; nobody knew why. '
        "J. R. R. Tolkien wrote it.\n\nA title\n\nSupercalifragilisticexpialidocious"
    )
    assert split_sentences(text, 30) == [
        "Dr. Smith came.",
        'He said "No!"',
        "Then, after a long while of",
        "careful thought, he left;",
        "nobody knew why.",
        "J. R. R. Tolkien wrote it.",
        "A title",
        "Supercalifragilisticexpialidoc",
        "ious",
    ]
    assert split_sentences("one, two, three", 9) == ["one, two,", "three"]
    assert split_sentences("one, two, three", 15) == ["one, two, three"]
    assert split_sentences(" \n ", 5) == []
    with pytest.raises(ConfigError, match="max_chars=0"):
        split_sentences("a", 0)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab A.,;!? -('\n", max_size=60), st.integers(1, 20))
def test_splitting_loses_nothing(text: str, max_chars: int) -> None:
    pieces = split_sentences(text, max_chars)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= max_chars and piece == piece.strip() for piece in pieces)
