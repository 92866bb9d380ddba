"""`resgen reconstruct` for speech: what each level of a tokenizer adds, measured and written to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from resgen.errors import ConfigError, DataError
from resgen.evaluation.report import Levels
from resgen.evaluation.speech.metrics import stoi
from resgen.experiments.image.reconstruction import PICTURES
from resgen.extras import MissingExtraError
from resgen.pipelines.speech.reconstruct import open_codec, read_utterances, reconstruct_sound


def reconstruct_speech(
    tokenizer: str, input: Path, out: Path, *, vocoder: str | None = None, num: int = 4, say: Callable[[str], None]
) -> Levels:
    """Distances of log-mels by level and, where pystoi is installed, STOI, with sounds and spectrograms; the arguments
    are options.

    Raises:
        ConfigError: `out` names an image.
    """
    if out.suffix.lower() in PICTURES:
        raise ConfigError(f"--out '{out}' names an image; for speech give the name of a folder")
    codec, voice = open_codec(tokenizer, vocoder)
    utterances = read_utterances(input, codec.sample_rate_hz, num=num, loudness_db=voice.loudness_db)
    if codec.needs_vocoder:
        say("there is no vocoder (see --vocoder): phases are found by Griffin-Lim, which sounds rough")
    measure = Stoi()
    result = reconstruct_sound(codec, utterances, out, intelligibility=measure)
    notes = sorted(measure.notes)
    document = {
        "out": out,
        "sheet": result.sheet,
        "vocoder": "griffin-lim" if codec.needs_vocoder else "network" if codec.vocoder else None,
        "levels": [
            {"num_levels": row.num_levels, "mel_distance": row.mel_distance, "stoi": row.intelligibility}
            for row in result.levels
        ],
        "utterances": [
            {"name": one.name, "text": one.text, "duration_s": len(one.samples) / codec.sample_rate_hz, "files": files}
            for one, files in zip(utterances, result.files, strict=True)
        ],
        "notes": notes,
        "duration_s": result.duration_s,
        "seconds": result.seconds,
    }
    columns: list[list[object]] = [
        ["levels", *(row.num_levels for row in result.levels)],
        ["mel distance [nat]", *(f"{row.mel_distance:.3f}" for row in result.levels)],
    ]
    scores = [row.intelligibility for row in result.levels]
    if any(score is not None for score in scores):
        columns.append(["STOI", *("-" if score is None else f"{score:.3f}" for score in scores)])
    summary = f"{len(utterances)} utterances of {result.duration_s:.1f} s in {result.seconds:.1f} s; written to {out}"
    return Levels(document, list(zip(*columns, strict=True)), [*(f"STOI left out: {note}" for note in notes), summary])


class Stoi:
    """STOI where it can be measured; `notes` say why it could not."""

    def __init__(self) -> None:
        self.notes: set[str] = set()

    def __call__(self, original: Tensor, reconstruction: Tensor, sample_rate_hz: int) -> float | None:
        try:
            return stoi(original, reconstruction, sample_rate_hz)
        except (DataError, MissingExtraError) as error:
            self.notes.add(str(error))
            return None
