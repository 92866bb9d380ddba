"""Speech recipes: all build, the paper's have the paper's shapes, and every kind of generator has a counterpart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resgen.config import config_from_dict, config_to_dict, replace_nested
from resgen.errors import ConfigError
from resgen.kinds import KINDS, SPEECH_KINDS, count_parameters, kind_of
from resgen.modalities import load_recipe
from resgen.models.ar_resgen import ARResGenConfig
from resgen.models.text import TextModel
from resgen.recipes import images, speech
from resgen.samplers.autoregressive import LatentAutoregressiveConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.training.speech.recipe import SpeechDataConfig, SpeechRecipe, mel_of
from resgen.training.stages import with_kind

NAMES = (
    "spoken_digits",
    "spoken_digits_small",
    "spoken_digits_waveform",
    "sentences",
    "sentences_small",
    "melvae",
    "rvqvae",
)


def size(recipe: SpeechRecipe) -> int:
    """Parameters of the generator as it is trained: with the features of the text model."""
    stride = recipe.tokenizer.samples_per_position if not isinstance(recipe.tokenizer, MelTokenizerConfig) else None
    frames = recipe.tokenizer.frames_per_position if stride is None else stride // mel_of(recipe).hop_size
    config = replace(recipe.generator, feature_width=recipe.text.width, feature_stride=frames)
    return count_parameters(config, recipe.tokenizer.spec)


def test_names() -> None:
    assert tuple(speech.RECIPES) == NAMES
    with pytest.raises(ConfigError, match="did you mean 'spoken_digits'"):
        load_recipe("spoken-digits")[1]
    assert not set(images.RECIPES) & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds(name: str) -> None:
    recipe = load_recipe(name)[1]
    assert recipe.name == name
    assert config_from_dict(SpeechRecipe, config_to_dict(recipe)) == recipe
    mel = mel_of(recipe)
    assert recipe.vocoder.mel == mel, "one kind of mels for tokenizer, vocoder and alignment"
    assert recipe.text.num_bands == mel.num_bands
    assert mel.sample_rate_hz / mel.hop_size / 8 == pytest.approx(
        10.0 if mel.sample_rate_hz == 16_000 else 10.77, abs=0.01
    )
    with torch.device("meta"):
        is_mel = isinstance(recipe.tokenizer, MelTokenizerConfig)
        tokenizer = MelTokenizer(recipe.tokenizer) if is_mel else WaveformTokenizer(recipe.tokenizer)
        assert tokenizer.samples_per_position == 8 * mel.hop_size
        TextModel(recipe.text)
    assert recipe.data.path is None
    for crop in (recipe.tokenizer_loss.crop_seconds, recipe.vocoder_loss.crop_seconds, recipe.data.max_seconds):
        assert crop * tokenizer.sample_rate_hz <= tokenizer.spec.num_positions * tokenizer.samples_per_position


@pytest.mark.parametrize(
    ("name", "millions", "rate", "depth"), [("melvae", 457, 22_050, 32), ("rvqvae", 625, 44_100, 72)]
)
def test_the_paper_s_recipes(name: str, millions: int, rate: int, depth: int) -> None:
    recipe = load_recipe(name)[1]
    spec = recipe.tokenizer.spec
    assert size(recipe) == pytest.approx(millions * 1e6, rel=0.03)
    assert (spec.depth, spec.codebook_size, spec.code_dim) == (depth, 1024, 512)
    assert mel_of(recipe).sample_rate_hz == rate and recipe.generator.mean_rank == 64
    assert recipe.sampling.num_steps == 25


@pytest.mark.parametrize("kind", [*KINDS, "clam_tts"])
def test_other_kinds(kind: str) -> None:
    recipe = load_recipe("spoken_digits")[1]
    other = with_kind(recipe, kind, SPEECH_KINDS)
    expected = "ar_resgen" if kind == "clam_tts" else kind
    assert kind_of(other.generator).name == expected
    assert isinstance(other.sampling, KINDS[expected].sampling)
    assert size(other) == pytest.approx(size(recipe), rel=0.15)
    assert other.tokenizer == recipe.tokenizer and other.text == recipe.text


def test_clam_tts_predicts_a_position_at_once() -> None:
    clam, ours = (with_kind(load_recipe("spoken_digits")[1], kind, SPEECH_KINDS) for kind in ("clam_tts", "ar_resgen"))
    assert isinstance(clam.generator, ARResGenConfig) and clam.generator.head == "mixture"
    assert isinstance(clam.sampling, LatentAutoregressiveConfig) and clam.sampling.num_steps == 1
    assert isinstance(ours.sampling, LatentAutoregressiveConfig) and ours.sampling.num_steps == 2
    with pytest.raises(ConfigError, match="already of kind 'ar_resgen'"):
        with_kind(clam, "maskgit", SPEECH_KINDS)
    with pytest.raises(ConfigError, match="did you mean 'maskgit'"):
        with_kind(ours, "maskgi", SPEECH_KINDS)


def test_overrides_reach_every_stage() -> None:
    changes = {
        "tokenizer.quantizer.depth": 4,
        "vocoder.mel.hop_size": 100,
        "text.width": 64,
        "prompts.max_seconds": 1.0,
    }
    recipe = replace_nested(load_recipe("spoken_digits")[1], changes)
    assert recipe.tokenizer.spec.depth == 4 and recipe.vocoder.mel.hop_size == 100
    assert recipe.text.width == 64 and recipe.prompts.max_seconds == 1.0


def test_waveforms_and_mels_that_do_not_fit() -> None:
    recipe = load_recipe("rvqvae")[1]
    for change in ({"vocoder.mel.hop_size": 500}, {"vocoder.mel.sample_rate_hz": 22_050}):
        with pytest.raises(ConfigError, match=r"vocoder\.mel has"):
            mel_of(replace_nested(recipe, change))


def test_recordings_have_a_length() -> None:
    with pytest.raises(ConfigError, match="max_seconds=0.0"):
        SpeechDataConfig(max_seconds=0.0)


@pytest.mark.parametrize("kind", [*KINDS, "clam_tts"])
@pytest.mark.parametrize("name", ["spoken_digits", "spoken_digits_waveform"])
def test_a_recipe_of_every_kind_is_read_back(name: str, kind: str) -> None:
    recipe = with_kind(load_recipe(name)[1], kind, SPEECH_KINDS)
    again = config_from_dict(SpeechRecipe, config_to_dict(recipe))
    assert again == recipe and type(again.tokenizer) is type(recipe.tokenizer)
