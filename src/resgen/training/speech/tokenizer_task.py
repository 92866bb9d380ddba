"""Stage 1 for sounds: a mel or waveform tokenizer learns to reconstruct speech (App. A.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from resgen.losses.sound_adversarial import (
    Judgement,
    MelDiscriminator,
    WaveformDiscriminator,
    feature_matching,
    least_squares_discriminator,
    least_squares_generator,
)
from resgen.losses.spectral import frame_mean, multi_scale_mel_l1
from resgen.ops.code_usage import code_histogram, usage_and_perplexity
from resgen.ops.mel import MelConfig, log_mel
from resgen.quantizers import Quantization
from resgen.quantizers.micro_batches import joined
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.types import LOCAL, Reduce

Losses = Iterator[tuple[str, Tensor, dict[str, Tensor]]]

START_CROPS = 128  # sounds whose latents the codebooks start from
VALIDATION_BATCH = 8
SHEET_ROWS, SHEET_SECONDS = 4, 3.0


@dataclass(frozen=True, kw_only=True)
class SoundTokenizerLossConfig:
    """Weights of a sound tokenizer's losses; the defaults are DAC's (arXiv:2306.06546, Sec. 4.2).

    Attributes:
        reconstruction_weight: of the difference of log-mels: natural logs for a mel tokenizer, the multi-scale loss for
            a waveform tokenizer.
        commitment_weight: of the commitment loss.
        adversarial_weight: of the least-squares adversarial loss; 0 trains without a discriminator.
        feature_weight: of feature matching, where there is a discriminator.
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
    """Sounds as a tokenizer takes them.

    Attributes:
        inputs: log-mels `[B, F, T]` or samples `[B, S]`.
        valid: what goes to the tokenizer with them, over frames or positions: whole positions.
        positions: `[B, L]`, the same over positions.
        real: over frames or samples, True up to the last sample of the sound: what losses look at.
        lengths: `[B]`, real samples.
    """

    inputs: Tensor
    valid: Bool[Tensor, "B _"]
    positions: Bool[Tensor, "B L"]
    real: Bool[Tensor, "B _"]
    lengths: Int[Tensor, " B"]


class Side(Protocol):
    """All that differs between mels and waveforms."""

    mel: MelConfig

    def batch(self, samples: Tensor, lengths: Tensor) -> SoundBatch:
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

    def draw(self, discriminator: nn.Module, batch: SoundBatch, generator: torch.Generator) -> Tensor | None:
        """What the discriminator is to look at, where that is random."""
        ...

    def judge(
        self, discriminator: nn.Module, signal: Tensor, batch: SoundBatch, draw: Tensor | None
    ) -> list[Judgement]:
        """The discriminator's opinion of inputs or outputs."""
        ...


