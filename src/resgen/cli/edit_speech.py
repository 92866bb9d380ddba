"""`resgen edit speech`: replace words in a recording."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from resgen.cli.common import (
    SOUND_SUFFIXES,
    check_out_dir,
    check_out_file,
    count_passes,
    option,
    positive,
    report,
    table,
)
from resgen.cli.sampling import Drawing, SpeechSampling
from resgen.cli.speak import Lexicon, speech_trace, warn_of_missing_vocoder
from resgen.errors import ConfigError

if TYPE_CHECKING:
    from resgen.pipelines.speech.pipeline import SpeechPipeline


@dataclass(frozen=True, kw_only=True)
class EditSpeech(Drawing):
    """Replace words in a recording, in the recording's voice.

    --text is what the recording should say: the words that differ from --input-text are replaced. With --from and --to,
    --text is only for that interval: it replaces the words that lie at least half within the interval, or contain it;
    if there are none, it is inserted between the nearest two. All other codes stay unchanged.
    For example:

        resgen generate speech --model spoken-digits-small --text "one two three" --out spoken.wav
        resgen edit speech --model spoken-digits-small --input spoken.wav --input-text "one two three" \\
            --text "one nine three" --blend --out edited.wav
        resgen edit speech --model spoken-digits-small --input spoken.wav --input-text "one two three" --words
    """

    input: Annotated[Path, option("FILE")]
    """The recording: WAV, FLAC, OGG or MP3 at any sample rate."""
    input_text: Annotated[str, option("TEXT")]
    """Transcript of the recording."""
    words: bool = False
    """List the words of the recording with their times, and change nothing."""
    text: Annotated[str | None, option("TEXT")] = None
    """What the recording should say; with --from and --to, the new words for the interval."""
    begin_s: Annotated[float | None, option("S", name="from")] = None
    """Start of the interval in seconds; by default the differing words are found by comparing the texts."""
    end_s: Annotated[float | None, option("S", name="to")] = None
    """End of the interval in seconds."""
    lexicon: Lexicon = None
    speed: Annotated[float, option("R")] = 1.0
    """Speaking rate relative to the recording; above 1 is faster."""
    keep_length: bool = False
    """Give the new words the duration of the old ones, in whole code positions."""
    blend: bool = False
    """Copy the samples outside the edited interval from the recording instead of decoding them."""
    num_samples: Annotated[int, option("N")] = 1
    """Number of results; 1 by default."""
    sampling: Annotated[SpeechSampling, OmitArgPrefixes] = SpeechSampling()
    seed: int = 0
    """Result k depends only on (seed, k), not on the batch size."""
    out: Annotated[Path | None, option("FILE_OR_DIR")] = None
    """A .wav, .flac, .ogg, .opus or .mp3 file, or a folder for one file per result."""

    def run(self) -> None:
        self.check()
        settings = self.sampling.settings()
        from resgen.pipelines.speech.pipeline import SpeechPipeline

        pipe = SpeechPipeline.from_pretrained(self.model, device=self.device, dtype=self.dtype)
        if self.lexicon is not None:
            pipe.use_lexicon(self.lexicon)
        if self.words:
            self.list_words(pipe)
            return
        assert self.text is not None and self.out is not None
        from resgen.data.sound.decode import write_sound

        warn_of_missing_vocoder(pipe)
        begin = time.perf_counter()
        with self.watched("speaking", lambda: speech_trace(pipe)) as (callback, traced):
            results = pipe.edit(
                self.input,
                input_text=self.input_text,
                text=self.text,
                begin_s=self.begin_s,
                end_s=self.end_s,
                speed=self.speed,
                keep_length=self.keep_length,
                blend=self.blend,
                num_samples=self.num_samples,
                seed=self.seed,
                callback=callback,
                **settings,
            )
            seconds = time.perf_counter() - begin
        files = [self.out]
        if is_folder(self.out):
            files = [self.out / f"{number:04d}_{self.seed}.wav" for number in range(len(results))]
        for result, file in zip(results, files, strict=True):
            write_sound(result.audio, result.sample_rate_hz, file)
        plan, passes = results[0].plan, count_passes(results[0].steps)
        old = " ".join(word.text for word in plan.replaced)
        document = {
            "files": files,
            "trace": traced,
            "text": plan.text,
            "replaced": old,
            "stretch_s": plan.cut_s,
            "words": plan.words,
            "positions": len(results[0].codes),
            "new_positions": plan.num_new,
            "seconds": seconds,
            "duration_s": results[0].duration_s,
            "passes": passes,
            "depth": results[0].codes.shape[-1],
        }
        change = f"'{old}' replaced" if old else "words put in"
        text = (
            f"{change} at {plan.cut_s[0]:.2f} to {plan.cut_s[1]:.2f} s: '{plan.text}', "
            f"{plan.num_new} of {len(results[0].codes)} positions regenerated in {seconds:.1f} s "
            f"with {passes} network passes: {self.out}"
        )
        report(document, as_json=self.as_json, text=text)

    def check(self) -> None:
        """Reject options that do not go together, and places that could not be written.

        Raises:
            ConfigError: naming the option.
        """
        given = {"--text": self.text, "--from": self.begin_s, "--to": self.end_s, "--out": self.out}
        present = [name for name, value in given.items() if value is not None]
        if self.words:
            if present:
                raise ConfigError(f"--words lists the words and changes nothing; leave out {', '.join(present)}")
            return
        stretch = ["--from", "--to"] if {"--from", "--to"} & {*present} else []
        missing = [name for name in ("--text", *stretch, "--out") if name not in present]
        if self.out is None or missing:
            raise ConfigError(
                f"{', '.join(missing)} missing; --words lists the words of the recording with their times"
            )
        positive("--num-samples", self.num_samples)
        if is_folder(self.out):
            check_out_dir(self.out)
        elif self.num_samples > 1:
            raise ConfigError(f"--out '{self.out}' is a file; {self.num_samples} results (--num-samples) need a folder")
        else:
            check_out_file(self.out, SOUND_SUFFIXES, sources=(self.input,))
        self.check_trace()

    def list_words(self, pipe: SpeechPipeline) -> None:
        """Report the words and their times."""
        words = pipe.words(self.input, self.input_text)
        rows = [(word.text, f"{word.begin_s:.2f}", f"{word.end_s:.2f}") for word in words]
        report({"words": words}, as_json=self.as_json, text=table([("word", "from [s]", "to [s]"), *rows]))


def is_folder(path: Path) -> bool:
    """Whether results go to a folder of this name."""
    return path.is_dir() or not path.suffix
