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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Float, Int
from judge_training import Report, change_speed, decay_matrices, fit, hear_changed, length_batches, verify
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.data.sound.sources import open_speech
from resgen.data.sound.store import SpeechStore
from resgen.devices import has_bfloat16
from resgen.errors import ConfigError, DataError, ResGenError
from resgen.evaluation.speech.folders import load_judge, save_judge
from resgen.evaluation.speech.metrics import NORMALISER, error_rates
from resgen.evaluation.speech.recognizer import (
    CHARACTERS,
    DIGITS,
    Recognizer,
    RecognizerConfig,
)
from resgen.evaluation.speech.speakers import (
    SpeakerNetwork,
    SpeakerNetworkConfig,
)
from resgen.evaluation.speech.transcribers import PocketsphinxTranscriber, RecognizerTranscriber, Transcriber
from resgen.extras import MissingExtraError
from resgen.nn.seeding import seeded
from resgen.ops.random import generator

REPORT_EVERY_S = 10.0
MAX_GRADIENT = 5.0
MARGIN = 0.2
SPEEDS = (1.0, 0.88, 1.14)
"""A speaker heard at another speed counts as another speaker: three times as many to learn from."""
"""A speaker heard at another speed counts as another speaker: three times as many to learn from."""


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
        history = {**describe(self, data, report.step, time.monotonic() - begin), "normaliser": NORMALISER}
        save_judge(self.out, model, history=history)
        scores = score_recognizer(self.out, tests)
        save_judge(self.out, load_judge(self.out, Recognizer)[0], history={**history, "scores": scores})


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
        history = {**describe(self, data, report.step, time.monotonic() - begin), "speakers": len(names)}
        save_judge(self.out, model, history=history)
        scores = score_speakers(self.out, data, tests, self.per_speaker)
        save_judge(self.out, load_judge(self.out, SpeakerNetwork)[0], history={**history, "scores": scores})


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
        fingerprints={short_name(path): part.fingerprint for path, part in parts.items()},
    )


def train_recognizer(
    recordings: Sequence[Tensor],
    texts: Sequence[str],
    config: RecognizerConfig,
    *,
    num_steps: int | None = None,
    max_minutes: float | None = None,
    batch_seconds: float = 80.0,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.02,
    seed: int = 0,
    device: torch.device | None = None,
    report: Report | None = None,
) -> Recognizer:
    """Train a recogniser from scratch on recordings that are altered differently each time.

    With `num_steps` alone the result is reproducible.

    Args:
        recordings: each `[S]`, -1..1, at the rate of `config.mel`.
        texts: what is said in each.
        config: shape and vocabulary.
        num_steps: batches to train on.
        max_minutes: time to spend; with both, the one that is over first ends the training.
        batch_seconds: sound per batch before its speed is changed, padding included.
        learning_rate: peak; see `fit`.
        weight_decay: of matrices.
        seed: of weights, order and changes.
        device: where to compute; the CPU by default.
        report: called after every step with (step, share of the training that is over, loss).

    Returns:
        The recogniser in evaluation mode.

    Raises:
        ConfigError: neither `num_steps` nor `max_minutes`, or a value out of range.
        DataError: no recordings, not one text for each, or a text with unknown symbols.
    """
    if not recordings or len(recordings) != len(texts):
        raise DataError(f"{len(recordings)} recordings and {len(texts)} texts given; each recording needs its text")
    if not batch_seconds > 0:
        raise ConfigError(f"batch_seconds={batch_seconds} must be positive")
    targets = [config.encode(text) for text in texts]
    place = device or torch.device("cpu")
    with seeded(Recognizer.kind, seed, "weights"):
        model = Recognizer(config).to(place)
    stream = generator(Recognizer.kind, seed, "batches")
    lengths = torch.tensor([len(x) for x in recordings])
    batches = length_batches(lengths, int(batch_seconds * config.mel.sample_rate_hz), stream)

    def next_loss(share: float) -> Tensor:
        rows = next(batches)
        features, valid = hear_changed([recordings[i] for i in rows], config.mel, stream, place, centred=config.centred)
        with torch.autocast(place.type, torch.bfloat16, enabled=has_bfloat16(place)):
            logits, output_frames = model(features, valid)
        return F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            torch.cat([targets[i] for i in rows]).to(place),
            output_frames.sum(1),
            torch.tensor([len(targets[i]) for i in rows], device=place),
            zero_infinity=True,
        )

    fit(
        model,
        adamw(model, weight_decay),
        next_loss,
        num_steps=num_steps,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        max_gradient=MAX_GRADIENT,
        report=report,
    )
    return model


