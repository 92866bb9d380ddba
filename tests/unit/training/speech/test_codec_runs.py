"""A generator on the codes of somebody else's codec: encoded, trained for three steps, exported, heard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from codec_parts import LEVELS, RATE, make_codec, save_codec
from resgen.checkpoints.artefacts import fingerprint
from resgen.checkpoints.speech import load_sound_tokenizer, load_speech_pipeline, save_text_model
from resgen.config import replace_nested
from resgen.data.codes.cache import open_codes
from resgen.data.sound.decode import write_sound
from resgen.errors import CheckpointError, ConfigError
from resgen.modalities import load_recipe
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.tokenizers.codec import CodecTokenizer, CodecTokenizerConfig, codec_settings
from resgen.training import Run
from resgen.training.speech.recipe import SpeechRecipe, mel_of
from resgen.training.speech.runs import train_sound_tokenizer, train_speech_generator, train_vocoder
from speech_parts import ALPHABET, make_text_model, voice

UNIT, HOP = 80, 40
MEL = {"sample_rate_hz": RATE, "fft_size": 256, "window_size": 160, "hop_size": HOP, "num_bands": 12, "max_hz": 4000.0}
TRAINING = {"device": "cpu", "precision": "fp32", "batch_size": 3, "num_steps": 3, "warmup_steps": 1, "log_every": 1}
MODEL = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32, "condition_width": 16}


def make_recipe() -> SpeechRecipe:
    changes = {f"vocoder.mel.{name}": value for name, value in MEL.items()}
    changes |= {f"generator_training.{name}": value for name, value in TRAINING.items()}
    changes |= {f"generator.{name}": value for name, value in MODEL.items()}
    changes |= {"generator_training.validate_every": 0, "generator_training.sample_every": 0, "sampling.num_steps": 2}
    return replace_nested(load_recipe("spoken_digits")[1], changes | {"generator_loss.validation_samples": 2})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 4), ("test", 2)):
        lines = ["file|text|speaker"]
        for number in range(count):
            write_sound(voice(0.6 + 0.1 * number, 120.0 + 30 * number, RATE), RATE, folder / split / f"{number}.wav")
            lines.append(f"{number}.wav|{'abc cab'[: 3 + number]}|x")
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_codec(tmp_path_factory.mktemp("codec"), "mimi", upsampling_ratios=[8, 5])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    save_text_model(folder, make_text_model(), alphabet=ALPHABET)
    return folder


def test_trained_exported_and_heard(tmp_path: Path, corpus: Path, codec: Path, text: Path) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    metrics = train_speech_generator(recipe, Run(data=str(corpus), out=out, models={"tokenizer": codec, "text": text}))
    assert metrics and all(torch.isfinite(torch.tensor(float(value))) for value in metrics.values())
    cache = open_codes(out / "codes" / "train")
    tokenizer, _ = load_sound_tokenizer(codec)
    assert cache.plan.made_from["tokenizer"] == fingerprint(tokenizer) and cache.spec == tokenizer.spec
    parts = load_speech_pipeline(out / "model")
    assert isinstance(parts.tokenizer, CodecTokenizer) and parts.vocoder is None
    assert parts.voice.mel == recipe.vocoder.mel and parts.generator.config.feature_stride == UNIT // HOP
    assert fingerprint(parts.tokenizer) == fingerprint(tokenizer)
    pipe = SpeechPipeline(parts, device="cpu")
    output = pipe("abc", prompt=voice(0.8, 140.0, RATE), prompt_text="cab", seed=1)
    assert output.sample_rate_hz == RATE and output.codes.shape[1] == LEVELS and len(output.codes) > 3
    assert len(output.audio) == UNIT * len(output.codes) and output.audio.std() > 1e-3
    assert output.audio.abs().max() <= 1
    other = save_codec(tmp_path / "other", "mimi", seed=1, upsampling_ratios=[8, 5])
    with pytest.raises(CheckpointError, match="do not belong together"):
        train_speech_generator(
            recipe,
            Run(data=str(out / "codes"), out=tmp_path / "wrong", models={"tokenizer": other, "text": text}),
        )


def test_mels_that_do_not_fit(tmp_path: Path, corpus: Path, codec: Path, text: Path) -> None:
    for change in ({"vocoder.mel.hop_size": 50}, {"vocoder.mel.sample_rate_hz": 16_000}):
        recipe = replace_nested(make_recipe(), change)
        message = rf"vocoder\.mel has .*; the tokenizer has {RATE} Hz and positions of {UNIT} samples"
        with pytest.raises(ConfigError, match=message) as caught:
            train_speech_generator(
                recipe, Run(data=str(corpus), out=tmp_path / "run", models={"tokenizer": codec, "text": text})
            )
        assert "\n" not in str(caught.value)
    assert mel_of(make_recipe()) != mel_of(make_recipe(), load_sound_tokenizer(codec)[0].config)


def test_a_codec_is_not_trained(tmp_path: Path, corpus: Path, codec: Path) -> None:
    recipe = make_recipe()
    settings = codec_settings(make_codec("dac").config)
    config = CodecTokenizerConfig(family="dac", codec=settings, num_levels=1, max_positions=1)
    object.__setattr__(recipe, "tokenizer", config)  # past the checked signature of these tests
    with pytest.raises(ConfigError, match=r"tokenizer\.family=dac: a codec is not trained here"):
        train_sound_tokenizer(recipe, Run(data=str(corpus), out=tmp_path / "run"))
    with pytest.raises(ConfigError, match="needs no vocoder"):
        train_vocoder(make_recipe(), Run(data=str(corpus), out=tmp_path / "run", models={"tokenizer": codec}))
