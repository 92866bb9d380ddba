"""Discriminators of sounds and their least-squares losses (App. A.1; HiFi-GAN, UnivNet, DAC, CLaM-TTS).

Time is always the third axis (axis 2) of logits and features, so that one function can leave padding out of every loss.
Sounds may be a part of a batch (`rows`, with what is `valid` in all of it); losses are then their share in the batch's.
Widths are settings: the published discriminators are several times larger than what they judge here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from resgen.errors import ConfigError
from resgen.losses.spectral import ALL

PERIODS = (2, 3, 5, 7, 11)
FFT_SIZES = (2048, 1024, 512)
MEL_WINDOWS = (32, 64, 128)


class Judgement(NamedTuple):
    """What one sub-discriminator says.

    Attributes:
        logits: `[B, 1, T', K]`, near 1 for real and near 0 for generated sound.
        features: outputs of the layers before, `[B, C, T', K]` with a T' and K of their own.
        valid: `[G, T]`, which part of its input was not padding, at any rate; None for all of it.
        rows: which of the batch of G sounds that losses are means over these are.
    """

    logits: Float[Tensor, "B 1 t k"]
    features: list[Tensor]
    valid: Bool[Tensor, "G T"] | None
    rows: slice = ALL


class MultiPeriodDiscriminator(nn.Module):
    """Samples folded into rows of each period (HiFi-GAN, arXiv:2010.05646, Sec. 2.3).

    Args:
        periods: samples per row, one sub-discriminator each.
        widths: channels after each strided convolution; HiFi-GAN has (32, 128, 512, 1024).
    """

    def __init__(self, periods: Sequence[int] = PERIODS, widths: Sequence[int] = (8, 16, 32, 64)) -> None:
        super().__init__()
        _check_sizes(periods=periods, widths=widths)
        self.periods = tuple(periods)
        self.parts = nn.ModuleList(
            _Stack(1, widths, kernel=(5, 1), stride=(3, 1), last_kernel=(3, 1)) for _ in self.periods
        )

    def forward(
        self, samples: Float[Tensor, "B S"], valid: Bool[Tensor, "G S"] | None = None, rows: slice = ALL
    ) -> list[Judgement]:
        judgements = []
        for period, part in zip(self.periods, self.parts, strict=True):
            missing = -samples.shape[1] % period
            logits, features = part(F.pad(samples, (0, missing)).unflatten(1, (-1, period)).unsqueeze(1))
            inside = None if valid is None else F.pad(valid, (0, missing))
            judgements.append(Judgement(logits, features, inside, rows))
        return judgements


class MultiResolutionDiscriminator(nn.Module):
    """Complex spectra at several resolutions, real and imaginary part as channels (DAC, arXiv:2306.06546, Sec. 3.3).

    A deviation: the spectrum is not split into bands with weights of their own.

    Args:
        fft_sizes: transform and window of each sub-discriminator; its hop is a quarter.
        width: channels; DAC has 32.
    """

    def __init__(self, fft_sizes: Sequence[int] = FFT_SIZES, width: int = 8) -> None:
        super().__init__()
        _check_sizes(8, fft_sizes=fft_sizes)
        _check_sizes(width=(width,))
        self.fft_sizes = tuple(fft_sizes)
        self.parts = nn.ModuleList(
            _Stack(2, (width,) * 4, kernel=(3, 9), stride=(1, 2), last_kernel=(3, 3)) for _ in self.fft_sizes
        )

    def forward(
        self, samples: Float[Tensor, "B S"], valid: Bool[Tensor, "G S"] | None = None, rows: slice = ALL
    ) -> list[Judgement]:
        judgements = []
        for size, part in zip(self.fft_sizes, self.parts, strict=True):
            spectrum = torch.stft(
                samples.float(),
                size,
                size // 4,
                window=torch.hann_window(size, device=samples.device),
                center=True,
                pad_mode="constant",
                normalized=True,  # by the root of the size, which gives all resolutions inputs of a like scale
                return_complex=True,
            )
            logits, features = part(torch.view_as_real(spectrum).permute(0, 3, 2, 1))
            judgements.append(Judgement(logits, features, valid, rows))
        return judgements


class WaveformDiscriminator(nn.Module):
    """Both of the above (DAC, Sec. 3.3).

    Args:
        width: scales both; 32 gives the published widths.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        _check_sizes(width=(width,))
        self.periods = MultiPeriodDiscriminator(widths=(width, 2 * width, 4 * width, 8 * width))
        self.resolutions = MultiResolutionDiscriminator(width=width)

    def forward(
        self, samples: Float[Tensor, "B S"], valid: Bool[Tensor, "G S"] | None = None, rows: slice = ALL
    ) -> list[Judgement]:
        return self.periods(samples, valid, rows) + self.resolutions(samples, valid, rows)