def train_speaker_network(
    recordings: Sequence[Tensor],
    speakers: Int[Tensor, " N"],
    config: SpeakerNetworkConfig,
    *,
    num_steps: int | None = None,
    max_minutes: float | None = None,
    batch_size: int = 64,
    crop_seconds: tuple[float, float] = (0.8, 2.0),
    learning_rate: float = 3e-3,
    weight_decay: float = 0.02,
    seed: int = 0,
    device: torch.device | None = None,
    report: Report | None = None,
) -> SpeakerNetwork:
    """Train from scratch on crops of recordings; all speakers are heard equally often.

    The margin grows from 0 to its value over the first half.

    With `num_steps` alone the result is reproducible.

    Args:
        recordings: each `[S]`, -1..1, at the rate of `config.mel`.
        speakers: who speaks, 0..P-1, each at least once.
        config: shape of the network.
        num_steps: batches to train on.
        max_minutes: time to spend; with both, the one that is over first ends the training.
        batch_size: crops per step.
        crop_seconds: shortest and longest crop; all of a batch have one length.
        learning_rate: peak; see `fit`.
        weight_decay: of matrices.
        seed: of weights, order and changes.
        device: where to compute; the CPU by default.
        report: called after every step with (step, share of the training that is over, loss).

    Returns:
        The network in evaluation mode.

    Raises:
        ConfigError: neither `num_steps` nor `max_minutes`, or a value out of range.
        DataError: no recordings, not one speaker for each, fewer than two speakers, or a gap in their numbers.
    """
    if not recordings or len(recordings) != len(speakers):
        raise DataError(f"{len(recordings)} recordings and {len(speakers)} speakers given; each needs its speaker")
    low, high = crop_seconds
    if not 0 < low <= high or batch_size < 2:
        raise ConfigError(
            f"crop_seconds={crop_seconds} must be positive and rising, batch_size={batch_size} at least 2"
        )
    rows_of = [torch.nonzero(speakers == p)[:, 0] for p in range(int(speakers.max()) + 1)]
    if len(rows_of) < 2 or not all(len(rows) for rows in rows_of):
        raise DataError("speakers must be numbered 0..P-1 without gaps, and be two at least")
    place = device or torch.device("cpu")
    with seeded(SpeakerNetwork.kind, seed, "weights"):
        model = SpeakerNetwork(config)
        classes = nn.Parameter(torch.randn(len(rows_of) * len(SPEEDS), config.embedding_size))
    trained = nn.ModuleDict({"model": model, "classes": nn.ParameterList([classes])}).to(place)
    stream = generator(SpeakerNetwork.kind, seed, "batches")

    def draw(size: int) -> int:
        return int(torch.randint(size, (), generator=stream))

    def next_loss(share: float) -> Tensor:
        seconds = low + (high - low) * float(torch.rand((), generator=stream))
        size = int(seconds * config.mel.sample_rate_hz)
        crops, targets = [], []
        for _ in range(batch_size):
            speaker, speed = draw(len(rows_of)), draw(len(SPEEDS))
            whole = recordings[int(rows_of[speaker][draw(len(rows_of[speaker]))])]
            needed = int(size * SPEEDS[speed])
            begin = draw(max(1, len(whole) - needed + 1))
            crops.append(change_speed(whole[begin : begin + needed], SPEEDS[speed]))
            targets.append(speed * len(rows_of) + speaker)
        features, valid = hear_changed(crops, config.mel, stream, place, speed=False)
        with torch.autocast(place.type, torch.bfloat16, enabled=has_bfloat16(place)):
            embeddings = model(features, valid)
        margin = MARGIN * min(1.0, 2 * share)  # from the start it keeps the classes from being found at all
        return angular_margin_loss(embeddings, classes, torch.tensor(targets, device=place), margin=margin)

    fit(
        trained,
        adamw(trained, weight_decay),
        next_loss,
        num_steps=num_steps,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        max_gradient=MAX_GRADIENT,
        report=report,
    )
    return model


