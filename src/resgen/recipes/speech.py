"""Speech recipes, from spoken digits to the paper's two models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from resgen.kinds import GeneratorLossConfig
from resgen.kinds.presets import RESGEN
from resgen.models.resgen import ResGenConfig
from resgen.models.text import PRESETS as TEXT_PRESETS
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.mel import PRESETS as MEL_PRESETS
from resgen.tokenizers.mel import MelTokenizerConfig
from resgen.tokenizers.vocoder import PRESETS as VOCODER_PRESETS
from resgen.tokenizers.waveform import PRESETS as WAVEFORM_PRESETS
from resgen.training.speech.recipe import SpeechRecipe
from resgen.training.speech.tokenizer_task import SoundTokenizerLossConfig
from resgen.training.speech.vocoder_task import VocoderLossConfig
from resgen.training.trainer import TrainerConfig

_SAMPLING = SamplingConfig(num_steps=16, mask_schedule="power", top_p=0.95, choice_temperature=1.0, guidance_scale=1.0)


def spoken_digits() -> SpeechRecipe:
    """Sequences of spoken digits at 16 kHz, 10 positions of 32 levels of 256 per second: all stages in an hour or two
    on two cores."""
    return SpeechRecipe(
        name="spoken_digits",
        tokenizer=MEL_PRESETS["small"],
        tokenizer_loss=SoundTokenizerLossConfig(adversarial_weight=0.0, crop_seconds=1.6),
        tokenizer_training=TrainerConfig(
            num_steps=8000, batch_size=32, learning_rate=1e-3, betas=(0.9, 0.99), decay_fraction=0.4, ema_decay=0.0
        ),
        vocoder=VOCODER_PRESETS["small"],
        vocoder_loss=VocoderLossConfig(adversarial_weight=0.0),
        vocoder_training=TrainerConfig(
            num_steps=8000, batch_size=16, learning_rate=1e-3, betas=(0.8, 0.99), decay_fraction=0.4, ema_decay=0.99
        ),
        text=TEXT_PRESETS["small"],
        text_training=TrainerConfig(
            num_steps=1500, batch_size=32, learning_rate=1e-3, betas=(0.9, 0.98), decay_fraction=0.5, ema_decay=0.99
        ),
        generator=ResGenConfig(
            width=256,
            num_layers=6,
            num_heads=8,
            mlp_width=1024,
            condition_width=256,
            num_components=128,
            mean_rank=32,
            head="residual",
        ),
        generator_loss=GeneratorLossConfig(level_decay=0.7, validation_samples=256),
        generator_training=TrainerConfig(
            num_steps=12000,
            batch_size=32,
            learning_rate=8e-4,
            betas=(0.9, 0.98),
            weight_decay=0.03,
            decay_fraction=0.5,
            ema_decay=0.999,
            warmup_steps=300,
            validate_every=500,
            sample_every=500,
            checkpoint_every=500,
        ),
        sampling=_SAMPLING,
    )


def spoken_digits_small() -> SpeechRecipe:
    """`spoken_digits` with 16 levels and narrower networks: all parts of a model in less than 25 MB."""
    digits = spoken_digits()
    assert isinstance(digits.tokenizer, MelTokenizerConfig) and isinstance(digits.generator, ResGenConfig)
    return replace(
        digits,
        name="spoken_digits_small",
        tokenizer=replace(digits.tokenizer, width=128, quantizer=replace(digits.tokenizer.quantizer, depth=16)),
        text=replace(digits.text, width=128, mlp_width=512),
        generator=replace(
            digits.generator, width=192, num_heads=6, mlp_width=768, condition_width=192, prompt_summary=True
        ),
        sampling=replace(_SAMPLING, num_steps=12),
    )


def spoken_digits_waveform() -> SpeechRecipe:
    """`spoken_digits` on codes of waveforms, without mels and vocoder: 10 positions of 32 levels of 256 per second."""
    digits = spoken_digits()
    return replace(
        digits,
        name="spoken_digits_waveform",
        tokenizer=WAVEFORM_PRESETS["small"],
        tokenizer_loss=SoundTokenizerLossConfig(adversarial_start=4000, crop_seconds=0.8),
        tokenizer_training=replace(digits.tokenizer_training, num_steps=20_000, batch_size=16, learning_rate=5e-4),
    )


def sentences() -> SpeechRecipe:
    """English sentences at 16 kHz, read as phonemes, in the shapes of `spoken_digits` and a wider generator."""
    digits = spoken_digits()
    return replace(
        digits,
        name="sentences",
        text=replace(digits.text, front_end="english-1"),
        generator=replace(digits.generator, width=320, mlp_width=1280, condition_width=320, num_heads=10),
        generator_training=replace(digits.generator_training, num_steps=40_000),
        text_training=replace(digits.text_training, num_steps=6000),
    )


def sentences_small() -> SpeechRecipe:
    """`sentences` with the parts of `spoken_digits_small` and a wider text model: all in less than 25 MB."""
    small = spoken_digits_small()
    return replace(
        small,
        name="sentences_small",
        text=replace(small.text, front_end="english-1", width=160, mlp_width=640),
        text_training=replace(small.text_training, num_steps=6000),
        generator_training=replace(small.generator_training, num_steps=40_000),
        sampling=replace(_SAMPLING, num_steps=15),
    )


def melvae() -> SpeechRecipe:
    """The paper's first speech model (App. A.1): mels, 32 levels of 1024 at 10.76 Hz, low-rank mixture, 25 steps.

    The paper gives the generator's size, 457 million parameters, but not its shape; width 1024 and 24 layers are a
    default that has 452 million.
    """
    return SpeechRecipe(
        name="melvae",
        tokenizer=MEL_PRESETS["paper"],
        tokenizer_training=_long(400_000, 2e-4),
        vocoder=VOCODER_PRESETS["paper"],
        vocoder_training=_long(1_000_000, 2e-4),
        text=TEXT_PRESETS["paper"],
        text_training=_long(200_000, 1e-4),
        generator=replace(
            RESGEN["xl"], width=1024, num_layers=24, mlp_width=4096, condition_width=4096, mean_rank=64, head="mixture"
        ),
        generator_training=_long(1_000_000, 1e-4),
        sampling=SamplingConfig(num_steps=25, guidance_scale=1.0),
    )


def rvqvae() -> SpeechRecipe:
    """The paper's second speech model (App. A.1): waveforms at 44.1 kHz, 72 levels of 1024 at 10.77 Hz.

    The generator has the shape of the image model and 616 million parameters; the paper says 625.
    """
    waveform = WAVEFORM_PRESETS["paper"]
    mel = replace(VOCODER_PRESETS["paper"].mel, sample_rate_hz=44_100, fft_size=2048, window_size=2048, hop_size=512)
    return replace(
        melvae(),
        name="rvqvae",
        tokenizer=waveform,
        vocoder=replace(VOCODER_PRESETS["paper"], mel=mel),
        generator=replace(RESGEN["xl"], mean_rank=64, head="mixture"),
    )


def _long(num_steps: int, learning_rate: float) -> TrainerConfig:
    return TrainerConfig(
        num_steps=num_steps,
        batch_size=64,
        learning_rate=learning_rate,
        betas=(0.9, 0.96),
        warmup_steps=5000,
        decay_fraction=0.1,
        ema_decay=0.9999,
        validate_every=5000,
        sample_every=5000,
        checkpoint_every=5000,
    )


RECIPES: dict[str, Callable[[], SpeechRecipe]] = {
    recipe.__name__: recipe
    for recipe in (
        spoken_digits,
        spoken_digits_small,
        spoken_digits_waveform,
        sentences,
        sentences_small,
        melvae,
        rvqvae,
    )
}
