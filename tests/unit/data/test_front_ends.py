"""Front ends: the paper's bytes and phonemes keep one contract."""

from __future__ import annotations

import pytest

from resgen.data.front_ends import FRONT_ENDS, front_end
from resgen.data.spoken import Spoken
from resgen.errors import ConfigError, DataError
from resgen.models.text import TextModelConfig

TEXT = "Well, Anna's 2 cats... isn't it so?"


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_words_and_pauses_are_those_of_the_text(name: str) -> None:
    read = front_end(name)
    spoken = read(TEXT)
    assert read.name == name and spoken.text == "well, anna's two cats. isn't it so?"
    words, contents = spoken.text.split(" "), spoken.content.split(b" ")
    assert [word[-1:] in ".,?!" for word in words] == [part[-1:] in (b".", b",", b"?", b"!") for part in contents]
    assert len(read.symbols(spoken.content).split(" ")) == len(words)
    assert read("") == Spoken("", b"")
    with pytest.raises(DataError):
        read("a\ud800")


def test_letters_are_utf8() -> None:
    read = front_end("bytes")
    assert read("Café 1") == Spoken("café one", "café one".encode())
    assert read.symbols("é".encode()) == "é" and read.symbols("é".encode()[:1]) == "?"


def test_texts_are_joined_and_freed_of_marks() -> None:
    joined = Spoken.join([Spoken("a, b.", b"1, 2.", ("a",)), Spoken("c", b"3", ("a", "c"))])
    assert joined == Spoken("a, b. c", b"1, 2. 3", ("a", "c"))
    assert joined.without(",.") == Spoken("a b c", b"1 2 3", ("a", "c"))


def test_what_there_is_not() -> None:
    with pytest.raises(ConfigError, match="unknown front end 'english-9' .did you mean 'english-1'"):
        TextModelConfig(front_end="english-9")
    with pytest.raises(ConfigError, match="'bytes' reads letters; leave it out"):
        front_end("bytes", {"cat": "kˈæt"})
    with pytest.raises(ConfigError, match="front_end=english-1 must be bytes with byt5_folder"):
        TextModelConfig(front_end="english-1", byt5_folder="byt5")
