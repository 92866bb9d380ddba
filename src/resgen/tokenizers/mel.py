"""Mel RVQ-VAE: log-mel spectrograms of any length to a short sequence of deep codes (App. A.1; Mel-VAE of CLaM-TTS,
arXiv:2404.02781)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError, DataError, check_range
from resgen.nn.conv1d import ConvDecoder1d, ConvEncoder1d, coarse_valid, fine_valid
from resgen.ops.mel import MelConfig
from resgen.quantizers import Quantization, QuantizerConfig, make_quantizer
from resgen.types import CodeSpec


@dataclass(frozen=True, kw_only=True)
class MelTokenizerConfig:
    """Shape of the mel tokenizer; the defaults are the `paper` preset.

    Stated: 22.05 kHz, 80 bands, 8 times fewer positions than frames, 32 levels of 1024, H = 512, ConvNeXt blocks. The
    number and width of the blocks are a default (56 million parameters in all).

    Attributes:
        mel: the spectrograms.
        width: channels of all stages.
        num_blocks: ConvNeXt blocks per stage; there is one stage at each frame rate, `len(strides) + 1` in each half.
        strides: how much each downsampling shortens the sequence; their product is the frames per position.
        code_dim: H, width of the latents and codebook vectors.
        causal: whether a position sees only its own and earlier frames, in the encoder and in the decoder.
        max_positions: the most positions a sample may have.
        mel_shift: subtracted from log-mels before the network, in nats.
        mel_scale: divides them afterwards.
        quantizer: the residual quantizer.
    """

    tag: ClassVar[str] = "mel"
    mel: MelConfig = field(default_factory=MelConfig)
    width: int = 512
    num_blocks: int = 3
    strides: tuple[int, ...] = (2, 2, 2)
    code_dim: int = 512
    causal: bool = False
    max_positions: int = 1024
    mel_shift: float = -5.0
    mel_scale: float = 2.5
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(depth=32))

    def __post_init__(self) -> None:
        check_range(self, 1, "width", "num_blocks", "code_dim", "max_positions", "strides")
        if not 0 < self.mel_scale < math.inf:
            raise ConfigError(f"mel_scale={self.mel_scale} must be finite and above 0")
        if not math.isfinite(self.mel_shift):
            raise ConfigError(f"mel_shift={self.mel_shift} must be finite")

    @property
    def frames_per_position(self) -> int:
        """Mel frames that one position stands for."""
        return math.prod(self.strides)

    @property
    def spec(self) -> CodeSpec:
        """The shape of the codes; a sample may have fewer positions."""
        return self.quantizer.spec(self.code_dim, (self.max_positions,))


PRESETS: dict[str, MelTokenizerConfig] = {
    "paper": MelTokenizerConfig(),
    "small": MelTokenizerConfig(  # 10 positions of 1,600 samples per second
        mel=MelConfig(sample_rate_hz=16_000, fft_size=1024, window_size=800, hop_size=200),
        width=192,
        num_blocks=2,
        code_dim=64,
        max_positions=256,
        quantizer=QuantizerConfig(depth=32, codebook_size=256, momentum=0.99),
    ),
}


class MelReconstruction(NamedTuple):
    """A training pass: `mels` after decoding, and the quantization with its losses and statistics."""

    mels: Float[Tensor, "B F T"]
    quantization: Quantization


class MelTokenizer(nn.Module):
    """Encoder, residual quantizer and decoder of natural-log mels.

    `valid` (True = not padding) is over frames for what takes mels and over positions for what takes codes; a position
    is valid if its first frame is. Padding changes nothing of the real part; codes at padding are 0, and decoded
    frames there are silence, the logarithm of the mels' floor.

    Attributes:
        config: what it was made with.
        spec: the shape of the codes; a sample may have fewer positions.
        sample_rate_hz: rate of the waveforms that the mels describe.
        frames_per_position: mel frames that one position stands for.
        samples_per_position: samples of the waveform, likewise.
    """

    component = "mel-tokenizer"
    config_class = MelTokenizerConfig

    def __init__(self, config: MelTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.spec, self.sample_rate_hz = config.spec, config.mel.sample_rate_hz
        self.frames_per_position = config.frames_per_position
        self.samples_per_position = config.frames_per_position * config.mel.hop_size
        widths = (config.width,) * (len(config.strides) + 1)
        bands, code_dim = config.mel.num_bands, config.code_dim
        self.encoder = ConvEncoder1d(bands, code_dim, widths, config.strides, config.num_blocks, config.causal)
        self.decoder = ConvDecoder1d(code_dim, bands, widths, config.strides, config.num_blocks, config.causal)
        self.quantizer = make_quantizer(config.quantizer, code_dim)

    def forward(self, mels: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"] | None = None) -> MelReconstruction:
        """Encode, quantize with the straight-through gradient, decode."""
        positions = coarse_valid(valid, self.frames_per_position)
        quantization = self.quantizer.quantize(self.latents(mels, valid), positions)
        return MelReconstruction(self._decode_latents(quantization.quantized, positions), quantization)

    def latents(self, mels: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B L H"]:
        """Encoder outputs `h_0`; without meaning at positions that are not valid.

        Raises:
            DataError: another number of bands than the tokenizer's, frames that are not whole positions, or more
                positions than it takes.
        """
        bands, frames = mels.shape[1:]
        if bands != self.config.mel.num_bands:
            raise DataError(f"mels of {bands} bands given, the tokenizer takes {self.config.mel.num_bands}")
        most = self.config.max_positions * self.frames_per_position
        if not 0 < frames <= most or frames % self.frames_per_position:
            raise DataError(
                f"mels of {frames} frames given, "
                f"the tokenizer takes a multiple of {self.frames_per_position} up to {most}"
            )
        normalised = (mels.float() - self.config.mel_shift) / self.config.mel_scale
        if valid is not None:
            normalised = normalised.masked_fill(~valid.unsqueeze(1), 0.0)  # padding may hold anything, also -inf
        return self.encoder(normalised.to(self.decoder.head.linear.weight.dtype), valid).transpose(1, 2)

    def encode(self, mels: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"] | None = None) -> Int[Tensor, "B L D"]:
        """Codes of the mels; 0 at positions that are not valid."""
        codes = self.quantizer.encode(self.latents(mels, valid))
        positions = coarse_valid(valid, self.frames_per_position)
        return codes if positions is None else codes * positions.unsqueeze(-1)

    def decode(
        self,
        codes: Int[Tensor, "B L D"],
        num_levels: int | None = None,
        valid: Bool[Tensor, "B L"] | None = None,
        *,
        visible: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B F T"]:
        """Log-mels from the first `num_levels` levels of the codes (all by default), or from the first `visible` levels
        of each position; no lower than their floor."""
        mels = self._decode_latents(self.quantizer.decode(codes, num_levels if visible is None else visible), valid)
        return mels.clamp(min=math.log(self.config.mel.floor))

    def _decode_latents(
        self, latents: Float[Tensor, "B L H"], valid: Bool[Tensor, "B L"] | None
    ) -> Float[Tensor, "B F T"]:
        weight = self.decoder.head.linear.weight
        mels = self.decoder(latents.transpose(1, 2).to(weight.dtype), valid).float()
        mels = mels * self.config.mel_scale + self.config.mel_shift
        frames = fine_valid(valid, self.frames_per_position)
        silence = math.log(self.config.mel.floor)
        return mels if frames is None else torch.where(frames.unsqueeze(1), mels, silence)
