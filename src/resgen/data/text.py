"""English text for speech: normalised to words and pauses, cut into sentences, and turned into tokens.

Token ids are ByT5's: 0 is padding, 1 the end of a text, 2 unknown (never used), and byte b of a front end's content is
b + 3. A text begins and ends with `BOUNDARY`, ByT5's end of text: silence before and after the speech is aligned to
these two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import groupby, islice

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from resgen.errors import ConfigError, DataError
from resgen.extras import MissingExtraError

PAD = 0
BOUNDARY = 1
FIRST_BYTE = 3
NUM_TOKENS = FIRST_BYTE + 256

PROSODY = ".,?!"
"""Punctuation that is kept, besides the apostrophe within a word."""

_FOLDED = str.maketrans(
    {"‘": "'", "’": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "−": "-", "‐": "-"}
    | {"‑": "-", "…": ".", "⁄": "/", "№": "No. "}
    | dict.fromkeys("™℠®©", "")
)
_SYMBOLS = {"&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "°": "degrees"}
_SYMBOLS |= {"‰": "per mille", "×": "times", "÷": "divided by", "±": "plus or minus"}
_TITLES = {
    "approx": "approximately",
    "capt": "captain",
    "col": "colonel",
    "dept": "department",
    "dr": "doctor",
    "gen": "general",
    "gov": "governor",
    "lt": "lieutenant",
    "mr": "mister",
    "mrs": "missus",
    "ms": "miss",
    "mt": "mount",
    "prof": "professor",
    "rev": "reverend",
    "sgt": "sergeant",
    "vs": "versus",
}
"""Abbreviations whose full stop never ends a sentence."""

_LAST = {
    "ave": "avenue",
    "co": "company",
    "etc": "et cetera",
    "inc": "incorporated",
    "jr": "junior",
    "ltd": "limited",
    "sr": "senior",
    "st": "street",
}
"""Abbreviations that may also be the last word of a sentence."""

_DOTTED = {"e.g.": "for example", "i.e.": "that is"}
_MONEY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "", ""),
    "¢": ("cent", "cents", "", ""),
}
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion"}
_SCALES |= {word: word for word in ("hundred", *_SCALES.values())}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_POWERS = {"2": "squared", "3": "cubed"}
_YEARS = range(1100, 2100)
_MAX_DIGITS = 15
_MAX_MARKS = 30
"""Combining marks that one letter may carry (Unicode's stream-safe text); more take quadratic time to sort."""

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_AMOUNT = rf"(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)"
_PART = r"[1-9]/(?:[2-9]|10)(?![\w/])"
_SIGN = f"[{''.join(_MONEY)}]"
_SCALE = rf"(?: ?((?i:{'|'.join(sorted(_SCALES, key=len, reverse=True))}))\b)?"
_PASSES = 4

_WORDS = _SYMBOLS | {sign: names[0] for sign, names in _MONEY.items()}
_PAUSES = str.maketrans({";": ",", ":": ",", "—": ",", "–": ","})
_BEFORE_SAINT = ("and", "at", "by", "for", "from", "in", "is", "near", "of", "on", "our", "the", "to", "was")
_SAINT = re.compile(r"(?:\b([A-Z]\w*) )?\b[Ss]t\.(?= [A-Z])")
_TITLE = re.compile(rf"\b({'|'.join(_TITLES)})\.(?= )", re.IGNORECASE)
_LAST_WORD = re.compile(rf"\b((?i:{'|'.join(_LAST)}))\.( ?$| (?=[A-Z]))?")
_ACRONYM = re.compile(r"\b((?:[A-Za-z]\.){2,})( ?$)?")
_INITIAL = re.compile(r"\b([A-HJ-Z])\.(?= [A-Z])")
_SPACED_GROUPS = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_SUBTRACTION = re.compile(r"(?<=[0-9]) ?\u2212 ?(?=\.?[0-9])")
_NUMBERED = re.compile(r"\b[Nn]o\. ?(?=[0-9])")
_RAISED = re.compile(r"((?<![0-9])[0-9]+|(?<![A-Za-z])[A-Za-z]{1,2}|\))?(?:\^(?=-?[0-9])(-?[0-9]+)|([⁺⁻]?[⁰¹²³⁴-⁹]+))")
_SPAN = re.compile(
    rf"(?<![\w.,-])({_SIGN}?) ?({_AMOUNT})((?i:k|[mb]n?)?{_SIGN}?|[%°]) ?[-–]"
    rf" ?({_SIGN}?) ?(?={_AMOUNT}(?: ?([%°]|{_SIGN}(?![0-9])))?)"
)
_PRICE = re.compile(rf"((?<![\w.,)])-)?({_SIGN}) ?(-)?({_WHOLE} {_PART}|{_PART}|{_AMOUNT}){_SCALE}")
_PRICE_AFTER = re.compile(rf"(?<![\w.,/])({_AMOUNT}|[0-9]+,[0-9]{{2}}){_SCALE} ?({_SIGN})(?![0-9])")
_TIME = re.compile(r"\b([01]?[0-9]|2[0-3]):([0-5][0-9])\b(?!:)")
_ORDINAL = re.compile(rf"(?<![\w.,])({_WHOLE})(?:st|nd|rd|th)\b", re.IGNORECASE)
_DECADE = re.compile(r"'?\b([0-9]{1,3}0)'?s\b")
_FRACTION = re.compile(rf"(?<![\w.,/])(?:([0-9]+) )?({_PART})")
_RANGE = re.compile(r"(?<![\w.,-])([0-9]{1,4}) ?[-–] ?([0-9]{1,4})(?![\w-])")
_MINUS = re.compile(r"(?<![\w.,)])-(?=\.?[0-9])")
_NUMBER = re.compile(_AMOUNT)
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]+[\"')\]”’]*(?=\s)|\n\s*\n")
_NO_END = re.compile(rf"(?:^|[\s(\"'])(?:(?i:{'|'.join([*_TITLES, 'st', 'e.g', 'i.e'])})|[A-HJ-Z])\.$")
_LONGEST_NO_END = max(map(len, _TITLES)) + 2  # with what stands before it and its full stop
_CLAUSE_END = re.compile(r"(?<=[,;:—–)]) | (?=[—–(-])")


