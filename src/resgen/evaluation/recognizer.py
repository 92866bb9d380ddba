"""A small speech recogniser: the judge of whether generated speech says what was asked for.

A convolutional network over log-mels, trained with connectionist temporal classification (Graves et al., 2006). It is
made for closed vocabularies, such as digits, and for speakers that it never heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.checkpoints.format import Folder
from resgen.errors import ConfigError, DataError, unknown
from resgen.evaluation.hearing import MEL, fit, hear, hear_changed, length_batches
from resgen.evaluation.speech_folders import load_judge, save_judge
from resgen.evaluation.speech_metrics import normalise_transcript
from resgen.nn.conv1d import ConvNeXtBlock1d
from resgen.ops.mel import MelConfig
from resgen.ops.precision import has_bfloat16
from resgen.ops.random import generator, seeded

KIND = "recognizer"
UNITS = ("words", "characters")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHARACTERS = (" ", *"abcdefghijklmnopqrstuvwxyz")
STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class RecognizerConfig:
    """Shape and vocabulary of a recogniser; the default has about 1.7M parameters.

    Attributes:
        unit: `words` (a closed vocabulary) or `characters`.
        symbols: what texts are made of: words, or characters with the space among them.
        mel: of the log-mels that it hears; sounds must have its rate.
        front: channels of the two strided convolutions over time and frequency.
        width: channels of the blocks.
        num_blocks: ConvNeXt blocks over time, at a quarter of the frame rate.
        kernel_size: of the blocks, in steps of four frames; odd.
        centred: what is heard has each band's mean over the sound taken away; see `hearing.normalise`.
    """

    unit: str = "words"
    symbols: tuple[str, ...] = DIGITS
    mel: MelConfig = field(default_factory=lambda: MEL)
    front: int = 32
    width: int = 192
    num_blocks: int = 5
    kernel_size: int = 7
    centred: bool = False

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(unknown("unit", self.unit, UNITS))
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            raise ConfigError(f"symbols={self.symbols} must be one or more different {self.unit}")
        for symbol in self.symbols:
            space = self.unit == "characters" and symbol == " "
            fits = len(symbol) == 1 if self.unit == "characters" else " " not in symbol
            if not space and not (symbol and fits and normalise_transcript(symbol) == symbol):
                raise ConfigError(f"symbol {symbol!r} cannot occur among the {self.unit} of a normalised transcript")
        for name in ("front", "width", "num_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size={self.kernel_size} must be odd and at least 1")

    def encode(self, text: str) -> Int[Tensor, " N"]:
        """Symbols of a text, from 1; 0 is the blank of CTC.

        Raises:
            DataError: the normalised text holds something else than the symbols.
        """
        text = normalise_transcript(text)
        numbers = {symbol: i + 1 for i, symbol in enumerate(self.symbols)}
        parts = text.split() if self.unit == "words" else list(text)
        for part in parts:
            if part not in numbers:
                raise DataError(f"text {text!r}: {part!r} is none of the {len(self.symbols)} {self.unit} known here")
        return torch.tensor([numbers[part] for part in parts], dtype=torch.int64)

    def decode(self, best: Int[Tensor, " t"]) -> str:
        """Text of the most likely symbol of every step: repetitions merged, then blanks dropped."""
        numbers = [n for n in torch.unique_consecutive(best).tolist() if n]
        joint = " " if self.unit == "words" else ""
        return " ".join(joint.join(self.symbols[n - 1] for n in numbers).split())


class Recognizer(nn.Module):
    """Two strided convolutions over time and frequency, ConvNeXt blocks over time, one linear layer."""

    def __init__(self, config: RecognizerConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(1, config.front, 3, stride=2, padding=1)
        self.second = nn.Conv2d(config.front, config.front, 3, stride=2, padding=1)
        self.widen = nn.Linear(config.front * -(-config.mel.num_bands // STRIDE), config.width)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock1d(config.width, kernel_size=config.kernel_size) for _ in range(config.num_blocks)
        )
        self.out_norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, len(config.symbols) + 1)

    def forward(
        self, features: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B t symbols"], Bool[Tensor, "B t"]]:
        """Logits of the blank and the symbols at every fourth frame, and which of them are no padding.

        Args:
            features: of `hear`.
            valid: True where a frame is no padding; padding changes nothing at the others.
        """
        x = (features * valid[:, None])[:, None]  # [B, 1, F, T]
        for layer in (self.first, self.second):
            valid = valid[:, ::2]
            x = F.gelu(layer(x)) * valid[:, None, None]
        x = self.norm(self.widen(x.flatten(1, 2).transpose(1, 2))).transpose(1, 2)
        for block in self.blocks:
            x = block(x, valid)
        return self.out(self.out_norm(x.transpose(1, 2))).float(), valid

    @torch.inference_mode()
    def transcribe(self, samples: Float[Tensor, " S"]) -> str:
        """What is said, by the most likely symbol of every step.

        Args:
            samples: -1..1, at the rate of `config.mel`.

        Raises:
            DataError: no samples.
        """
        if not len(samples):
            raise DataError("0 samples given; there is nothing to be recognised")
        device = self.out.weight.device
        features, valid = hear(
            samples[None].to(device), torch.tensor([len(samples)]), self.config.mel, centred=self.config.centred
        )
        return self.config.decode(self(features, valid)[0][0].argmax(-1).cpu())


def train_recognizer(
    recordings: Sequence[Tensor],
    texts: Sequence[str],
    config: RecognizerConfig,
    *,
    num_steps: int | None = None,
    max_minutes: float | None = None,
    batch_seconds: float = 80.0,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.02,
    seed: int = 0,
    device: torch.device | None = None,
    report: Callable[[int, float, float], None] | None = None,
) -> Recognizer:
    """Train a recogniser from scratch on recordings that are changed anew every time they are heard.

    With `num_steps` alone the result is reproducible.

    Args:
        recordings: each `[S]`, -1..1, at the rate of `config.mel`.
        texts: what is said in each.
        config: shape and vocabulary.
        num_steps: batches to train on.
        max_minutes: time to spend; with both, the one that is over first ends the training.
        batch_seconds: sound per batch before its speed is changed, padding included.
        learning_rate: peak; see `fit`.
        weight_decay: of matrices.
        seed: of weights, order and changes.
        device: where to compute; the CPU by default.
        report: called after every step with (step, share of the training that is over, loss).

    Returns:
        The recogniser in evaluation mode.

    Raises:
        ConfigError: neither `num_steps` nor `max_minutes`, or a value out of range.
        DataError: no recordings, not one text for each, or a text with unknown symbols.
    """
    if not recordings or len(recordings) != len(texts):
        raise DataError(f"{len(recordings)} recordings and {len(texts)} texts given; each recording needs its text")
    if not batch_seconds > 0:
        raise ConfigError(f"batch_seconds={batch_seconds} must be positive")
    targets = [config.encode(text) for text in texts]
    place = device or torch.device("cpu")
    with seeded(KIND, seed, "weights"):
        model = Recognizer(config).to(place)
    stream = generator(KIND, seed, "batches")
    lengths = torch.tensor([len(x) for x in recordings])
    batches = length_batches(lengths, int(batch_seconds * config.mel.sample_rate_hz), stream)

    def next_loss(share: float) -> Tensor:
        rows = next(batches)
        features, valid = hear_changed([recordings[i] for i in rows], config.mel, stream, place, centred=config.centred)
        with torch.autocast(place.type, torch.bfloat16, enabled=has_bfloat16(place)):
            logits, kept = model(features, valid)
        return F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            torch.cat([targets[i] for i in rows]).to(place),
            kept.sum(1),
            torch.tensor([len(targets[i]) for i in rows], device=place),
            zero_infinity=True,
        )

    fit(
        model,
        next_loss,
        num_steps=num_steps,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        report=report,
    )
    return model


def save_recognizer(path: str | Path, model: Recognizer, *, history: Mapping[str, Any] | None = None) -> None:
    """Write a recogniser's folder; matrices in bfloat16.

    Raises:
        CheckpointError: the place holds something else or cannot be written.
    """
    save_judge(path, KIND, model, model.config, history)


def load_recognizer(path: str | Path) -> tuple[Recognizer, Folder]:
    """The recogniser of a folder, in evaluation mode; its file is compared with its hash.

    Raises:
        CheckpointError: nothing there, damaged, or not a recogniser.
    """
    return load_judge(path, KIND, Recognizer, RecognizerConfig)
