"""The contract of front ends: what a text model reads.

A front end turns text into words as people read them and, for each, the bytes that the model reads. Every byte becomes
one token. Words are parted by a space in both; `data.text.PROSODY` and the space keep their ASCII codes, so that pauses
are the same bytes in every front end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Spoken(NamedTuple):
    """A text as it is said.

    Attributes:
        text: normalised words and punctuation; phonemes that were written into it stand between slashes.
        content: what the model reads: as many words, a byte a token.
        guesses: words that are in no lexicon, whose sound was guessed from their letters.
    """

    text: str
    content: bytes
    guesses: tuple[str, ...] = ()

    @classmethod
    def join(cls, parts: Iterable[Spoken]) -> Spoken:
        """Several as one text."""
        texts, contents, guesses = zip(*parts, strict=True)
        return cls(" ".join(texts), b" ".join(contents), tuple(dict.fromkeys(sum(guesses, ()))))

    def without(self, marks: Iterable[str]) -> Spoken:
        """Without some marks of punctuation."""
        text, content = self.text, self.content
        for mark in marks:
            text, content = text.replace(mark, " "), content.replace(mark.encode(), b" ")
        return self._replace(text=" ".join(text.split()), content=b" ".join(content.split()))


class FrontEnd(Protocol):
    """Turns text as people write it into what a text model reads."""

    name: str

    def __call__(self, text: str) -> Spoken:
        """A text as it is said.

        Raises:
            DataError: words that this front end cannot say, named.
        """
        ...

    def symbols(self, content: bytes) -> str:
        """The letters or phonemes that bytes stand for; what is cut off in a character's middle is `?`."""
        ...