def normalise_text(text: str) -> str:
    """Lower-case words and pauses, as they are spoken in English.

    Numbers, ordinals, years, times, fractions, amounts of money, percentages and common abbreviations become words. Of
    the punctuation `. , ? !` stay, one mark at a time, and the apostrophe within a word; semicolons, colons and dashes
    become commas, and all other ASCII punctuation goes. Characters beyond ASCII stay, so that `check_symbols` can name
    those that a model cannot read. Normalised text comes out as it went in.

    Raises:
        MissingExtraError: the text has numbers and num2words is not installed.
    """
    for _ in range(_PASSES):  # what is left after stray marks were removed may be an abbreviation
        before, text = text, _normalise_once(text)
        if text == before:
            break
    return text


def as_bytes(text: str) -> bytes:
    """UTF-8.

    Raises:
        DataError: the text holds half of a surrogate pair, which has no bytes.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text has {text[error.start]!r} at character {error.start}, which is not text") from error


def token_ids(content: bytes) -> Int64[Tensor, " N"]:
    """Tokens of what a front end makes of a text, between two `BOUNDARY` tokens."""
    return torch.tensor([BOUNDARY, *(byte + FIRST_BYTE for byte in content), BOUNDARY])


def pad_texts(tokens: Sequence[Int64[Tensor, " _"]]) -> tuple[Int64[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Texts of several lengths as one batch, with `PAD` at the end, and where it is not padding.

    Raises:
        DataError: there are no texts.
    """
    if not tokens:
        raise DataError("a batch needs at least one text")
    padded = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(one) for one in tokens])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def is_pause(tokens: Int64[Tensor, "*batch N"]) -> Bool[Tensor, "*batch N"]:
    """Where a token is no sound of its own: boundaries, spaces and punctuation but the apostrophe."""
    return torch.isin(tokens, torch.tensor([BOUNDARY, *(ord(mark) + FIRST_BYTE for mark in PROSODY + " ")]).to(tokens))


