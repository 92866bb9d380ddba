"""English text as phonemes, with stress and pauses: words are looked up in the bundled lexicon, and a small network
trained on it pronounces all others (`nn.letters`).

A phoneme is one character of General American IPA, with one letter for each diphthong (A as in day, I eye, O so, W
how, Y boy) and affricate (ʤ, ʧ); ˈ and ˌ stand before the stressed vowel, ᵊ and ᵻ are weak vowels (little, roses).
It is the alphabet of misaki. tools/make_lexicon.py makes the lexicon from misaki's dictionaries (Apache-2.0) and, for
names, CMUdict (BSD), and tools/train_letters.py the network; why these: docs/adr/0007-phonemes.md.
"""

from __future__ import annotations

import lzma
import re
import unicodedata
from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

from safetensors import safe_open

from resgen.data.spoken import Spoken
from resgen.data.text import PROSODY, normalise_text
from resgen.errors import DataError, WrongTypeError
from resgen.files import read_small_text
from resgen.nn.letters import LetterToSound

VOWELS = "AIOWYaiuæɐɑɔəɛɜɪʊʌᵊᵻ"
CONSONANTS = "bdfhjklmnpstvwzðŋɡɹɾʃʒʔʤʧθ"
STRESS = "ˈˌ"
ALPHABET = " " + PROSODY + STRESS + VOWELS + CONSONANTS
"""Everything that phonemes may hold: one space between words, a mark of prosody right after a word."""

_FOLDER = resources.files("resgen.data") / "lexicons"
_GIVEN = re.compile(r"(?<!\S)/([^/\s]+)/(?=[\s.,;:?!]|$)")
_CAPITALS = re.compile(r"\b([A-Z]{2,5})('?s)?\b")
_PLACES = range(0xE000, 0xF900)  # the private use area: no text of a user's has a meaning there
_NOUN_AFTER = frozenset("a an the this my your his its our their no some any every each".split())
_VERB_AFTER = frozenset(
    "to will would can could should may might must shall let's don't didn't won't can't i you we they who".split()
)
_PAST_AFTER = frozenset("have has had was were been be is are he she it".split())


MAX_LETTERS = 40
"""Of a word that the network says."""
_CODES = {symbol: ord(symbol) for symbol in ALPHABET if symbol.isascii()}
_CODES |= {symbol: 0x80 + number for number, symbol in enumerate(s for s in ALPHABET if not s.isascii())}
_SYMBOLS = {code: symbol for symbol, code in _CODES.items()}


class EnglishPhonemes:
    """`spoken.FrontEnd` of American English; a byte a phoneme.

    A word is looked up in the user's lexicon, then in the package's, and else as an inflected form of a word that is
    there. One that is in none is said by its letters: as the network reads them, or one by one where there is no vowel
    among them or two to five stand in capitals. Of words that differ by their place (`use`, `read`, `the`) the
    neighbours choose the form. Phonemes may be written into a text between slashes: `Ask /ˈæɡnəs/, please.`

    Args:
        own: phonemes by word, as from `read_lexicon`.

    Raises:
        DataError: by a call, for words that are not of Latin letters or longer than 40, and given phonemes that are
            none; both are named.
    """

    name = "english-1"
    """Also that of lexicon and network in the folder `lexicons`."""

    def __init__(self, own: Mapping[str, str] | None = None) -> None:
        self._words = ChainMap({word: {"": phonemes} for word, phonemes in (own or {}).items()}, lexicon(self.name))

    def __call__(self, text: str) -> Spoken:
        explicit: list[str] = []

        def place(match: re.Match[str]) -> str:
            _check_phonemes(match[1], "the text")
            explicit.append(match[1])
            return f" {chr(_PLACES[len(explicit) - 1])} "

        normal = normalise_text(_CAPITALS.sub(self._spelled, _GIVEN.sub(place, text)))
        pairs = [re.fullmatch(rf"(.*?)([{PROSODY}]*)", part) for part in normal.split()]
        words, marks = ([match[group] for match in pairs if match] for group in (1, 2))
        by_place = {chr(_PLACES[index]): phonemes for index, phonemes in enumerate(explicit)}
        forms = [{"": by_place[word]} if word in by_place else self._forms(word) for word in words]
        guesses = tuple(dict.fromkeys(word for word, entry in zip(words, forms, strict=True) if not entry))
        if strange := [word for word in guesses if not self._has_sound(word)]:
            raise DataError(
                f"no English words: {', '.join(map(repr, strange[:8]))}{' and others' if len(strange) > 8 else ''}; "
                "write the phonemes between slashes, as in /kˈæt/, or give a lexicon file with a line 'word phonemes'"
            )
        forms = [entry or {"": self._guess(word)} for word, entry in zip(words, forms, strict=True)]
        phonemes = ""
        for index in reversed(range(len(words))):
            fitting = _fitting(words[index - 1] if index else "", marks[index], phonemes)
            form = next((form for form in fitting if form in forms[index]), "")
            phonemes = f"{forms[index][form]}{marks[index]} {phonemes}"
        display = re.sub("|".join(by_place) or "(?!)", lambda match: f"/{by_place[match[0]]}/", normal)
        return Spoken(display, bytes(_CODES[symbol] for symbol in phonemes.rstrip()), guesses)

    def symbols(self, content: bytes) -> str:
        """See `FrontEnd`."""
        return "".join(_SYMBOLS.get(code, "?") for code in content)

    def _spelled(self, match: re.Match[str]) -> str:
        """The letters of an abbreviation, GPUs, unless it is a word, NASA."""
        letters, ending = match.groups()
        return match[0] if self._forms(letters.lower()) else " ".join(letters) + ("'s" if ending else "")

    def _has_sound(self, word: str) -> bool:
        letters = _without_accents(word)
        return len(letters) <= MAX_LETTERS and all(letter in network(self.name).ids for letter in letters)

    def _guess(self, word: str) -> str:
        letters = _without_accents(word)
        if set(letters) & set("aeiouy"):
            return spelled(self.name, letters)
        return "".join(self._words[letter][""] for letter in letters if letter != "'")

    def _forms(self, word: str) -> dict[str, str]:
        """What a word sounds like by form; nothing for a word that cannot be said."""
        for spelling in (word, _without_accents(word)):
            if spelling in self._words:
                return self._words[spelling]
            for stem, ending in stems(spelling):
                if stem in self._words:
                    forms = self._words[stem].items()
                    return {form: join_ending(phonemes, ending) for form, phonemes in forms if form != "past"}
        return {}


