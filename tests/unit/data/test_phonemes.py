"""The phoneme front end: words, forms by place, what users add, and what cannot be said."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from resgen.data.phonemes import ALPHABET, EnglishPhonemes, check_lexicon, read_lexicon
from resgen.data.text import PROSODY
from resgen.errors import DataError
from resgen.files import MAX_TEXT_BYTES


@pytest.fixture(scope="module")
def english() -> EnglishPhonemes:
    return EnglishPhonemes()


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("The birch canoe slid.", "ðə bˈɜɹʧ kənˈu slˈɪd."),
        ("the end, the cat", "ði ˈɛnd, ðə kˈæt"),
        ("are the ends", "ɑɹ ði ˈɛndz"),  # `are` asks for a past form, which `the` lacks
        ("use the use", "jˈuz ðə jˈus"),
        ("I have read what you read", "ˌI hæv ɹˈɛd wˌʌt ju ɹˈid"),
        ("Dr. Smith's 2 cats", "dˈɑktəɹ smˈɪθs tˈu kˈæts"),
        ("Café? CAFE!", "kæfˈA? kæfˈA!"),
        ("Margaret", "mˈɑɹɡəɹɪt"),  # CMUdict's, misaki has no such name
    ],
)
def test_text_becomes_phonemes_with_stress_and_pauses(english: EnglishPhonemes, text: str, phonemes: str) -> None:
    assert phonemes_of(english, text) == phonemes


@pytest.mark.parametrize(
    ("word", "phonemes"),
    [
        ("zips", "zˈɪps"),
        ("bozes", "bˈOzᵻz"),
        ("bozed", "bˈOzd"),
        ("boz's", "bˈOzᵻz"),
        ("vadded", "vˈædᵻd"),
        ("vadding", "vˈædɪŋ"),
        ("kvetried", "kvˈɛtɹid"),
        ("kipped", "kˈɪpt"),
    ],
)
def test_inflected_forms_sound_as_their_stems_do(word: str, phonemes: str) -> None:
    own = {"boze": "bˈOz", "boz": "bˈOz", "vad": "vˈæd", "kvetry": "kvˈɛtɹi", "kip": "kˈɪp", "zip": "zˈɪp"}
    assert phonemes_of(EnglishPhonemes(own), word) == phonemes


def test_phonemes_may_be_given_in_the_text(english: EnglishPhonemes) -> None:
    spoken = english("Ask /ˈæɡnəs/, or /ɹˈO/ in 2024.")
    assert spoken.text == "ask /ˈæɡnəs/, or /ɹˈO/ in twenty twenty four."
    assert english.symbols(spoken.content).startswith("ˈæsk ˈæɡnəs, ɔɹ ɹˈO ɪn twˈɛnti")
    assert english("red and/or black").text == "red and or black", "slashes within words give no phonemes"


def test_what_cannot_be_said_is_named_as_a_word(english: EnglishPhonemes) -> None:
    with pytest.raises(DataError, match=r"^no English words: 'привет', '你好'; write the phonemes between slashes"):
        english("The привет, the привет: 你好")
    with pytest.raises(DataError, match=r"^the text: 'X' in 'kXt' is not a phoneme; allowed: ˈ ˌ A"):
        english("a /kXt/")
    with pytest.raises(DataError, match=r"\\ue000"):
        english("a \ue000")


def test_all_that_the_lexicon_says_is_in_the_alphabet(english: EnglishPhonemes) -> None:
    entries = english._words
    assert len(entries) > 200_000
    assert set().union(*(said for forms in entries.values() for said in forms.values())) < set(ALPHABET)
    assert all(forms.keys() <= {"", "noun", "verb", "past", "pause", "vowel"} for forms in entries.values())


def test_a_lexicon_of_ones_own_counts_more(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("# names\nXanthippe zænθˈɪpi  # Greek\n\ncat kˈɑt\n", encoding="utf-8")
    assert phonemes_of(EnglishPhonemes(read_lexicon(file)), "Xanthippe's cat") == "zænθˈɪpiz kˈɑt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat kˈæt\nnew york nˈu\n", "line 2: 'new york nˈu' is not 'word phonemes'"),
        ("a2 kˈæt\n", "line 1: 'a2' is not a single word"),
        ("cat\n", "line 1: 'cat' is not 'word phonemes'"),
        ("cat kXt\n", "line 1: 'X' in 'kXt' is not a phoneme"),
        ("cat ˈ\n", "line 1: 'ˈ' has no sound"),
    ],
)
def test_wrong_lines_of_a_lexicon_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_lexicon(tmp_path / "own.txt")


@pytest.mark.parametrize("name", ["large.txt", "/dev/zero"])
def test_a_lexicon_without_an_end_is_refused(tmp_path: Path, name: str) -> None:
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=f"lexicon '.*{name}' cannot be read: more than 16 MB of text"):
        read_lexicon(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_lexicon_of_python_s_is_checked() -> None:
    assert check_lexicon({"Nguyen": "wˈɪn"}, "here") == {"nguyen": "wˈɪn"}
    with pytest.raises(DataError, match="^here: 'new york' is not a single word"):
        check_lexicon({"new york": "nˈu"}, "here")


def test_words_in_no_lexicon_are_said_by_their_letters(english: EnglishPhonemes) -> None:
    spoken = english("The zyxgrunt's blorfing, bcd.")
    assert spoken.guesses == ("zyxgrunt's", "blorfing", "bcd")
    assert english.symbols(spoken.content).endswith("bˈisˈidˈi."), "letters without a vowel are said one by one"
    assert "ŋ" in phonemes_of(english, "blorfing") and set(phonemes_of(english, "blorfing")) <= set(ALPHABET)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("GPUs, NASA", "g p u's, nasa"),  # capitals are letters, unless they are a word
        ("THE CAT", "the cat"),
        ("Gpu or the GPU's", "gpu or the g p u's"),
        ("ZYXGRUNT", "zyxgrunt"),  # too long to be spelled
    ],
)
def test_capitals_are_spelled(english: EnglishPhonemes, text: str, said: str) -> None:
    assert english(text).text == said


def test_every_phoneme_is_one_byte_and_pauses_are_ascii(english: EnglishPhonemes) -> None:
    spoken = english("Well, is it? The measure of a church's joy!")
    assert len(spoken.content) == len(english.symbols(spoken.content)) and len(spoken.content.split()) == 9
    assert spoken.content.count(b" ") == spoken.text.count(" ")
    assert [mark for mark in spoken.content if chr(mark) in PROSODY] == list(b",?!")


def phonemes_of(english: EnglishPhonemes, text: str) -> str:
    return english.symbols(english(text).content)