def alphabet_of(texts: Iterable[str]) -> str:
    """All characters of some texts, sorted."""
    return "".join(sorted(set().union(*texts)))


def check_symbols(symbols: str, alphabet: Iterable[str]) -> None:
    """Reject a text that a model cannot speak.

    Args:
        symbols: letters or phonemes of what is to be spoken.
        alphabet: those that the model knows.

    Raises:
        DataError: nothing to say, or symbols out of reach (named).
    """
    if not any(character.isalnum() for character in symbols):
        named = f" {symbols!r}" if symbols.strip() else ""
        raise DataError(f"the text{named} has no letters; give at least one word")
    known = set(alphabet)
    strange = [character for character in dict.fromkeys(symbols) if character not in known]
    if strange:
        listing = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in strange[:8])
        more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
        raise DataError(f"the model cannot speak {listing}{more}; it knows: {''.join(sorted(known))!r}")


def split_sentences(text: str, max_chars: int) -> list[str]:
    """Cut a text into sentences of at most `max_chars` characters.

    A sentence that is too long is cut after clauses, a clause that is too long between words, and a word that is too
    long anywhere; the pieces of a sentence are as long as they may be. Full stops of titles and initials end no
    sentence, blank lines do. Nothing is lost but white space at the cuts.

    Raises:
        ConfigError: `max_chars` is below 1.
    """
    if max_chars < 1:
        raise ConfigError(f"max_chars={max_chars} must be at least 1")
    pieces = []
    for sentence in _sentences(text):
        pieces += _pack(_CLAUSE_END.split(sentence), max_chars)
    return pieces


def _normalise_once(text: str) -> str:
    text = _SPACED_GROUPS.sub(",", _SUBTRACTION.sub(" minus ", text))
    text = " ".join(_plain(text.translate(_FOLDED)).split())  # single spaces: every pattern below takes linear time
    text = unicodedata.normalize("NFKC", _RAISED.sub(_raised, text)).translate(_FOLDED)
    text = _spell_numbers(_expand_abbreviations(text))
    text = unicodedata.normalize("NFKC", text.lower())
    text = re.sub(r" -+(?= )|--+", ", ", text).translate(_PAUSES)
    for symbol, word in _WORDS.items():
        text = text.replace(symbol, f" {word} ")
    text = re.sub(r"[^\w\s.,?!'\u0080-\U0010ffff]|_", " ", text)
    text = " ".join(re.sub(r"(?<!\w)'|'(?!\w)", " ", text).split())
    text = re.sub(r" ?[.,?!][ .,?!]*", _one_mark, text)
    return " ".join(text.split()).lstrip(PROSODY + " ")


def _plain(text: str) -> str:
    """Without control characters and heaps of marks; digits of any script, and what stands for a number by itself (a
    circled 2, a Roman VIII), as ASCII digits; fractions apart from a number before them."""
    runs = groupby(text, lambda character: unicodedata.combining(character) > 0)
    text = "".join("".join(islice(run, _MAX_MARKS) if marks else run) for marks, run in runs)
    return "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    if character.isascii() and not character.isspace():
        return "" if character == "\x7f" or character < " " else character
    category, number = unicodedata.category(character), unicodedata.numeric(character, None)
    if character.isspace() or category == "Cc":
        return " "
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category in ("No", "Nl") and number is not None and "<super>" not in unicodedata.decomposition(character):
        return f" {number:.0f} " if number.is_integer() else f" {character}"  # else 2½ would become 21/2
    return "" if category == "Cf" else character


def _expand_abbreviations(text: str) -> str:
    for short, words in _DOTTED.items():
        text = re.sub(rf"\b{re.escape(short)}", words, text, flags=re.IGNORECASE)
    text = _SAINT.sub(_saint, text)
    text = _TITLE.sub(lambda match: _TITLES[match[1].lower()], text)
    text = _NUMBERED.sub("number ", text)
    text = _LAST_WORD.sub(partial(_words_of_short, words=lambda short: _LAST[short.lower()]), text)
    text = _ACRONYM.sub(partial(_words_of_short, words=lambda short: " ".join(short.replace(".", ""))), text)
    return _INITIAL.sub(r"\1", text)


