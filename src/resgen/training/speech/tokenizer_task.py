"""Stage 1 for sounds: a mel or waveform tokenizer learns to reconstruct speech (App. A.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.checkpoints.artefacts import save_tokenizer
from resgen.data.pictures.grid import save_picture
from resgen.data.sound.spectrogram import spectrogram_sheet
from resgen.data.sound.store import SpeechStore
from resgen.errors import ConfigError, DataError
from resgen.losses.sound_adversarial import Duel, Judgement, MelDiscriminator, WaveformDiscriminator
from resgen.losses.spectral import ALL, frame_mean, multi_scale_mel_l1
from resgen.ops.code_usage import code_histogram, usage_and_perplexity
from resgen.ops.mel import MelConfig, log_mel
from resgen.quantizers import Quantization
from resgen.quantizers.micro_batches import concatenate
from resgen.tokenizers.base import level_counts
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.training.interface import LossOf
from resgen.types import LOCAL, Reduce

START_CROPS = 128  # sounds whose latents the codebooks start from
VALIDATION_BATCH = 8
MAX_HELD_OUT = 64
SHEET_ROWS, SHEET_SECONDS = 4, 3.0


@dataclass(frozen=True, kw_only=True)
class SoundTokenizerLossConfig:
    """Weights of a sound tokenizer's losses; the defaults are DAC's (arXiv:2306.06546, Sec. 4.2).

    Attributes:
        reconstruction_weight: weight of the difference of log-mels: natural logs for a mel tokenizer, the multi-scale
            loss for a waveform tokenizer.
        commitment_weight: weight of the commitment loss.
        adversarial_weight: weight of the least-squares adversarial loss; 0 trains without a discriminator.
        feature_weight: weight of feature matching, where there is a discriminator.
        adversarial_start: step at which both set in.
        discriminator_width: channels of the discriminator's first layers.
        crop_seconds: length of the training crops, rounded up to whole positions.
        decoder_only: encoder and codebooks stay as they are, and with them all codes and generators of these codes.
    """

    reconstruction_weight: float = 15.0
    commitment_weight: float = 0.25
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    adversarial_start: int = 0
    discriminator_width: int = 16
    crop_seconds: float = 2.0
    decoder_only: bool = False

    def __post_init__(self) -> None:
        for name in (
            "reconstruction_weight",
            "commitment_weight",
            "adversarial_weight",
            "feature_weight",
            "adversarial_start",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.discriminator_width < 1:
            raise ConfigError(f"discriminator_width={self.discriminator_width} must be at least 1")
        if not 0 < self.crop_seconds < math.inf:
            raise ConfigError(f"crop_seconds={self.crop_seconds} must be above 0")


class SoundBatch(NamedTuple):
    """Sounds as a tokenizer takes them: a batch, or a part of one.

    Attributes:
        inputs: log-mels `[B, F, T]` or samples `[B, S]`.
        valid: what goes to the tokenizer with them, over frames or positions: whole positions.
        positions: `[B, L]`, the same over positions.
        lengths: `[G]`, real samples of all sounds of the batch.
        rows: which of the batch these are; losses are their share in the batch's.
    """

    inputs: Tensor
    valid: Bool[Tensor, "B _"]
    positions: Bool[Tensor, "B L"]
    lengths: Int[Tensor, " G"]
    rows: slice


class Side(Protocol):
    """All that differs between mels and waveforms."""

    mel: MelConfig

    def batch(self, samples: Tensor, lengths: Tensor, rows: slice = ALL) -> SoundBatch:
        """Samples `[B, S]`, a multiple of the samples per position, as the tokenizer takes them."""
        ...

    def reconstruct(self, batch: SoundBatch) -> tuple[Tensor, Quantization]:
        """A training pass."""
        ...

    def distance(self, outputs: Tensor, batch: SoundBatch) -> Tensor:
        """The reconstruction loss, a scalar."""
        ...

    def mels(self, signal: Tensor) -> Tensor:
        """Inputs or outputs as log-mels `[B, F, T]`, to be measured and drawn."""
        ...

    def draw(
        self, discriminator: nn.Module, lengths: Int[Tensor, " G"], num_samples: int, generator: torch.Generator
    ) -> Tensor | None:
        """What of a batch the discriminator is to look at, where that is random."""
        ...

    def judge(
        self, discriminator: nn.Module, signal: Tensor, batch: SoundBatch, draw: Tensor | None
    ) -> list[Judgement]:
        """The discriminator's opinion of inputs or outputs, padding left out."""
        ...