def angular_margin_loss(
    embeddings: Float[Tensor, "B E"],
    classes: Float[Tensor, "P E"],
    speakers: Int[Tensor, " B"],
    *,
    margin: float = MARGIN,
    scale: float = 30.0,
) -> Float[Tensor, ""]:
    """AAM-softmax (ArcFace, arXiv:1801.07698): the angle to the right class has to be smaller by `margin` radians."""
    cosine = (embeddings @ F.normalize(classes, dim=1).T).clamp(-1 + 1e-6, 1 - 1e-6)
    right = torch.cos(cosine.gather(1, speakers[:, None]).acos() + margin)
    return F.cross_entropy(scale * cosine.scatter(1, speakers[:, None], right), speakers)


def adamw(module: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer of both trainings; the rate is that of `fit`."""
    return torch.optim.AdamW(decay_matrices(module, weight_decay), lr=0.0, betas=(0.9, 0.98))


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
            rates = error_rates(test.texts, [judge(x) for x in test.sounds])
            entry = {
                "word_error_rate": round(rates.words.value, 4),
                "interval_95": [round(x, 4) for x in rates.words.interval[:2]],
                "character_error_rate": round(rates.characters.value, 4),
                "without_error": round(rates.exact, 4),
                "words": rates.num_words,
                "utterances": rates.num_utterances,
            }
            scores.setdefault(short_name(path), {})[name] = entry
            print(f"{short_name(path)}, {name}: {entry}", flush=True)
    return scores


def score_speakers(folder: Path, data: Recordings, tests: dict[Path, Recordings], per_speaker: int) -> dict[str, Any]:
    """How well a saved encoder tells the speakers of every file from each other and from all of the other files.

    Args:
        folder: of the encoder.
        data: what it learned from; `per_speaker` recordings of each speaker are candidates.
        tests: each recording is left out of the centroid of its own speaker.
        per_speaker: at least 1.
    """
    network, _ = load_judge(folder, SpeakerNetwork)
    counts: Counter[str] = Counter()
    known = []
    for speaker, sound in zip(data.speakers, data.sounds, strict=True):
        counts[speaker] += 1
        if counts[speaker] <= per_speaker:
            known.append((speaker, network.embed(sound)))
    embeddings = {
        path: [(speaker, network.embed(sound)) for speaker, sound in zip(test.speakers, test.sounds, strict=True)]
        for path, test in tests.items()
    }
    scores: dict[str, Any] = {}
    for path, tested in embeddings.items():
        own = {speaker for speaker, _ in tested}
        others = [pair for part in (known, *embeddings.values()) if part is not tested for pair in part]
        everything = tested + [(speaker, embedding) for speaker, embedding in others if speaker not in own]
        names = sorted({speaker for speaker, _ in everything})
        result = verify(
            torch.stack([embedding for _, embedding in everything]),
            torch.tensor([names.index(speaker) for speaker, _ in everything]),
            tested=torch.arange(len(everything)) < len(tested),
        )
        scores[short_name(path)] = {
            **result._asdict(),
            "tested_speakers": len(own),
            "heard_in_training": len(own & set(data.speakers)),
        }
        print(f"{short_name(path)}: {scores[short_name(path)]}", flush=True)
    return scores


def short_name(path: Path) -> str:
    """The last two parts of a path, which say what it is but not where."""
    return "/".join(path.resolve().with_suffix("").parts[-2:])


def describe(training: Training, data: Recordings, num_steps: int, seconds: float) -> dict[str, Any]:
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
