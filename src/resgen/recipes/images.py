"""Image recipes, from scikit-learn's digits to the paper's ImageNet run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from resgen.kinds import GeneratorLossConfig
from resgen.kinds.presets import RESGEN
from resgen.models.resgen import ResGenConfig
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizerConfig
from resgen.training.image.recipe import DataConfig, Recipe
from resgen.training.image.tokenizer_task import TokenizerLossConfig
from resgen.training.trainer import TrainerConfig

# What the small recipes have in common; each says what differs.
_MSE_ONLY = TokenizerLossConfig(perceptual_weight=0.0, adversarial_weight=0.0)
_TOKENIZER_TRAINING = TrainerConfig(
    num_steps=1000, batch_size=128, learning_rate=1e-3, betas=(0.9, 0.99), decay_fraction=0.4, ema_decay=0.0
)
_GENERATOR_LOSS = GeneratorLossConfig(level_decay=0.7)
_GENERATOR_TRAINING = TrainerConfig(
    num_steps=3000,
    batch_size=64,
    learning_rate=1e-3,
    betas=(0.9, 0.98),
    weight_decay=0.03,
    decay_fraction=0.5,
    ema_decay=0.995,
)
_LONGER_TRAINING = replace(
    _GENERATOR_TRAINING,
    batch_size=128,
    learning_rate=8e-4,
    ema_decay=0.999,
    warmup_steps=300,
    validate_every=1000,
    sample_every=1000,
    checkpoint_every=1000,
)
_SAMPLING = SamplingConfig(num_steps=24, mask_schedule="power", top_p=0.95, choice_temperature=1.0)


def _quantizer(depth: int, codebook_size: int) -> QuantizerConfig:
    return QuantizerConfig(depth=depth, codebook_size=codebook_size, momentum=0.99, variance_momentum=0.99)


def _generator(width: int, num_layers: int, num_components: int) -> ResGenConfig:
    return ResGenConfig(
        width=width,
        num_layers=num_layers,
        num_heads=width // 32,
        mlp_width=4 * width,
        condition_width=width,
        num_components=num_components,
        head="residual",
    )


def digits() -> Recipe:
    """scikit-learn's 1,797 grey 8x8 digits: both stages in under 5 minutes on two cores."""
    return Recipe(
        name="digits",
        data=DataConfig(path="digits"),
        tokenizer=ImageTokenizerConfig(
            image_size=8,
            channels=1,
            width=32,
            multipliers=(1, 2),
            num_res_blocks=1,
            code_dim=16,
            quantizer=_quantizer(4, 64),
        ),
        tokenizer_loss=replace(_MSE_ONLY, flip=False),
        tokenizer_training=replace(_TOKENIZER_TRAINING, learning_rate=2e-3),
        generator=_generator(128, 4, 64),
        generator_loss=_GENERATOR_LOSS,
        generator_training=replace(_GENERATOR_TRAINING, num_steps=1500, batch_size=128, weight_decay=0.05),
        sampling=replace(_SAMPLING, num_steps=16, guidance_scale=2.0),
    )


def fashion_mnist() -> Recipe:
    """Fashion-MNIST: 28x28 grey, 4x4 positions, 8 levels of 256."""
    return Recipe(
        name="fashion_mnist",
        data=DataConfig(flip=False),
        tokenizer=ImageTokenizerConfig(
            image_size=28,
            channels=1,
            patch_size=2,
            width=32,
            multipliers=(1, 2, 4),
            num_res_blocks=1,
            code_dim=32,
            quantizer=_quantizer(8, 256),
        ),
        tokenizer_loss=_MSE_ONLY,
        tokenizer_training=replace(_TOKENIZER_TRAINING, num_steps=3500),
        generator=_generator(320, 6, 128),
        generator_loss=_GENERATOR_LOSS,
        generator_training=replace(_LONGER_TRAINING, num_steps=9000),
        sampling=replace(_SAMPLING, num_steps=16, top_p=1.0, choice_temperature=4.0, guidance_scale=4.0),
    )


def cifar10() -> Recipe:
    """CIFAR-10: 32x32 RGB, 4x4 positions, 16 levels of 512."""
    return Recipe(
        name="cifar10",
        data=DataConfig(flip=True),
        tokenizer=ImageTokenizerConfig(
            image_size=32,
            patch_size=2,
            width=48,
            multipliers=(1, 2, 3),
            num_res_blocks=1,
            code_dim=32,
            quantizer=_quantizer(16, 512),
        ),
        tokenizer_loss=_MSE_ONLY,
        tokenizer_training=replace(_TOKENIZER_TRAINING, num_steps=4000),
        generator=_generator(288, 6, 128),
        generator_loss=_GENERATOR_LOSS,
        generator_training=replace(_LONGER_TRAINING, num_steps=12_000),
        sampling=replace(_SAMPLING, guidance_scale=3.0),
    )


