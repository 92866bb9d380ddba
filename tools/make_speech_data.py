"""Build speech corpora as folders of parquet files: spoken digits or sentences, from recordings and synthesizers.

For example:

    python tools/make_speech_data.py digits --tiny --out data/tiny
    python tools/make_speech_data.py digits --fsdd data/fsdd --out data/digits
    python tools/make_speech_data.py sentences --make-texts 6000 --out data/sentences
    python tools/make_speech_data.py teacher --model kokoro --styles voices --texts texts.txt --out data/teacher

Every row is one utterance: audio {bytes (FLAC, 16 kHz, mono), path}, text (lower case), speaker_id, source. A voice
of a synthesizer is one fixed setting; eight of them are heard in `test_unseen_synth` only, and no text of that split is
in a synthesizer's `train`. `--varied-voices` and `--varied-real` add many more voices with two utterances each, for a
model that shall follow any prompt: settings drawn at random, and the sound played faster or slower, which moves pitch
and formants; with `--altered` also formants alone, and another microphone, band and noise (altered_voices.py).
Needs espeak-ng and flite (Debian: apt-get install espeak-ng flite); teacher.py tells what the teacher needs. The same
seed gives the same corpus.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from altered_voices import Alteration, as_voice, draw_alteration
from sentence_grammar import make_texts
from speech_rows import RATE_HZ, Row, encode_row, is_test_text, read_lines, read_rows, write_rows
from teacher import Teacher
from torch import Tensor

from resgen.data.sound.decode import normalise_loudness, read_sound, trim_silence
from resgen.errors import DataError, ResGenError
from resgen.ops.random import derive_seed

WORKERS = 2
PLAYED = (0.8, 1.25)
"""How much faster than recorded a varied voice is played; adults' vocal tracts differ about that much."""
DIGITS = tuple("zero one two three four five six seven eight nine".split())
ACCENTS = "en-us en-gb en-us-nyc en-gb-x-rp en-gb-scotland en-029 en-gb-x-gbclan en-gb-x-gbcwmd".split()
FEMALE = "f2 f3 f4 f5 aunty belinda linda anika steph steph2 grandma shelby".split()
MALE = """m1 m3 m4 m6 m7 m8 adam Alex antonio benjamin croak david Denis Diogo edward Gene Henrique klatt klatt3 klatt4
    max Michael Mike norbert pablo paul pedro quincy sandro""".split()
# No variant here shares its formants with one above: another accent of a known throat would not be an unseen voice.
HELD_OUT = "f1 m2 Annie m5 Alicia ed Mario".split()
FLITE, FLITE_HELD_OUT = "slt awb kal kal16".split(), ["rms"]


class Voice(NamedTuple):
    """One fixed setting of a synthesizer."""

    speaker_id: str
    source: str
    options: tuple[str, ...]
    held_out: bool
    speed: float = 1.0
    alteration: Alteration | None = None

    def command(self, text: str, file: Path) -> list[str]:
        if self.source == "flite":
            return ["flite", *self.options, "-t", text, "-o", str(file)]
        return ["espeak-ng", *self.options, "-w", str(file), "--", text]