class MelDiscriminator(nn.Module):
    """Windows of several lengths at random places of a mel (the multi-length discriminator of CLaM-TTS, App. A.1).

    Args:
        windows: frames of each sub-discriminator's window; a shorter mel is taken whole.
        width: channels of the first layer; they double twice.
    """

    def __init__(self, windows: Sequence[int] = MEL_WINDOWS, width: int = 16) -> None:
        super().__init__()
        _check_sizes(windows=windows, width=(width,))
        self.windows = tuple(windows)
        self.parts = nn.ModuleList(
            _Stack(1, (width, 2 * width, 4 * width), kernel=(5, 5), stride=(2, 2), last_kernel=(3, 3))
            for _ in self.windows
        )

    def starts(self, lengths: Int[Tensor, " B"], num_frames: int, generator: torch.Generator) -> Int[Tensor, "W B"]:
        """First frame of every window, drawn so that a window lies within the real part where it fits.

        Args:
            lengths: real frames of each mel.
            num_frames: T, frames of all mels.
            generator: any device; the result is on the device of `lengths`.
        """
        turns = torch.rand(len(self.windows), len(lengths), generator=generator, device=generator.device)
        windows = torch.tensor(self.windows)[:, None].clamp(max=num_frames).to(lengths.device)
        room = (lengths[None] - windows).clamp(min=0)
        return (turns.to(lengths.device) * (room + 1)).long().clamp(max=room)

    def forward(
        self,
        mels: Float[Tensor, "B F T"],
        starts: Int[Tensor, "W G"],
        valid: Bool[Tensor, "G T"] | None = None,
        rows: slice = ALL,
    ) -> list[Judgement]:
        """Judge the windows that `starts` names, the same ones for a mel and its reconstruction."""
        judgements = []
        for window, part, first in zip(self.windows, self.parts, starts, strict=True):
            frames = first[:, None] + torch.arange(min(window, mels.shape[2]), device=mels.device)
            cut = mels.transpose(1, 2).gather(1, frames[rows, :, None].expand(-1, -1, mels.shape[1]))
            logits, features = part(cut.unsqueeze(1))
            judgements.append(Judgement(logits, features, None if valid is None else valid.gather(1, frames), rows))
        return judgements


def least_squares_discriminator(real: list[Judgement], fake: list[Judgement]) -> Float[Tensor, ""]:
    """`mean (D(real) - 1)^2 + mean D(fake)^2`, summed over sub-discriminators (LSGAN as in HiFi-GAN, Eq. 1)."""
    terms = [
        _mean((a.logits.float() - 1).square(), a) + _mean(b.logits.float().square(), b)
        for a, b in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).sum()


def least_squares_generator(fake: list[Judgement]) -> Float[Tensor, ""]:
    """`mean (D(fake) - 1)^2`, summed over sub-discriminators (HiFi-GAN, Eq. 2)."""
    return torch.stack([_mean((part.logits.float() - 1).square(), part) for part in fake]).sum()


def feature_matching(real: list[Judgement], fake: list[Judgement]) -> Float[Tensor, ""]:
    """Mean absolute difference of features, summed over layers and sub-discriminators (HiFi-GAN, Eq. 4).

    No gradient reaches the real side.
    """
    terms = [
        _mean((fake_feature.float() - real_feature.detach().float()).abs(), b)
        for a, b in zip(real, fake, strict=True)
        for real_feature, fake_feature in zip(a.features, b.features, strict=True)
    ]
    return torch.stack(terms).sum()


class Duel:
    """The two sides of an adversarial step on the same sounds, one after the other."""

    _judge: Callable[[Tensor], list[Judgement]]
    _real: list[Judgement]
    _output: Tensor

    def generator_losses(
        self, judge: Callable[[Tensor], list[Judgement]], real: Tensor, output: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Least-squares and feature matching loss of what made `output`; comes first."""
        self._judge, self._real, self._output = judge, judge(real), output.detach()
        fake = judge(output)
        return least_squares_generator(fake), feature_matching(self._real, fake)

    def discriminator_loss(self) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The discriminator's own, and its metric; comes second."""
        # The real side's graph is still whole: the first losses have no gradient with respect to it.
        loss = least_squares_discriminator(self._real, self._judge(self._output))
        del self._judge, self._real, self._output
        return loss, {"discriminator": loss.detach()}


class _Stack(nn.Module):
    """Strided convolutions with weight norm and leaky ReLU, one more without stride, and one to logits."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        last_kernel: tuple[int, int],
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        channels = (in_channels, *widths)
        layers = [nn.Conv2d(a, b, kernel, stride, padding) for a, b in zip(channels[:-1], channels[1:], strict=True)]
        layers.append(nn.Conv2d(channels[-1], channels[-1], (kernel[0], last_kernel[1]), 1, "same"))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.out = weight_norm(nn.Conv2d(channels[-1], 1, last_kernel, 1, "same"))

    def forward(self, x: Float[Tensor, "B C T K"]) -> tuple[Float[Tensor, "B 1 t k"], list[Tensor]]:
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.out(x), features


def _mean(values: Float[Tensor, "B C t k"], of: Judgement) -> Float[Tensor, ""]:
    """Mean over the rows in time whose first input was not padding, or the share of these sounds in that of their
    batch; 0 where there are none."""
    if of.valid is None:
        return values.mean()
    count = values.shape[2]
    first = torch.arange(count, device=values.device) * of.valid.shape[1] // count
    weight = of.valid[:, first].to(values.dtype)
    total = (weight.sum() * values.shape[1] * values.shape[3]).clamp(min=1)
    return (values * weight[of.rows, None, :, None]).sum() / total


def _check_sizes(least: int = 1, **lists: Sequence[int]) -> None:
    for name, sizes in lists.items():
        if not sizes or min(sizes) < least:
            raise ConfigError(f"{name}={tuple(sizes)} must hold one or more numbers of at least {least}")
