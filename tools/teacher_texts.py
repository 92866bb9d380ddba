"""What the teacher says: sentences of files and their beginnings, and texts that are made here."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from functools import cache

from resgen.data.phonemes import EnglishPhonemes, lexicon

DIGITS = tuple("zero one two three four five six seven eight nine".split())
SHARES = {
    "sentence": 0.44,
    "phrase": 0.08,
    "question": 0.08,
    "number": 0.12,
    "name": 0.10,
    "words": 0.08,
    "short": 0.06,
    "digits": 0.04,
}
"""Part of the utterances of each kind: `sentence` and `phrase` come from files, half of the questions too."""

_SUBJECTS = set("he she they we i you it there this that these those who what where when why how let's".split())
_VERBS = set(
    """is was were are am had has have will would can could should must may might did does do isn't wasn't don't didn't
    can't couldn't won't""".split()
)
_ASK = set("who what where when why how which whose is are was were do does did can could will would shall may".split())
_OPEN = set("a an the of to in on at by for from with and or but if as than my your his her its our their".split())
"""Words with which no utterance ends."""
_FIRST = """James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan Joseph
    Jessica Thomas Sarah Karen Charles Lisa Daniel Nancy Matthew Betty Anthony Sandra Mark Margaret Ashley
    Steven Emily Andrew Donna Michelle George Carol Amanda Edward Melissa Brian Laura Ronald Rebecca Jason
    Sharon Jeffrey Helen Ryan Anna Jacob Nicole Eric Angela Jonathan Emma Frank Samantha Justin Olivia Raymond
    Sophia Samuel Maria Patrick Diana Peter Julia Henry Alice Walter Rose Arthur Grace Oliver Victoria Simon
    Hannah Martin Clara Felix Lucy""".split()
_LAST = """
    Smith Johnson Williams Brown Jones Miller Davis Wilson Anderson Taylor Moore Jackson Martin Lee Thompson White
    Harris Clark Lewis Robinson Walker Young Allen King Wright Scott Hill Green Adams Nelson Baker Hall
    Campbell Mitchell Carter Roberts Turner Phillips Parker Evans Edwards Collins Stewart Morris Murphy Cook
    Rogers Morgan Cooper Peterson Reed Bailey Kelly Howard Ward Watson Brooks Bennett Gray Hughes Price
    Sanders Foster Russell Griffin Hayes""".split()
_PLACES = """London Paris Boston Chicago Dublin Berlin Sydney Toronto Rome Madrid Vienna Oxford Seattle Denver Houston
    Glasgow Manchester Tokyo Moscow Cairo Athens Lisbon Oslo Geneva Texas Ohio Virginia Canada France Germany
    India China Brazil Kenya Ireland Scotland Norway Mexico Egypt Spain""".split()
_MONTHS = """January February March April May June July August September October November December""".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_THINGS = "tickets houses books letters apples chairs pages bottles stamps trees horses boxes coins shirts eggs".split()
_NUMBERS = (
    "There were {count} {things} in the room.",
    "It costs {price}.",
    "She paid {price} for the {things}.",
    "The meeting is on {day}, {month} {nth}, at {time}.",
    "He was born on {month} {nth}, {year}.",
    "In {year}, the town had {large} people.",
    "About {percent}% of the {things} were sold.",
    "Call me at {phone}.",
    "The answer is {decimal}, not {count}.",
    "The train leaves at {time} from platform {small}.",
    "That was the {ordinal} time this year.",
    "We drove {count} miles in {small} hours and {minutes} minutes.",
    "Chapter {small} begins on page {count}.",
    "The temperature fell to -{small}°.",
    "Add {fraction} of a cup of sugar and {small} eggs.",
    "Flight {count} to {place} is delayed by {minutes} minutes.",
)
_NAMES = (
    "My name is {first} {last}.",
    "{first} and {first2} went to {place} with Mr. {last}.",
    "Dr. {last} lives in {place}, near the river.",
    "Have you met Mrs. {last} from {place}?",
    "{first} {last} wrote a letter to {first2} {last2}.",
    "On {day}, {first} will fly from {place} to {place2}.",
    "{first}'s brother works for Professor {last}.",
    "Good morning, {first}, this is {first2} {last2}.",
    "Miss {last}, please tell {first} that {first2} has arrived.",
    "The capital was {place}, but {first} preferred {place2}.",
)
_QUESTIONS = (
    "Where did {first} put the {things}?",
    "How many {things} do you need?",
    "What time does the train to {place} leave?",
    "Why are the {things} so expensive?",
    "Could you bring me the {things}, please?",
    "Is it true that {first} moved to {place}?",
    "Have you ever been to {place}?",
    "Which of the {things} would you like?",
    "Who told you about the {things}?",
    "Did {first} call you on {day}?",
    "When will the {things} be ready?",
    "Are you coming with us to {place}?",
)
_SHORT = """
    Yes.|No.|Maybe.|Of course.|Good morning.|Good evening.|Good night.|Thank you.|Thank you very much.|
    Excuse me.|I'm sorry.|Well done!|Look out!|Come in.|Sit down, please.|Wait a moment.|Never mind.|
    Not at all.|See you soon.|Really?|What?|Why not?|How are you?|Who is it?|Are you sure?|All right.|
    Here it is.|I know.|I don't know.|That's right.|Stop!|Go on.|Hurry up!|Let's go.|Happy birthday!|
    Welcome home.|Hello, {first}.|Goodbye, {first}.|Not on {day}.|In {place}?|Next {day}.|
    {small} {things}.|Only {small}.|At {time}.|In {month}.|Ask {first}.|The {things}, please.|{percent}%.|
    {first} {last}.|To {place}!
""".split("|")


