"""How the judges of images and speech are trained: one loop, and the changes that a recording goes through each time.

The judges themselves are in `resgen.evaluation`; `train_classifier.py` and `train_speech_judges.py` train them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import ConfigError, DataError
from resgen.evaluation.speech.hearing import framed_log_mel, normalise
from resgen.ops.mel import MelConfig, mel_filters

WARMUP = 0.2
SPEED = (0.8, 1.25)
WARP = (0.85, 1.15)
NOISE_DB = (5.0, 30.0)
NARROW_HZ = (3300.0, 4200.0)
"""Cutoff where the bandwidth is limited: much recorded speech was sampled at 8 kHz."""
_EQUALISER_DB, _EQUALISER_POINTS = 5.0, 8

Report = Callable[[int, float, float], None]


def one_cycle(progress: float) -> float:
    """Learning rate as a share of its peak: linear to 1 at `WARMUP`, linear to 0 at the end."""
    return max(0.0, min(progress / WARMUP, (1 - progress) / (1 - WARMUP)))


def decay_matrices(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimizer: those of two or more axes decay, the others do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def fit(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    next_loss: Callable[[float], Tensor],
    *,
    num_steps: int | None,
    max_minutes: float | None,
    learning_rate: float,
    max_gradient: float = math.inf,
    report: Report | None = None,
) -> None:
    """Train; the learning rate rises over the first fifth and falls to zero over the rest.

    How much of the training is over is measured in steps, in minutes, or by whichever is further on. A step that would
    end after the minutes is not begun.

    Args:
        module: whose parameters are changed; in evaluation mode and without gradients afterwards.
        optimizer: of the parameters.
        next_loss: loss of the next batch, given the share of the training that is over.
        num_steps: batches to train on; alone, it makes the result reproducible.
        max_minutes: time to spend.
        learning_rate: peak.
        max_gradient: norm that gradients are clipped to.
        report: called after every step with (step, share of the training that is over, loss).

    Raises:
        ConfigError: neither `num_steps` nor `max_minutes`, or one that is not positive.
    """
    if num_steps is None and max_minutes is None:
        raise ConfigError("num_steps or max_minutes is needed: neither says how long to train")
    for name, value in (("num_steps", num_steps), ("max_minutes", max_minutes)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name}={value} must be positive")
    module.train()
    begin, step, share, step_share = time.monotonic(), 0, 0.0, 0.0
    while share + step_share / 2 < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * one_cycle(share)
        loss = next_loss(share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if max_gradient < math.inf:
            nn.utils.clip_grad_norm_(module.parameters(), max_gradient)
        optimizer.step()
        step += 1
        by_steps = step / num_steps if num_steps else 0.0
        by_time = (time.monotonic() - begin) / (60 * max_minutes) if max_minutes else 0.0
        step_share = by_time / step if by_time > by_steps else 0.0
        share = max(by_steps, by_time)
        if report is not None:
            report(step, min(share, 1.0), float(loss.detach()))
    module.eval().requires_grad_(False)


def hear_changed(
    recordings: Sequence[Tensor],
    mel: MelConfig,
    stream: torch.Generator,
    device: torch.device,
    *,
    speed: bool = True,
    centred: bool = True,
) -> tuple[Float[Tensor, "B F T"], Bool[Tensor, "B T"]]:
    """Normalised log-mels of recordings after all changes of the training.

    Args:
        recordings: each `[S]`, -1..1.
        mel: shape of the spectrogram.
        stream: of the changes.
        device: where to compute.
        speed: whether to change speed and pitch, and to warp the frequency axis, which makes another speaker.
        centred: see `normalise`.
    """
    if speed:
        low, high = SPEED
        factors = _uniform((len(recordings),), math.log(low), math.log(high), stream).exp().tolist()
        recordings = [change_speed(x, factor) for x, factor in zip(recordings, factors, strict=True)]
    lengths = torch.tensor([len(x) for x in recordings])
    samples = nn.utils.rnn.pad_sequence(list(recordings), batch_first=True)
    samples = disturb(samples, lengths, mel.sample_rate_hz, stream).to(device)
    log_mels, valid = framed_log_mel(samples, lengths, mel)
    if speed:
        log_mels = warp_bands(log_mels, _uniform((len(log_mels),), *WARP, stream), mel)
    return mask_parts(normalise(log_mels, valid, centred=centred), stream), valid


def change_speed(samples: Float[Tensor, " S"], factor: float) -> Float[Tensor, " R"]:
    """Play faster (`factor` above 1) and higher, or slower and lower, by linear interpolation."""
    size = max(1, round(len(samples) / factor))
    return F.interpolate(samples[None, None], size=size, mode="linear", align_corners=False)[0, 0]


def disturb(
    samples: Float[Tensor, "B S"], lengths: Int[Tensor, " B"], sample_rate_hz: int, stream: torch.Generator
) -> Float[Tensor, "B S"]:
    """Another microphone in another room: equaliser, coloured noise at 5 to 30 dB, for every second sound a low-pass.

    Args:
        samples: zero-padded at the end; the noise goes over the padding too.
        lengths: real samples of each.
        sample_rate_hz: of the samples.
        stream: of all choices, on the CPU.
    """
    count, size = samples.shape
    hz = torch.fft.rfftfreq(size, 1 / sample_rate_hz)
    octaves = torch.log2(hz.clamp(min=62.5) / 62.5)
    place = octaves / octaves.max() * (_EQUALISER_POINTS - 1)
    below = place.floor().long().clamp(max=_EQUALISER_POINTS - 2)
    points = torch.randn(count, _EQUALISER_POINTS, generator=stream) * _EQUALISER_DB
    curve = torch.lerp(points[:, below], points[:, below + 1], place - below)
    spectrum = torch.fft.rfft(samples) * 10 ** (curve / 20)
    noise = torch.fft.rfft(torch.randn(count, size, generator=stream))
    noise = noise * (hz.clamp(min=62.5) / 1000) ** -_uniform((count, 1), 0.0, 1.0, stream)
    power = spectrum.abs().square().sum(1) / lengths
    ratio = 10 ** (_uniform((count,), *NOISE_DB, stream) / 10)
    gain = (power / (noise.abs().square().sum(1) / size * ratio).clamp(min=1e-12)).sqrt()
    spectrum = spectrum + noise * gain[:, None]
    cutoff = _uniform((count, 1), *NARROW_HZ, stream)
    narrow = torch.rand(count, 1, generator=stream) < 0.5
    spectrum = spectrum * torch.where(narrow, torch.sigmoid((cutoff - hz) / 40), torch.ones(()))
    return torch.fft.irfft(spectrum, n=size)


def warp_bands(
    log_mels: Float[Tensor, "B F T"], factors: Float[Tensor, " B"], mel: MelConfig
) -> Float[Tensor, "B F T"]:
    """Stretch the frequency axis as a shorter (factor above 1) or longer vocal tract would (VTLN)."""
    filters = mel_filters(mel)
    hz = torch.linspace(0, mel.sample_rate_hz / 2, filters.shape[1])
    centres = (filters * hz).sum(1) / filters.sum(1)
    targets = centres[None] / factors[:, None]
    above = torch.searchsorted(centres, targets).clamp(1, len(centres) - 1)
    share = ((targets - centres[above - 1]) / (centres[above] - centres[above - 1])).clamp(0, 1)
    above, share = above.to(log_mels.device), share.to(log_mels.device)
    rows = torch.arange(len(log_mels), device=log_mels.device)[:, None]
    return torch.lerp(log_mels[rows, above - 1], log_mels[rows, above], share[:, :, None])


def mask_parts(features: Float[Tensor, "B F T"], stream: torch.Generator) -> Float[Tensor, "B F T"]:
    """Set two random ranges of bands and, per two seconds, one of frames to their mean (SpecAugment)."""
    count, bands, frames = features.shape
    keep = torch.ones(count, bands, frames, dtype=torch.bool)
    for _ in range(2):
        keep &= ~_range(count, bands, bands // 6, stream)[:, :, None]
    for _ in range(-(-frames // 200)):
        keep &= ~_range(count, frames, min(12, frames // 3), stream)[:, None]
    return features * keep.to(features.device)


def length_batches(lengths: Int[Tensor, " N"], max_samples: int, stream: torch.Generator) -> Iterator[list[int]]:
    """Batches of recordings of similar length without end, each recording once per round.

    Args:
        lengths: of the recordings.
        max_samples: of a batch, padding included; a longer recording is a batch of its own.
        stream: of the order.
    """
    while True:
        jitter = 1 + 0.2 * torch.rand(len(lengths), generator=stream)
        order = (lengths * jitter).argsort().tolist()
        batches: list[list[int]] = [[]]
        longest = 0
        for row in order:
            longest = max(longest, int(lengths[row]))
            if batches[-1] and longest * (len(batches[-1]) + 1) > max_samples:
                batches.append([])
                longest = int(lengths[row])
            batches[-1].append(row)
        for i in torch.randperm(len(batches), generator=stream).tolist():
            yield batches[i]


def _uniform(shape: tuple[int, ...], low: float, high: float, stream: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=stream)


def _range(count: int, size: int, longest: int, stream: torch.Generator) -> Tensor:
    """One random range of up to `longest` of `size` places per row."""
    length = torch.randint(0, longest + 1, (count, 1), generator=stream)
    begin = (torch.rand(count, 1, generator=stream) * (size - length + 1)).long()
    place = torch.arange(size)[None]
    return (place >= begin) & (place < begin + length)


class Verification(NamedTuple):
    """How well embeddings tell speakers apart.

    Attributes:
        nearest: share of the utterances whose own speaker has the nearest centroid.
        equal_error_rate: where false acceptance and false rejection of pairs of utterances are equally frequent.
        num_utterances: that were tested.
        num_candidates: speakers to choose from.
    """

    nearest: float
    equal_error_rate: float
    num_utterances: int
    num_candidates: int


def verify(
    embeddings: Float[Tensor, "N E"],
    speakers: Int[Tensor, " N"],
    *,
    tested: Bool[Tensor, " N"] | None = None,
) -> Verification:
    """Tell apart the speakers of recordings, each left out of its own speaker's centroid.

    Args:
        embeddings: unit length, of recordings.
        speakers: their speakers, from 0 without gaps; at least two utterances of each that is tested.
        tested: recordings to be recognised; the others only make candidates. All by default. The pairs of the equal
            error rate are those among the tested recordings, and with all others as impostors.

    Raises:
        DataError: a tested speaker with one utterance only, or only one speaker.
    """
    count = int(speakers.max()) + 1
    if tested is None:
        tested = torch.ones_like(speakers, dtype=torch.bool)
    embeddings = embeddings.double()
    totals = torch.bincount(speakers, minlength=count)
    if count < 2 or int(totals[speakers[tested]].min()) < 2:
        raise DataError("two speakers at least, and two utterances of each tested speaker, are needed to tell apart")
    sums = embeddings.new_zeros(count, embeddings.shape[1]).index_add_(0, speakers, embeddings)
    probes, own = embeddings[tested], speakers[tested]
    scores = probes @ torch.nn.functional.normalize(sums, dim=1).T
    rest = torch.nn.functional.normalize(sums[own] - probes, dim=1)
    scores[torch.arange(len(own)), own] = (probes * rest).sum(1)
    pairs = probes @ embeddings.T
    same = own[:, None] == speakers[None]
    itself = torch.nonzero(tested)[:, 0][:, None] == torch.arange(len(speakers))[None]
    return Verification(
        nearest=float((scores.argmax(1) == own).double().mean()),
        equal_error_rate=equal_error_rate(pairs[same & ~itself].float(), pairs[~same].float()),
        num_utterances=len(own),
        num_candidates=count,
    )


def equal_error_rate(same: Float[Tensor, " N"], different: Float[Tensor, " M"]) -> float:
    """Rate at the threshold where as large a share of `different` is accepted as of `same` is rejected, 0..1.

    Raises:
        DataError: no scores on one side.
    """
    if not len(same) or not len(different):
        raise DataError(f"{len(same)} scores of equal and {len(different)} of different speakers; both are needed")
    thresholds = torch.cat([same, different]).unique()
    rejected = torch.searchsorted(same.sort().values, thresholds).double() / len(same)
    accepted = 1 - torch.searchsorted(different.sort().values, thresholds).double() / len(different)
    nearest = (rejected - accepted).abs().argmin()
    return float((rejected[nearest] + accepted[nearest]) / 2)
