"""Waveform RVQ-VAE: samples of any length to a short sequence of deep codes, without mels and vocoder (App. A.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError, DataError, check_range
from resgen.nn.conv1d import ConvDecoder1d, ConvEncoder1d, fine_valid
from resgen.ops.mel import inverse_stft
from resgen.quantizers import Quantization, QuantizerConfig, make_quantizer
from resgen.types import CodeSpec

MAX_LOG_MAGNITUDE = math.log(100.0)


@dataclass(frozen=True, kw_only=True)
class WaveformTokenizerConfig:
    """Shape of the waveform tokenizer; the defaults are the `paper` preset.

    Stated: all of it but what the blocks hold. With an expansion of 4 in the blocks, as in ConvNeXt, and a decoder of
    the encoder's shape the network has 185 million parameters, which is the stated number.

    Attributes:
        sample_rate_hz: rate of the waveforms.
        window_size: samples of a Hann window of the spectra; a multiple of `hop_size`, twice as much or more.
        hop_size: samples from one spectrum to the next, at least 2.
        widths: channels of each stage.
        strides: how much each stage shortens the sequence of spectra.
        num_blocks: ConvNeXt blocks per stage.
        code_dim: H, width of the latents and codebook vectors.
        max_positions: the most positions a sample may have.
        quantizer: the residual quantizer.
    """

    tag: ClassVar[str] = "waveform"
    sample_rate_hz: int = 44_100
    window_size: int = 32
    hop_size: int = 8
    widths: tuple[int, ...] = (384, 768, 1536)
    strides: tuple[int, ...] = (8, 8, 8)
    num_blocks: int = 3
    code_dim: int = 512
    max_positions: int = 1024
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(depth=72))

    def __post_init__(self) -> None:
        check_range(self, 1, "sample_rate_hz", "num_blocks", "code_dim", "max_positions")
        if self.hop_size < 2:  # 1 leaves the first sample of a window of 2 to a Hann window's zero
            raise ConfigError(f"hop_size={self.hop_size} must be at least 2")
        if self.window_size < 2 * self.hop_size or self.window_size % self.hop_size:
            raise ConfigError(
                f"window_size={self.window_size} must be a multiple of hop_size={self.hop_size}, twice as much or more"
            )
        check_range(self, 1, "widths", "strides")
        if len(self.widths) != len(self.strides):
            raise ConfigError(f"widths={self.widths} and strides={self.strides} must be equally many, one per stage")

    @property
    def frames_per_position(self) -> int:
        """Spectra that one position stands for."""
        return math.prod(self.strides)

    @property
    def samples_per_position(self) -> int:
        """Samples that one position stands for."""
        return self.frames_per_position * self.hop_size

    @property
    def spec(self) -> CodeSpec:
        """The shape of the codes; a sample may have fewer positions."""
        return self.quantizer.spec(self.code_dim, (self.max_positions,))


PRESETS: dict[str, WaveformTokenizerConfig] = {
    "paper": WaveformTokenizerConfig(),
    "small": WaveformTokenizerConfig(  # 10 positions of 1,600 samples per second, the grid of the small mel tokenizer
        sample_rate_hz=16_000,
        window_size=100,
        hop_size=25,
        widths=(96, 192, 256),
        strides=(4, 4, 4),
        code_dim=64,
        max_positions=256,
        quantizer=QuantizerConfig(depth=32, codebook_size=256, momentum=0.99),
    ),
}


class WaveformReconstruction(NamedTuple):
    """A training pass: `samples` after decoding, and the quantization with its losses and statistics."""

    samples: Float[Tensor, "B S"]
    quantization: Quantization


class WaveformTokenizer(nn.Module):
    """Encoder, residual quantizer and decoder of waveforms in [-1, 1].

    `valid` is over positions (True = not padding). Padding changes nothing of the real part; codes at padding are 0,
    and decoded samples there are 0.

    Attributes:
        config: what it was made with.
        spec: the shape of the codes; a sample may have fewer positions.
        sample_rate_hz: rate of the waveforms.
        samples_per_position: samples that one position stands for.
    """

    component = "waveform-tokenizer"
    config_class = WaveformTokenizerConfig

    def __init__(self, config: WaveformTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.spec, self.sample_rate_hz = config.spec, config.sample_rate_hz
        self.samples_per_position = config.samples_per_position
        channels, code_dim = 2 * (config.window_size // 2 + 1), config.code_dim
        self.encoder = ConvEncoder1d(channels, code_dim, config.widths, config.strides, config.num_blocks)
        self.decoder = ConvDecoder1d(code_dim, channels, config.widths, config.strides, config.num_blocks)
        self.quantizer = make_quantizer(config.quantizer, config.code_dim)

    def forward(
        self, samples: Float[Tensor, "B S"], valid_positions: Bool[Tensor, "B L"] | None = None
    ) -> WaveformReconstruction:
        """Encode, quantize with the straight-through gradient, decode; the samples are not clamped."""
        quantization = self.quantizer.quantize(self.latents(samples, valid_positions), valid_positions)
        return WaveformReconstruction(self._decode_latents(quantization.quantized, valid_positions), quantization)

    def latents(
        self, samples: Float[Tensor, "B S"], valid_positions: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L H"]:
        """Encoder outputs `h_0`; without meaning at positions that are not valid.

        Raises:
            DataError: samples that are not whole positions, or more positions than the tokenizer takes.
        """
        most = self.config.max_positions * self.samples_per_position
        if not 0 < samples.shape[1] <= most or samples.shape[1] % self.samples_per_position:
            raise DataError(
                f"waveforms of {samples.shape[1]} samples given, "
                f"the tokenizer takes a multiple of {self.samples_per_position} up to {most}"
            )
        if valid_positions is not None:
            real = valid_positions.repeat_interleave(self.samples_per_position, dim=1)
            samples = samples.masked_fill(~real, 0.0)
        spectrum = stft(samples.float(), window_size=self.config.window_size, hop_size=self.config.hop_size)
        channels = torch.cat([spectrum.real, spectrum.imag], dim=1).to(self.decoder.head.linear.weight.dtype)
        frames = fine_valid(valid_positions, self.config.frames_per_position)
        return self.encoder(channels, frames).transpose(1, 2)

    def encode(
        self, samples: Float[Tensor, "B S"], valid_positions: Bool[Tensor, "B L"] | None = None
    ) -> Int[Tensor, "B L D"]:
        """Codes of the waveforms; 0 at positions that are not valid."""
        codes = self.quantizer.encode(self.latents(samples, valid_positions))
        return codes if valid_positions is None else codes * valid_positions.unsqueeze(-1)

    def decode(
        self,
        codes: Int[Tensor, "B L D"],
        num_levels: int | None = None,
        valid: Bool[Tensor, "B L"] | None = None,
        *,
        visible: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """Samples from the first `num_levels` levels of the codes (all by default), or from the first `visible` levels
        of each position; clamped to [-1, 1]."""
        latents = self.quantizer.decode(codes, num_levels if visible is None else visible)
        return self._decode_latents(latents, valid).clamp(-1, 1)

    def _decode_latents(
        self, latents: Float[Tensor, "B L H"], valid: Bool[Tensor, "B L"] | None
    ) -> Float[Tensor, "B S"]:
        weight = self.decoder.head.linear.weight
        log_magnitude, phase = self.decoder(latents.transpose(1, 2).to(weight.dtype), valid).float().chunk(2, dim=1)
        # Clamped before the exponential; Vocos clamps after it, where the gradient of an overflow is not a number.
        spectrum = torch.polar(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE).exp(), phase)
        frames, size = fine_valid(valid, self.config.frames_per_position), self.config.window_size
        window = torch.hann_window(size, device=spectrum.device)
        return inverse_stft(spectrum, window, fft_size=size, hop_size=self.config.hop_size, valid=frames)


def stft(samples: Float[Tensor, "B S"], *, window_size: int, hop_size: int) -> Complex[Tensor, "B bins T"]:
    """Spectra of Hann windows, `T = S / hop_size`, with zeros beyond both ends.

    Zeros, not reflected samples: what follows the last position is then the same with and without padding.
    """
    margin = window_size - hop_size
    padded = nn.functional.pad(samples, (margin // 2, margin - margin // 2))
    window = torch.hann_window(window_size, device=samples.device)
    return torch.stft(padded, window_size, hop_size, window=window, center=False, return_complex=True)
