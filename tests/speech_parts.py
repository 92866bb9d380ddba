"""Small untrained parts of a speech model for tests: 8 kHz, 20 positions of 8 frames a second, 3 levels of 10."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from resgen.checkpoints.speech import VoiceConfig, save_speech_pipeline
from resgen.kinds import build
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.models.text import TextModel, TextModelConfig
from resgen.ops.mel import MelConfig
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.sound import SoundTokenizer
from resgen.tokenizers.vocoder import Vocoder, VocoderConfig
from resgen.tokenizers.waveform import WaveformTokenizer, WaveformTokenizerConfig

RATE, HOP, STRIDE, UNIT = 8000, 50, 8, 400
DEPTH, SIZE, WIDTH = 3, 10, 8
MEL = MelConfig(sample_rate_hz=RATE, fft_size=256, window_size=200, hop_size=HOP, num_bands=12, max_hz=4000.0)
OTHER_MEL = MelConfig(sample_rate_hz=RATE, fft_size=256, window_size=200, hop_size=HOP, num_bands=12, max_hz=3000.0)
ALPHABET = " ,.abc"
QUANTIZER = QuantizerConfig(depth=DEPTH, codebook_size=SIZE)
TEXTS = ("abc", "a b c a b c", "cab, ab.")


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """With noise on all parameters (many start at zero), rounded to what checkpoints keep."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream)).copy_(parameter.bfloat16())
    return module.eval().requires_grad_(False)


def make_tokenizer(seed: int = 0, max_positions: int = 80, mel: MelConfig = MEL) -> MelTokenizer:
    torch.manual_seed(seed)
    config = MelTokenizerConfig(
        mel=mel, width=8, num_blocks=1, code_dim=4, max_positions=max_positions, quantizer=QUANTIZER
    )
    return shaken(MelTokenizer(config), seed)


def make_waveform_tokenizer(seed: int = 0) -> WaveformTokenizer:
    torch.manual_seed(seed)
    config = WaveformTokenizerConfig(
        sample_rate_hz=RATE,
        window_size=20,
        hop_size=10,
        widths=(8, 8),
        strides=(5, 8),
        num_blocks=1,
        code_dim=4,
        max_positions=80,
        quantizer=QUANTIZER,
    )
    return shaken(WaveformTokenizer(config), seed)


def make_vocoder(seed: int = 0, mel: MelConfig = MEL) -> Vocoder:
    torch.manual_seed(seed)
    return shaken(Vocoder(VocoderConfig(mel=mel, width=8, num_layers=1, hidden_multiple=2)), seed)


def make_text_model(
    seed: int = 0, width: int = WIDTH, num_bands: int = MEL.num_bands, front_end: str = "bytes"
) -> TextModel:
    """Each token takes about five frames."""
    torch.manual_seed(seed)
    config = TextModelConfig(
        front_end=front_end,
        width=width,
        num_layers=1,
        num_heads=2,
        mlp_width=16,
        num_bands=num_bands,
        prenet_layers=1,
        max_tokens=128,
    )
    model = TextModel(config)
    with torch.no_grad():
        model.duration.bias.fill_(math.log(5.0))
    return shaken(model, seed)


def make_generator(tokenizer: SoundTokenizer, seed: int = 0, feature_width: int = WIDTH) -> ResGen:
    torch.manual_seed(seed)
    config = ResGenConfig(
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=32,
        condition_width=16,
        head="residual",
        feature_width=feature_width,
        feature_stride=STRIDE,
    )
    model = shaken(build(config, tokenizer.spec), seed)
    codes = torch.randint(SIZE, (20, 30, DEPTH), generator=torch.Generator().manual_seed(seed))
    model.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)
    return model


def save_parts(path: Path, **changes) -> Path:
    """A speech pipeline's folder, with other parts in the place of some."""
    tokenizer = changes.pop("tokenizer", None) or make_tokenizer()
    parts = {
        "tokenizer": tokenizer,
        "vocoder": make_vocoder(),
        "text_model": make_text_model(),
        "alphabet": ALPHABET,
        "generator": changes.pop("generator", None) or make_generator(tokenizer),
        "sampling": SamplingConfig(num_steps=4, guidance_scale=1.0, choice_temperature=1.0),
        "voice": VoiceConfig(),
        "history": {"generator": {"steps": 0}},
    }
    save_speech_pipeline(path, **(parts | changes))
    return path


def voice(seconds: float, pitch_hz: float = 150.0, rate: int = RATE) -> Tensor:
    """Harmonics of a pitch, loud from end to end."""
    times = torch.arange(round(seconds * rate)) / rate
    harmonics = (torch.sin(2 * math.pi * pitch_hz * k * times + k) / k for k in range(1, 8))
    return 0.2 * sum(harmonics, start=torch.zeros_like(times)) * (1 + 0.5 * torch.sin(2 * math.pi * 3 * times))
