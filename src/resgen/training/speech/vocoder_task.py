"""A vocoder learns to turn log-mels into waveforms: those of real sound and those that a tokenizer decodes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.checkpoints.speech import save_vocoder
from resgen.data.pictures.grid import save_picture
from resgen.data.sound.decode import write_sound
from resgen.data.sound.spectrogram import spectrogram_sheet
from resgen.data.sound.store import SpeechStore
from resgen.errors import ConfigError
from resgen.losses.sound_adversarial import Duel, WaveformDiscriminator
from resgen.losses.spectral import ALL, frame_mean, multi_resolution_stft
from resgen.ops.mel import log_mel
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.vocoder import Vocoder
from resgen.training.interface import LossOf
from resgen.training.speech.tokenizer_task import check_rates
from resgen.types import LOCAL, Reduce

MARGIN_POSITIONS = 2  # of sound beside a crop, so that its mels do not feel the crop's ends
VALIDATION_BATCH = 8
MAX_HELD_OUT = 32
SHEET_ROWS, SHEET_SECONDS = 4, 3.0


@dataclass(frozen=True, kw_only=True)
class VocoderLossConfig:
    """Weights of the vocoder's losses; those of mel, adversarial and feature loss are HiFi-GAN's (arXiv:2010.05646).

    Attributes:
        mel_weight: weight of the mean absolute difference of natural-log mels.
        stft_weight: weight of the multi-resolution loss.
        adversarial_weight: weight of the least-squares adversarial loss; 0 trains without a discriminator.
        feature_weight: weight of feature matching, where there is a discriminator.
        adversarial_start: step at which both set in.
        discriminator_width: channels of the discriminators' first layers.
        crop_seconds: length of the training crops, rounded up to whole positions.
        reconstructed_share: share of the mels that the tokenizer, where there is one, encodes and decodes first.
    """

    mel_weight: float = 45.0
    stft_weight: float = 1.0
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    adversarial_start: int = 0
    discriminator_width: int = 8
    crop_seconds: float = 0.8
    reconstructed_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mel_weight", "stft_weight", "adversarial_weight", "feature_weight", "adversarial_start"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.discriminator_width < 1:
            raise ConfigError(f"discriminator_width={self.discriminator_width} must be at least 1")
        if not 0 < self.crop_seconds < math.inf:
            raise ConfigError(f"crop_seconds={self.crop_seconds} must be above 0")
        if not 0 <= self.reconstructed_share <= 1:
            raise ConfigError(f"reconstructed_share={self.reconstructed_share} must lie in [0, 1]")


class _Crops(NamedTuple):
    """What a step draws: utterances, where their crops begin, and whose mels the tokenizer makes."""

    indices: Int[Tensor, " G"]
    starts: Int[Tensor, " G"]
    reconstructed: Bool[Tensor, " G"]


class _Batch(NamedTuple):
    """A part of a batch.

    Attributes:
        samples: what is to be made.
        mels: what it is made from.
        valid: frames of whole positions.
        lengths: real samples of all sounds of the batch.
        rows: which of them these are.
    """

    samples: Float[Tensor, "B S"]
    mels: Float[Tensor, "B F T"]
    valid: Bool[Tensor, "B T"]
    lengths: Int[Tensor, " G"]
    rows: slice


class VocoderTask:
    """Training task of a `Vocoder`; see `training.interface.Task`.

    Args:
        vocoder: to be trained.
        config: weights of the losses.
        train: speech to learn from, at the vocoder's rate.
        held_out: speech to validate on.
        tokenizer: a trained mel tokenizer with the vocoder's mels, which stays as it is.

    Raises:
        ConfigError: tokenizer and vocoder have other mels, or crops are longer than the tokenizer takes.
        DataError: a store at another rate than the vocoder's, or nothing held out.
    """

    name = "vocoder"

    def __init__(
        self,
        vocoder: Vocoder,
        config: VocoderLossConfig,
        train: SpeechStore,
        held_out: SpeechStore,
        *,
        tokenizer: MelTokenizer | None = None,
    ) -> None:
        check_rates(vocoder.sample_rate_hz, train, held_out)
        if tokenizer is not None and tokenizer.config.mel != vocoder.mel:
            raise ConfigError(f"the vocoder takes {vocoder.mel}, but the tokenizer makes {tokenizer.config.mel}")
        self.config, self.vocoder, self.tokenizer = config, vocoder, tokenizer
        self.train, self.held_out = train, held_out
        if tokenizer is not None:
            tokenizer.eval().requires_grad_(False)
        self.frames_per_position = 1 if tokenizer is None else tokenizer.frames_per_position
        hop = vocoder.mel.hop_size
        unit = hop * self.frames_per_position
        self.unit_samples = unit
        self.crop_samples = math.ceil(config.crop_seconds * vocoder.sample_rate_hz / unit) * unit
        # without a tokenizer the frames whose windows reach over the ends are enough
        margin = MARGIN_POSITIONS * unit if tokenizer is not None else math.ceil(vocoder.mel.fft_size / 2 / hop) * hop
        self.margin_samples = margin
        num_positions = (self.crop_samples + 2 * margin) // unit
        if tokenizer is not None and num_positions > tokenizer.spec.num_positions:
            raise ConfigError(
                f"crop_seconds={config.crop_seconds} is {num_positions} positions with {MARGIN_POSITIONS} on each "
                f"side, the tokenizer takes {tokenizer.spec.num_positions}"
            )
        self.module = nn.ModuleDict({"vocoder": vocoder})
        if config.adversarial_weight > 0:
            self.module["discriminator"] = WaveformDiscriminator(config.discriminator_width)
        count = min(MAX_HELD_OUT, len(held_out))
        # by length, so that a batch holds little padding
        self._held_out = torch.as_tensor(held_out.lengths)[:count].argsort(stable=True)

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.train)

    @property
    def ema_module(self) -> nn.Module:
        """The vocoder: its average sounds steadier than its latest state."""
        return self.vocoder

    @property
    def device(self) -> torch.device:
        """Where the modules are."""
        return self.vocoder.head.weight.device

    def optimizer_groups(self) -> dict[str, list[nn.Parameter]]:
        """The vocoder's parameters, and the discriminators' where there are any."""
        return {name: list(part.parameters()) for name, part in self.module.items()}

    def to(self, device: torch.device) -> None:
        """Move all modules."""
        self.module.to(device)
        if self.tokenizer is not None:
            self.tokenizer.to(device)

    def losses(
        self,
        indices: Int[Tensor, " B"],
        parts: Sequence[slice],
        step: int,
        generator: torch.Generator,
        reduce: Reduce = LOCAL,
    ) -> list[LossOf]:
        """Of every part spectral losses, adversarial and feature matching loss; then the discriminators' own."""
        config, crops = self.config, self._draw(indices, generator)
        adversarial = config.adversarial_weight > 0 and step >= config.adversarial_start
        losses: list[LossOf] = []
        for rows in parts:
            duel = Duel() if adversarial else None
            losses.append(("vocoder", functools.partial(self._vocoder_loss, crops, rows, duel)))
            if duel is not None:
                losses.append(("discriminator", duel.discriminator_loss))
        return losses

    def _vocoder_loss(self, crops: _Crops, rows: slice, duel: Duel | None) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        batch = self._cut(crops, rows)
        real = torch.arange(self.crop_samples, device=self.device) < batch.lengths[:, None]
        output = self.vocoder(batch.mels, batch.valid) * real[rows]
        mel_distance = self._mel_distance(output, batch)
        spectral = multi_resolution_stft(output, batch.samples, lengths=batch.lengths, rows=rows)
        metrics = {"mel_l1": mel_distance.detach(), "stft": spectral.detach()}
        loss = config.mel_weight * mel_distance + config.stft_weight * spectral
        if duel is not None:
            judge = functools.partial(self.module["discriminator"], valid=real, rows=rows)
            fooled, matching = duel.generator_losses(judge, batch.samples, output)
            loss = loss + config.adversarial_weight * fooled + config.feature_weight * matching
            metrics |= {"adversarial": fooled.detach(), "feature_matching": matching.detach()}
        return loss, metrics

    @torch.no_grad()
    def validate(self, module: nn.Module, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Held-out utterances in whole, made from their own mels: mean absolute difference of log-mels (`val_loss`) and
        the multi-resolution distance; `mel_l1_reconstructed` from the tokenizer's mels, where there is one."""
        names = ["val_loss", "stft", *(["mel_l1_reconstructed"] if self.tokenizer is not None else [])]
        sums = torch.zeros(len(names), dtype=torch.float64)
        for begin in list(range(0, len(self._held_out), VALIDATION_BATCH))[reduce.rank :: reduce.world_size]:
            batch = self._whole(self._held_out, slice(begin, begin + VALIDATION_BATCH))
            output = self.vocoder(batch.mels, batch.valid)
            stft = multi_resolution_stft(output, batch.samples, lengths=batch.lengths, rows=batch.rows)
            values = [self._mel_distance(output, batch), stft]
            if self.tokenizer is not None:
                output = self.vocoder(self._reconstruct(batch.mels, batch.valid), batch.valid)
                values.append(self._mel_distance(output, batch))
            sums += torch.tensor([float(value) for value in values], dtype=torch.float64)
        return dict(zip(names, reduce.sum(sums).tolist(), strict=True))

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Spectrograms of the beginnings of four held-out utterances (rows), made from their own mels and from the
        tokenizer's, the original last; beside the image all of them as WAV files."""
        count = min(SHEET_ROWS, len(self._held_out))
        batch = self._whole(torch.arange(count), most=math.ceil(SHEET_SECONDS * self.vocoder.sample_rate_hz))
        columns = {"vocoder": self.vocoder(batch.mels, batch.valid)}
        if self.tokenizer is not None:
            columns["tokens"] = self.vocoder(self._reconstruct(batch.mels, batch.valid), batch.valid)
        columns["original"] = batch.samples
        hop, rate = self.vocoder.mel.hop_size, self.vocoder.sample_rate_hz
        spectrograms = {name: log_mel(column, self.vocoder.mel) for name, column in columns.items()}
        rows = []
        for row, length in enumerate(batch.lengths[batch.rows].tolist()):
            rows.append([mel[row, :, : max(length // hop, 1)] for mel in spectrograms.values()])
            for name, column in columns.items():
                write_sound(column[row, :length].cpu(), rate, path.with_name(f"{path.stem}_{row + 1}_{name}.wav"))
        sheet = spectrogram_sheet(rows, labels=list(columns), row_labels=[str(row + 1) for row in range(count)])
        save_picture(sheet, path)

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the vocoder folder."""
        save_vocoder(folder, self.vocoder, history=history)

    def _mel_distance(self, output: Float[Tensor, "B S"], batch: _Batch) -> Tensor:
        mel = self.vocoder.mel
        difference = (log_mel(output, mel) - log_mel(batch.samples, mel)).abs()
        return frame_mean(difference, mel.hop_size, batch.lengths, batch.rows)

    def _draw(self, indices: Int[Tensor, " G"], generator: torch.Generator) -> _Crops:
        starts = self.train.crop_starts(indices, self.crop_samples + 2 * self.margin_samples, generator)
        turns = torch.rand(len(indices), generator=generator, device=generator.device)
        return _Crops(indices, starts, turns < self.config.reconstructed_share)

    def _cut(self, crops: _Crops, rows: slice) -> _Batch:
        """A part of the crops, and their mels without the margins on both sides, from which the mels were made."""
        margin, hop = self.margin_samples, self.vocoder.mel.hop_size
        length = self.crop_samples + 2 * margin
        wide = self.train.crops(crops.indices[rows], crops.starts[rows], length).to(self.device)
        wide_lengths = self.train.lengths[crops.indices].clamp(max=length).to(self.device)
        mels = log_mel(wide, self.vocoder.mel)
        valid = self._valid(wide_lengths[rows], mels.shape[2])
        if self.tokenizer is not None:
            places = crops.reconstructed[rows].to(self.device).nonzero().squeeze(1)
            if len(places):
                with torch.no_grad():
                    mels = mels.index_copy(0, places, self._reconstruct(mels[places], valid[places]))
        middle = slice(margin // hop, (margin + self.crop_samples) // hop)
        lengths = (wide_lengths - margin).clamp(min=0, max=self.crop_samples)
        return _Batch(wide[:, margin : margin + self.crop_samples], mels[..., middle], valid[:, middle], lengths, rows)

    def _whole(self, indices: Int[Tensor, " G"], rows: slice = ALL, most: int | None = None) -> _Batch:
        """Held-out utterances from their beginning, up to `most` samples or as many as the tokenizer takes; a part
        of those at `indices`."""
        unit = self.unit_samples
        samples, _ = self.held_out.batch(indices[rows], multiple=unit)
        longest = -(-(int(self.held_out.lengths[indices].max()) if most is None else most) // unit) * unit
        if self.tokenizer is not None:
            longest = min(longest, self.tokenizer.spec.num_positions * unit)
        samples = samples[:, :longest].to(self.device)
        lengths = self.held_out.lengths[indices].clamp(max=longest).to(self.device)
        mels = log_mel(samples, self.vocoder.mel)
        return _Batch(samples, mels, self._valid(lengths[rows], mels.shape[2]), lengths, rows)

    def _valid(self, lengths: Int[Tensor, " B"], num_frames: int) -> Bool[Tensor, "B T"]:
        """Frames up to the end of the last position with a real sample."""
        frames = torch.arange(num_frames, device=lengths.device)
        begins = frames // self.frames_per_position * self.unit_samples
        return begins < lengths[:, None]

    def _reconstruct(self, mels: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B F T"]:
        assert self.tokenizer is not None
        codes = self.tokenizer.encode(mels, valid)
        return self.tokenizer.decode(codes, valid=valid[:, :: self.frames_per_position])