def usable_sentences(lines: Iterable[str]) -> list[str]:
    """Lines that are sentences of 4 to 24 words, as they are written, each ending in a mark.

    A line is a sentence here if it begins with a pronoun or a question word, or has an auxiliary verb; running text
    without punctuation is taken as it is.
    """
    sentences = {}
    for line in lines:
        text = " ".join(line.split())
        words = re.findall(r"[a-z']+", text.lower())
        if not 4 <= len(words) <= 24 or not re.fullmatch(r"[A-Za-z' ,.?!;:-]+", text) or "--" in text:
            continue
        if words[0] in _SUBJECTS or _VERBS & set(words):
            text = text if text[-1] in ".?!" else text.rstrip(" ,;:-") + "."
            sentences[text[0].upper() + text[1:]] = None
    return list(sentences)


def is_question(text: str) -> bool:
    return text.endswith("?")


def beginning(text: str, rng: random.Random) -> str:
    """The first one to four words of a sentence, as an utterance of its own."""
    words = text.split()[: rng.randint(1, 4)]
    while len(words) > 1 and words[-1].lower() in _OPEN:
        words.pop()
    return " ".join(words).rstrip(" ,.?!;:-") + rng.choice("..?!")


def make_text(kind: str, rng: random.Random) -> str:
    """A text of one of the kinds that are made; digits are written as words, with commas where one pauses."""
    if kind == "digits":
        return ", ".join(rng.choices(DIGITS, k=rng.randint(2, 6))) + "."
    if kind == "words":
        return ", ".join(rng.sample(_words(), rng.randint(1, 3))).capitalize() + rng.choice("..?!")
    template = rng.choice({"number": _NUMBERS, "name": _NAMES, "question": _QUESTIONS, "short": _SHORT}[kind])
    text = template.strip().format(**_fillings(rng))
    return text[0].upper() + text[1:]


def _fillings(rng: random.Random) -> dict[str, str]:
    first, last, place = (rng.sample(names, 2) for names in (_FIRST, _LAST, _PLACES))
    small, year = rng.randint(2, 20), rng.randint(1500, 2050)
    nth = rng.randint(1, 31)
    ordinal = f"{nth}{'th' if nth in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(nth % 10, 'th')}"
    phone = f"{rng.randint(200, 999)} {rng.randint(200, 999)} {rng.randint(1000, 9999)}"
    prices = (f"${rng.randint(1, 999)}", f"${rng.randint(1, 99)}.{rng.randint(10, 99)}", f"£{rng.randint(2, 500)}")
    return {
        "first": first[0],
        "first2": first[1],
        "last": last[0],
        "last2": last[1],
        "place": place[0],
        "place2": place[1],
        "month": rng.choice(_MONTHS),
        "day": rng.choice(_DAYS),
        "things": rng.choice(_THINGS),
        "count": str(rng.randint(21, 999)),
        "small": str(small),
        "minutes": str(rng.randint(2, 59)),
        "large": f"{rng.randint(1000, 999_999):,}",
        "percent": str(rng.randint(1, 100)),
        "decimal": f"{rng.randint(0, 99)}.{rng.randint(1, 99)}",
        "fraction": rng.choice(("1/2", "1/4", "3/4", "2/3", "1/3")),
        "price": rng.choice(prices),
        "phone": " ".join(" ".join(part) for part in phone.split()),
        "time": f"{rng.randint(1, 12)}:{rng.randint(0, 59):02d}",
        "year": str(year),
        "nth": ordinal,
        "ordinal": ordinal,
    }


@cache
def _words() -> list[str]:
    """Words of the package's lexicon, of four letters or more."""
    return sorted(word for word in lexicon(EnglishPhonemes.name) if len(word) > 3 and word.isascii() and word.isalpha())