def read_lexicon(file: str | Path) -> dict[str, str]:
    """A user's lexicon: on each line a word, white space and its phonemes; `#` begins a comment.

    Raises:
        DataError: unreadable, or a line that is not of this form.
    """
    try:
        lines = read_small_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"lexicon '{file}' cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        ) from error
    words: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 2:
            raise DataError(f"lexicon '{file}', line {number}: {line.strip()!r} is not 'word phonemes'")
        words |= check_lexicon({fields[0]: fields[1]}, f"lexicon '{file}', line {number}")
    return words


def check_lexicon(words: Mapping[str, str], where: str) -> dict[str, str]:
    """Phonemes by word, normalised.

    Raises:
        WrongTypeError: no mapping.
        DataError: something that is not a word, or not a phoneme.
    """
    if not isinstance(words, Mapping):
        raise WrongTypeError(f"{where} is {words!r:.80} ({type(words).__name__}); give a file, or phonemes by word")
    for word, phonemes in words.items():
        if not isinstance(word, str) or not re.fullmatch(r"[^\W\d_]+(?:'[^\W\d_]+)*", word):
            raise DataError(f"{where}: {word!r} is not a single word")
        if not isinstance(phonemes, str):
            raise DataError(f"{where}: {word!r} has {phonemes!r} instead of phonemes")
        _check_phonemes(phonemes, where)
    return {normalise_text(word): phonemes for word, phonemes in words.items()}


@cache
def lexicon(name: str) -> dict[str, dict[str, str]]:
    """Phonemes of words by form, of a file of the package; the form "" is the usual one."""
    content = (_FOLDER / f"{name}.tsv.xz").read_bytes()
    words = {}
    for line in lzma.decompress(content).decode().splitlines():
        word, usual, *others = line.split("\t")
        words[word] = {"": usual, **(dict(other.split("=") for other in others) if others else {})}
    return words


@cache
def network(name: str) -> LetterToSound:
    """Letters to sounds, of a file of the package."""
    with resources.as_file(_FOLDER / f"{name}.safetensors") as path, safe_open(path, "pt") as file:
        facts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = LetterToSound(
        facts["letters"], facts["phonemes"], width=int(facts["width"]), num_layers=int(facts["num_layers"])
    )
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=4096)
def spelled(name: str, letters: str) -> str:
    """A network's pronunciation of a word, cached because words recur."""
    return network(name).pronounce([letters])[0]


def _fitting(before: str, mark: str, after: str) -> Iterator[str]:
    """The forms that suit a word's place: the word before it, the mark behind it and the phonemes that follow."""
    for form, words in (("noun", _NOUN_AFTER), ("verb", _VERB_AFTER), ("past", _PAST_AFTER)):
        if before in words:
            yield form
    if mark or not after:
        yield "pause"
    elif after.lstrip(STRESS)[0] in VOWELS:
        yield "vowel"


def _check_phonemes(phonemes: str, where: str) -> None:
    known = STRESS + VOWELS + CONSONANTS
    if strange := [character for character in dict.fromkeys(phonemes) if character not in known]:
        raise DataError(f"{where}: {strange[0]!r} in '{phonemes}' is not a phoneme; allowed: {' '.join(known)}")
    if not set(phonemes) & set(VOWELS + CONSONANTS):
        raise DataError(f"{where}: '{phonemes}' has no sound")


def _without_accents(word: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter))


def stems(word: str) -> Iterator[tuple[str, str]]:
    """Words of which this may be an inflected form, the likeliest first, and the ending."""
    if word.endswith("'s"):
        yield word[:-2], "s"
    elif word.endswith("s") and not word.endswith("ss"):
        yield word[:-1], "s"
        if word.endswith("ies"):
            yield f"{word[:-3]}y", "s"
        elif word.endswith("es"):
            yield word[:-2], "s"
    for ending in ("ed", "ing"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 1:
            yield f"{stem}e", ending
            yield stem, ending
            if stem[-1] == stem[-2]:
                yield stem[:-1], ending
            if ending == "ed" and stem.endswith("i"):
                yield f"{stem[:-1]}y", ending


def join_ending(stem: str, ending: str) -> str:
    """The phonemes of an inflected form: s, z or ᵻz; t, d or ᵻd; ɪŋ."""
    if ending == "ing":
        return f"{stem}ɪŋ"
    if ending == "s":
        return stem + ("ᵻz" if stem[-1] in "szʃʒʤʧ" else "s" if stem[-1] in "ptkfθ" else "z")
    return stem + ("ᵻd" if stem[-1] in "td" else "t" if stem[-1] in "pkfθʃsʧ" else "d")
