"""Small tasks of every kind, part and modality, on data of very different lengths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kind_parts import matched_config
from resgen.data.codes.cache import CachePlan
from resgen.data.codes.encoding import write_codes
from resgen.data.pictures.sources import ImageSource
from resgen.data.pictures.store import PictureStore
from resgen.data.sound.sources import SpeechSource
from resgen.data.sound.store import SpeechStore
from resgen.data.text import token_ids
from resgen.kinds import KINDS, build, get_kind
from resgen.models.resgen import ResGenConfig
from resgen.ops.random import generator
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.tokenizers.sound import SoundCodec
from resgen.training.classes import ClassExamples, ClassProduct
from resgen.training.generator_task import GeneratorLossConfig, GeneratorTask
from resgen.training.image.product import save_sheet
from resgen.training.image.tokenizer_task import TokenizerLossConfig, TokenizerTask
from resgen.training.speech.product import COLUMNS, EncodedUtterance, PromptConfig, SpeechExamples
from resgen.training.speech.text_task import TextLossConfig, TextTask
from resgen.training.speech.tokenizer_task import SoundTokenizerLossConfig, SoundTokenizerTask
from resgen.training.speech.vocoder_task import VocoderLossConfig, VocoderTask
from speech_parts import (
    DEPTH,
    MEL,
    RATE,
    SIZE,
    STRIDE,
    UNIT,
    WIDTH,
    make_text_model,
    make_tokenizer,
    make_vocoder,
    make_waveform_tokenizer,
    shaken,
)

BATCH = 8
LENGTHS = (9, 30, 4, 20, 15, 6, 12, 25)  # positions
SECONDS = (0.3, 0.9, 0.15, 1.2, 0.5, 0.25, 0.7, 1.0)
WORDS = ("a", "abc cab", "b", "abcabc ab", "cab", "ab", "ca ab", "abcabc")


def recordings() -> SpeechStore:
    """Sounds of very different lengths, most of them shorter than the crops, with noise so that no two frames tie."""

    def read(index: int, rate: int) -> Tensor:
        times = torch.arange(round(SECONDS[index] * rate)) / rate
        noise = 0.1 * torch.randn(len(times), generator=generator("noise", index))
        return (0.3 * torch.sin(2 * math.pi * (200 + 90 * index) * times) + noise) * (0.3 + torch.sin(9 * times).abs())

    speakers = tuple(str(index % 2) for index in range(BATCH))
    source = SpeechSource(name="tones", split="train", texts=WORDS, speakers=speakers, ids=WORDS, read=read)
    return SpeechStore(source, RATE, trim=False, loudness_db=None)


def pictures() -> PictureStore:
    rng = np.random.default_rng(0)
    source = ImageSource(
        name="noise",
        class_names=("a",),
        labels=np.zeros(BATCH, dtype=np.int64),
        pictures=[rng.integers(0, 40 + 25 * k, (16, 16), dtype=np.uint8) for k in range(BATCH)],
        where=str,
        digest=lambda: "0",
    )
    return PictureStore(source, size=16, channels=1)


def picture_tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(depth=DEPTH, codebook_size=SIZE)
    return ImageTokenizer(
        ImageTokenizerConfig(
            image_size=16,
            channels=1,
            width=8,
            multipliers=(1, 2, 2),
            num_res_blocks=1,
            code_dim=4,
            quantizer=quantizer,
        )
    )


def picture_tokenizer_task(folder: Path) -> TokenizerTask:
    config = TokenizerLossConfig(perceptual_weight=0.5, adversarial_weight=0.75)
    store = pictures()
    task = TokenizerTask(picture_tokenizer(), config, store, store.batch(torch.arange(2)))
    task.perceptual = lambda images, targets: (images - targets).abs().mean()
    return task


def sound_task(tokenizer: Any) -> SoundTokenizerTask:
    config = SoundTokenizerLossConfig(crop_seconds=0.8, discriminator_width=2)
    return SoundTokenizerTask(tokenizer.requires_grad_(True), config, recordings(), recordings())


def vocoder_task(folder: Path) -> VocoderTask:
    config = VocoderLossConfig(crop_seconds=0.4, discriminator_width=2)
    vocoder = make_vocoder().requires_grad_(True)
    return VocoderTask(vocoder, config, recordings(), recordings(), tokenizer=make_tokenizer())


def text_task(folder: Path) -> TextTask:
    return TextTask(make_text_model().requires_grad_(True), TextLossConfig(), recordings(), recordings(), mel=MEL)


def picture_generator(kind: str, folder: Path) -> GeneratorTask:
    tokenizer = picture_tokenizer()
    codes = torch.randint(SIZE, (BATCH, *tokenizer.spec.shape, DEPTH), generator=generator("codes")).flatten(1, 2)
    plan = CachePlan(
        spec=tokenizer.spec,
        num_samples=BATCH,
        columns={"labels": "number"},
        class_names=("a", "b", "c"),
        made_from={},
        shard_samples=BATCH,
    )
    cache = write_codes(folder / "codes", plan, codes, {"labels": [k % 3 for k in range(BATCH)]})
    examples = ClassExamples(cache, 3)
    return generator_task(
        kind, tokenizer, examples, ClassProduct(tokenizer, ("a", "b", "c"), save_sheet), num_classes=3
    )


def speech_generator(kind: str, folder: Path) -> GeneratorTask:
    tokenizer, stream, parts = make_tokenizer(max_positions=40), generator("codes"), []
    for text, length in zip(WORDS, LENGTHS, strict=True):
        tokens = token_ids(text.encode())
        durations = torch.ones_like(tokens)
        durations[-1] += length * STRIDE - durations.sum()
        parts.append(EncodedUtterance(torch.randint(SIZE, (length, DEPTH), generator=stream), tokens, durations))
    columns: dict[str, Any] = {"texts": WORDS, "speakers": [str(index % 2) for index in range(BATCH)]}
    columns |= {name: [getattr(part, name) for part in parts] for name in ("tokens", "durations")}
    plan = CachePlan(
        spec=tokenizer.spec, num_samples=BATCH, columns=COLUMNS, made_from={}, ragged=True, shard_samples=BATCH
    )
    cache = write_codes(folder / "codes", plan, [part.codes for part in parts], columns)
    examples = SpeechExamples(cache, make_text_model(), PromptConfig(), positions_per_second=RATE / UNIT, stride=STRIDE)
    return generator_task(kind, tokenizer, examples, SoundCodec(tokenizer), feature_width=WIDTH, feature_stride=STRIDE)


def generator_task(kind: str, tokenizer: Any, examples: Any, product: Any, **condition: int) -> GeneratorTask:
    base = ResGenConfig(
        width=16, num_layers=2, num_heads=2, mlp_width=32, condition_width=16, num_components=6, class_dropout=0.4
    )
    base = dataclasses.replace(base, head="residual", **condition)
    torch.manual_seed(0)
    model = shaken(build(matched_config(base, tokenizer.spec, kind), tokenizer.spec), 0).requires_grad_(True)
    return GeneratorTask(
        model,
        GeneratorLossConfig(level_decay=0.7),
        examples,
        examples,
        quantizer=tokenizer.quantizer,
        product=product,
        sampling=get_kind(kind).sampling(),
    )


MAKERS: dict[str, Callable[[Path], Any]] = {
    "image tokenizer": picture_tokenizer_task,
    "mel tokenizer": lambda folder: sound_task(make_tokenizer()),
    "waveform tokenizer": lambda folder: sound_task(make_waveform_tokenizer()),
    "vocoder": vocoder_task,
    "text model": text_task,
} | {
    f"{modality} {kind}": lambda folder, kind=kind, make=make: make(kind, folder)
    for modality, make in (("pictures", picture_generator), ("speech", speech_generator))
    for kind in KINDS
}
