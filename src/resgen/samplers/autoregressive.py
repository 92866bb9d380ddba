"""Autoregressive sampling, position by position (Sec. 5.2.1): level by level from logits (RQ-Transformer), or all
levels of a position in a few unmasking iterations from a latent distribution (AR-ResGen)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError, unknown
from resgen.ops.frontier import LevelsUntil
from resgen.ops.guidance import guidance_weights
from resgen.ops.masking import SCHEDULES
from resgen.ops.random import sample_streams
from resgen.ops.residual import codebook_norms, residual_encode
from resgen.ops.sampling import nucleus_choice, top_k_filter
from resgen.samplers.unmasking import Samples, StepCallback, StepRecord, reveal_plan
from resgen.types import CodeSpec, LatentDistribution, TokenDistribution


@runtime_checkable
class LevelDecoder(Protocol):
    """What the sampler knows of a model that predicts one code at a time. Guidance is on logits."""

    @property
    def device(self) -> torch.device:
        """Where codes are expected."""
        ...

    def begin(self, guided: bool) -> None:
        """Start at the first position; `guided` if any later `guidance_scale` will not be 0."""
        ...

    def next_position(self, codes: Int[Tensor, "B S D"]) -> None:
        """Go on to the position after `codes`, the S positions finished since the last call (none at first)."""
        ...

    def next_level(self, codes: Int[Tensor, " B"] | None, guidance_scale: float) -> Float[Tensor, "B V"]:
        """Logits of the next level of this position, given the codes of the level above (None at level 0)."""
        ...


@runtime_checkable
class LatentDecoder(Protocol):
    """What the sampler knows of a model that predicts the sum of a position's masked levels."""

    def begin(self, guided: bool) -> None:
        """Start at the first position; `guided` if any later `guidance_scale` will not be 0."""
        ...

    def next_position(self, codes: Int[Tensor, "B S D"]) -> None:
        """Go on to the position after `codes`, the S positions finished since the last call (none at first)."""
        ...

    def predict(
        self, codes: Int[Tensor, "B D"], visible: Int[Tensor, " B"], guidance_scale: float
    ) -> LatentDistribution | TokenDistribution:
        """The masked levels of this position, as their sum or as codes; `rows` of the distribution index into B."""
        ...


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig:
    """Settings of sampling code by code.

    Attributes:
        top_k: most likely codes to choose from; 0 for all.
        top_p: nucleus of those, in (0, 1].
        temperature: divides the logits, > 0.
        guidance_scale: guidance weight of the last position; 0 switches guidance off altogether.
        guidance_first: guidance weight of the first position, linear in between; null for the same everywhere.
    """

    tag: ClassVar[str] = "autoregressive"
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    guidance_scale: float = 0.0
    guidance_first: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must be at least 1, or 0 for all codes")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be a number above 0")
        _check_common(self)


@dataclass(frozen=True, kw_only=True)
class LatentAutoregressiveConfig:
    """Settings of sampling position by position from a latent distribution.

    Attributes:
        num_steps: unmasking iterations over the levels of one position, at most (those that would reveal nothing are
            skipped); 1, 2, 4 or 8 in the paper.
        mask_schedule: gamma, one of `ops.masking.SCHEDULES`, over the levels of one position.
        top_p: nucleus of the mixture's components, in (0, 1].
        temperature: scale of the Gaussian noise within a component, >= 0.
        guidance_scale: guidance weight of the last position; 0 switches guidance off altogether.
        guidance_first: guidance weight of the first position, linear in between; null for the same everywhere.
    """

    tag: ClassVar[str] = "latent_autoregressive"
    num_steps: int = 2
    mask_schedule: str = "circle"
    top_p: float = 1.0
    temperature: float = 1.0
    guidance_scale: float = 0.0
    guidance_first: float | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"num_steps={self.num_steps} must be at least 1")
        if self.mask_schedule not in SCHEDULES:
            raise ConfigError(unknown("mask schedule", self.mask_schedule, SCHEDULES))
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be a number of at least 0")
        _check_common(self)


def _check_common(config: AutoregressiveConfig | LatentAutoregressiveConfig) -> None:
    if not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p={config.top_p} must lie in (0, 1]")
    for name in ("guidance_scale", "guidance_first"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name}={value} must be a number of at least 0")


class LatentNoise(NamedTuple):
    """All random numbers of a batch (T iterations per position).

    Attributes:
        component: uniform in [0, 1); chooses the mixture component, or with `tokens` the code of every level.
        latent: standard normal; the Gaussian within the component (without columns with `tokens`).
    """

    component: Float[Tensor, "B L T *D"]
    latent: Float[Tensor, "B L T H"]


