"""`resgen generate speech`: a text in the voice of a short recording."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from resgen.cli.common import (
    SOUND_SUFFIXES,
    check_out_dir,
    check_out_file,
    count_passes,
    message,
    option,
    positive,
    report,
)
from resgen.cli.sampling import Drawing, SpeechSampling
from resgen.errors import ConfigError, DataError
from resgen.files import read_small_text

if TYPE_CHECKING:
    from resgen.pipelines.speech.pipeline import SpeechPipeline
    from resgen.pipelines.speech.trace import SpeechTrace

DASH = Path("-")
"""Standard input or output."""
Lexicon = Annotated[
    Path | None,
    arg(
        metavar="FILE",
        help="Pronunciations: one word and its phonemes per line. For models that read phonemes.",
        help_behavior_hint="",
    ),
]


@dataclass(frozen=True, kw_only=True)
class GenerateSpeech(Drawing):
    """Speak a text in the voice of a prompt or in one of the model's own voices.

    Omitted settings default to the model's own. For example:

        resgen generate speech --model english-small --voice emma --text "It is late." --out late.wav
        resgen generate speech --model english-small --text "So it is." --prompt late.wav \\
            --prompt-text "It is late." --out more.wav
        resgen generate speech --model runs/voice/model --texts lines.txt --out folder/
        resgen generate speech --model runs/voice/model --text "A long text. It is heard at once." --out - | aplay
    """

    text: Annotated[str | None, option("TEXT")] = None
    """Text to speak, sentence by sentence. If the model reads phonemes, you can write them between slashes, as in
    /kˈæt/."""
    texts: Annotated[Path | None, option("FILE")] = None
    """Text file with one text per line, instead of --text; writes one sound file each to the folder --out. - reads
    standard input."""
    prompt: Annotated[Path | None, option("FILE")] = None
    """A few seconds of the voice: WAV, FLAC, OGG or MP3 at any sample rate."""
    prompt_text: Annotated[str | None, option("TEXT")] = None
    """Transcript of the prompt."""
    voice: Annotated[str | None, option("NAME")] = None
    """A voice stored with the model, instead of a prompt (see `resgen inspect`)."""
    task: str = "cross-sentence"
    """cross-sentence: a new sentence in the prompt's voice. continuation: continue from the end of the prompt."""
    lexicon: Lexicon = None
    speed: Annotated[float, option("R")] = 1.0
    """Speaking rate relative to the prompt; above 1 is faster."""
    num_samples: Annotated[int, option("N")] = 1
    """Recordings per text, each with fresh noise; more than one are written to the folder --out."""
    sampling: Annotated[SpeechSampling, OmitArgPrefixes] = SpeechSampling()
    seed: int = 0
    """Sentence k of recording i depends only on (seed, i, k)."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """A .wav, .flac, .ogg, .opus or .mp3 file; a folder for several sounds. - streams WAV to standard output."""

    def run(self) -> None:
        if (self.text is None) == (self.texts is None):
            raise ConfigError("give either --text TEXT or --texts FILE")
        positive("--num-samples", self.num_samples)
        if self.out == DASH:
            self.check_stream()
        elif self.single:
            check_out_file(self.out, SOUND_SUFFIXES, sources=(self.prompt,))
        elif self.out.suffix in SOUND_SUFFIXES:
            raise ConfigError(f"--out '{self.out}' names one sound, there are several; give the name of a folder")
        else:
            check_out_dir(self.out)
        self.check_trace()
        settings = self.sampling.settings()
        texts = [self.text] if self.text is not None else read_lines(self.texts)
        from resgen.pipelines.speech.pipeline import SpeechPipeline

        pipe = SpeechPipeline.from_pretrained(self.model, device=self.device, dtype=self.dtype)
        if self.lexicon is not None:
            pipe.use_lexicon(self.lexicon)
        warn_of_missing_vocoder(pipe)
        voice: dict[str, Any] = {
            "prompt": self.prompt,
            "prompt_text": self.prompt_text,
            "voice": self.voice,
            "task": self.task,
            "speed": self.speed,
        }
        if self.out == DASH:
            self.stream(pipe, {**voice, **settings})
            return
        begin = time.perf_counter()
        with self.watched("speaking", lambda: speech_trace(pipe)) as (callback, traced):
            results = pipe(texts, num_samples=self.num_samples, seed=self.seed, callback=callback, **voice, **settings)
            seconds = time.perf_counter() - begin
        files = [results[0].save(self.out)] if self.single else results.save(self.out)
        duration = sum(result.duration_s for result in results)
        document = {
            "files": files,
            "trace": traced,
            "seconds": seconds,
            "duration_s": duration,
            "real_time_factor": seconds / duration,
            "passes": count_passes(results[0].steps),
            "depth": results[0].codes.shape[-1],
        }
        text = (
            f"{duration:.2f} s of speech in {seconds:.2f} s (real-time factor {seconds / duration:.2f}), "
            f"depth {document['depth']}, {document['passes']} network passes; written to {self.out}"
        )
        report(document, as_json=self.as_json, text=text)

    @property
    def single(self) -> bool:
        """Whether there is one sound, for a file and not for a folder."""
        return self.texts is None and self.num_samples == 1

    def check_stream(self) -> None:
        """Reject what a stream cannot have.

        Raises:
            ConfigError: several texts, another output besides, or a terminal that would show the bytes.
        """
        if not self.single or self.as_json or self.trace is not None:
            raise ConfigError(
                "--out - writes one sound to standard output; leave out --texts, --num-samples, --json and --trace"
            )
        if self.sampling.batch_size is not None:
            raise ConfigError("--out - speaks sentence by sentence; leave out --batch-size")
        if sys.stdout.isatty():
            raise ConfigError("--out - writes a WAV sound to standard output; send it to a player: --out - | aplay")

    def stream(self, pipe: SpeechPipeline, options: dict[str, Any]) -> None:
        """Write a WAV sound whose sentences can be heard while those after them are made."""
        from resgen.data.sound.decode import wav_stream

        assert self.text is not None
        begin, parts = time.perf_counter(), pipe.stream(self.text, seed=self.seed, **options)
        seconds = 0.0
        for number, content in enumerate(wav_stream((part.audio for part in parts), pipe.sample_rate_hz)):
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            if number:
                seconds += len(content) / 2 / pipe.sample_rate_hz
                message(f"{seconds:.2f} s of speech after {time.perf_counter() - begin:.2f} s")


def warn_of_missing_vocoder(pipe: SpeechPipeline) -> None:
    """Say so, if phases have to be found by Griffin-Lim."""
    if pipe.codec.needs_vocoder:
        message("the model has no vocoder: phases are estimated by Griffin-Lim, which sounds rough")


def speech_trace(pipe: SpeechPipeline) -> SpeechTrace:
    """A trace of speech."""
    from resgen.pipelines.speech.trace import SpeechTrace

    return SpeechTrace(pipe)


def read_lines(path: Path | None) -> list[str]:
    """The lines of a text file, or of standard input (-), that are not empty.

    Raises:
        DataError: no text file, or nothing in it.
    """
    assert path is not None
    try:
        lines = read_small_text(sys.stdin.buffer if path == DASH else path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"--texts '{path}' cannot be read: {reason}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"--texts '{path}' holds no text; write one text per line")
    return texts
