"""Training a vocoder on tones, with and without a tokenizer before it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from processes import run_threads
from resgen.checkpoints.speech import load_vocoder
from resgen.data.sound.decode import read_sound
from resgen.data.sound.sources import SpeechSource
from resgen.data.sound.store import SpeechStore
from resgen.errors import ConfigError, DataError
from resgen.ops.mel import MelConfig, log_mel
from resgen.ops.random import generator
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.vocoder import Vocoder, VocoderConfig
from resgen.training.interface import TrainerConfig
from resgen.training.speech import vocoder_task
from resgen.training.speech.vocoder_task import VocoderLossConfig, VocoderTask
from resgen.training.trainer import Trainer
from steps import losses

RATE, HOP = 4000, 16
MEL = MelConfig(sample_rate_hz=RATE, fft_size=64, window_size=64, hop_size=HOP, num_bands=8, max_hz=2000.0)


def store(seconds: tuple[float, ...] = (0.5, 0.3, 0.12, 0.45), rate: int = RATE) -> SpeechStore:
    def read(index: int, sample_rate_hz: int) -> torch.Tensor:
        times = torch.arange(round(seconds[index] * sample_rate_hz)) / sample_rate_hz
        return 0.4 * torch.sin(2 * math.pi * (200 + 150 * index) * times) * (0.2 + torch.sin(9 * times).abs()) / 1.2

    names = tuple(f"u{index}" for index in range(len(seconds)))
    source = SpeechSource(name="tones", split="train", texts=names, speakers=names, ids=names, read=read)
    return SpeechStore(source, rate, trim=False, loudness_db=None)


def make_vocoder() -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(VocoderConfig(mel=MEL, width=16, num_layers=2, hidden_multiple=2))


def make_tokenizer(max_positions: int = 40, mel: MelConfig = MEL) -> MelTokenizer:
    torch.manual_seed(1)
    quantizer = QuantizerConfig(depth=2, codebook_size=8)
    return MelTokenizer(
        MelTokenizerConfig(
            mel=mel, width=8, num_blocks=1, strides=(2, 2), code_dim=4, max_positions=max_positions, quantizer=quantizer
        )
    )


def make_task(*, data: SpeechStore | None = None, tokenizer: MelTokenizer | None = None, **loss) -> VocoderTask:
    config = VocoderLossConfig(**({"adversarial_weight": 0.0, "crop_seconds": 0.1, "discriminator_width": 2} | loss))
    return VocoderTask(make_vocoder(), config, data or store(), store((0.31, 0.1)), tokenizer=tokenizer)


def train(task: VocoderTask, out: Path, **changes) -> list[dict]:
    values = {
        "num_steps": 30,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "ema_decay": 0.8,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "validate_every": 0,
        "sample_every": 0,
        "checkpoint_every": 0,
        "loggers": (),
    }
    Trainer(task, TrainerConfig(**(values | changes)), out).run()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def test_the_vocoder_learns(tmp_path: Path) -> None:
    task = make_task()
    before = task.validate(task.module)["val_loss"]
    lines = train(task, tmp_path / "run")
    losses = [line["loss"] for line in lines]
    assert len(losses) == 30 and all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    assert lines[-1]["loss"] == pytest.approx(45 * lines[-1]["mel_l1"] + lines[-1]["stft"], rel=1e-4)
    assert task.validate(task.module)["val_loss"] < before
    loaded, folder = load_vocoder(tmp_path / "run")
    assert loaded.mel == MEL and folder.extra["history"]["vocoder"]["steps"] == 30


def test_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task()
    metrics = task.validate(task.module)
    assert set(metrics) == {"val_loss", "stft"} and all(math.isfinite(value) for value in metrics.values())
    monkeypatch.setattr(vocoder_task, "VALIDATION_BATCH", 1)
    parts = task.validate(task.module)
    for shared in run_threads(2, lambda reduce: task.validate(task.module, reduce)):
        assert shared == pytest.approx(parts, rel=1e-6)
    total, count = 0.0, 0
    for index in range(2):  # one by one: padding must not have counted
        samples, lengths = task.held_out.batch([index], multiple=HOP)
        mels = log_mel(samples, MEL)
        with torch.no_grad():
            value = (log_mel(task.vocoder(mels), MEL) - mels).abs().mean()
        total, count = total + float(value) * int(lengths), count + int(lengths)
    assert metrics["val_loss"] == pytest.approx(total / count, rel=0.03)


def test_validation_with_a_tokenizer() -> None:
    tokenizer = make_tokenizer()
    task = make_task(tokenizer=tokenizer)
    metrics = task.validate(task.module)
    assert set(metrics) == {"val_loss", "stft", "mel_l1_reconstructed"}
    assert metrics["mel_l1_reconstructed"] > metrics["val_loss"] > 0


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_samples_are_written_as_sound_too(with_tokenizer: bool, tmp_path: Path) -> None:
    task = make_task(tokenizer=make_tokenizer() if with_tokenizer else None)
    task.sample(tmp_path / "step_1.png")
    names = {"vocoder", "original"} | ({"tokens"} if with_tokenizer else set())
    sounds = {path.name for path in tmp_path.glob("*.wav")}
    assert sounds == {f"step_1_{row}_{name}.wav" for row in (1, 2) for name in names}
    assert (tmp_path / "step_1.png").stat().st_size > 100
    original = read_sound(tmp_path / "step_1_1_original.wav", RATE)
    assert torch.allclose(original, task.held_out.samples(0), atol=1e-4)


def test_crops_and_their_mels_belong_together() -> None:
    """The mels of a crop are those of the utterance at the same place; no edge of the crop shows in them."""
    task = make_task(data=store((0.5,)))
    samples, mels, valid, lengths, _ = task._cut(task._draw(torch.tensor([0]), generator(3)), slice(None))
    assert samples.shape == (1, 400) and int(lengths) == 400 and mels.shape == (1, 8, 25) and valid.all()
    whole = task.train.samples(0)
    matches = [k for k in range(len(whole) - 399) if torch.equal(whole[k : k + 400], samples[0])]
    assert len(matches) == 1
    beside = whole[matches[0] - task.margin_samples :][: 400 + 2 * task.margin_samples]
    expected = log_mel(beside[None], MEL)[..., task.margin_samples // HOP :][..., :25]
    assert torch.allclose(mels, expected)
    wider = whole[matches[0] - 160 :][: 400 + 320]
    assert torch.allclose(mels, log_mel(wider[None], MEL)[..., 10:35], atol=1e-5)


def test_short_utterances_end_before_the_crop() -> None:
    task = make_task(data=store((0.06, 0.001)))
    samples, _, valid, lengths, _ = task._cut(task._draw(torch.tensor([0, 1]), generator(0)), slice(None))
    margin = task.margin_samples
    assert lengths.tolist() == [240 - margin, 0] and (samples[0, 240 - margin :] == 0).all()
    assert valid.sum(1).tolist() == [math.ceil((240 - margin) / HOP), 0]
    ((_, loss, _),) = losses(task, torch.tensor([0, 1]), 0, generator(0))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in task.vocoder.parameters())


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 8, 24), (1.0, 32, 32)])
def test_the_share_of_decoded_mels(share: float, low: int, high: int) -> None:
    tokenizer = make_tokenizer()
    task = make_task(data=store((0.5,)), tokenizer=tokenizer, reconstructed_share=share)
    samples, mels, *_ = task._cut(task._draw(torch.zeros(32, dtype=torch.int64), generator(5)), slice(None))
    plain = make_task(data=store((0.5,)), tokenizer=tokenizer, reconstructed_share=0.0)
    original, real, *_ = plain._cut(plain._draw(torch.zeros(32, dtype=torch.int64), generator(5)), slice(None))
    assert torch.equal(samples, original), "the waveform is the real one in either case"
    changed = (mels != real).flatten(1).any(1)
    assert low <= int(changed.sum()) <= high
    assert not any(p.requires_grad for p in tokenizer.parameters()) and not tokenizer.training


def test_the_tokenizer_is_no_part_of_what_is_trained() -> None:
    task = make_task(tokenizer=make_tokenizer(), adversarial_weight=1.0)
    assert set(task.optimizer_groups()) == {"vocoder", "discriminator"}
    assert task.ema_module is task.vocoder
    assert len(list(task.module.parameters())) == sum(len(group) for group in task.optimizer_groups().values())


def test_losses_of_vocoder_and_discriminator_stay_apart() -> None:
    task = make_task(adversarial_weight=1.0)
    groups = task.optimizer_groups()
    for group, loss, _ in losses(task, torch.arange(4), 0, generator(0)):
        task.module.zero_grad()
        if group == "discriminator":
            reached = torch.autograd.grad(loss, groups["vocoder"], allow_unused=True, retain_graph=True)
            assert all(gradient is None for gradient in reached)
        loss.backward(inputs=groups[group])
        for name, parameters in groups.items():
            given = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters]
            assert any(given) if name == group else not any(given), (group, name)


def test_adversarial_training_on_decoded_mels(tmp_path: Path) -> None:
    task = make_task(tokenizer=make_tokenizer(), adversarial_weight=1.0, adversarial_start=2)
    lines = train(task, tmp_path / "run", num_steps=4, precision="bf16")
    assert [("discriminator" in line, "adversarial" in line) for line in lines] == [(k >= 2, k >= 2) for k in range(4)]
    assert all(math.isfinite(line["loss"]) for line in lines)
    load_vocoder(tmp_path / "run")


def test_a_tokenizer_with_other_mels() -> None:
    other = MelConfig(sample_rate_hz=RATE, fft_size=64, window_size=64, hop_size=16, num_bands=6, max_hz=2000.0)
    with pytest.raises(ConfigError, match="num_bands=8.*num_bands=6"):
        make_task(tokenizer=make_tokenizer(mel=other))


def test_crops_longer_than_the_tokenizer_takes() -> None:
    with pytest.raises(ConfigError, match=r"crop_seconds=0\.1 is 11 positions.*takes 10"):
        make_task(tokenizer=make_tokenizer(max_positions=10))


def test_speech_at_another_rate() -> None:
    with pytest.raises(DataError, match="training speech is at 8000 Hz.*4000 Hz"):
        VocoderTask(make_vocoder(), VocoderLossConfig(), store(rate=8000), store())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mel_weight": -1.0}, "mel_weight=-1"),
        ({"stft_weight": -1.0}, "stft_weight=-1"),
        ({"adversarial_weight": math.inf}, "adversarial_weight=inf"),
        ({"feature_weight": math.nan}, "feature_weight=nan"),
        ({"adversarial_start": -1}, "adversarial_start=-1"),
        ({"discriminator_width": 0}, "discriminator_width=0"),
        ({"crop_seconds": 0.0}, "crop_seconds=0"),
        ({"reconstructed_share": 1.5}, "reconstructed_share=1.5"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        VocoderLossConfig(**changes)