class SoundTokenizerTask:
    """What the trainer needs to train a `MelTokenizer` or `WaveformTokenizer`; see `training.interface.Task`.

    Args:
        tokenizer: to be trained.
        config: weights of the losses.
        train: speech to learn from, at the tokenizer's rate.
        held_out: speech to validate on.
        max_held_out: utterances of it that are used.

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
        *,
        max_held_out: int = 64,
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
        count = min(max_held_out, len(held_out))
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
        crops = self.train.crops(index, self.crop_samples, generator)
        own = [part.tensor_split(reduce.world_size)[reduce.rank].to(self.device) for part in crops]
        batch = self.side.batch(*own)
        latents = self.tokenizer.latents(batch.inputs, batch.valid)
        self.tokenizer.quantizer.initialize(latents[batch.positions], generator, reduce)

    def losses(self, indices: Int[Tensor, " B"], step: int, micro: int, generator: torch.Generator) -> Losses:
        """Reconstruction, commitment, adversarial and feature matching loss; then the discriminator's own."""
        config, side = self.config, self.side
        batch = self._crops(indices, generator)
        output, quantization = side.reconstruct(batch)
        self._pending.append(quantization)
        distance = side.distance(output, batch)
        metrics = {"reconstruction": distance.detach(), "commitment": quantization.commitment.detach()}
        loss = config.reconstruction_weight * distance + config.commitment_weight * quantization.commitment
        adversarial = config.adversarial_weight > 0 and step >= config.adversarial_start
        if adversarial:
            discriminator = self.module["discriminator"]
            draw = side.draw(discriminator, batch, generator)
            real = side.judge(discriminator, batch.inputs, batch, draw)
            fake = side.judge(discriminator, output, batch, draw)
            generator_loss, matching = least_squares_generator(fake), feature_matching(real, fake)
            loss = loss + config.adversarial_weight * generator_loss + config.feature_weight * matching
            metrics |= {"adversarial": generator_loss.detach(), "feature_matching": matching.detach()}
        yield "tokenizer", loss, metrics
        if adversarial:
            # The real side's graph is still whole: the loss above has no gradient with respect to it.
            loss = least_squares_discriminator(real, side.judge(discriminator, output.detach(), batch, draw))
            yield "discriminator", loss, {"discriminator": loss.detach()}

    def after_step(self, step: int, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """One codebook update from all micro-batches of the step together."""
        if not self.config.decoder_only:
            self.tokenizer.quantizer.update(joined(self._pending), generator, reduce)
        self._pending.clear()

    @torch.no_grad()
    def validate(self, module: nn.Module, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Held-out utterances in whole: distance, mean absolute difference of natural-log mels by number of decoded
        levels, and usage and perplexity per level."""
        tokenizer, spec = self.tokenizer, self.tokenizer.spec
        counts = level_counts(spec.depth)
        histogram = torch.zeros(spec.depth, spec.codebook_size, dtype=torch.int64)
        errors = torch.zeros(len(counts), dtype=torch.float64)
        sums = torch.zeros(2, dtype=torch.float64)  # of the distance, and of what it is weighted by
        for part in self._held_out.split(VALIDATION_BATCH)[reduce.rank :: reduce.world_size]:
            batch = self._whole(part)
            codes = tokenizer.encode(batch.inputs, batch.valid)
            histogram += code_histogram(codes, spec.codebook_size, batch.positions).cpu()
            target = self.side.mels(batch.inputs)
            frames = torch.arange(target.shape[2], device=self.device) * self.side.mel.hop_size
            real = frames < batch.lengths[:, None]
            share = float(batch.lengths.sum())
            for row, count in enumerate(counts):
                output = tokenizer.decode(codes, count, batch.positions)
                errors[row] += share * float(frame_mean((self.side.mels(output) - target).abs(), real))
            sums += torch.tensor([share * float(self.side.distance(output, batch)), share], dtype=torch.float64)
        errors, (distance, weight) = reduce.sum(errors), reduce.sum(sums).tolist()
        usage, perplexity = usage_and_perplexity(reduce.sum(histogram))
        metrics = {"val_loss": distance / weight}
        metrics |= {f"mel_l1/{count}": float(errors[row]) / weight for row, count in enumerate(counts)}
        for level in range(spec.depth):
            metrics[f"usage/{level + 1}"] = float(usage[level])
            metrics[f"perplexity/{level + 1}"] = float(perplexity[level])
        return metrics

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Spectrograms of the beginnings of four held-out utterances (rows), decoded from 1, 4, 16 and all levels, the
        original last."""
        count = min(SHEET_ROWS, len(self._held_out))
        batch = self._whole(torch.arange(count), math.ceil(SHEET_SECONDS * self.tokenizer.sample_rate_hz))
        codes = self.tokenizer.encode(batch.inputs, batch.valid)
        depth = self.tokenizer.spec.depth
        levels = [level for level in (1, 4, 16) if level < depth] + [depth]
        columns = [self.side.mels(self.tokenizer.decode(codes, level, batch.positions)) for level in levels]
        columns.append(self.side.mels(batch.inputs))
        frames = (batch.lengths // self.side.mel.hop_size).clamp(min=1).tolist()
        rows = [[column[row, :, : frames[row]] for column in columns] for row in range(count)]
        labels = [str(level) for level in levels[:-1]] + [f"all {depth}", "real"]
        save_picture(spectrogram_sheet(rows, labels=labels, row_labels=[str(row + 1) for row in range(count)]), path)

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the tokenizer folder."""
        save_tokenizer(folder, self.tokenizer, history=history)

    def _crops(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> SoundBatch:
        samples, lengths = self.train.crops(indices, self.crop_samples, generator)
        return self.side.batch(samples.to(self.device), lengths.to(self.device))

    def _whole(self, indices: Int[Tensor, " B"], most: int | None = None) -> SoundBatch:
        """Held-out utterances from their beginning, up to `most` samples or as many as the tokenizer takes."""
        unit = self.tokenizer.samples_per_position
        samples, lengths = self.held_out.batch(indices, multiple=unit)
        longest = self.tokenizer.spec.num_positions * unit
        longest = longest if most is None else min(longest, -(-most // unit) * unit)
        samples, lengths = samples[:, :longest], lengths.clamp(max=longest)
        return self.side.batch(samples.to(self.device), lengths.to(self.device))


class _MelSide:
    def __init__(self, tokenizer: MelTokenizer) -> None:
        self.tokenizer = tokenizer
        self.mel = tokenizer.config.mel

    def batch(self, samples: Float[Tensor, "B S"], lengths: Int[Tensor, " B"]) -> SoundBatch:
        positions = _begins_before(lengths, samples.shape[1], self.tokenizer.samples_per_position)
        return SoundBatch(
            inputs=log_mel(samples, self.mel),
            valid=positions.repeat_interleave(self.tokenizer.frames_per_position, dim=1),
            positions=positions,
            real=_begins_before(lengths, samples.shape[1], self.mel.hop_size),
            lengths=lengths,
        )

    def reconstruct(self, batch: SoundBatch) -> tuple[Tensor, Quantization]:
        output = self.tokenizer(batch.inputs, batch.valid)
        return output.mels, output.quantization

    def distance(self, outputs: Tensor, batch: SoundBatch) -> Tensor:
        return frame_mean((outputs.float() - batch.inputs).abs(), batch.real)

    def mels(self, signal: Tensor) -> Tensor:
        return signal

    def draw(self, discriminator: nn.Module, batch: SoundBatch, generator: torch.Generator) -> Tensor:
        assert isinstance(discriminator, MelDiscriminator)
        return discriminator.starts(batch.real.sum(1), batch.inputs.shape[2], generator)

    def judge(
        self, discriminator: nn.Module, signal: Tensor, batch: SoundBatch, draw: Tensor | None
    ) -> list[Judgement]:
        config = self.tokenizer.config
        normalised = (signal - config.mel_shift) / config.mel_scale
        return discriminator(normalised * batch.real[:, None], draw, batch.real)


class _WaveformSide:
    def __init__(self, tokenizer: WaveformTokenizer) -> None:
        self.tokenizer = tokenizer
        rate = tokenizer.sample_rate_hz
        self.mel = MelConfig(sample_rate_hz=rate, fft_size=2048, max_hz=min(8000.0, rate / 2))

    def batch(self, samples: Float[Tensor, "B S"], lengths: Int[Tensor, " B"]) -> SoundBatch:
        positions = _begins_before(lengths, samples.shape[1], self.tokenizer.samples_per_position)
        real = _begins_before(lengths, samples.shape[1], 1)
        return SoundBatch(inputs=samples, valid=positions, positions=positions, real=real, lengths=lengths)

    def reconstruct(self, batch: SoundBatch) -> tuple[Tensor, Quantization]:
        output = self.tokenizer(batch.inputs, batch.valid)
        return output.samples, output.quantization

    def distance(self, outputs: Tensor, batch: SoundBatch) -> Tensor:
        return multi_scale_mel_l1(outputs, batch.inputs, self.tokenizer.sample_rate_hz, lengths=batch.lengths)

    def mels(self, signal: Tensor) -> Tensor:
        return log_mel(signal, self.mel)

    def draw(self, discriminator: nn.Module, batch: SoundBatch, generator: torch.Generator) -> None:
        return None

    def judge(
        self, discriminator: nn.Module, signal: Tensor, batch: SoundBatch, draw: Tensor | None
    ) -> list[Judgement]:
        return discriminator(signal * batch.real, batch.real)


def level_counts(depth: int) -> list[int]:
    """1, 2, 4, ... and `depth` itself."""
    return sorted({2**k for k in range(depth.bit_length()) if 2**k <= depth} | {depth})


def check_rates(sample_rate_hz: int, train: SpeechStore, held_out: SpeechStore) -> None:
    """Refuse stores that do not fit.

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