class Job(NamedTuple):
    """A text to be spoken: `text` is the transcript, `spoken` what the synthesizer is given."""

    voice: Voice
    text: str
    spoken: str


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Sequences of two to six digits: joined recordings of one speaker, and synthesizers."""

    fsdd: Path | None = None
    """Folder with train, test_seen_speaker and test_unseen_speaker.parquet of the free spoken digit dataset; a tiny
    corpus does without it."""
    out: Path
    """Folder to write; must not exist."""
    seed: int = 0
    real_per_speaker: int = 400
    """Sequences of each training speaker in `train`."""
    test_real: int = 80
    """Sequences in each of `test_seen` and `test_unseen`."""
    varied_real: int = 0
    """Further sequences in `train` of training speakers played faster or slower, two at each speed."""
    per_voice: int = 77
    """Sequences of each synthesizer voice in `train`."""
    varied_voices: int = 0
    """Further sequences in `train`, two of each of half as many further synthesizer voices."""
    altered: bool = False
    """Alter the varied voices' formants, microphones, bands and noise too."""
    test_per_voice: int = 10
    """Sequences of each held-out voice in `test_unseen_synth`."""
    hours: float | None = None
    """Keep at most this much of `train`, chosen at random."""
    tiny: bool = False
    """A corpus of a few minutes, to try the commands: two sequences of each voice, one of each held-out voice."""

    def build(self) -> dict[str, list[Row]]:
        if self.tiny:
            few = {"real_per_speaker": 4, "test_real": 4, "per_voice": 2, "test_per_voice": 1}
            return replace(self, tiny=False, **few)._build()
        if self.fsdd is None:
            raise DataError("give --fsdd PATH, or --tiny for a small corpus of synthesizers alone")
        return self._build()

    def _build(self) -> dict[str, list[Row]]:
        voices = _voices()
        sources = {"train": "train", "test_seen": "test_seen_speaker", "test_unseen": "test_unseen_speaker"}
        splits: dict[str, list[Row]] = {}
        for split, file in sources.items() if self.fsdd is not None else ():
            speakers = _recordings(self.fsdd / f"{file}.parquet")
            names = sorted(speakers)
            count = self.real_per_speaker if split == "train" else -(-self.test_real // len(names))
            splits[split] = [row for name in names for row in self._join(split, name, speakers[name], count)]
            if split == "train":
                count = -(-self.varied_real // len(names))
                rows = [row for name in names for row in self._join("varied", name, speakers[name], count)]
                splits[split] += rows[: self.varied_real]
        for split, held_out in (("train", False), ("test_unseen_synth", True)):
            jobs = []
            for voice in (voice for voice in voices if voice.held_out == held_out):
                rng = random.Random(derive_seed("digits", self.seed, split, voice.speaker_id))
                for _ in range(self.test_per_voice if held_out else self.per_voice):
                    jobs.append(_digit_job(voice, rng, held_out=held_out))
            if not held_out:
                for voice, rng in _varied(voices, self.varied_voices, self.seed, altered=self.altered):
                    jobs.append(_digit_job(voice, rng, held_out=False))
            splits[split] = splits.get(split, []) + _speak(jobs, split)
        return splits

    def _join(self, split: str, speaker: str, recordings: dict[str, list[Tensor]], count: int) -> list[Row]:
        """`count` sequences of one speaker's recordings, with pauses of 0.05 to 0.25 s between the digits.

        In the part `varied` every two sequences are another speaker: they are played faster or slower.
        """
        missing = [digit for digit in DIGITS if digit not in recordings]
        if missing:
            raise DataError(f"'{self.fsdd}' {split}: speaker '{speaker}' has no recording of: {', '.join(missing)}")
        rng = random.Random(derive_seed("digits", self.seed, split, speaker))
        rows = []
        varied = split == "varied"
        for index in range(count):
            words = _digit_words(rng, held_out=split not in ("train", "varied"))
            parts: list[Tensor] = []
            for word in words:
                if parts:
                    parts.append(torch.zeros(round(rng.uniform(0.05, 0.25) * RATE_HZ)))
                parts.append(rng.choice(recordings[word]))
            samples, name = torch.cat(parts), f"fsdd_{speaker}"
            if varied:
                name = _varied_name(name, index // 2, self.seed)
                voice = random.Random(derive_seed("played", self.seed, name))
                samples = as_voice(
                    samples, RATE_HZ, _playing_speed(voice), draw_alteration(voice) if self.altered else None, rng
                )
                name = _speaker_id(name, self.altered)
            rows.append(encode_row(samples, " ".join(words), name, "fsdd"))
        print(f"{split}: {count} sequences of {speaker}", flush=True)
        return rows


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Sentences of the synthesizers, with exact texts, and optionally the recordings of speechocean762."""

    out: Path
    """Folder to write; must not exist."""
    texts: Path | None = None
    """Text file with one sentence a line."""
    make_texts: int | None = None
    """Make this many sentences instead, from a small grammar."""
    words: Path | None = None
    """Word list, one a line (what follows a space is passed over, as in a pronouncing dictionary): in `train` one word
    in three of a sentence gives way to one of these, so that many spellings are heard."""
    speechocean: Path | None = None
    """Folder with train, test_seen_speaker and test_unseen_speaker.parquet of speechocean762."""
    varied_recordings: int = 0
    """Further recordings in `train`: those of speechocean762 again, played faster or slower, two at each speed."""
    seed: int = 0
    per_voice: int = 112
    """Sentences of each synthesizer voice in `train`."""
    varied_voices: int = 0
    """Further sentences in `train`, two of each of half as many further synthesizer voices."""
    altered: bool = False
    """Alter the varied voices' formants, microphones, bands and noise too."""
    test_per_voice: int = 10
    """Sentences of each held-out voice in `test_unseen_synth`."""
    hours: float | None = None
    """Keep at most this much of `train`, chosen at random."""
    tiny: bool = False
    """A corpus of a few minutes, to try the commands: two sentences of each voice, one of each held-out voice; made
    ones without `--texts`."""

    def build(self) -> dict[str, list[Row]]:
        if self.tiny:
            make = 400 if self.texts is None else None
            return replace(self, tiny=False, make_texts=make, per_voice=2, test_per_voice=1).build()
        voices = _voices()
        splits: dict[str, list[Row]] = {}
        if self.speechocean is not None:
            for split in ("train", "test_seen", "test_unseen"):
                file = "train" if split == "train" else f"{split}_speaker"
                path = self.speechocean / f"{file}.parquet"
                splits[split] = _copy_recordings(path, "speechocean762")
                if split == "train":
                    splits[split] += _vary_recordings(path, self.varied_recordings, self.seed, altered=self.altered)
                print(f"{split}: {len(splits[split])} recordings", flush=True)
        texts = self._sentences()
        for split, held_out in (("train", False), ("test_unseen_synth", True)):
            selection = [text for text in texts if is_test_text(text) == held_out]
            if not selection:
                raise DataError(f"{len(texts)} texts are too few to divide; give at least 100")
            rng = random.Random(derive_seed("sentences", self.seed, split))
            selection = rng.sample(selection, len(selection))
            if self.words is not None and not held_out:
                words = [w for line in read_lines(self.words) if re.fullmatch("[a-z]{2,12}", w := line.split(" ")[0])]
                if not words:
                    raise DataError(f"'{self.words}' holds no words of 2 to 12 letters at the beginnings of its lines")
                selection = [
                    " ".join(rng.choice((w, w, rng.choice(words))) for w in text.split()) for text in selection
                ]
            speakers = [voice for voice in voices if voice.held_out == held_out]
            turns = [voice for _ in range(self.test_per_voice if held_out else self.per_voice) for voice in speakers]
            if not held_out:
                varied = _varied(voices, self.varied_voices, self.seed, altered=self.altered)
                turns += [voice for voice, _ in varied]
            jobs = [Job(v, selection[i % len(selection)], selection[i % len(selection)]) for i, v in enumerate(turns)]
            splits[split] = splits.get(split, []) + _speak(jobs, split)
        return splits

    def _sentences(self) -> list[str]:
        if (self.texts is None) == (self.make_texts is None):
            raise DataError("give either --texts FILE or --make-texts N")
        if self.texts is None:
            return make_texts(self.make_texts or 0, self.seed)
        return list(dict.fromkeys(text for line in read_lines(self.texts) if (text := " ".join(line.lower().split()))))


def _digit_words(rng: random.Random, *, held_out: bool) -> list[str]:
    """Two to six digits; a tenth of all sequences is kept for the test splits."""
    count = rng.randint(2, 6)
    while True:
        words = rng.choices(DIGITS, k=count)
        if is_test_text(" ".join(words)) == held_out:
            return words


def _digit_job(voice: Voice, rng: random.Random, *, held_out: bool) -> Job:
    words = _digit_words(rng, held_out=held_out)
    return Job(voice, " ".join(words), ", ".join(words))


def _varied(voices: Sequence[Voice], count: int, seed: int, *, altered: bool) -> Iterable[tuple[Voice, random.Random]]:
    """Voices that are like no other, each twice, in turn from each training voice; and a stream for each utterance."""
    basis = [voice for voice in voices if not voice.held_out]
    for index in range(count):
        number = index // 2
        voice = basis[number % len(basis)]
        rng = random.Random(derive_seed("varied voice", seed, number))
        options = voice.options
        if voice.source == "espeak-ng":
            accented = f"{rng.choice(ACCENTS)}+{voice.speaker_id.rpartition('+')[2]}"
            options = ("-v", accented, "-p", str(rng.randint(15, 85)), "-s", str(rng.randint(130, 185)))
        name = _varied_name(voice.speaker_id, number, seed)
        stream = random.Random(derive_seed("varied utterance", seed, index))
        speed = _playing_speed(rng)
        alteration = draw_alteration(rng) if altered else None
        yield Voice(_speaker_id(name, altered), voice.source, options, False, speed, alteration), stream


def _varied_name(speaker: str, number: int, seed: int) -> str:
    """A name that no corpus of another seed gives to another voice, so that corpora can be learned from together."""
    return f"{speaker}#{number}" + (f"@{seed}" if seed else "")


def _speaker_id(name: str, altered: bool) -> str:
    """Altered, a voice is another one; digits and sentences of one name are of one voice."""
    return f"{name}~" if altered else name


def _playing_speed(rng: random.Random) -> float:
    return math.exp(rng.uniform(*map(math.log, PLAYED)))


def _voices() -> list[Voice]:
    """All voices; espeak-ng says nothing of a voice it does not know, so what is installed is looked up first."""
    for program in ("espeak-ng", "flite"):
        if shutil.which(program) is None:
            raise DataError(f"'{program}' is not installed; on Debian: apt-get install espeak-ng flite")
    listing = _output("espeak-ng", "--voices=en") + _output("espeak-ng", "--voices=variant") + _output("flite", "-lv")
    installed = set(listing.replace("!v/", " ").split())
    voices = []
    for index, variant in enumerate(FEMALE + MALE + HELD_OUT):
        accent = ACCENTS[index % len(ACCENTS)]
        name = f"{accent}+{variant}"
        rng = random.Random(derive_seed("voice", name))  # of no seed: a voice is the same in every corpus
        options = ("-v", name, "-p", str(rng.randint(30, 70)), "-s", str(rng.randint(130, 185)))
        voices.append(Voice(f"espeak_{name}", "espeak-ng", options, variant in HELD_OUT))
        for needed in (accent, variant):
            if needed not in installed:
                raise DataError(f"this espeak-ng has no voice '{needed}'; version 1.51 of Debian has")
    for name in FLITE + FLITE_HELD_OUT:
        if name not in installed:
            raise DataError(f"this flite has no voice '{name}'; version 2.2 of Debian has")
        voices.append(Voice(f"flite_{name}", "flite", ("-voice", name), name in FLITE_HELD_OUT))
    return voices


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def _speak(jobs: Sequence[Job], title: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:

        def speak(index: int) -> Row:
            job, file = jobs[index], Path(folder) / f"{index}.wav"
            process = subprocess.run(job.voice.command(job.spoken, file), capture_output=True, timeout=60, check=False)
            if process.returncode or not file.exists():
                raise DataError(f"{job.voice.speaker_id} failed at '{job.text}': {process.stderr.decode()[:200]}")
            samples = read_sound(file, RATE_HZ, where=f"{job.voice.speaker_id} '{job.text}'")
            file.unlink()
            noise = random.Random(derive_seed("noise", job.voice.speaker_id, index))
            samples = as_voice(trim_silence(samples, RATE_HZ), RATE_HZ, job.voice.speed, job.voice.alteration, noise)
            return encode_row(samples, job.text, job.voice.speaker_id, job.voice.source)

        rows = []
        begin = time.monotonic()
        for row in pool.map(speak, range(len(jobs))):
            rows.append(row)
            if len(rows) % 500 == 0 or len(rows) == len(jobs):
                seconds = time.monotonic() - begin
                print(f"{title}: {len(rows)} of {len(jobs)} spoken in {seconds:.0f} s", flush=True)
    return rows


def _recordings(file: Path) -> dict[str, dict[str, list[Tensor]]]:
    """Single digits by speaker and word: trimmed, of equal loudness, with edges that do not click."""
    recordings: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    fade = torch.linspace(0, 1, RATE_HZ // 200)
    for row in read_rows(file):
        samples = read_sound(row["audio"]["bytes"], RATE_HZ, where=f"'{file}' {row['audio']['path']}")
        samples = normalise_loudness(trim_silence(samples, RATE_HZ, margin_s=0.02), RATE_HZ)
        if len(samples) < 2 * len(fade):
            raise DataError(f"'{file}' {row['audio']['path']} is too short for a digit")
        ends = torch.ones_like(samples)
        ends[: len(fade)], ends[-len(fade) :] = fade, fade.flip(0)
        recordings[row["speaker_id"]][row["text"]].append(samples * ends)
    return recordings


def _copy_recordings(file: Path, source: str) -> list[Row]:
    return [encode_row(samples, text, name, source) for samples, text, name in _sentences_of(file)]


def _vary_recordings(file: Path, count: int, seed: int, *, altered: bool) -> list[Row]:
    """`count` recordings again, in turn of each speaker, every two as another voice."""
    speakers: dict[str, list[tuple[Tensor, str]]] = defaultdict(list)
    for samples, text, name in _sentences_of(file) if count else ():
        speakers[name].append((samples, text))
    names, rows = sorted(speakers), []
    for index in range(count):
        number = index // 2
        speaker = names[number % len(names)]
        name = _varied_name(speaker, number, seed)
        voice, rng = (random.Random(derive_seed(part, seed, name, i)) for part, i in (("played", 0), ("varied", index)))
        samples, text = rng.choice(speakers[speaker])
        samples = as_voice(samples, RATE_HZ, _playing_speed(voice), draw_alteration(voice) if altered else None, rng)
        rows.append(encode_row(samples, text, _speaker_id(name, altered), "speechocean762"))
    return rows


def _sentences_of(file: Path) -> Iterable[tuple[Tensor, str, str]]:
    for row in read_rows(file):
        samples = read_sound(row["audio"]["bytes"], RATE_HZ, where=f"'{file}' {row['audio']['path']}")
        yield trim_silence(samples, RATE_HZ), " ".join(row["text"].lower().split()), row["speaker_id"]


def _limit(rows: list[Row], hours: float, seed: int) -> list[Row]:
    order = random.Random(derive_seed("hours", seed)).sample(range(len(rows)), len(rows))
    selection, left = [], hours * 3600
    for index in order:
        left -= rows[index].seconds
        if left < 0:
            break
        selection.append(index)
    return [rows[index] for index in sorted(selection)]


def main(command: Digits | Sentences | Teacher) -> int:
    """Build the corpus in a temporary folder beside its place, then rename it; the teacher's grows part by part."""
    try:
        if isinstance(command, Teacher):
            command.build()
            return 0
        if command.out.exists():
            raise DataError(f"'{command.out}' is there already; remove it or give another folder")
        command.out.parent.mkdir(parents=True, exist_ok=True)
        splits = command.build()
        if command.hours is not None:
            splits["train"] = _limit(splits["train"], command.hours, command.seed)
        with tempfile.TemporaryDirectory(dir=command.out.parent, prefix=f".{command.out.name}-") as folder:
            corpus = Path(folder) / "corpus"
            corpus.mkdir()
            for split, rows in splits.items():
                write_rows(rows, corpus / f"{split}.parquet")
                hours = sum(row.seconds for row in rows) / 3600
                speakers = len({row.speaker_id for row in rows})
                print(f"{split}: {len(rows)} utterances, {hours:.2f} h, {speakers} speakers", flush=True)
            os.replace(corpus, command.out)
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends, too
    raise SystemExit(main(tyro.cli(Digits | Sentences | Teacher)))
