"""BigVGAN's generator (arXiv:2206.04658): from log-mels to a waveform by transposed convolutions, in the names of its
published weights, which `checkpoints.vocoders` reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import ConfigError, unknown
from resgen.ops.mel import MelConfig


@dataclass(frozen=True, kw_only=True)
class BigVGANConfig:
    """Shape of BigVGAN's generator; names as in its `config.json`."""

    num_mels: int
    resblock: str
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    activation: str
    snake_logscale: bool
    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True

    def __post_init__(self) -> None:
        if self.resblock not in ("1", "2"):
            raise ConfigError(f"resblock='{self.resblock}' must be '1' or '2'")
        if self.activation not in ("snake", "snakebeta"):
            raise ConfigError(unknown("activation", self.activation, ("snake", "snakebeta")))
        for name, first, second in (
            ("upsample_kernel_sizes", self.upsample_rates, self.upsample_kernel_sizes),
            ("resblock_dilation_sizes", self.resblock_kernel_sizes, self.resblock_dilation_sizes),
        ):
            if not first or len(first) != len(second):
                raise ConfigError(f"{name}={second} must have as many entries as {first}, one or more")
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if rate < 1 or kernel < rate or (kernel - rate) % 2:
                raise ConfigError(f"upsample kernel {kernel} must exceed its rate {rate} by an even number")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ConfigError(
                f"upsample_initial_channel={self.upsample_initial_channel} must halve {len(self.upsample_rates)} times"
            )


class BigVGAN(nn.Module):
    """BigVGAN's generator: transposed convolutions, each followed by the mean of several residual blocks."""

    def __init__(self, config: BigVGANConfig, mel: MelConfig) -> None:
        super().__init__()
        self.config, self.mel, self.sample_rate_hz = config, mel, mel.sample_rate_hz
        width = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.num_mels, width, 7, padding=3)
        ups, blocks = [], []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            ups.append(nn.ModuleList([up]))  # BigVGAN's nesting, which its names of weights show
            width //= 2
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                blocks.append(_AmpBlock(config, width, size, dilations))
        self.ups, self.resblocks = nn.ModuleList(ups), nn.ModuleList(blocks)
        self.activation_post = _AntiAliased(config, width)
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3, bias=config.use_bias_at_final)

    def forward(
        self, log_mels: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B S"]:
        """Waveforms in [-1, 1]; 0 where the frame is not valid.

        Args:
            log_mels: natural logarithms, as `ops.mel.log_mel` makes them.
            valid: True where a frame is not padding, which is at the end; such sounds are made one by one, because
                padding would pass through the activations.
        """
        if valid is None:
            return self._synthesize(log_mels)
        hop = self.mel.hop_size
        samples = log_mels.new_zeros(log_mels.shape[0], log_mels.shape[2] * hop, dtype=torch.float32)
        for row, count in enumerate(valid.sum(1).tolist()):
            if count:
                samples[row, : count * hop] = self._synthesize(log_mels[row : row + 1, :, :count])[0]
        return samples

    def _synthesize(self, log_mels: Float[Tensor, "B F T"]) -> Float[Tensor, "B S"]:
        count = len(self.config.resblock_kernel_sizes)
        x = self.conv_pre(log_mels.to(self.conv_pre.weight.dtype))
        for level, up in enumerate(self.ups):
            x = up[0](x)  # type: ignore[index]
            blocks = self.resblocks[level * count : (level + 1) * count]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        x = self.conv_post(self.activation_post(x)).squeeze(1).float()
        return x.tanh() if self.config.use_tanh_at_final else x.clamp(-1, 1)


class _AmpBlock(nn.Module):
    """Dilated convolutions between anti-aliased periodic activations (BigVGAN, Sec. 3.2); type 1 has two a step."""

    def __init__(self, config: BigVGANConfig, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        first = nn.ModuleList(nn.Conv1d(width, width, kernel, padding="same", dilation=d) for d in dilations)
        if config.resblock == "1":
            self.convs1 = first
            self.convs2 = nn.ModuleList(nn.Conv1d(width, width, kernel, padding="same") for _ in dilations)
        else:
            self.convs = first
        self.pairs = config.resblock == "1"
        count = len(dilations) * (2 if self.pairs else 1)
        self.activations = nn.ModuleList(_AntiAliased(config, width) for _ in range(count))

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        if not self.pairs:
            for conv, activation in zip(self.convs, self.activations, strict=True):
                x = x + conv(activation(x))
            return x
        steps = zip(self.convs1, self.convs2, self.activations[::2], self.activations[1::2], strict=True)
        for first, second, before, between in steps:
            x = x + second(between(first(before(x))))
        return x


class _Snake(nn.Module):
    """`x + sin(alpha x)^2 / beta`, per channel; beta is alpha itself for `snake`, another parameter for `snakebeta`."""

    def __init__(self, config: BigVGANConfig, width: int) -> None:
        super().__init__()
        self.logscale = config.snake_logscale
        start = torch.zeros(width) if self.logscale else torch.ones(width)
        self.alpha = nn.Parameter(start.clone())
        self.beta = nn.Parameter(start.clone()) if config.activation == "snakebeta" else None

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        alpha = self.alpha.exp() if self.logscale else self.alpha
        beta = alpha if self.beta is None else self.beta.exp() if self.logscale else self.beta
        return x + (x * alpha[:, None]).sin().square() / (beta[:, None] + 1e-9)


class _AntiAliased(nn.Module):
    """A periodic activation at twice the rate, between low-pass filters (BigVGAN, Sec. 3.2, Fig. 1)."""

    low_pass: Tensor

    def __init__(self, config: BigVGANConfig, width: int) -> None:
        super().__init__()
        self.act = _Snake(config, width)
        self.register_buffer("low_pass", _kaiser_sinc(), persistent=False)

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        channels = x.shape[1]
        kernel = self.low_pass.to(x.dtype).expand(channels, 1, -1)
        up = 2 * F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), kernel, stride=2, groups=channels)
        up = self.act(up[..., 15:-15])
        return F.conv1d(F.pad(up, (5, 6), mode="replicate"), kernel, stride=2, groups=channels)


def _kaiser_sinc(size: int = 12, cutoff: float = 0.25, half_width: float = 0.3) -> Float[Tensor, " K"]:
    """Kaiser-windowed sinc with sum 1; frequencies in cycles per sample, `half_width` that of the transition."""
    attenuation = 2.285 * (size // 2 - 1) * math.pi * 4 * half_width + 7.95
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else 0.0
    if 21 <= attenuation <= 50:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    times = torch.arange(-(size // 2), size // 2, dtype=torch.float64) + 0.5
    window = torch.kaiser_window(size, periodic=False, beta=beta, dtype=torch.float64)
    kernel = window * torch.sinc(2 * cutoff * times)
    return (kernel / kernel.sum()).float()
