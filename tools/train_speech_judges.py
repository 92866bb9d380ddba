"""Train the networks that judge generated speech, and score them on recordings that they did not learn from.

For example:

    python tools/train_speech_judges.py recognizer --num-steps 2000 --out judges/digit-recognizer \
        --train data/digits/train.parquet data/fsdd/train.parquet \
        --test data/digits/test_seen.parquet data/digits/test_unseen.parquet
    python tools/train_speech_judges.py speakers --num-steps 1200 --out judges/speaker-encoder \
        --train data/digits/train.parquet data/speechocean762/train.parquet \
        --test data/digits/test_unseen.parquet data/speechocean762/test_unseen_speaker.parquet

The folder that is written holds `config.json`, with all scores under `history`, and the weights in bfloat16.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from resgen.data.speech import open_speech
from resgen.data.speech_store import SpeechStore
from resgen.errors import ConfigError, MissingExtraError, ResGenError
from resgen.evaluation.recognizer import (
    CHARACTERS,
    DIGITS,
    RecognizerConfig,
    load_recognizer,
    save_recognizer,
    train_recognizer,
)
from resgen.evaluation.speakers import (
    SpeakerNetworkConfig,
    load_speaker_network,
    save_speaker_network,
    train_speaker_network,
)
from resgen.evaluation.speech_metrics import NORMALISER, error_rates, verify
from resgen.evaluation.transcribers import PocketsphinxTranscriber, RecognizerTranscriber, Transcriber

REPORT_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Parquet files in memory, one after the other."""

    sounds: list[Tensor]
    texts: list[str]
    speakers: list[str]
    fingerprints: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What both trainings share."""

    train: tuple[Path, ...]
    """Parquet files to learn from (columns audio, text, speaker_id)."""
    test: tuple[Path, ...] = ()
    """Parquet files to be scored on."""
    out: Path
    """Folder to write."""
    num_steps: int | None = None
    """Batches to train on; alone, it makes the result reproducible."""
    max_minutes: float | None = None
    """Time to spend."""
    seed: int = 0
    """Of weights, order and changes of the recordings."""


@dataclass(frozen=True, kw_only=True)
class Recognize(Training):
    """Train a recogniser of digits, or of characters."""

    unit: str = "words"
    """`words` (the ten digits) or `characters`."""
    front: int = 24
    """Channels of the strided convolutions."""
    width: int = 144
    """Channels of the blocks."""
    num_blocks: int = 4
    """ConvNeXt blocks."""
    batch_seconds: float = 40.0
    """Sound per step."""

    def run(self) -> None:
        config = RecognizerConfig(
            unit=self.unit,
            symbols=CHARACTERS if self.unit == "characters" else DIGITS,
            front=self.front,
            width=self.width,
            num_blocks=self.num_blocks,
        )
        rate = config.mel.sample_rate_hz
        data = read_all(self.train, rate)
        tests = {path: read_all((path,), rate) for path in self.test}
        begin = time.monotonic()
        report = Progress()
        model = train_recognizer(
            data.sounds,
            data.texts,
            config,
            num_steps=self.num_steps,
            max_minutes=self.max_minutes,
            batch_seconds=self.batch_seconds,
            seed=self.seed,
            report=report,
        )
        history = {**described(self, data, report.step, time.monotonic() - begin), "normaliser": NORMALISER}
        save_recognizer(self.out, model, history=history)
        scores = score_recognizer(self.out, tests)
        save_recognizer(self.out, load_recognizer(self.out)[0], history={**history, "scores": scores})


@dataclass(frozen=True, kw_only=True)
class Speakers(Training):
    """Train a speaker encoder."""

    width: int = 160
    """Channels of the blocks."""
    num_blocks: int = 4
    """ConvNeXt blocks."""
    batch_size: int = 64
    """Crops per step."""
    per_speaker: int = 12
    """Recordings of each training speaker that make its centroid when it is a wrong answer in the scores."""

    def run(self) -> None:
        config = SpeakerNetworkConfig(width=self.width, num_blocks=self.num_blocks)
        rate = config.mel.sample_rate_hz
        data = read_all(self.train, rate)
        tests = {path: read_all((path,), rate) for path in self.test}
        names = sorted(set(data.speakers))
        begin = time.monotonic()
        report = Progress()
        model = train_speaker_network(
            data.sounds,
            torch.tensor([names.index(s) for s in data.speakers]),
            config,
            num_steps=self.num_steps,
            max_minutes=self.max_minutes,
            batch_size=self.batch_size,
            seed=self.seed,
            report=report,
        )
        history = {**described(self, data, report.step, time.monotonic() - begin), "speakers": len(names)}
        save_speaker_network(self.out, model, history=history)
        scores = score_speakers(self.out, data, tests, self.per_speaker)
        save_speaker_network(self.out, load_speaker_network(self.out)[0], history={**history, "scores": scores})


class Progress:
    """Prints every few seconds how far a training is."""

    def __init__(self) -> None:
        self.step, self._printed, self._losses = 0, time.monotonic(), list[float]()

    def __call__(self, step: int, share: float, loss: float) -> None:
        self.step = step
        self._losses.append(loss)
        if share >= 1 or time.monotonic() - self._printed > REPORT_EVERY_S:
            print(f"step {step}, {share:.0%}: loss {sum(self._losses) / len(self._losses):.3f}", flush=True)
            self._printed, self._losses = time.monotonic(), []


def read_all(paths: tuple[Path, ...], sample_rate_hz: int) -> Recordings:
    """Every recording as it is: neither trimmed nor levelled, as a judge must take what it is given."""
    if not paths:
        raise ConfigError("train=() must name one or more files to learn from")
    parts = {path: open_speech(path) for path in paths}
    stores = [
        SpeechStore(part, sample_rate_hz, trim=False, loudness_db=None, max_seconds=None) for part in parts.values()
    ]
    return Recordings(
        sounds=[store.samples(i) for store in stores for i in range(len(store))],
        texts=[text for store in stores for text in store.texts],
        speakers=[speaker for store in stores for speaker in store.speakers],
        fingerprints={named(path): part.fingerprint for path, part in parts.items()},
    )


def score_recognizer(folder: Path, tests: dict[Path, Recordings]) -> dict[str, Any]:
    """Error rates on every file of a saved recogniser and, for digits, of PocketSphinx with a grammar of digits."""
    ours = RecognizerTranscriber(folder)
    judges: dict[str, Transcriber] = {"recognizer": ours}
    if ours.recognizer.config.symbols == DIGITS:
        try:
            pocketsphinx = PocketsphinxTranscriber("digits")
            judges[pocketsphinx.name] = pocketsphinx
        except MissingExtraError as error:
            print(f"no comparison: {error}", file=sys.stderr)
    scores: dict[str, Any] = {}
    for path, test in tests.items():
        for name, judge in judges.items():
            found = error_rates(test.texts, [judge(x) for x in test.sounds])
            entry = {
                "word_error_rate": round(found.words.value, 4),
                "interval_95": [round(x, 4) for x in found.words.interval[:2]],
                "character_error_rate": round(found.characters.value, 4),
                "without_error": round(found.exact, 4),
                "words": found.num_words,
                "utterances": found.num_utterances,
            }
            scores.setdefault(named(path), {})[name] = entry
            print(f"{named(path)}, {name}: {entry}", flush=True)
    return scores


def score_speakers(folder: Path, data: Recordings, tests: dict[Path, Recordings], per_speaker: int) -> dict[str, Any]:
    """How well a saved encoder tells the speakers of every file from each other and from all of the other files.

    Args:
        folder: of the encoder.
        data: what it learned from; `per_speaker` recordings of each speaker are candidates.
        tests: each recording is left out of the centroid of its own speaker.
        per_speaker: at least 1.
    """
    network, _ = load_speaker_network(folder)
    taken: Counter[str] = Counter()
    known = []
    for speaker, sound in zip(data.speakers, data.sounds, strict=True):
        taken[speaker] += 1
        if taken[speaker] <= per_speaker:
            known.append((speaker, network.embed(sound)))
    heard = {
        path: [(speaker, network.embed(sound)) for speaker, sound in zip(test.speakers, test.sounds, strict=True)]
        for path, test in tests.items()
    }
    scores: dict[str, Any] = {}
    for path, tested in heard.items():
        own = {speaker for speaker, _ in tested}
        others = [pair for part in (known, *heard.values()) if part is not tested for pair in part]
        everything = tested + [(speaker, embedding) for speaker, embedding in others if speaker not in own]
        names = sorted({speaker for speaker, _ in everything})
        found = verify(
            torch.stack([embedding for _, embedding in everything]),
            torch.tensor([names.index(speaker) for speaker, _ in everything]),
            tested=torch.arange(len(everything)) < len(tested),
        )
        scores[named(path)] = {
            **found._asdict(),
            "tested_speakers": len(own),
            "heard_in_training": len(own & set(data.speakers)),
        }
        print(f"{named(path)}: {scores[named(path)]}", flush=True)
    return scores


def named(path: Path) -> str:
    """The last two parts of a path, which say what it is but not where."""
    return "/".join(path.resolve().with_suffix("").parts[-2:])


def described(training: Training, data: Recordings, num_steps: int, seconds: float) -> dict[str, Any]:
    """What the weights were made of."""
    return {
        "data": data.fingerprints,
        "recordings": len(data.sounds),
        "num_steps": num_steps,
        "seed": training.seed,
        "seconds": round(seconds, 1),
    }


def main(args: list[str] | None = None) -> int:
    """Run the command line; 2 after an error of the user's."""
    recognize = Annotated[Recognize, tyro.conf.subcommand("recognizer")]
    speakers = Annotated[Speakers, tyro.conf.subcommand("speakers")]
    run: Callable[[], None] = tyro.cli(recognize | speakers, args=args, description=__doc__).run
    try:
        run()
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