class SoundTokenizerTask:
    """Training task of a `MelTokenizer` or `WaveformTokenizer`; see `training.interface.Task`.

    Args:
        tokenizer: to be trained.
        config: weights of the losses.
        train: speech to learn from, at the tokenizer's rate.
        held_out: speech to validate on.

    Raises:
        ConfigError: crops of more positions than the tokenizer takes.
        DataError: a store at another rate than the tokenizer's, or nothing held out.
    """

    name = "sound_tokenizer"

    def __init__(
        self,
        tokenizer: MelTokenizer | WaveformTokenizer,
        config: SoundTokenizerLossConfig,
        train: SpeechStore,
        held_out: SpeechStore,
    ) -> None:
        check_rates(tokenizer.sample_rate_hz, train, held_out)
        self.config, self.tokenizer = config, tokenizer
        self.train, self.held_out = train, held_out
        unit, most = tokenizer.samples_per_position, tokenizer.spec.num_positions
        num_positions = math.ceil(config.crop_seconds * tokenizer.sample_rate_hz / unit)
        if num_positions > most:
            raise ConfigError(
                f"crop_seconds={config.crop_seconds} is {num_positions} positions, the tokenizer takes {most}"
            )
        self.crop_samples = num_positions * unit
        self.side: Side = _MelSide(tokenizer) if isinstance(tokenizer, MelTokenizer) else _WaveformSide(tokenizer)
        if config.decoder_only:
            tokenizer.requires_grad_(False)
            tokenizer.decoder.requires_grad_(True)
        self.module = nn.ModuleDict({"tokenizer": tokenizer})
        if config.adversarial_weight > 0:
            width = config.discriminator_width
            is_mel = isinstance(tokenizer, MelTokenizer)
            self.module["discriminator"] = MelDiscriminator(width=width) if is_mel else WaveformDiscriminator(width)
        count = min(MAX_HELD_OUT, len(held_out))
        # by length, so that a batch holds little padding
        self._held_out = torch.as_tensor(held_out.lengths)[:count].argsort(stable=True)
        self._pending: list[Quantization] = []

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.train)

    @property
    def ema_module(self) -> None:
        """No average: codebooks follow the encoder as it is, not its average."""

    @property
    def device(self) -> torch.device:
        """Where the modules are."""
        return self.tokenizer.quantizer.codebooks.device

    def optimizer_groups(self) -> dict[str, list[nn.Parameter]]:
        """The tokenizer's parameters, or its decoder's, and the discriminator's where there is one."""
        return {name: [p for p in part.parameters() if p.requires_grad] for name, part in self.module.items()}

    def to(self, device: torch.device) -> None:
        """Move all modules."""
        self.module.to(device)

    def compile(self) -> None:
        """Compile encoder and decoder; crops all have one shape."""
        self.tokenizer.encoder.compile()
        self.tokenizer.decoder.compile()

    @torch.no_grad()
    def before_start(self, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Start the codebooks from encoder outputs, where the quantizer does so."""
        count = min(len(self.train), START_CROPS)
        index = torch.randint(len(self.train), (count,), generator=generator, device=generator.device).cpu()
        starts = self.train.crop_starts(index, self.crop_samples, generator)
        own = torch.arange(count).tensor_split(reduce.world_size)[reduce.rank]
        batch = self._crops(index[own], starts[own])
        latents = self.tokenizer.latents(batch.inputs, batch.valid)
        self.tokenizer.quantizer.initialize(latents[batch.positions], generator, reduce)

    def losses(
        self,
        indices: Int[Tensor, " B"],
        parts: Sequence[slice],
        step: int,
        generator: torch.Generator,
        reduce: Reduce = LOCAL,
    ) -> list[LossOf]:
        """Of every part reconstruction, commitment, adversarial and feature matching loss; then the discriminator's
        own."""
        starts = self.train.crop_starts(indices, self.crop_samples, generator)
        if self.config.adversarial_weight == 0 or step < self.config.adversarial_start:
            return [("tokenizer", functools.partial(self._tokenizer_loss, indices, starts, rows)) for rows in parts]
        lengths = self._lengths(indices)
        windows = self.side.draw(self.module["discriminator"], lengths, self.crop_samples, generator)
        losses: list[LossOf] = []
        for rows in parts:
            duel = Duel()
            losses.append(("tokenizer", functools.partial(self._tokenizer_loss, indices, starts, rows, duel, windows)))
            losses.append(("discriminator", duel.discriminator_loss))
        return losses

    def _tokenizer_loss(
        self,
        indices: Int[Tensor, " B"],
        starts: Int[Tensor, " B"],
        rows: slice,
        duel: Duel | None = None,
        windows: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        batch = self._crops(indices, starts, rows)
        output, quantization = self.side.reconstruct(batch)
        self._pending.append(quantization)
        distance = self.side.distance(output, batch)
        positions = -(-batch.lengths // self.tokenizer.samples_per_position)
        commitment = quantization.commitment * (batch.positions.sum() / positions.sum())
        loss = config.reconstruction_weight * distance + config.commitment_weight * commitment
        metrics = {"reconstruction": distance.detach(), "commitment": commitment.detach()}
        if duel is not None:
            judge = functools.partial(self.side.judge, self.module["discriminator"], batch=batch, draw=windows)
            fooled, matching = duel.generator_losses(judge, batch.inputs, output)
            loss = loss + config.adversarial_weight * fooled + config.feature_weight * matching
            metrics |= {"adversarial": fooled.detach(), "feature_matching": matching.detach()}
        return loss, metrics

    def after_step(self, step: int, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """One codebook update from all micro-batches of the step together."""
        if not self.config.decoder_only:
            self.tokenizer.quantizer.update(concatenate(self._pending), generator, reduce)
        self._pending.clear()

    @torch.no_grad()
    def validate(self, module: nn.Module, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Held-out utterances in whole: distance, mean absolute difference of natural-log mels by number of decoded
        levels, and usage and perplexity per level."""
        tokenizer, spec = self.tokenizer, self.tokenizer.spec
        counts = level_counts(spec.depth)
        histogram = torch.zeros(spec.depth, spec.codebook_size, dtype=torch.int64)
        sums = torch.zeros(1 + len(counts), dtype=torch.float64)  # of the distance, and of the differences
        for begin in list(range(0, len(self._held_out), VALIDATION_BATCH))[reduce.rank :: reduce.world_size]:
            batch = self._whole(self._held_out, slice(begin, begin + VALIDATION_BATCH))
            codes = tokenizer.encode(batch.inputs, batch.valid)
            histogram += code_histogram(codes, spec.codebook_size, batch.positions).cpu()
            target, hop = self.side.mels(batch.inputs), self.side.mel.hop_size
            for row, count in enumerate(counts):
                output = tokenizer.decode(codes, count, batch.positions)
                difference = (self.side.mels(output) - target).abs()
                sums[1 + row] += float(frame_mean(difference, hop, batch.lengths, batch.rows))
            sums[0] += float(self.side.distance(output, batch))
        distance, *errors = reduce.sum(sums).tolist()
        usage, perplexity = usage_and_perplexity(reduce.sum(histogram))
        metrics = {"val_loss": distance}
        metrics |= {f"mel_l1/{count}": error for count, error in zip(counts, errors, strict=True)}
        for level in range(spec.depth):
            metrics[f"usage/{level + 1}"] = float(usage[level])
            metrics[f"perplexity/{level + 1}"] = float(perplexity[level])
        return metrics

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Spectrograms of the beginnings of four held-out utterances (rows), decoded from 1, 4, 16 and all levels, the
        original last."""
        count = min(SHEET_ROWS, len(self._held_out))
        batch = self._whole(torch.arange(count), most=math.ceil(SHEET_SECONDS * self.tokenizer.sample_rate_hz))
        codes = self.tokenizer.encode(batch.inputs, batch.valid)
        depth = self.tokenizer.spec.depth
        levels = [level for level in (1, 4, 16) if level < depth] + [depth]
        columns = [self.side.mels(self.tokenizer.decode(codes, level, batch.positions)) for level in levels]
        columns.append(self.side.mels(batch.inputs))
        frames = (batch.lengths[batch.rows] // self.side.mel.hop_size).clamp(min=1).tolist()
        rows = [[column[row, :, : frames[row]] for column in columns] for row in range(count)]
        labels = [str(level) for level in levels[:-1]] + [f"all {depth}", "original"]
        save_picture(spectrogram_sheet(rows, labels=labels, row_labels=[str(row + 1) for row in range(count)]), path)

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the tokenizer folder."""
        save_tokenizer(folder, self.tokenizer, history=history)

    def _crops(self, indices: Int[Tensor, " B"], starts: Int[Tensor, " B"], rows: slice = ALL) -> SoundBatch:
        """Crops of a batch, or a part of them."""
        samples = self.train.crops(indices[rows], starts[rows], self.crop_samples)
        return self.side.batch(samples.to(self.device), self._lengths(indices), rows)

    def _lengths(self, indices: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Real samples of crops."""
        return self.train.lengths[indices].clamp(max=self.crop_samples).to(self.device)

    def _whole(self, indices: Int[Tensor, " G"], rows: slice = ALL, most: int | None = None) -> SoundBatch:
        """Held-out utterances from their beginning, up to `most` samples or as many as the tokenizer takes; a part
        of those at `indices`."""
        unit = self.tokenizer.samples_per_position
        samples, _ = self.held_out.batch(indices[rows], multiple=unit)
        longest = self.tokenizer.spec.num_positions * unit
        longest = longest if most is None else min(longest, -(-most // unit) * unit)
        lengths = self.held_out.lengths[indices].clamp(max=longest)
        return self.side.batch(samples[:, :longest].to(self.device), lengths.to(self.device), rows)


class _MelSide:
    def __init__(self, tokenizer: MelTokenizer) -> None:
        self.tokenizer = tokenizer
        self.mel = tokenizer.config.mel

    def batch(self, samples: Float[Tensor, "B S"], lengths: Int[Tensor, " G"], rows: slice = ALL) -> SoundBatch:
        positions = _begins_before(lengths[rows], samples.shape[1], self.tokenizer.samples_per_position)
        valid = positions.repeat_interleave(self.tokenizer.frames_per_position, dim=1)
        return SoundBatch(log_mel(samples, self.mel), valid, positions, lengths, rows)

    def reconstruct(self, batch: SoundBatch) -> tuple[Tensor, Quantization]:
        output = self.tokenizer(batch.inputs, batch.valid)
        return output.mels, output.quantization

    def distance(self, outputs: Tensor, batch: SoundBatch) -> Tensor:
        return frame_mean((outputs.float() - batch.inputs).abs(), self.mel.hop_size, batch.lengths, batch.rows)

    def mels(self, signal: Tensor) -> Tensor:
        return signal

    def draw(
        self, discriminator: nn.Module, lengths: Int[Tensor, " G"], num_samples: int, generator: torch.Generator
    ) -> Tensor:
        assert isinstance(discriminator, MelDiscriminator)
        hop = self.mel.hop_size
        return discriminator.starts(-(-lengths // hop), num_samples // hop, generator)

    def judge(
        self, discriminator: nn.Module, signal: Tensor, batch: SoundBatch, draw: Tensor | None
    ) -> list[Judgement]:
        config, frames = self.tokenizer.config, signal.shape[2]
        real = _begins_before(batch.lengths, frames * self.mel.hop_size, self.mel.hop_size)
        normalised = (signal - config.mel_shift) / config.mel_scale
        return discriminator(normalised * real[batch.rows, None], draw, real, batch.rows)


class _WaveformSide:
    def __init__(self, tokenizer: WaveformTokenizer) -> None:
        self.tokenizer = tokenizer
        rate = tokenizer.sample_rate_hz
        self.mel = MelConfig(sample_rate_hz=rate, fft_size=2048, max_hz=min(8000.0, rate / 2))

    def batch(self, samples: Float[Tensor, "B S"], lengths: Int[Tensor, " G"], rows: slice = ALL) -> SoundBatch:
        positions = _begins_before(lengths[rows], samples.shape[1], self.tokenizer.samples_per_position)
        return SoundBatch(samples, positions, positions, lengths, rows)

    def reconstruct(self, batch: SoundBatch) -> tuple[Tensor, Quantization]:
        output = self.tokenizer(batch.inputs, batch.valid)
        return output.samples, output.quantization

    def distance(self, outputs: Tensor, batch: SoundBatch) -> Tensor:
        rate = self.tokenizer.sample_rate_hz
        return multi_scale_mel_l1(outputs, batch.inputs, rate, lengths=batch.lengths, rows=batch.rows)

    def mels(self, signal: Tensor) -> Tensor:
        return log_mel(signal, self.mel)

    def draw(
        self, discriminator: nn.Module, lengths: Int[Tensor, " G"], num_samples: int, generator: torch.Generator
    ) -> None:
        return None

    def judge(
        self, discriminator: nn.Module, signal: Tensor, batch: SoundBatch, draw: Tensor | None
    ) -> list[Judgement]:
        real = _begins_before(batch.lengths, signal.shape[1], 1)
        return discriminator(signal * real[batch.rows], real, batch.rows)


def check_rates(sample_rate_hz: int, train: SpeechStore, held_out: SpeechStore) -> None:
    """Reject stores that do not fit.

    Raises:
        DataError: another rate, or no utterances.
    """
    for name, store in (("training", train), ("held-out", held_out)):
        if store.sample_rate_hz != sample_rate_hz:
            raise DataError(f"{name} speech is at {store.sample_rate_hz} Hz, the model works at {sample_rate_hz} Hz")
        if not len(store):
            raise DataError(f"there is no {name} speech; give at least one utterance")


def _begins_before(lengths: Int[Tensor, " B"], num_samples: int, unit: int) -> Bool[Tensor, "B N"]:
    """Which of the stretches of `unit` samples begin within the real part."""
    return torch.arange(num_samples // unit, device=lengths.device) * unit < lengths[:, None]
