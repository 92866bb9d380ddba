"""`resgen reconstruct`: pictures or recordings through the tokenizer, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from resgen.cli.common import (
    PICTURE_SUFFIXES,
    Json,
    check_out_dir,
    check_out_file,
    choose,
    message,
    option,
    plain,
    refuse_options,
    report,
    table,
)
from resgen.errors import ConfigError, DataError
from resgen.extras import MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor

NUM = 4


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Encode and decode pictures or speech, level by level, and measure what every level brings.

    The tokenizer says which: of pictures the PSNR is measured, of speech the distance of log-mels and, where pystoi
    is installed, STOI. For example:

        resgen reconstruct --tokenizer runs/digits-tokenizer/model --input picture.png --out levels.png
        resgen reconstruct --tokenizer fashion-mnist-small --input data/test.parquet --out levels.png --json
        resgen reconstruct --tokenizer runs/mel/model --vocoder runs/vocoder/model --input me.wav --out levels
    """

    tokenizer: Annotated[str, option("DIR_OR_NAME")]
    """Folder of a tokenizer or pipeline, or a bundled name."""
    input: Annotated[Path, option("FILE_OR_DATA")]
    """A picture or sound file, or data as for training (its test split)."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """Pictures: the picture to write, the original and its reconstruction with 1, 2, ... levels. Speech: a folder for
    sounds, spectrograms and report."""
    resize: bool = False
    """Pictures: cut out, resize and convert those of another size or mode, instead of refusing them."""
    vocoder: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the vocoder of a mel tokenizer, in place of the pipeline's own."""
    num: Annotated[int | None, option("N")] = None
    """Speech: utterances of the data, 8 at most; 4 if left out."""
    as_json: Json = False

    def run(self) -> None:
        from resgen.modalities import of_model

        choose(of_model(self.tokenizer), {"image": self.run_pictures, "speech": self.run_sound}, "reconstruct")()

    def run_pictures(self) -> None:
        """For a tokenizer of pictures."""
        refuse_options(self, ("vocoder", "num"), f"tokenizer '{self.tokenizer}' is of pictures")
        check_out_file(self.out)
        from resgen.pipelines.image.reconstruct import reconstruct

        result = reconstruct(self.tokenizer, self.input, self.out, resize=self.resize)
        document = {
            "file": self.out,
            "psnr_db": result.psnr_db,
            "num_pictures": result.num_pictures,
            "seconds": result.seconds,
        }
        rows = [("levels", "PSNR [dB]"), *((i + 1, f"{psnr:.2f}") for i, psnr in enumerate(result.psnr_db))]
        text = f"{table(rows)}\n{result.num_pictures} pictures in {result.seconds:.1f} s; written to {self.out}"
        report(document, as_json=self.as_json, text=text)

    def run_sound(self) -> None:
        """The same for a tokenizer of sound."""
        from resgen.files import write_json, write_text
        from resgen.pipelines.speech.reconstruct import MAX_UTTERANCES, open_codec, read_utterances, reconstruct_sound

        num = NUM if self.num is None else self.num
        if not 1 <= num <= MAX_UTTERANCES:
            raise ConfigError(f"--num {num} must lie in 1..{MAX_UTTERANCES}")
        if self.resize:
            raise ConfigError(f"--resize is for pictures; tokenizer '{self.tokenizer}' is of sound")
        if self.out.suffix.lower() in PICTURE_SUFFIXES:
            raise ConfigError(f"--out '{self.out}' names a picture; for speech give the name of a folder")
        check_out_dir(self.out)
        codec, voice = open_codec(self.tokenizer, self.vocoder)
        utterances = read_utterances(self.input, codec.sample_rate_hz, num=num, loudness_db=voice.loudness_db)
        if codec.needs_vocoder:
            message("there is no vocoder (see --vocoder): phases are found by Griffin-Lim, which sounds rough")
        measure = Stoi()
        result = reconstruct_sound(codec, utterances, self.out, intelligibility=measure)
        document = {
            "out": self.out,
            "sheet": result.sheet,
            "vocoder": "griffin-lim" if codec.needs_vocoder else "network" if codec.vocoder else None,
            "levels": [
                {"num_levels": row.num_levels, "mel_distance": row.mel_distance, "stoi": row.intelligibility}
                for row in result.levels
            ],
            "utterances": [
                {
                    "name": one.name,
                    "text": one.text,
                    "duration_s": len(one.samples) / codec.sample_rate_hz,
                    "files": files,
                }
                for one, files in zip(utterances, result.files, strict=True)
            ],
            "notes": sorted(measure.notes),
            "duration_s": result.duration_s,
            "seconds": result.seconds,
        }
        with_stoi = any(row.intelligibility is not None for row in result.levels)
        lines: list[tuple[object, ...]] = [("levels", "mel distance [nat]", *(["STOI"] if with_stoi else []))]
        for row in result.levels:
            stoi = "-" if row.intelligibility is None else f"{row.intelligibility:.3f}"
            lines.append((row.num_levels, f"{row.mel_distance:.3f}", *([stoi] if with_stoi else [])))
        text = "\n".join(
            [
                table(lines),
                *(f"STOI left out: {note}" for note in sorted(measure.notes)),
                f"{len(utterances)} utterances of {result.duration_s:.1f} s in {result.seconds:.1f} s; "
                f"written to {self.out}",
            ]
        )
        write_json(self.out / "report.json", plain(document))
        write_text(self.out / "report.txt", text + "\n")
        report(document, as_json=self.as_json, text=text)


class Stoi:
    """STOI where it can be measured; `notes` say why it could not."""

    def __init__(self) -> None:
        self.notes: set[str] = set()

    def __call__(self, original: Tensor, reconstruction: Tensor, sample_rate_hz: int) -> float | None:
        from resgen.evaluation.speech.metrics import stoi

        try:
            return stoi(original, reconstruction, sample_rate_hz)
        except (DataError, MissingExtraError) as error:
            self.notes.add(str(error))
            return None