def _saint(match: re.Match[str]) -> str:
    """`St. Paul` is a saint; `Elm St. He` is a street, which is left to the abbreviations at the end of a sentence."""
    if match[1] and match[1].lower() not in _BEFORE_SAINT:
        return match[0]
    return f"{match[1]} saint" if match[1] else "saint"


def _words_of_short(match: re.Match[str], words: Callable[[str], str]) -> str:
    """The words of an abbreviation; its full stop stays where it also ends a sentence."""
    return words(match[1]) + ("" if match[2] is None else f".{match[2]}")


def _raised(match: re.Match[str]) -> str:
    """`10²`, `x^3`, `10⁻³`; the number of a note (`word¹`, `2024²`) is not read."""
    base, digits, superscript = match.groups()
    power = digits or unicodedata.normalize("NFKC", superscript).translate(_FOLDED).lstrip("+")
    if not base or (superscript and (power == "1" or _is_year(base))):
        return match[0] if digits else f"{base or ''} "
    return f"{base} {_POWERS.get(power) or f'to the power of {power}'} "


def _spell_numbers(text: str) -> str:
    """Every number in words, the special forms first."""
    for pattern, reading in _FORMS:
        text = pattern.sub(reading, text)
    return text


def _number(digits: str) -> str:
    """A number as written: `1,000`, `3.14`, `.5`, `007`; four digits of 1100..2099 without a comma are a year."""
    whole, point, fraction = digits.partition(".")
    words = _spell(whole, "year" if _is_year(whole) and not point else "cardinal") if whole else ""
    return " ".join([words, "point", *(_DIGITS[int(digit)] for digit in fraction)]) if point else words


def _is_year(digits: str) -> bool:
    return len(digits) == 4 and digits.isdecimal() and int(digits) in _YEARS


def _spell(digits: str, form: str = "cardinal") -> str:
    plain = digits.replace(",", "")
    if len(plain) > _MAX_DIGITS or (len(plain) > 1 and plain[0] == "0" and form == "cardinal"):
        return " ".join(_DIGITS[int(digit)] for digit in plain)  # a telephone number or an agent
    try:
        from num2words import num2words
    except ImportError as error:
        raise MissingExtraError("num2words", "speech") from error
    return _words_of(num2words, int(plain), form)


@lru_cache(maxsize=4096)
def _words_of(convert: Callable[..., str], number: int, form: str) -> str:
    return str(convert(number, to=form)).replace(",", "")


def _span(match: re.Match[str]) -> str:
    """`10%-20%`, `$5-10`, `5€–7€`: a dash between amounts is "to"; without a sign, see `_RANGE`."""
    sign, amount, unit, other_sign, other_unit = match.groups()
    if not (sign or other_sign or other_unit or unit[-1:] in (*_MONEY, "%", "°")):
        return match[0]
    if sign and not other_unit and (not other_sign or (sign == other_sign and not unit)):
        sign, other_sign = "", sign
    if unit == other_unit:
        unit = ""
    return f"{sign}{amount}{unit} to {other_sign}"


def _price(match: re.Match[str]) -> str:
    """`$5`, `-$5.50`, `$3.5 million`, `$5M`, `$½`."""
    before, sign, after, amount, scale = match.groups()
    return f" {'minus ' if before or after else ''}{_money(sign, amount, scale)} "


def _price_after(match: re.Match[str]) -> str:
    """`5€`, `5,50 €`, `5 million €`."""
    amount = re.sub(r"^([0-9]+),([0-9]{2})$", r"\1.\2", match[1])
    return f" {_money(match[3], amount, match[2])} "


def _money(sign: str, amount: str, scale: str | None) -> str:
    one, many, small_one, small_many = _MONEY[sign]
    if "/" in amount:
        words = " ".join(_FRACTION.sub(_fraction, amount).split())
        if scale or " " in amount:
            return f"{words} {_SCALES[scale.lower()] if scale else ''} {many}"
        return f"half a {one}" if amount == "1/2" else f"{words} of a {one}"
    if scale:
        return f"{_number(amount)} {_SCALES[scale.lower()]} {many}"
    whole, _, cents = amount.replace(",", "").partition(".")
    units = whole.lstrip("0")
    if cents and (len(cents) != 2 or not small_one):
        return f"{_number(amount)} {many}"
    parts = []
    if units or not cents.strip("0"):
        parts.append(f"{_spell(units or '0')} {one if units == '1' else many}")
    if cents.strip("0"):
        parts.append(f"{_spell(cents.lstrip('0'))} {small_one if cents == '01' else small_many}")
    return " and ".join(parts)


