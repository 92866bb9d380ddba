"""Front ends by the names stored with text models: the paper's bytes, and phonemes."""

from __future__ import annotations

from collections.abc import Mapping

from resgen.data.phonemes import EnglishPhonemes
from resgen.data.spoken import FrontEnd, Spoken
from resgen.data.text import as_bytes, normalise_text
from resgen.errors import ConfigError, unknown

FRONT_ENDS = ("bytes", EnglishPhonemes.name)
"""A name with a number never changes what it says, since models and corpora are made with it."""


class Letters:
    """The front end of the paper: UTF-8 bytes of the normalised text, as ByT5 takes them."""

    name = "bytes"

    def __call__(self, text: str) -> Spoken:
        """See `FrontEnd`."""
        normal = normalise_text(text)
        return Spoken(normal, as_bytes(normal))

    def symbols(self, content: bytes) -> str:
        """See `FrontEnd`."""
        return content.decode(errors="replace").replace("\ufffd", "?")


def check_front_end(name: str) -> None:
    """Reject a front end that does not exist.

    Raises:
        ConfigError: naming those there are.
    """
    if name not in FRONT_ENDS:
        raise ConfigError(unknown("front end", name, FRONT_ENDS))


def front_end(name: str, own: Mapping[str, str] | None = None) -> FrontEnd:
    """The front end called `name`.

    Args:
        name: one of `FRONT_ENDS`.
        own: phonemes by word that go before the package's, as from `phonemes.read_lexicon`.

    Raises:
        ConfigError: there is none of this name, or it has no use for phonemes.
    """
    check_front_end(name)
    if name == EnglishPhonemes.name:
        return EnglishPhonemes(own)
    if own:
        raise ConfigError(
            f"a lexicon gives phonemes, but the front end '{name}' reads letters; leave it out, or take a model whose "
            f"front end is '{EnglishPhonemes.name}'"
        )
    return Letters()
