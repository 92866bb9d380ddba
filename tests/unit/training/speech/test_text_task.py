"""Training the text model on letters that are tones, so that all durations are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from processes import run_threads
from resgen.checkpoints.speech import load_text_model
from resgen.data.front_ends import front_end
from resgen.data.loader import CounterSampler
from resgen.data.sound.sources import SpeechSource
from resgen.data.sound.store import SpeechStore
from resgen.data.text import token_ids
from resgen.errors import ConfigError, DataError
from resgen.models.text import TextModel, TextModelConfig
from resgen.ops.mel import MelConfig
from resgen.ops.random import generator
from resgen.training.interface import TrainerConfig
from resgen.training.speech import text_task
from resgen.training.speech.text_task import Recordings, TextLossConfig, TextTask
from resgen.training.trainer import Trainer
from steps import losses

RATE, HOP = 4000, 40
MEL = MelConfig(sample_rate_hz=RATE, fft_size=128, window_size=80, hop_size=HOP, num_bands=16, max_hz=2000.0)
TONES_HZ, FRAMES = {"a": 300, "b": 700, "c": 1300}, {"a": 6, "b": 10, "c": 4, " ": 5}
LETTERS = front_end("bytes")
EDGE = 3  # frames of silence at both ends
WORDS = ("ab", "cab", "abc", "bc ab", "cb ac", "ba cab", "acb a", "b ca", "caba", "bac cb", "ca b c", "abcab")


def speak(text: str, voice: int) -> Tensor:
    """Tones of the letters; the second voice is darker."""
    parts = [torch.zeros(EDGE * HOP)]
    for letter in text:
        times = torch.arange(FRAMES[letter] * HOP) / RATE
        tone = TONES_HZ.get(letter, 0)
        parts.append(0.4 * torch.sin(2 * math.pi * tone * times) / (1 if voice == 0 else tone / 300 + 1))
    return torch.cat([*parts, torch.zeros(EDGE * HOP)])


def store(texts: tuple[str, ...] = WORDS) -> SpeechStore:
    source = SpeechSource(
        name="tones",
        split="train",
        texts=texts,
        speakers=tuple(str(index % 2) for index in range(len(texts))),
        ids=tuple(str(index) for index in range(len(texts))),
        read=lambda index, rate: speak(texts[index].lower().replace(".", ""), index % 2),
    )
    return SpeechStore(source, RATE, trim=False, loudness_db=None)


def make_model() -> TextModel:
    torch.manual_seed(0)
    config = TextModelConfig(
        width=32, num_layers=1, num_heads=2, mlp_width=32, num_bands=16, prenet_layers=1, kernel_size=3, max_tokens=20
    )
    return TextModel(config)


def make_task(*, texts: tuple[str, ...] = WORDS, held_out: tuple[str, ...] = WORDS[3:6], **loss) -> TextTask:
    config = TextLossConfig(**({"prior_steps": 30} | loss))
    return TextTask(make_model(), config, store(texts), store(held_out), mel=MEL)


def run(task: TextTask, out: Path, num_steps: int) -> dict[str, float]:
    config = TrainerConfig(
        num_steps=num_steps, batch_size=6, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9, device="cpu", loggers=()
    )
    return Trainer(task, config, out).run()


def test_learns_the_durations_and_writes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task()
    before = task.validate(task.model)
    assert set(before) == {
        *("val_loss", "mel", "duration", "length"),
        *("duration_error_frames", "length_error_percent", "length_bias_percent"),
    }
    monkeypatch.setattr(text_task, "VALIDATION_BATCH", 2)
    parts = task.validate(task.model)
    assert parts == pytest.approx(before, rel=0.2), (
        "means of batches, which weigh their utterances a little differently"
    )
    for shared in run_threads(2, lambda reduce: task.validate(task.model, reduce)):
        assert shared == pytest.approx(parts, rel=1e-5)
    monkeypatch.undo()
    metrics = run(task, tmp_path / "run", 120)
    assert metrics["mel"] < before["mel"] / 2
    assert metrics["duration_error_frames"] < 1.2 < before["duration_error_frames"]
    assert metrics["length_error_percent"] < 5 and abs(metrics["length_bias_percent"]) < 5
    model, alphabet, folder = load_text_model(tmp_path / "run" / "model")
    assert alphabet == " abc"
    assert json.loads(json.dumps(folder.extra))["history"]["text"]["steps"] == 120
    # A text that was not in the training set, in both voices, against what is known.
    text = "cab ba"
    recordings = Recordings(store((text, text)), LETTERS, MEL, 20)
    batch = recordings.batch(torch.arange(2), torch.device("cpu"))
    known = torch.tensor([EDGE, *(FRAMES[letter] for letter in text), EDGE])
    result = model.align(batch.tokens, batch.valid, batch.mels, batch.frames)
    assert (result - known).abs().max() <= 2
    predicted = model.durations(model(batch.tokens, batch.valid), batch.valid)
    assert (predicted - known).abs().double().mean() < 2.5 and (
        predicted.sum(dim=1) / known.sum() - 1
    ).abs().max() < 0.1
    picture = Image.open(next((tmp_path / "run" / "samples").glob("*.png")))
    assert picture.width > 3 * 30 and picture.height > 16 * 3 * 2


def test_the_loss_is_that_of_the_paper() -> None:
    """Half the squared distance per frame and band under the alignment, and the weighted duration terms."""
    task = make_task(prior_steps=0, duration_weight=0.3, length_weight=0.7)
    batch = task.train.batch(torch.tensor([0, 4]), torch.device("cpu"))
    group, loss, metrics = next(losses(task, torch.tensor([0, 4]), 0, generator("test")))
    assert group == "text"
    model = task.model
    with torch.no_grad():
        hidden = model(batch.tokens, batch.valid)
        target = model.normalise(batch.mels, batch.frames)
        durations = model.align(batch.tokens, batch.valid, batch.mels, batch.frames)
        logs = model.log_durations(hidden, batch.valid)
        distance, errors, lengths = 0.0, [], []
        for b in range(2):
            count = int(batch.valid[b].sum())
            means = model.to_mel(hidden)[b].repeat_interleave(durations[b], dim=0)
            distance += float((target[b, :, : len(means)].T - means).square().sum()) / 2
            errors.append((logs[b, :count] - durations[b, :count].log()).square())
            lengths.append((logs[b, :count].exp().sum() / batch.frames[b]).log().square())
    assert float(metrics["mel"]) == pytest.approx(distance / float(batch.frames.sum() * 16), rel=1e-4)
    assert float(metrics["duration"]) == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)
    assert float(metrics["length"]) == pytest.approx(float(torch.stack(lengths).mean()), rel=1e-4)
    total = metrics["mel"] + 0.3 * metrics["duration"] + 0.7 * metrics["length"]
    assert float(loss.detach()) == pytest.approx(float(total), rel=1e-5)


def test_priors_fade_and_put_pauses_where_it_is_quiet() -> None:
    task = make_task(prior_steps=10, pause_weight=100.0)
    torch.nn.init.zeros_(task.model.mel.weight)  # a model that knows nothing
    torch.nn.init.zeros_(task.model.mel.bias)
    batch, sizes = task.train.batch(torch.tensor([3]), torch.device("cpu")), task.train.sizes(torch.tensor([3]))
    known = [EDGE, *(FRAMES[letter] for letter in WORDS[3]), EDGE]
    hidden = task.model(batch.tokens, batch.valid)
    durations = task._losses(batch, hidden, sizes, 1.0)[2][0].tolist()
    for place in (0, 3, len(known) - 1):  # the boundaries and the space; windows blur a pause by a frame at each side
        assert known[place] - 2 <= durations[place] <= known[place]
    without = task._losses(batch, hidden, sizes, 0.0)[2][0].tolist()
    assert without != durations
    now = [float(next(losses(task, torch.tensor([3]), step, generator("t")))[1].detach()) for step in (0, 10, 11)]
    assert now[0] != now[1] == now[2]


def test_the_pause_prior_is_in_units_of_the_mels_scale() -> None:
    task = make_task(prior_weight=0.0, pause_weight=1.0)
    batch = task.train.batch(torch.tensor([3]), torch.device("cpu"))
    loudness = batch.mels.double().mean(dim=1)[0] / task.model.config.mel_scale
    expected = loudness - loudness[: int(batch.frames[0])].mean()
    prior = task._prior(batch)[0]
    torch.testing.assert_close(prior[1].double(), expected)  # a letter
    torch.testing.assert_close(prior[0].double(), -expected)  # the pause before it


def test_batches_are_whole_utterances() -> None:
    recordings = Recordings(store(("Abc.", "b")), LETTERS, MEL, 20)
    assert recordings.contents == [b"abc.", b"b"]
    batch = recordings.batch(torch.tensor([1, 0]), torch.device("cpu"))
    assert batch.frames.tolist() == [10 + 2 * EDGE, 20 + 2 * EDGE]
    assert batch.mels.shape == (2, 16, 26) and batch.tokens.shape == (2, 6)
    assert batch.tokens[1].tolist() == token_ids(b"abc.").tolist()
    assert batch.valid.sum(dim=1).tolist() == [3, 6]


def test_a_batch_holds_texts_of_like_length() -> None:
    task = make_task(texts=("ab", "abc ab", "ba", "bac cb", "ca", "abcabc"))
    sampler = CounterSampler(task.num_samples, 3, 0, lengths=task.lengths)
    counts = sorted(sorted(len(task.train.tokens[row]) for row in sampler.indices(step).tolist()) for step in (0, 1))
    assert counts == [[4, 4, 4], [8, 8, 8]]


def test_durations_are_predicted_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    task, calls = make_task(), list[int]()
    task.model.config = replace(task.model.config, timing=30.0)
    predict = task.model.log_durations
    monkeypatch.setattr(task.model, "log_durations", lambda *parts: calls.append(1) or predict(*parts))
    [(_, loss_of)] = task.losses(torch.arange(4), [slice(0, 4)], 0, generator("test"))
    loss_of()[0].backward()
    assert len(calls) == 1 and task.model.duration.weight.grad is not None


def test_refused_data_and_settings() -> None:
    with pytest.raises(DataError, match="utterance 1 has 7 text tokens, at most 6 fit"):
        Recordings(store(("ab", "abcab")), LETTERS, MEL, 6)
    source = SpeechSource(
        name="x",
        split="train",
        texts=("abcabc",),
        speakers=("x",),
        ids=("x",),
        read=lambda i, rate: torch.arange(201) / 402,
    )
    with pytest.raises(DataError, match="utterance 0 has 8 text tokens, at most 6 fit"):
        Recordings(SpeechStore(source, RATE, trim=False, loudness_db=None), LETTERS, MEL, 20)
    other = MelConfig(sample_rate_hz=RATE, fft_size=128, window_size=80, hop_size=HOP, num_bands=8, max_hz=2000.0)
    with pytest.raises(ConfigError, match="num_bands=8"):
        TextTask(make_model(), TextLossConfig(), store(), store(), mel=other)
    for change in (
        {"duration_weight": -0.1},
        {"length_weight": math.nan},
        {"prior_steps": -1},
        {"prior_weight": -1.0},
        {"pause_weight": -1.0},
        {"prior_strength": 0.0},
        {"validation_samples": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(change))):
            TextLossConfig(**change)