def draw_autoregressive_noise(
    seed: int | Sequence[int], indices: Sequence[int], spec: CodeSpec, *, lengths: Sequence[int] | None = None
) -> Float[Tensor, "B L D"]:
    """One uniform number (float64) per code of the samples `indices` of a call: sample k's stream is derived from
    (seed, k) and nothing else.

    `seed` is that of all samples, or one for each; `lengths` are the positions of each sample, for sequences; the
    longest sets L.
    """
    lengths = [spec.num_positions] * len(indices) if lengths is None else lengths
    uniform = torch.full((len(indices), max(lengths), spec.depth), 0.5, dtype=torch.float64)
    for row, (stream, length) in enumerate(zip(sample_streams(seed, indices), lengths, strict=True)):
        uniform[row, :length].uniform_(generator=stream)
    return uniform


def draw_latent_autoregressive_noise(
    seed: int | Sequence[int],
    indices: Sequence[int],
    num_steps: int,
    spec: CodeSpec,
    *,
    tokens: bool = False,
    lengths: Sequence[int] | None = None,
) -> LatentNoise:
    """Noise of the samples `indices` of a call: sample k's stream is derived from (seed, k) and nothing else.

    `seed` is that of all samples, or one for each; `tokens` is for a model that gives a `TokenDistribution`; `lengths`
    are the positions of each sample, for sequences.
    """
    lengths = [spec.num_positions] * len(indices) if lengths is None else lengths
    shape = (len(indices), max(lengths), num_steps)
    component = torch.full((*shape, *((spec.depth,) if tokens else ())), 0.5, dtype=torch.float64)
    latent = torch.zeros(*shape, 0 if tokens else spec.code_dim)
    for row, (stream, length) in enumerate(zip(sample_streams(seed, indices), lengths, strict=True)):
        component[row, :length].uniform_(generator=stream)
        latent[row, :length].normal_(generator=stream)
    return LatentNoise(component, latent)


@torch.inference_mode()
def sample_autoregressive(
    decoder: LevelDecoder,
    noise: Float[Tensor, "B L D"],
    config: AutoregressiveConfig,
    *,
    codes: Int[Tensor, "B L D"] | None = None,
    visible: Int[Tensor, "B L"] | None = None,
    callback: StepCallback | None = None,
) -> Samples:
    """Draw a batch code by code: positions in order, and the levels of each from coarse to fine.

    Args:
        decoder: the model under its condition.
        noise: from `draw_autoregressive_noise`, for the same batch.
        config: settings.
        codes: given codes; only the first `visible` levels of a position are read, and those are never altered.
        visible: how many levels of each position are given (none by default). What is drawn depends on what is given
            at the same and at earlier positions only.
        callback: called after every position with (record, codes, visible); masked levels of `codes` are 0.

    Returns:
        Codes, and one record per position: each stands for one pass over the position and D over its levels. Positions
        that are given in all samples cost and record nothing.

    Raises:
        ConfigError: only one of `codes` and `visible` is given.
    """
    run = _Progress(codes, visible, tuple(noise.shape), decoder.device, config)
    noise = noise.to(decoder.device)
    decoder.begin(config.guidance_scale > 0)
    for position in run.positions():
        decoder.next_position(run.unread())
        above: Tensor | None = None
        for level in range(noise.shape[2]):
            logits = decoder.next_level(above, run.weight) / config.temperature
            drawn = nucleus_choice(top_k_filter(logits, config.top_k), noise[:, position, level], config.top_p)
            given = run.visible[:, position] > level
            above = torch.where(given, run.codes[:, position, level], drawn)
            run.codes[:, position, level] = above
        run.visible[:, position] = noise.shape[2]
        run.record(callback)
    return Samples(run.codes, run.records)


