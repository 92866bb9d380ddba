"""Training a mel and a waveform tokenizer, on tones short enough to be learned in seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from processes import run_threads
from resgen.checkpoints.speech import load_sound_tokenizer
from resgen.data.sound.sources import SpeechSource
from resgen.data.sound.store import SpeechStore
from resgen.errors import ConfigError, DataError
from resgen.losses.spectral import multi_scale_mel_l1
from resgen.ops.mel import MelConfig, log_mel
from resgen.ops.random import generator
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.waveform import WaveformTokenizer, WaveformTokenizerConfig
from resgen.training.interface import TrainerConfig
from resgen.training.speech import tokenizer_task as sound_task
from resgen.training.speech.tokenizer_task import SoundTokenizerLossConfig, SoundTokenizerTask
from resgen.training.trainer import Trainer
from steps import losses

RATE = 4000
MEL = MelConfig(sample_rate_hz=RATE, fft_size=64, window_size=64, hop_size=16, num_bands=8, max_hz=2000.0)
KINDS = pytest.mark.parametrize("kind", ["mel", "waveform"])


def store(seconds: tuple[float, ...] = (0.5, 0.3, 0.12, 0.45, 0.6, 0.38), rate: int = RATE) -> SpeechStore:
    """Tones that swell, each of its own pitch."""

    def read(index: int, sample_rate_hz: int) -> torch.Tensor:
        times = torch.arange(round(seconds[index] * sample_rate_hz)) / sample_rate_hz
        return 0.4 * torch.sin(2 * math.pi * (200 + 150 * index) * times) * (0.2 + torch.sin(9 * times).abs()) / 1.2

    names = tuple(f"u{index}" for index in range(len(seconds)))
    source = SpeechSource(name="tones", split="train", texts=names, speakers=names, ids=names, read=read)
    return SpeechStore(source, rate, trim=False, loudness_db=None)


def make_tokenizer(kind: str, max_positions: int = 40) -> MelTokenizer | WaveformTokenizer:
    torch.manual_seed(0)
    shared = {"code_dim": 4, "num_blocks": 1, "max_positions": max_positions}
    quantizer = QuantizerConfig(depth=3, codebook_size=8, momentum=0.9)
    if kind == "mel":
        return MelTokenizer(MelTokenizerConfig(mel=MEL, width=16, strides=(2, 2), quantizer=quantizer, **shared))
    return WaveformTokenizer(
        WaveformTokenizerConfig(
            sample_rate_hz=RATE,
            window_size=16,
            hop_size=8,
            widths=(12, 16),
            strides=(2, 4),
            quantizer=quantizer,
            **shared,
        )
    )


def make_task(kind: str, *, data: SpeechStore | None = None, **loss) -> SoundTokenizerTask:
    config = SoundTokenizerLossConfig(
        **({"adversarial_weight": 0.0, "crop_seconds": 0.2, "discriminator_width": 2} | loss)
    )
    return SoundTokenizerTask(make_tokenizer(kind), config, data or store(), store((0.31, 0.1)))


def train(task: SoundTokenizerTask, out: Path, *, start_from_data: bool = True, **changes) -> list[dict]:
    values = {
        "num_steps": 30,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "ema_decay": 0.0,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "validate_every": 0,
        "sample_every": 0,
        "checkpoint_every": 0,
        "loggers": (),
    }
    Trainer(task, TrainerConfig(**(values | changes)), out, start_from_data=start_from_data).run()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


@KINDS
def test_the_tokenizer_learns(kind: str, tmp_path: Path) -> None:
    task = make_task(kind)
    lines = train(task, tmp_path / "run")
    losses = [line["loss"] for line in lines]
    assert len(losses) == 30 and all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    assert lines[-1]["loss"] == pytest.approx(
        15 * lines[-1]["reconstruction"] + 0.25 * lines[-1]["commitment"], rel=1e-4
    )
    loaded, folder = load_sound_tokenizer(tmp_path / "run")
    assert type(loaded) is type(task.tokenizer) and folder.extra["history"]["tokenizer"]["steps"] == 30
    assert torch.equal(loaded.quantizer.codebooks, task.tokenizer.quantizer.codebooks)
    assert not torch.equal(loaded.quantizer.codebooks, make_tokenizer(kind).quantizer.codebooks)


@KINDS
def test_the_decoder_alone(kind: str, tmp_path: Path) -> None:
    before, task = make_tokenizer(kind), make_task(kind, decoder_only=True)
    trained = {id(parameter) for parameter in task.optimizer_groups()["tokenizer"]}
    assert trained == {id(parameter) for parameter in task.tokenizer.decoder.parameters()}
    lines = train(task, tmp_path / "run", start_from_data=False)
    assert np.mean([line["loss"] for line in lines[-5:]]) < np.mean([line["loss"] for line in lines[:3]])
    changed = {
        name.split(".")[0]
        for name, value in task.tokenizer.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"decoder"}


@KINDS
def test_validation(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(kind)
    metrics = task.validate(task.module)
    expected = {"val_loss", "mel_l1/1", "mel_l1/2", "mel_l1/3"}
    assert set(metrics) == expected | {f"{name}/{k}" for name in ("usage", "perplexity") for k in (1, 2, 3)}
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics["usage/1"] <= 1 and 1 <= metrics["perplexity/1"] <= 8
    monkeypatch.setattr(sound_task, "VALIDATION_BATCH", 1)
    parts = task.validate(task.module)
    for shared in run_threads(2, lambda reduce: task.validate(task.module, reduce)):
        assert shared == pytest.approx(parts, rel=1e-6)
    total, count = 0.0, 0
    for index in range(2):  # one by one: padding must not have counted
        samples, lengths = task.held_out.batch([index], multiple=task.tokenizer.samples_per_position)
        length = int(lengths)
        with torch.no_grad():
            if kind == "mel":
                mels = log_mel(samples, MEL)
                output = task.tokenizer.decode(task.tokenizer.encode(mels))
                frames = -(-length // 16)
                value = (output - mels)[..., :frames].abs().mean()
            else:
                output = task.tokenizer.decode(task.tokenizer.encode(samples))
                both = [torch.nn.functional.pad(x, (0, 1280 - x.shape[1])) for x in (output, samples)]
                value = multi_scale_mel_l1(*both, RATE, lengths=lengths)
        total, count = total + float(value) * length, count + length
    assert metrics["val_loss"] == pytest.approx(total / count, rel=0.03)
    if kind == "mel":
        assert metrics["val_loss"] == pytest.approx(metrics["mel_l1/3"], rel=0.03)
    task.sample(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 100


@KINDS
def test_padding_is_in_no_loss(kind: str) -> None:
    """A crop longer than the utterance gives the loss and the codebooks of one that ends with it."""
    unit = make_tokenizer(kind).samples_per_position
    results = []
    for positions in (17, 31):  # from 1,024 samples up to 2,048, the same windows of the multi-scale loss fit
        length = 17 * unit
        data = store((length / RATE,))
        task = make_task(kind, data=data, crop_seconds=positions * unit / RATE)
        assert task.crop_samples == positions * unit
        ((_, loss, metrics),) = losses(task, torch.tensor([0]), 0, generator(0))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in task.tokenizer.parameters()])
        task.after_step(0, generator(1))
        results.append((loss.detach(), gradient, task.tokenizer.quantizer.codebooks))
    # the end of a mel or spectrum is reflected in one and silent in the other
    assert torch.allclose(results[0][2], results[1][2], atol=0.02)
    assert float(results[1][0]) == pytest.approx(float(results[0][0]), rel=0.1)
    assert torch.nn.functional.cosine_similarity(results[0][1], results[1][1], dim=0) > 0.9


@KINDS
def test_noise_in_the_padding_changes_nothing(kind: str) -> None:
    values = []
    for seed in (1, 2):
        task = make_task(kind, adversarial_weight=1.0)
        side, forward = task.side, task.side.reconstruct
        unit = task.tokenizer.samples_per_position

        hop = side.mel.hop_size if kind == "mel" else 1

        def reconstruct(batch, seed=seed, forward=forward, kind=kind, hop=hop):
            output, quantization = forward(batch)
            real = torch.arange(output.shape[-1]) * hop < batch.lengths[:, None]
            real = real[:, None] if kind == "mel" else real
            noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
            return torch.where(real, output, noise), quantization

        side.reconstruct = reconstruct  # type: ignore[method-assign]
        with torch.no_grad():
            for parameter in task.module["discriminator"].parameters():
                parameter.copy_(torch.linspace(-0.5, 0.6, parameter.numel()).reshape(parameter.shape))
        assert task.crop_samples > 0.12 * RATE + unit
        values.append([float(loss.detach()) for _, loss, _ in losses(task, torch.tensor([2, 2]), 0, generator(0))])
    assert values[0] == pytest.approx(values[1], rel=1e-5) and len(values[0]) == 2


@KINDS
def test_accumulation_updates_the_codebooks_once_from_all_sounds(kind: str) -> None:
    states = []
    for parts in (1, 2):
        task = make_task(kind, data=store((0.12, 0.15, 0.1, 0.19)))
        for _ in losses(task, torch.arange(4), 0, generator(0), parts):
            pass
        task.after_step(0, generator(1))
        states.append(task.tokenizer.quantizer.codebooks.clone())
    assert torch.allclose(*states, atol=1e-5)
    assert not torch.allclose(states[0], make_tokenizer(kind).quantizer.codebooks, atol=1e-4)


@KINDS
def test_losses_of_tokenizer_and_discriminator_stay_apart(kind: str) -> None:
    task = make_task(kind, adversarial_weight=1.0)
    groups = task.optimizer_groups()
    assert list(groups) == ["tokenizer", "discriminator"]
    for group, loss, metrics in losses(task, torch.arange(4), 0, generator(0)):
        task.module.zero_grad()
        if group == "discriminator":
            reached = torch.autograd.grad(loss, groups["tokenizer"], allow_unused=True, retain_graph=True)
            assert all(gradient is None for gradient in reached)
        loss.backward(inputs=groups[group])
        if group == "tokenizer":
            assert {"adversarial", "feature_matching"} <= set(metrics)
        for name, parameters in groups.items():
            given = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters]
            assert any(given) if name == group else not any(given), (group, name)


@KINDS
def test_adversarial_training(kind: str, tmp_path: Path) -> None:
    task = make_task(kind, adversarial_weight=1.0, adversarial_start=3)
    lines = train(task, tmp_path / "run", num_steps=6, precision="bf16")
    assert [("discriminator" in line, "adversarial" in line) for line in lines] == [(k >= 3, k >= 3) for k in range(6)]
    assert all(math.isfinite(line["loss"]) for line in lines)
    load_sound_tokenizer(tmp_path / "run")  # the discriminator is in no published model


@KINDS
def test_codebooks_start_from_real_positions_only(kind: str) -> None:
    task = make_task(kind, data=store((0.12,)))
    seen = []
    task.tokenizer.quantizer.initialize = lambda latents, *rest: seen.append(latents)  # type: ignore[method-assign]
    task.before_start(generator(0))
    unit = task.tokenizer.samples_per_position
    assert seen[0].shape == (math.ceil(0.12 * RATE / unit), 4) and task.crop_samples // unit > len(seen[0])


def test_crops_longer_than_the_tokenizer_takes() -> None:
    config = SoundTokenizerLossConfig(crop_seconds=1.0)
    with pytest.raises(ConfigError, match=r"crop_seconds=1\.0 is 63 positions.*takes 8"):
        SoundTokenizerTask(make_tokenizer("mel", max_positions=8), config, store(), store())


def test_long_utterances_are_cut_for_validation() -> None:
    config = SoundTokenizerLossConfig(crop_seconds=0.1, adversarial_weight=0.0)
    whole, longest = (0.5, 0.3, 0.12, 0.45), 8 * 64 / RATE
    cut = tuple(min(seconds, longest) for seconds in whole)
    tasks = [SoundTokenizerTask(make_tokenizer("mel", 8), config, store(), store(held)) for held in (whole, cut)]
    metrics, expected = (task.validate(task.module) for task in tasks)
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_speech_at_another_rate() -> None:
    with pytest.raises(DataError, match="held-out speech is at 8000 Hz.*4000 Hz"):
        SoundTokenizerTask(make_tokenizer("mel"), SoundTokenizerLossConfig(), store(), store(rate=8000))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reconstruction_weight": -1.0}, "reconstruction_weight=-1"),
        ({"commitment_weight": -1.0}, "commitment_weight=-1"),
        ({"adversarial_weight": math.inf}, "adversarial_weight=inf"),
        ({"feature_weight": math.nan}, "feature_weight=nan"),
        ({"adversarial_start": -1}, "adversarial_start=-1"),
        ({"discriminator_width": 0}, "discriminator_width=0"),
        ({"crop_seconds": 0.0}, "crop_seconds=0"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SoundTokenizerLossConfig(**changes)
