"""A small speech recogniser: judges whether generated speech says the requested text.

A convolutional network over log-mels, trained with connectionist temporal classification (Graves et al., 2006). It is
made for closed vocabularies, such as digits, and for speakers that it never heard.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import ConfigError, DataError, check_range, unknown
from resgen.evaluation.speech.folders import JudgeNetwork
from resgen.evaluation.speech.hearing import MEL, hear
from resgen.evaluation.speech.metrics import normalise_transcript
from resgen.nn.conv1d import ConvNeXtBlock1d
from resgen.ops.mel import MelConfig

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
        mel: settings of the log-mels that it hears; sounds must have its rate.
        front: channels of the two strided convolutions over time and frequency.
        width: channels of the blocks.
        num_blocks: ConvNeXt blocks over time, at a quarter of the frame rate.
        kernel_size: kernel size of the blocks, in steps of four frames; odd.
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
        check_range(self, 1, "front", "width", "num_blocks")
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


class Recognizer(JudgeNetwork):
    """Two strided convolutions over time and frequency, ConvNeXt blocks over time, one linear layer."""

    kind, config_type = "recognizer", RecognizerConfig

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
        """Logits of the blank and the symbols at every fourth frame, and which of them are not padding.

        Args:
            features: what `hear` returned.
            valid: True where a frame is not padding; padding changes nothing at the others.
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
        """The transcript, from the most likely symbol of every step.

        Args:
            samples: -1..1, at the rate of `config.mel`.

        Raises:
            DataError: no samples.
        """
        sounds, lengths = samples[None].to(self.out.weight.device), torch.tensor([len(samples)])
        features, valid = hear(sounds, lengths, self.config.mel, centred=self.config.centred)
        return self.config.decode(self(features, valid)[0][0].argmax(-1).cpu())
