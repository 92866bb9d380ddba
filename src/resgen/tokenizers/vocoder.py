"""From log-mels to a waveform: ConvNeXt blocks at the frame rate and an inverse Fourier transform (Vocos,
arXiv:2306.00814).

It stands in the place of the paper's BigVGAN (App. A.1) where everything is trained here: it works at the frame rate
throughout, which makes it cheap enough for a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from resgen.errors import ConfigError, DataError, check_range
from resgen.nn.conv1d import Conv1d, ConvNeXtBlock1d, zero_invalid
from resgen.ops.mel import MelConfig, inverse_stft


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """Shape of the vocoder; the defaults are the `paper` preset, the shape of the published Vocos.

    Attributes:
        mel: the spectrograms; its transform, window and hop are also those of the synthesis.
        width: channels.
        num_layers: ConvNeXt blocks.
        hidden_multiple: width within a block, in multiples of `width`.
    """

    mel: MelConfig = field(default_factory=MelConfig)
    width: int = 512
    num_layers: int = 8
    hidden_multiple: int = 3

    def __post_init__(self) -> None:
        check_range(self, 1, "width", "num_layers", "hidden_multiple")
        mel = self.mel
        if mel.window_size < 2 * mel.hop_size:
            raise ConfigError(
                f"window_size={mel.window_size} must be at least twice hop_size={mel.hop_size}: "
                f"the vocoder adds overlapping windows up"
            )
        if mel.fft_size % 2 or (mel.window_size - mel.hop_size) % 2:
            raise ConfigError(
                f"fft_size={mel.fft_size} and window_size={mel.window_size} less hop_size={mel.hop_size} must be even"
            )


PRESETS: dict[str, VocoderConfig] = {
    "paper": VocoderConfig(),
    "small": VocoderConfig(
        mel=MelConfig(sample_rate_hz=16_000, fft_size=1024, window_size=800, hop_size=200), width=256, num_layers=6
    ),
}


class Vocoder(nn.Module):
    """Natural-log mels to waveforms of `S = T * hop_size` samples.

    Mels enter as they are: the norm after the first convolution makes shift and scale of their own unnecessary.
    """

    window: Tensor

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config, self.mel, self.sample_rate_hz = config, config.mel, config.mel.sample_rate_hz
        self.embed = Conv1d(config.mel.num_bands, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock1d(config.width, config.hidden_multiple, layer_scale=1 / config.num_layers)
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.mel.fft_size + 2)
        self.max_log_magnitude = math.log(config.mel.window_size / 2)  # the sum of a periodic Hann window
        self.register_buffer("window", torch.hann_window(config.mel.window_size), persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(
        self, log_mels: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B S"]:
        """Waveforms, not clamped; 0 where the frame is not valid.

        Args:
            log_mels: natural logarithms, as `ops.mel.log_mel` makes them.
            valid: True where a frame is not padding; the real part does not depend on the rest.

        Raises:
            DataError: another number of bands than the vocoder's.
        """
        if log_mels.shape[1] != self.config.mel.num_bands:
            raise DataError(
                f"mels of {log_mels.shape[1]} bands given, the vocoder takes {self.config.mel.num_bands} bands"
            )
        if valid is not None:
            log_mels = log_mels.masked_fill(~valid.unsqueeze(1), 0.0)  # padding may hold anything, also -inf
        x = self.embed(log_mels.to(self.head.weight.dtype), valid)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x, valid)
        x = self.final_norm(zero_invalid(x, valid).transpose(1, 2))
        # A phase in bfloat16 is off by up to 1 / 64 turn and more; the last map is small, so it runs in full precision.
        with torch.autocast(device_type=x.device.type, enabled=False):
            values = self.head(x.to(self.head.weight.dtype)).float().transpose(1, 2)
            log_magnitude, phase = values.chunk(2, dim=1)
            # No waveform in [-1, 1] has a larger magnitude than the window's sum (Vocos clips at 100, after exp).
            spectrum = torch.polar(log_magnitude.clamp(max=self.max_log_magnitude).exp(), phase)
            mel = self.config.mel
            return inverse_stft(spectrum, self.window, fft_size=mel.fft_size, hop_size=mel.hop_size, valid=valid)