def _time(match: re.Match[str]) -> str:
    """`10:30`, `9:05`, `7:00`."""
    hour, minute = _spell(str(int(match[1]))), int(match[2])
    if not minute:
        return f" {hour} o'clock "
    return f" {hour} {'oh ' if minute < 10 else ''}{_spell(str(minute))} "


def _fraction(match: re.Match[str]) -> str:
    """`1/2`, `3/4`, `2 1/3`; a numerator that is not below the denominator is none, as in `24/7`."""
    over, under = map(int, match[2].split("/"))
    if over >= under:
        return match[0]
    part = {2: "half", 4: "quarter"}.get(under) or _spell(str(under), "ordinal")
    whole = f"{_number(match[1])} and " if match[1] else ""
    return f" {whole}{_spell(str(over))} {part if over == 1 else _plural(part)} "


def _plural(words: str) -> str:
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _range(match: re.Match[str]) -> str:
    """`1990-1995`; a number that does not ascend belongs to a name or a telephone."""
    return f"{match[1]} {'to ' if int(match[2]) > int(match[1]) else ''}{match[2]}"


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (_SPAN, _span),
    (_PRICE, _price),
    (_PRICE_AFTER, _price_after),
    (_TIME, _time),
    (_ORDINAL, lambda match: f" {_spell(match[1], 'ordinal')} "),
    (_FRACTION, _fraction),
    (_DECADE, lambda match: f" {_plural(_number(match[1]))} "),
    (_RANGE, _range),
    (_MINUS, lambda _: " minus "),
    (_NUMBER, lambda match: f" {_number(match[0])} "),
)
"""What numbers are written as, and their readings, in the order in which they are looked for."""


def _one_mark(match: re.Match[str]) -> str:
    return next(mark for mark in "?!.," if mark in match[0]) + " "


def _sentences(text: str) -> list[str]:
    sentences, begin = [], 0
    for match in _SENTENCE_END.finditer(text):
        if match[0] == "." and _NO_END.search(text[max(begin, match.end() - _LONGEST_NO_END) : match.end()]):
            continue
        sentences.append(text[begin : match.end()])
        begin = match.end()
    sentences.append(text[begin:])
    stripped = (" ".join(sentence.split()) for sentence in sentences)
    return [sentence for sentence in stripped if sentence]


def _pack(parts: Sequence[str], max_chars: int) -> list[str]:
    """Neighbouring parts joined by spaces while they fit; a part that never does is taken word by word."""
    pieces: list[str] = []
    for part in parts:
        words = part.split() if len(part) > max_chars else [part]
        for word in words:
            if pieces and len(pieces[-1]) + 1 + len(word) <= max_chars:
                pieces[-1] += f" {word}"
            else:
                pieces += [word[i : i + max_chars] for i in range(0, len(word), max_chars)]
    return pieces


def cut_at_word(content: bytes, ends: list[int], most: int, stride: int) -> tuple[bytes, int]:
    """The words of a text that end within `most` positions, and the positions that they take; a word that would leave
    less than half of the positions is cut instead.

    Args:
        content: content of a front end.
        ends: frame at which each token ends: a boundary, those of the text, a boundary.
        most: the most positions.
        stride: frames per position.
    """
    spaces = [place for place, byte in enumerate(content) if byte == ord(" ")]
    whole = [place for place in spaces if most * stride <= 2 * ends[place] <= 2 * most * stride]
    if whole:
        return content[: whole[-1]], -(-ends[whole[-1]] // stride)
    spoken = sum(end <= most * stride for end in ends[1:-1])
    return content[:spoken].rstrip(b" "), most


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of normalised texts, without punctuation."""
    return {word for text in texts for word in re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)}
