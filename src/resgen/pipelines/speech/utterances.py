"""The input and output of `SpeechPipeline`, prompts, texts and speech, and the generator's conditions."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from resgen.data.sound.decode import encode_sound, write_sound
from resgen.data.spoken import Spoken
from resgen.errors import DataError
from resgen.samplers.records import StepRecord


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SpeechOutput:
    """Generated speech; a notebook shows a player.

    Attributes:
        audio: float32 samples in [-1, 1]; in continuation it begins with the prompt, as it was given.
        sample_rate_hz: their rate.
        codes: `Int64[L, D]` of everything generated, sentence after sentence, without prompts.
        steps: one record per network evaluation and batch.
        texts: the sentences as they were spoken.
        seed: seed of the call; see `SpeechPipeline` for the streams.
    """

    audio: Float[Tensor, " S"]
    sample_rate_hz: int
    codes: Int[Tensor, "L D"]
    steps: list[StepRecord]
    texts: list[str]
    seed: int

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds."""
        return len(self.audio) / self.sample_rate_hz

    def save(self, path: str | Path) -> Path:
        """Write a `.wav`, `.flac`, `.ogg`, `.opus` or `.mp3` file; missing folders are created. Returns the file.

        Raises:
            DataError: unknown suffix.
            MissingExtraError: soundfile is not installed.
            WriteError: the path cannot be written to.
        """
        write_sound(self.audio, self.sample_rate_hz, path)
        return Path(path)

    def _repr_html_(self) -> str:
        content = base64.b64encode(encode_sound(self.audio, self.sample_rate_hz)).decode("ascii")
        player = f'<audio controls src="data:audio/wav;base64,{content}"></audio>'
        return f"<figure>{player}<figcaption>{html.escape(' '.join(self.texts))}</figcaption></figure>"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.duration_s:.2f} s, {' '.join(self.texts)!r}, seed {self.seed})"


S = TypeVar("S", bound=SpeechOutput)


class SpeechOutputs(list[S]):
    """The speech of several texts or edits, a list; a notebook shows a player for each."""

    def save(self, folder: str | Path) -> list[Path]:
        """Write `0000.wav`, `0001.wav`, ... into a folder, which is created if it is missing. Returns the files.

        Raises:
            DataError: the name of a sound file, which holds only one.
            MissingExtraError: soundfile is not installed.
            WriteError: the folder cannot be written to.
        """
        folder = Path(folder)
        if folder.suffix and not folder.is_dir():
            raise DataError(f"'{folder}' would hold one sound, there are {len(self)}; give the name of a folder")
        return [one.save(folder / f"{number:04d}.wav") for number, one in enumerate(self)]

    def _repr_html_(self) -> str:
        return "".join(one._repr_html_() for one in self)


class Prompt(NamedTuple):
    """A prepared prompt of P positions.

    Attributes:
        samples: at the model's rate and loudness, exactly P positions.
        codes: codes of the samples.
        spoken: its text.
        features: expanded hidden states of the text.
        rate: how much faster than average it is spoken.
    """

    samples: Float[Tensor, " S"]
    codes: Int[Tensor, "P D"]
    spoken: Spoken
    features: Float[Tensor, "T E"]
    rate: float


class Utterance(NamedTuple):
    """One text to speak.

    Attributes:
        sentences: from `SpeechPipeline.sentences`.
        prompt: the voice; None leaves it to the model.
        continued: go on from the prompt's end in one breath.
        speed: above 1 is faster.
        seed: sentence k draws from the stream (seed, number, k).
        number: number of the recording within its call.
    """

    sentences: list[Spoken]
    prompt: Prompt | None = None
    continued: bool = False
    speed: float = 1.0
    seed: int = 0
    number: int = 0


class Job(NamedTuple):
    """One sequence to generate, of `T / feature_stride` positions.

    Attributes:
        seed: its noise is that of the stream (seed, stream).
        stream: number of its noise.
        codes: given at its beginning: the prompt.
        features: features of all of it.
        after: codes given at its end, an example like the prompt; None for none.
    """

    seed: int
    stream: int
    codes: Int[Tensor, "P D"]
    features: Float[Tensor, "T E"]
    after: Int[Tensor, "Q D"] | None = None

    @property
    def num_after(self) -> int:
        """Positions that are given at the end."""
        return 0 if self.after is None else len(self.after)
