"""Texts as a speech model reads them, sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from resgen.data.announce import announce
from resgen.data.front_ends import front_end
from resgen.data.spoken import Spoken
from resgen.data.text import PROSODY, check_symbols, split_sentences, words_of
from resgen.errors import DataError, WrongTypeError
from resgen.models.text import TextModelConfig

MAX_CHARS = 200
MAX_TEXT_BYTES = 20_000


class Reader:
    """Reads texts for a text model.

    Args:
        config: configuration of the text model.
        alphabet: letters or phonemes that it knows.
        own: phonemes by word that go before the package's.
        vocabulary: the words of the training where these were few.

    Raises:
        ConfigError: phonemes for a model that reads letters.
    """

    def __init__(
        self,
        config: TextModelConfig,
        alphabet: str,
        own: Mapping[str, str] | None = None,
        vocabulary: Sequence[str] = (),
    ) -> None:
        self.front_end, self.vocabulary = front_end(config.front_end, own), vocabulary
        self.alphabet, self.longest = alphabet, config.max_tokens - 2

    def sentences(self, text: str, max_chars: int = MAX_CHARS) -> list[Spoken]:
        """The sentences of a text, each short enough to be generated at once.

        Punctuation that the model has not learned is left out.

        Args:
            text: as people write it.
            max_chars: longest sentence; longer ones are cut after clauses.

        Raises:
            DataError: nothing to say, too long, words that cannot be said, or letters or phonemes that the model has
                not learned.
        """
        if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
            raise DataError(f"the text has more than {MAX_TEXT_BYTES} bytes; give it in parts")
        unknown_marks = set(PROSODY) - set(self.alphabet)
        parts = [*split_sentences(text, min(max_chars, self.longest)), text]
        *complete, whole = (self.front_end(part).without(unknown_marks) for part in parts)
        spoken = [part for part in complete if any(character.isalnum() for character in part.text)]
        for part in spoken or [whole]:
            self._check(part)
            if len(part.content) > self.longest:
                raise DataError(
                    f"a sentence has {len(part.content)} letters or phonemes, at most {self.longest} are allowed; "
                    "split it"
                )
        return spoken

    def _check(self, part: Spoken) -> None:
        try:
            check_symbols(self.front_end.symbols(part.content), self.alphabet)
        except DataError as error:
            if not (others := self._unlearned([part])):
                raise
            raise DataError(f"the model cannot speak '{others}'; it knows: {self._learned()}") from error

    def warn(self, name: str, sentences: Iterable[Spoken]) -> None:
        """Say which words the model of this name will not speak clearly, if it was trained on few."""
        if others := self._unlearned(sentences):
            announce(
                f"'{name}' was trained on {len(self.vocabulary)} words only ({self._learned()}) and never learned: "
                f"{others}; they will not be understood"
            )

    def _unlearned(self, sentences: Iterable[Spoken]) -> str:
        words = words_of(one.text for one in sentences) if self.vocabulary else set()
        return ", ".join(sorted(words - set(self.vocabulary))[:20])

    def _learned(self) -> str:
        return ", ".join(self.vocabulary[:20]) + ", ..." * (len(self.vocabulary) > 20)

    def whole(self, text: str, name: str = "text") -> Spoken:
        """All sentences of a text as one.

        Raises:
            WrongTypeError: it is no text; the error calls it `name`.
            DataError: see `sentences`.
        """
        if not isinstance(text, str):
            raise WrongTypeError(f"{name}={text!r:.80} must be a text")
        return Spoken.join(self.sentences(text))