@torch.inference_mode()
def sample_latent_autoregressive(
    decoder: LatentDecoder,
    codebooks: Float[Tensor, "D V H"],
    noise: LatentNoise,
    config: LatentAutoregressiveConfig,
    *,
    codes: Int[Tensor, "B L D"] | None = None,
    visible: Int[Tensor, "B L"] | None = None,
    callback: StepCallback | None = None,
) -> Samples:
    """Draw a batch position by position, the levels of each in `config.num_steps` unmasking iterations: the sum of the
    masked levels is drawn, quantized into them, and the coarsest are kept, as many as the mask schedule says.

    Args:
        decoder: the model under its condition.
        codebooks: embeddings of the codes, in the unit of the predictions.
        noise: from `draw_latent_autoregressive_noise`, for the same batch and `config.num_steps`.
        config: settings.
        codes: given codes; only the first `visible` levels of a position are read, and those are never altered.
        visible: how many levels of each position are given (none by default). What is drawn depends on what is given
            at the same and at earlier positions only.
        callback: called after every position with (record, codes, visible); masked levels of `codes` are 0.

    Returns:
        Codes, and one record per position: each stands for one pass of the transformer and at most `num_steps` of the
        depth head. Positions that are given in all samples cost and record nothing.

    Raises:
        ConfigError: only one of `codes` and `visible` is given, or the noise is made for another number of steps.
    """
    if noise.component.shape[2] != config.num_steps:
        raise ConfigError(f"noise for {noise.component.shape[2]} steps does not fit num_steps={config.num_steps}")
    depth, device = codebooks.shape[0], codebooks.device
    levels = torch.arange(depth, device=device)
    run = _Progress(codes, visible, (*noise.component.shape[:2], depth), device, config)
    noise, norms = LatentNoise(*(part.to(device) for part in noise)), codebook_norms(codebooks)
    decoder.begin(config.guidance_scale > 0)
    for position in run.positions():
        decoder.next_position(run.unread())
        here, known = run.codes[:, position], run.visible[:, position]
        for step, counts in enumerate(reveal_plan(config.mask_schedule, config.num_steps, run.masked[:, position])):
            rows = counts.nonzero().squeeze(1).to(device)
            if not len(rows):  # reveals nothing, costs nothing
                continue
            distribution = decoder.predict(here, known, run.weight)
            uniform = noise.component[rows, position, step]
            proposal, now_known = torch.zeros_like(here), known + counts.to(device)
            walk = LevelsUntil(known[rows], now_known[rows])
            if isinstance(distribution, TokenDistribution):
                proposal[rows], _ = distribution.propose(
                    rows, uniform, top_p=config.top_p, temperature=config.temperature, walk=walk
                )
            else:
                latents = distribution.sample(
                    rows,
                    uniform,
                    noise.latent[rows, position, step],
                    top_p=config.top_p,
                    temperature=config.temperature,
                )
                proposal[rows] = residual_encode(latents, codebooks, known[rows], walk=walk, norms=norms).codes
            revealed = (levels >= known[:, None]) & (levels < now_known[:, None])
            here, known = torch.where(revealed, proposal, here), now_known
        run.codes[:, position], run.visible[:, position] = here, known
        run.record(callback)
    return Samples(run.codes, run.records)


class _Progress:
    """Codes so far, which positions are left, and the record of those that are done."""

    def __init__(
        self,
        codes: Int[Tensor, "B L D"] | None,
        visible: Int[Tensor, "B L"] | None,
        shape: tuple[int, ...],
        device: torch.device,
        config: AutoregressiveConfig | LatentAutoregressiveConfig,
    ) -> None:
        if (codes is None) != (visible is None):
            raise ConfigError("codes and visible must be given together")
        batch, length, depth = shape
        if codes is None or visible is None:
            codes = torch.zeros(batch, length, depth, dtype=torch.int64, device=device)
            visible = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.codes = torch.where(torch.arange(depth, device=device) < visible[..., None], codes, 0)
        self.visible = visible.clone()
        self.masked = (depth - visible).cpu()
        first = config.guidance_scale if config.guidance_first is None else config.guidance_first
        on = config.guidance_scale > 0
        self.weights = guidance_weights(length, first, config.guidance_scale) if on else [0.0] * length
        self.records: list[StepRecord] = []

    def positions(self) -> Iterator[int]:
        """Those where anything is to be drawn, in order; sets what the loop over them uses."""
        self._read = 0
        for position, needed in enumerate((self.masked > 0).any(0).tolist()):
            if needed:
                self._started = time.perf_counter()
                self.position, self.weight = position, self.weights[position]
                yield position

    def unread(self) -> Int[Tensor, "B S D"]:
        """Codes of the positions finished since the last call."""
        begin, self._read = self._read, self.position
        return self.codes[:, begin : self.position]

    def record(self, callback: StepCallback | None) -> None:
        """Note that the position is done."""
        position, (batch, length, depth) = self.position, self.codes.shape
        total = batch * length * depth - int(self.masked[:, position + 1 :].sum())
        seconds, revealed = time.perf_counter() - self._started, int(self.masked[:, position].sum())
        self.records.append(
            StepRecord(position + 1, length, self.weight, revealed, total, seconds, 2 if self.weight else 1)
        )
        if callback is not None:
            callback(self.records[-1], self.codes.clone(), self.visible.clone())