def cifar10_8x8() -> Recipe:
    """CIFAR-10 on 8x8 positions of 8 levels of 512: sharper than `cifar10`, and more to learn for the generator."""
    coarse = cifar10()
    return replace(
        coarse,
        name="cifar10_8x8",
        tokenizer=replace(coarse.tokenizer, multipliers=(1, 2), quantizer=_quantizer(8, 512)),
        tokenizer_training=replace(coarse.tokenizer_training, num_steps=6000, batch_size=64),
        generator=_generator(192, 4, 128),
        generator_training=replace(coarse.generator_training, batch_size=64, learning_rate=1e-3, warmup_steps=100),
        sampling=replace(_SAMPLING, top_p=1.0, choice_temperature=40.0, guidance_scale=12.0, guidance_start=0.6),
    )


def avatars64() -> Recipe:
    """Cartoon faces of `tools/make_avatars.py` at 64x64: 8x8 positions, 12 levels of 512, about two hours on one core.

    Set `tokenizer_loss.perceptual_file` to a classifier of such images, or the tokenizer learns without a perceptual
    loss.
    """
    return Recipe(
        name="avatars64",
        tokenizer=ImageTokenizerConfig(
            image_size=64,
            patch_size=4,
            width=96,
            multipliers=(1, 2),
            num_res_blocks=1,
            code_dim=64,
            quantizer=_quantizer(12, 512),
        ),
        tokenizer_loss=TokenizerLossConfig(adversarial_weight=0.4, adversarial_start=1400),
        tokenizer_training=replace(
            _TOKENIZER_TRAINING,
            num_steps=3000,
            batch_size=32,
            decay_fraction=0.3,
            validate_every=1000,
            sample_every=400,
            checkpoint_every=200,
        ),
        generator=_generator(256, 6, 128),
        generator_loss=_GENERATOR_LOSS,
        generator_training=replace(_GENERATOR_TRAINING, checkpoint_every=200),
        sampling=replace(_SAMPLING, choice_temperature=2.0, guidance_scale=2.0),
    )


def imagenette64() -> Recipe:
    """Ten classes of photographs at 64x64: 8x8 positions, 16 levels of 1024."""
    return Recipe(
        name="imagenette64",
        data=DataConfig(flip=True, resize=True),
        tokenizer=ImageTokenizerConfig(
            image_size=64, patch_size=2, width=64, multipliers=(1, 2, 4), quantizer=_quantizer(16, 1024)
        ),
        tokenizer_loss=TokenizerLossConfig(adversarial_start=5000),
        tokenizer_training=TrainerConfig(
            num_steps=20_000, batch_size=64, learning_rate=5e-4, betas=(0.5, 0.9), decay_fraction=0.3, ema_decay=0.0
        ),
        generator=replace(RESGEN["small"], head="residual"),
        generator_loss=_GENERATOR_LOSS,
        generator_training=replace(_GENERATOR_TRAINING, num_steps=40_000, learning_rate=5e-4, ema_decay=0.999),
        sampling=replace(_SAMPLING, num_steps=28, guidance_scale=2.4),
    )


def imagenet256() -> Recipe:
    """ImageNet at 256x256 in the paper's shapes (App. A.1): 8x8 positions, 16 levels of 1024, codes of width 64, 572M
    parameters where the paper states 576M."""
    return Recipe(
        name="imagenet256",
        data=DataConfig(flip=True, resize=True),
        tokenizer=ImageTokenizerConfig(quantizer=QuantizerConfig(depth=16, codebook_size=1024)),
        tokenizer_training=TrainerConfig(
            num_steps=1_000_000,
            batch_size=128,
            learning_rate=4e-5,
            betas=(0.5, 0.9),
            warmup_steps=5000,
            decay_fraction=0.0,
            ema_decay=0.0,
            validate_every=5000,
            sample_every=5000,
            checkpoint_every=5000,
        ),
        generator=replace(RESGEN["xl"], num_classes=1000, head="mixture"),
        generator_loss=GeneratorLossConfig(mask_schedule="circle"),
        generator_training=TrainerConfig(
            num_steps=7_000_000,
            batch_size=256,
            learning_rate=1e-4,
            betas=(0.9, 0.96),
            weight_decay=0.03,
            warmup_steps=5000,
            decay_fraction=0.1,
            ema_decay=0.9999,
            validate_every=10_000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        sampling=SamplingConfig(
            num_steps=64, mask_schedule="exponential", top_p=0.98, guidance_first=0.02, guidance_scale=2.2
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (digits, fashion_mnist, cifar10, cifar10_8x8, avatars64, imagenette64, imagenet256)
}
