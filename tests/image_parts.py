"""A small untrained image model for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resgen.checkpoints.artefacts import save_pipeline
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig


def save_model(
    path: Path,
    *,
    channels: int = 1,
    num_classes: int = 3,
    class_names: tuple[str, ...] = (),
    class_axes: Mapping[str, tuple[str, ...]] | None = None,
    other_axes: tuple[int, ...] = (),
    extra: Any = None,
) -> Path:
    """A pipeline's folder with random weights: images of 8x8, 16 positions, 3 levels of 10.

    `extra` is stored in place of `class_axes`, which say all of the classes.
    """
    if class_axes:
        class_names, *others = class_axes.values()
        num_classes, other_axes = len(class_names), tuple(map(len, others))
    torch.manual_seed(0)
    quantizer = QuantizerConfig(depth=3, codebook_size=10)
    tokenizer = ImageTokenizer(
        ImageTokenizerConfig(
            image_size=8,
            channels=channels,
            width=8,
            multipliers=(1, 2),
            num_res_blocks=1,
            code_dim=4,
            quantizer=quantizer,
        )
    )
    config = ResGenConfig(
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=32,
        condition_width=16,
        num_components=5,
        num_classes=num_classes,
        other_axes=other_axes,
    )
    generator = ResGen(config, tokenizer.spec)
    with torch.no_grad():
        for parameter in (*generator.parameters(), *tokenizer.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape))
    codes = torch.randint(10, (50, 16, 3))
    generator.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)
    sampling = SamplingConfig(num_steps=4, choice_temperature=1.0, guidance_scale=1.0, temperature=0.9)
    save_pipeline(
        path,
        tokenizer,
        generator,
        sampling=sampling,
        class_names=class_names,
        class_axes=class_axes,
        history={"generator": {}},
    )
    if extra is not None:
        document = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(document | {"class_axes": extra}))
    return path
