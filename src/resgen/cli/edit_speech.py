"""`resgen edit speech`: a recording with other words."""

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
    """Replace words of a recording, in the voice of the recording.

    --text is what the recording should say: the words that differ from --input-text are replaced. With --from and --to
    it is the words for that stretch alone: words of which at least half lies in it, or that hold it, are replaced
    whole; where none does, the new words come between the nearest two. The codes of the rest come back as they are.
    For example:

        resgen generate speech --model spoken-digits-small --text "one two three" --out spoken.wav
        resgen edit speech --model spoken-digits-small --input spoken.wav --input-text "one two three" \\
            --text "one nine three" --blend --out edited.wav
        resgen edit speech --model spoken-digits-small --input spoken.wav --input-text "one two three" --words
    """

    input: Annotated[Path, option("FILE")]
    """The recording: WAV, FLAC, OGG or MP3 of any rate."""
    input_text: Annotated[str, option("TEXT")]
    """What is said in it."""
    words: bool = False
    """List the words of the recording with their times, and change nothing."""
    text: Annotated[str | None, option("TEXT")] = None
    """What it should say; with a stretch, the words for it."""
    begin_s: Annotated[float | None, option("S", name="from")] = None
    """Where a stretch begins, in seconds of the recording; left out, the texts are compared."""
    end_s: Annotated[float | None, option("S", name="to")] = None
    """Where it ends."""
    lexicon: Lexicon = None
    speed: Annotated[float, option("R")] = 1.0
    """Above 1 is faster; 1 keeps the pace of the recording."""
    keep_length: bool = False
    """Let the new words take as long as the old ones, in whole positions of the codes."""
    blend: bool = False
    """Take the samples outside the stretch from the recording itself, instead of decoding them."""
    num_samples: Annotated[int, option("N")] = 1
    """How many results; 1 if left out."""
    sampling: Annotated[SpeechSampling, OmitArgPrefixes] = SpeechSampling()
    seed: int = 0
    """Result k is drawn from the stream (seed, k), in batches of any size."""
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
        """Refuse options that do not go together, and places that could not be written.

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
            check_out_file(self.out, SOUND_SUFFIXES)
        self.check_trace()

    def list_words(self, pipe: SpeechPipeline) -> None:
        """Report the words and their times."""
        words = pipe.words(self.input, self.input_text)
        rows = [(word.text, f"{word.begin_s:.2f}", f"{word.end_s:.2f}") for word in words]
        report({"words": words}, as_json=self.as_json, text=table([("word", "from [s]", "to [s]"), *rows]))


def is_folder(path: Path) -> bool:
    """Whether results go to a folder of this name."""
    return path.is_dir() or not path.suffix
