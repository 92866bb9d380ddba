"""English sentences without end from a small grammar, for synthesizers to speak."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from resgen.ops.random import derive_seed

# The grammar of `make_texts`: every <name> stands for one of its alternatives; words come from the lists below.
# "base:other" gives an irregular past or plural; the regular ones are formed by rule.
RULES = """
sentence: <subject> <past> <object> | <subject> <past> <object> <where> | <subject> <past> <object> <then>
sentence: <subject> <adverb> <past> <object> | <subject> <went> <where> | <subject> <went> <where> <then>
sentence: <subject> <went> <adverb> and <went> | <subject> <went> <adverb> and <past> <object>
sentence: <subject> <modal> <base> <object> | <subject> <modal> <go> <where> | <subject> <modal> <base> <object> <later>
sentence: <modal> <pronoun> <base> <object> | <go> <where> and <base> <object> | please <base> <object>
sentence: did <subject> <base> <object> | did <subject> <go> <where> <then> | <base> <object> <later>
sentence: <subject> felt <adjective> and <adjective> | <one> was <adjective> but <one> was <adjective>
sentence: there was <a_thing> <where> | there were <number> <things> <where> | <number> <animals> <went> <where>
sentence: why did <subject> <base> <object> | where did <subject> <base> <object> | when will <subject> <base> <object>
sentence: how many <things> did <subject> <base> | who <past> <object> <then> | what is <where> | <one> is <where>
sentence: <things> are <adjective> and <animals> are <adjective> | some <mass> was <where> | <one> is <adjective>
sentence: <pronoun> <past> <number> <things> and <number> <things> | <name> and <name> <went> <where>
sentence: <subject> <past> <object> because <subject> felt <adjective> | when <subject> <went> <subject> <past> <object>
sentence: <subject> did not <base> <object> | nobody <past> <object> | if you <base> <object> we will <go>
sentence: <name> said that <subject> <past> <object> | <name> said the <place> was <adjective>
sentence: in <month> we <went> <where> | <name> asked for <mass> and <mass> | <later> <name> will <go>
sentence: the <adjective> <person> wanted <number> <things> | every <person> <past> <a_thing> <then>
sentence: this <thing> is <adjective> and that <thing> is <adjective>
subject: the <person> | the <adjective> <person> | <name> | <name> | <pronoun> | <owner> <person> | a <person>
subject: a <adjective> <person> | the <animal> | the <adjective> <animal> | <owner> <animal>
subject: those <people> | the <people>
object: the <thing> | <a_thing> | the <adjective> <thing> | <owner> <thing> | <number> <things> | some <mass>
object: the <person> | <owner> <adjective> <thing> | these <adjective> <things> | the <adjective> <animal>
object: the <mass> | all the <things>
one: the <thing> | <owner> <thing> | the <animal> | the <adjective> <thing>
a_thing: a <thing> | a <adjective> <thing> | a <adjective> <animal>
where: <preposition> the <place> | <preposition> the <place> | <preposition> the <adjective> <place>
where: <preposition> <owner> <thing>
then: yesterday | today | last <day> | last <season> | this <part> | <number> days ago | on <day> | in the <part>
later: tomorrow | tonight | next <day> | next <season> | on <day> | before <day> | in <number> minutes | after lunch
"""
PEOPLE = """teacher doctor farmer driver sister brother mother father neighbour friend baker nurse pilot singer student
    writer painter captain dancer waiter uncle aunt cousin king queen soldier stranger artist lawyer manager worker
    player boy girl judge guest guide hunter sailor gardener grandmother grandfather engineer customer child:children
    man:men woman:women"""
ANIMALS = """dog cat horse bird cow duck rabbit lion tiger monkey elephant goat chicken frog bear eagle pony fish:fish
    sheep:sheep mouse:mice snake spider"""
THINGS = """book letter table window door chair bottle camera picture apple orange banana sandwich cake cup plate spoon
    basket bag ticket map key phone computer lamp candle clock mirror blanket pillow hammer ladder rope bucket coat hat
    shirt jacket ring flower tree stone boat car bicycle train bus truck wheel engine machine newspaper magazine pencil
    paper envelope present guitar piano drum song story poem question answer problem plan idea dream photograph painting
    carpet curtain bowl pan stove kettle egg potato:potatoes tomato:tomatoes onion carrot lemon cookie umbrella wallet
    necklace button needle shovel flag ball kite puzzle toy radio screen suitcase parcel knife:knives leaf:leaves"""
MASS = """water milk coffee tea bread butter sugar salt rice soup cheese money music sand snow gold wood glass honey
    juice chocolate fruit"""
PLACES = """garden kitchen house school station market river mountain forest beach village city street bridge church
    hospital library museum office restaurant theatre farm field island lake harbour castle hotel airport park tower
    shop factory bakery cellar corner square valley road room building yard cave cabin"""
ADJECTIVES = """red blue green yellow white black brown grey big small little large long short tall old young new good
    bad nice warm cold hot cool clean dirty dark bright heavy light quick slow quiet loud soft hard smooth rough sharp
    round flat deep wide narrow empty full rich poor strong weak happy sad angry tired hungry thirsty brave clever
    foolish gentle kind honest lazy busy careful calm proud shy strange famous simple easy difficult expensive cheap
    fresh sweet bitter broken wooden golden silver modern ancient beautiful ugly dangerous friendly perfect pretty funny
    lucky lonely noisy wet dry thick thin"""
ADVERBS = """slowly quickly quietly loudly carefully gently often always never sometimes usually rarely suddenly finally
    happily sadly easily soon once again"""
TRANSITIVE = """open close clean paint carry watch follow push pull wash count move touch want need love like
    remember notice collect deliver borrow return repair change check cover describe discover enjoy explain fill fix
    miss order pick protect save share show trust use lift examine measure destroy drop:dropped grab:grabbed see:saw
    find:found take:took bring:brought buy:bought sell:sold break:broke build:built choose:chose draw:drew forget:forgot
    hear:heard hide:hid hold:held keep:kept know:knew leave:left lose:lost make:made send:sent steal:stole catch:caught
    throw:threw understand:understood wear:wore"""
INTRANSITIVE = """walk talk laugh smile wait work play dance jump listen look rest stay travel:travelled arrive cry
    climb shout sleep:slept run:ran swim:swam sing:sang sit:sat stand:stood fall:fell speak:spoke wander whisper
    disappear wake:woke"""
DAYS = "monday tuesday wednesday thursday friday saturday sunday"
MONTHS = "january february march april may june july august september october november december"
NAMES = """anna peter mary john lucy david emma oliver sarah henry alice george helen martin nora simon clara thomas
    laura paul julia robert ella frank grace victor"""
NUMBERS = "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty"
PREPOSITIONS = "in near behind beside under above inside outside around past across through"


def make_texts(count: int, seed: int) -> list[str]:
    """`count` different English sentences of 3 to 12 words, lower case, without punctuation or figures."""
    rules = _rules()
    rng = random.Random(derive_seed("texts", seed))

    def expand(match: re.Match[str]) -> str:
        return re.sub(r"<(\w+)>", expand, rng.choice(rules[match[1]]))

    texts: dict[str, None] = {}
    while len(texts) < count:
        text = re.sub(r"\ba (?=[aeiou]|honest)", "an ", re.sub(r"<(\w+)>", expand, "<sentence>"))
        if 3 <= len(text.split()) <= 12:
            texts[text] = None
    return list(texts)


def _rules() -> dict[str, list[str]]:
    rules: dict[str, list[str]] = defaultdict(list)
    for line in RULES.strip().splitlines():
        name, alternatives = line.split(": ", 1)
        rules[name] += alternatives.split(" | ")
    people, animals, things = PEOPLE.split(), ANIMALS.split(), THINGS.split()
    for one, many, words in (("person", "people", people), ("animal", "animals", animals), ("thing", "things", things)):
        rules[one], rules[many] = _forms(words, "s")
    rules["base"], rules["past"] = _forms(TRANSITIVE.split(), "ed")
    rules["go"], rules["went"] = _forms(INTRANSITIVE.split(), "ed")
    lists = {"mass": MASS, "place": PLACES, "adjective": ADJECTIVES, "adverb": ADVERBS, "day": DAYS, "month": MONTHS}
    lists |= {"name": NAMES, "number": NUMBERS, "preposition": PREPOSITIONS}
    lists |= {"owner": "my your his her our their", "pronoun": "i you he she we they", "season": "winter spring summer"}
    lists |= {"modal": "will can must should could might would", "part": "morning evening afternoon weekend"}
    return rules | {name: words.split() for name, words in lists.items()}


def _forms(words: Sequence[str], ending: str) -> tuple[list[str], list[str]]:
    """The words, and their plurals (`s`) or past forms (`ed`)."""
    other = []
    for word in words:
        base, _, irregular = word.partition(":")
        if re.search(r"[^aeiou]y$", base):
            regular = f"{base[:-1]}ie{ending[-1]}"
        elif base.endswith("e") or (ending == "s" and not re.search(r"(s|x|ch|sh)$", base)):
            regular = base + ending[-1]
        else:
            regular = f"{base}e{ending[-1]}"
        other.append(irregular or regular)
    return [word.partition(":")[0] for word in words], other
