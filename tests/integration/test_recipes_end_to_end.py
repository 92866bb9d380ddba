"""Every recipe runs: two steps of all its stages and a sample, in its own shape but for widths and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resgen.config import replace_nested
from resgen.data.sound.decode import write_sound
from resgen.errors import ConfigError
from resgen.modalities import load_recipe
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.training import Run
from resgen.training.image.runs import train_generator, train_tokenizer
from resgen.training.speech.runs import train_sound_tokenizer, train_speech_generator, train_text, train_vocoder

SHORT = {
    "num_steps": 2,
    "batch_size": 2,
    "device": "cpu",
    "warmup_steps": 1,
    "log_every": 1,
    "validate_every": 0,
    "sample_every": 0,
    "checkpoint_every": 0,
}
NARROW = {
    "generator.width": 32,
    "generator.mlp_width": 64,
    "generator.condition_width": 32,
    "sampling.num_steps": 2,
}
IMAGES = ("digits", "fashion_mnist", "cifar10", "cifar10_8x8", "avatars64", "imagenette64", "imagenet256")
SPEECH = (
    "spoken_digits",
    "spoken_digits_small",
    "spoken_digits_waveform",
    "sentences",
    "sentences_small",
    "melvae",
    "rvqvae",
)
WAVEFORMS = ("spoken_digits_waveform", "rvqvae")
CODE_DIM = 64  # at most


def short(*stages: str) -> dict[str, object]:
    return {f"{stage}_training.{name}": value for stage in stages for name, value in SHORT.items()}


def pictures(folder: Path, size: int, channels: int) -> Path:
    rng = np.random.default_rng(0)
    shape = (size, size, 3) if channels == 3 else (size, size)
    for number in range(8):
        file = folder / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(file)
    return folder


def recordings(folder: Path, rate: int) -> Path:
    """Noise of a second or more; what counts is that it is loud from end to end."""
    stream = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        lines = []
        for number in range(4):
            samples = 0.1 * torch.randn(rate + rate // 4 * number, generator=stream)
            write_sound(samples, rate, folder / split / f"{number}.wav")
            lines.append(f"{number}.wav|one two|{'xy'[number % 2]}")
        (folder / split / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)[1]
    config = recipe.tokenizer
    heads = {"generator.num_heads": 4}
    recipe = replace_nested(
        recipe,
        {"tokenizer.width": 8, "tokenizer.code_dim": min(config.code_dim, CODE_DIM)}
        | {"generator_loss.validation_samples": 2}
        | NARROW
        | heads
        | short("tokenizer", "generator"),
    )
    data = "digits" if name == "digits" else str(pictures(tmp_path / "data", config.image_size, config.channels))
    train_tokenizer(recipe, Run(data=data, out=tmp_path / "tokenizer"))
    tokenizer = tmp_path / "tokenizer" / "model"
    metrics = train_generator(recipe, Run(data=data, out=tmp_path / "generator", models={"tokenizer": tokenizer}))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["val_loss"])
    pipe = ImagePipeline.from_pretrained(tmp_path / "generator" / "model", device="cpu")
    assert pipe.generator.spec == recipe.tokenizer.spec
    result = pipe(class_ids=[1], num_steps=2, seed=0)
    assert result.images[0].size == (config.image_size, config.image_size)
    assert result.codes.shape[1:] == (recipe.tokenizer.spec.num_positions, config.quantizer.depth)


def test_a_classifier_s_features_as_perceptual_loss(tmp_path: Path) -> None:
    settings = {"tokenizer.width": 8, "tokenizer_loss.perceptual_weight": 2.0} | short("tokenizer")
    judged = {"tokenizer_loss.perceptual_file": "cifar10-classifier"}
    data = str(pictures(tmp_path / "data", 32, 3))
    recipe = replace_nested(load_recipe("cifar10")[1], settings | judged)
    metrics = train_tokenizer(recipe, Run(data=data, out=tmp_path / "a"))
    assert metrics["perceptual"] > 0
    grey = replace_nested(load_recipe("digits")[1], settings | judged)
    with pytest.raises(ConfigError, match="'cifar10-classifier' takes images of 3 channels, not 1"):
        train_tokenizer(grey, Run(data="digits", out=tmp_path / "b"))


@pytest.mark.parametrize("name", SPEECH)
def test_speech(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)[1]
    narrow = {
        "tokenizer.code_dim": min(recipe.tokenizer.code_dim, CODE_DIM),
        "vocoder.width": 16,
        "text.width": 32,
        "text.mlp_width": 64,
        "text.num_heads": 4,
        "generator.num_heads": 4,
    }
    if name in WAVEFORMS:
        narrow["tokenizer.widths"] = [8, 8, 16]
    else:
        narrow["tokenizer.width"] = 16
    narrow |= {"tokenizer_loss.discriminator_width": 2, "vocoder_loss.discriminator_width": 2}
    recipe = replace_nested(
        recipe,
        narrow
        | {"generator_loss.validation_samples": 2, "prompts.max_seconds": 0.5}
        | NARROW
        | short("tokenizer", "vocoder", "text", "generator"),
    )
    data = str(recordings(tmp_path / "data", 16_000))
    train_sound_tokenizer(recipe, Run(data=data, out=tmp_path / "tokenizer"))
    models = {"tokenizer": tmp_path / "tokenizer" / "model", "text": tmp_path / "text" / "model"}
    if name not in WAVEFORMS:
        known = {"tokenizer": models["tokenizer"]}
        train_vocoder(recipe, Run(data=data, out=tmp_path / "vocoder", models=known))
        models["vocoder"] = tmp_path / "vocoder" / "model"
    train_text(recipe, Run(data=data, out=tmp_path / "text"))
    metrics = train_speech_generator(recipe, Run(data=data, out=tmp_path / "voice", models=models))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["val_loss"])
    pipe = SpeechPipeline.from_pretrained(tmp_path / "voice" / "model", device="cpu")
    result = pipe("two one", num_steps=2, speed=4.0)
    assert result.codes.shape[1] == recipe.tokenizer.spec.depth and result.audio.isfinite().all()
