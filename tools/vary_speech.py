"""Say a corpus again in other voices: more voices and more to learn from, at no cost but the disk's.

For example:

    python tools/vary_speech.py --data data/teacher/train-*.parquet --copies 2 --clean --out data/varied

Reads the parquet files of a speech corpus (columns audio, text, speaker_id, and what else resgen reads of it) and
writes for each file one of its name with every utterance `--copies` times; how many copies are left out, since they are
too short or too long, is said. A copy of a voice is a voice of its own, named after it: played faster or slower, which
moves pitch and formants, then with its own formants and microphone, and without `--clean` a band and a noise floor too
(altered_voices.py). All utterances of a copy are altered alike.
Files that are there are kept, so that a run can go on. The same seed gives the same corpus.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from altered_voices import as_voice, draw_alteration
from speech_rows import MAX_SECONDS, MIN_SECONDS, RATE_HZ, Row, encode_row, read_rows, write_rows

from resgen.data.sound.decode import read_sound, trim_silence
from resgen.errors import DataError, ResGenError
from resgen.ops.random import derive_seed

SPEEDS = (0.87, 1.15)
"""How much faster than recorded a copy is played."""


@dataclass(frozen=True, kw_only=True)
class VarySpeech:
    """A corpus again, in altered voices."""

    data: tuple[Path, ...]
    """Parquet files of a speech corpus."""
    out: Path
    """Folder to write; files that are there already are kept."""
    copies: int = 1
    """How often each utterance is said again."""
    clean: bool = False
    """Leave out narrow bands and noise floors."""
    seed: int = 0

    def build(self) -> None:
        if self.copies < 1:
            raise DataError(f"copies {self.copies} is out of range; give 1 or more")
        if missing := [str(file) for file in self.data if not file.is_file()]:
            raise DataError(f"no such file: '{missing[0]}'")
        taken: dict[Path, Path] = {}
        for file in self.data:
            other = taken.setdefault((self.out / file.name).resolve(), file)
            if other is not file:
                raise DataError(f"'{other}' and '{file}' would both be written as '{self.out / file.name}'; rename one")
            if file.resolve() in taken:
                raise DataError(f"'{file}' lies in the folder to write; give another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(self.data, 1):
            target = self.out / file.name
            said = ", kept as it is"
            if not target.exists():
                rows, left_out = self.vary(file)
                write_rows(rows, target)
                said = f", {left_out} copies left out" if left_out else ""
            print(f"{number} of {len(self.data)}: {target}{said}", flush=True)

    def vary(self, file: Path) -> tuple[list[Row], int]:
        """The rows of a file, each as often as asked, and how many are left out."""
        rows: list[Row] = []
        left_out = 0
        for index, row in enumerate(read_rows(file, also=("source", "phonemes"))):
            samples = trim_silence(read_sound(row["audio"]["bytes"], RATE_HZ, where=f"'{file}' row {index}"), RATE_HZ)
            for copy in range(self.copies):
                name = f"{row['speaker_id']}%{copy}" + (f"@{self.seed}" if self.seed else "")
                voice = random.Random(derive_seed("copy of a voice", self.seed, name))
                speed = math.exp(voice.uniform(*map(math.log, SPEEDS)))
                alteration = draw_alteration(voice)
                if self.clean:
                    alteration = alteration._replace(band_hz=None, noise_db=None)
                noise = random.Random(derive_seed("noise of a copy", name, str(file.stem), index))
                sound = as_voice(samples, RATE_HZ, speed, alteration, noise)
                if MIN_SECONDS <= len(sound) / RATE_HZ <= MAX_SECONDS:
                    rows.append(
                        encode_row(sound, row["text"], name, row.get("source") or "", row.get("phonemes") or "")
                    )
                else:
                    left_out += 1
        return rows, left_out


def main(command: VarySpeech) -> int:
    """Write the corpus file by file."""
    try:
        command.build()
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(VarySpeech)))
