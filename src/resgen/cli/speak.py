"""`resgen generate speech`: a text in the voice of a short recording."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from resgen.cli.common import (
    SOUND_SUFFIXES,
    Json,
    check_out_dir,
    check_out_file,
    message,
    option,
    positive,
    progress_bar,
    report,
)
from resgen.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class GenerateSpeech:
    """Speak a text, in the voice of a prompt or one of the model's own.

    What is left out is taken from the model's own settings. For example:

        resgen generate speech --model spoken-digits-small --text "three seven one" --out digits.wav
        resgen generate speech --model runs/voice/model --text "two" --prompt me.wav --prompt-text five --out a.wav
        resgen generate speech --model runs/voice/model --texts lines.txt --out folder/
    """

    model: Annotated[str, option("DIR_OR_NAME")]
    """Folder of a speech pipeline, or a bundled name (see `resgen models`)."""
    text: Annotated[str | None, option("TEXT")] = None
    """What to say; sentences are spoken one after the other."""
    texts: Annotated[Path | None, option("FILE")] = None
    """A text file instead: one text a line, one sound file each in the folder --out."""
    prompt: Annotated[Path | None, option("FILE")] = None
    """A few seconds of the voice: WAV, FLAC, OGG or MP3 of any rate."""
    prompt_text: Annotated[str | None, option("TEXT")] = None
    """What is said in the prompt."""
    task: str = "cross-sentence"
    """cross-sentence: a new sentence in the prompt's voice. continuation: go on from the end of the prompt."""
    steps: Annotated[int | None, option("N")] = None
    """Network evaluations of the sampler."""
    guidance_scale: Annotated[float | None, option("W")] = None
    """How far to move from the unconditional prediction; 0 is off and halves the time."""
    top_p: Annotated[float | None, option("P")] = None
    """Mass of the codes or mixture components to draw from, in (0, 1]."""
    temperature: Annotated[float | None, option("T")] = None
    """Randomness of the codes."""
    choice_temperature: Annotated[float | None, option("T")] = None
    """Randomness in the order in which tokens are revealed."""
    speed: Annotated[float, option("R")] = 1.0
    """Above 1 is faster; 1 keeps the pace of the prompt."""
    seed: int = 0
    """Sentence k of text i is drawn from the stream (seed, i, k)."""
    batch_size: Annotated[int, option("N")] = 16
    """Sentences per network evaluation."""
    device: Annotated[str | None, option("NAME")] = None
    """cpu, cuda or cuda:1; without it a GPU if there is one."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """A .wav, .flac or .ogg file; with --texts a folder."""
    as_json: Json = False

    def run(self) -> None:
        positive("--batch-size", self.batch_size)
        if (self.text is None) == (self.texts is None):
            raise ConfigError("give either --text TEXT or --texts FILE")
        if self.texts is None:
            check_out_file(self.out, SOUND_SUFFIXES)
        else:
            check_out_dir(self.out)
        texts = [self.text] if self.text is not None else read_lines(self.texts)
        from resgen.data.sound import write_sound
        from resgen.pipelines.speech import SpeechPipeline

        pipe = SpeechPipeline.from_pretrained(self.model, device=self.device)
        if pipe.codec.needs_vocoder:
            message("the model has no vocoder: phases are found by Griffin-Lim, which sounds rough")
        begin = time.perf_counter()
        with progress_bar("speaking") as step_done:
            results = pipe.batch(
                texts,
                prompt=self.prompt,
                prompt_text=self.prompt_text,
                task=self.task,
                speed=self.speed,
                seed=self.seed,
                batch_size=self.batch_size,
                callback=step_done,
                **self.settings(),
            )
        seconds = time.perf_counter() - begin
        files = [self.out] if self.texts is None else [self.out / f"{k:04d}.wav" for k in range(len(results))]
        for result, file in zip(results, files, strict=True):
            write_sound(result.audio, result.sample_rate_hz, file)
        duration = sum(result.duration_s for result in results)
        document = {
            "files": files,
            "seconds": seconds,
            "duration_s": duration,
            "real_time_factor": seconds / duration,
            "passes": sum(2 if step.guidance_scale else 1 for step in results[0].steps),
            "depth": results[0].codes.shape[-1],
        }
        text = (
            f"{duration:.2f} s of speech in {seconds:.2f} s (real-time factor {seconds / duration:.2f}), "
            f"depth {document['depth']}, {document['passes']} network passes; written to {self.out}"
        )
        report(document, as_json=self.as_json, text=text)

    def settings(self) -> dict[str, Any]:
        """The sampling options that were given, by the pipeline's names."""
        given = {
            "num_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "top_p": self.top_p,
            "temperature": self.temperature,
            "choice_temperature": self.choice_temperature,
        }
        return {name: value for name, value in given.items() if value is not None}


def read_lines(path: Path | None) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: no text file, or nothing in it.
    """
    assert path is not None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"--texts '{path}' cannot be read: {reason}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"--texts '{path}' holds no text; give one text a line")
    return found
