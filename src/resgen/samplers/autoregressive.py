"""Autoregressive sampling, position by position (Sec. 5.2.1): level by level from logits (RQ-Transformer), or all
levels of a position in a few unmasking iterations from a latent distribution (AR-ResGen)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError, check_range, unknown
from resgen.ops.blocks import walk_levels
from resgen.ops.guidance import Weight, guidance_weights
from resgen.ops.masking import MAX_STEPS, SCHEDULES, given_codes, reveal_plan
from resgen.ops.random import sample_streams
from resgen.ops.sampling import LEAST_TEMPERATURE, LEAST_TOP_P, nucleus_choice
from resgen.types import CodeSpec, Distribution, NoiseSize, ProposalNoise, Record


class PositionDecoder(Protocol):
    """A model that goes through the positions in order, as both samplers see it."""

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


@runtime_checkable
class LevelDecoder(PositionDecoder, Protocol):
    """A model that predicts one code at a time. Guidance is on logits."""

    def next_level(self, codes: Int[Tensor, " B"] | None, guidance_scale: Weight) -> Float[Tensor, "B V"]:
        """Logits of the next level of this position, given the codes of the level above (None at level 0)."""
        ...


@runtime_checkable
class LatentDecoder(PositionDecoder, Protocol):
    """A model that predicts all masked levels of a position."""

    def predict(self, codes: Int[Tensor, "B D"], visible: Int[Tensor, " B"], guidance_scale: Weight) -> Distribution:
        """The masked levels of this position; `rows` of the distribution index into B."""
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
        check_range(self, LEAST_TEMPERATURE, "temperature", below=math.inf)
        _check_common(self)


@dataclass(frozen=True, kw_only=True)
class LatentAutoregressiveConfig:
    """Settings of sampling position by position from a latent distribution.

    Attributes:
        num_steps: unmasking iterations over the levels of one position, at most (those that would reveal nothing are
            skipped); 1, 2, 4 or 8 in the paper.
        mask_schedule: gamma, one of `ops.masking.SCHEDULES`, over the levels of one position.
        top_p: nucleus of the mixture's components, or of codes, in (0, 1].
        temperature: scale of the Gaussian noise within a component, >= 0; of codes it divides the logits, > 0.
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
        check_range(self, 1, "num_steps", most=MAX_STEPS)
        if self.mask_schedule not in SCHEDULES:
            raise ConfigError(unknown("mask schedule", self.mask_schedule, SCHEDULES))
        check_range(self, 0, "temperature", below=math.inf)
        _check_common(self)


def _check_common(config: AutoregressiveConfig | LatentAutoregressiveConfig) -> None:
    check_range(config, LEAST_TOP_P, "top_p", most=1)
    for name in ("guidance_scale", "guidance_first"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name}={value} must be a number of at least 0")


class LatentNoise(NamedTuple):
    """All random numbers of a batch (T iterations per position).

    Attributes:
        uniform: in [0, 1), for the proposals; float64.
        normal: standard normal, for the proposals.
    """

    uniform: Float[Tensor, "B L T U"]
    normal: Float[Tensor, "B L T G"]

    def proposal(self, position: int, step: int, rows: Int[Tensor, " N"]) -> ProposalNoise:
        """What the proposals of a step at a position take, for the samples `rows`."""
        return ProposalNoise(self.uniform[rows, position, step], self.normal[rows, position, step])


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
    size: NoiseSize,
    *,
    lengths: Sequence[int] | None = None,
) -> LatentNoise:
    """Noise of the samples `indices` of a call: sample k's stream is derived from (seed, k) and nothing else.

    `seed` is that of all samples, or one for each; `size` is what the model's distribution takes; `lengths` are the
    positions of each sample, for sequences.
    """
    lengths = [spec.num_positions] * len(indices) if lengths is None else lengths
    shape = (len(indices), max(lengths), num_steps)
    uniform = torch.full((*shape, size.uniform), 0.5, dtype=torch.float64)
    normal = torch.zeros(*shape, size.normal)
    for row, (stream, length) in enumerate(zip(sample_streams(seed, indices), lengths, strict=True)):
        uniform[row, :length].uniform_(generator=stream)
        normal[row, :length].normal_(generator=stream)
    return LatentNoise(uniform, normal)


@torch.inference_mode()
def sample_autoregressive(
    decoder: LevelDecoder,
    noise: Float[Tensor, "B L D"],
    config: AutoregressiveConfig,
    *,
    codes: Int[Tensor, "B L D"] | None = None,
    visible: Int[Tensor, "B L"] | None = None,
    record: Record | None = None,
) -> Int[Tensor, "B L D"]:
    """Draw a batch code by code: positions in order, and the levels of each from coarse to fine.

    Args:
        decoder: the model under its condition.
        noise: from `draw_autoregressive_noise`, for the same batch.
        config: settings.
        codes: given codes; only the first `visible` levels of a position are read, and those are never altered.
        visible: how many levels of each position are given (none by default). What is drawn depends on what is given
            at the same and at earlier positions only.
        record: called after every position; masked levels of the codes are 0.

    Returns:
        Codes. One record per position stands for one pass over the position and D over its levels. Positions
        that are given in all samples cost and record nothing.

    Raises:
        ConfigError: only one of `codes` and `visible` is given.
    """
    batch, length, depth = noise.shape
    run = _Progress(codes, visible, (batch, length, depth), decoder.device, config, record)
    noise = noise.to(decoder.device)
    decoder.begin(config.guidance_scale > 0)
    for position in run.positions():
        decoder.next_position(run.unread())
        above: Tensor | None = None
        for level in range(depth):
            logits = decoder.next_level(above, run.weight) / config.temperature
            draws = nucleus_choice(top_k_filter(logits, config.top_k), noise[:, position, level], config.top_p)
            fixed = run.visible[:, position] > level
            above = torch.where(fixed, run.codes[:, position, level], draws)
            run.codes[:, position, level] = above
        run.visible[:, position] = depth
        run.finish()
    return run.codes


@torch.inference_mode()
def sample_latent_autoregressive(
    decoder: LatentDecoder,
    spec: CodeSpec,
    noise: LatentNoise,
    config: LatentAutoregressiveConfig,
    *,
    codes: Int[Tensor, "B L D"] | None = None,
    visible: Int[Tensor, "B L"] | None = None,
    record: Record | None = None,
) -> Int[Tensor, "B L D"]:
    """Draw a batch position by position, the levels of each in `config.num_steps` unmasking iterations: all masked
    levels are proposed, and the coarsest are kept, as many as the mask schedule says.

    Args:
        decoder: the model under its condition.
        spec: shape of the codes.
        noise: from `draw_latent_autoregressive_noise`, for the same batch and `config.num_steps`.
        config: settings.
        codes: given codes; only the first `visible` levels of a position are read, and those are never altered.
        visible: how many levels of each position are given (none by default). What is drawn depends on what is given
            at the same and at earlier positions only.
        record: called after every position; masked levels of the codes are 0.

    Returns:
        Codes. One record per position stands for one pass of the transformer and at most `num_steps` of the
        depth head. Positions that are given in all samples cost and record nothing.

    Raises:
        ConfigError: only one of `codes` and `visible` is given, or the noise is made for another number of steps.
    """
    batch, length, num_steps = noise.uniform.shape[:3]
    if num_steps != config.num_steps:
        raise ConfigError(f"noise for {num_steps} steps does not fit num_steps={config.num_steps}")
    device = decoder.device
    settings: Any = {"top_p": config.top_p, "temperature": config.temperature}
    run = _Progress(codes, visible, (batch, length, spec.depth), device, config, record)
    levels, noise = torch.arange(spec.depth, device=device), LatentNoise(*(part.to(device) for part in noise))
    decoder.begin(config.guidance_scale > 0)
    for position in run.positions():
        decoder.next_position(run.unread())
        here, known = run.codes[:, position], run.visible[:, position]
        for step, counts in enumerate(reveal_plan(config.mask_schedule, num_steps, run.masked[:, position])):
            rows = counts.nonzero().squeeze(1).to(device)
            if not len(rows):  # reveals nothing, costs nothing
                continue
            distribution = decoder.predict(here, known, run.weight)
            next_known = known + counts.to(device)
            walk = walk_levels(known[rows], next_known[rows])
            draws, _ = distribution.propose(rows, noise.proposal(position, step, rows), walk, **settings)
            proposal = torch.zeros_like(here).index_copy_(0, rows, draws)
            revealed = (levels >= known[:, None]) & (levels < next_known[:, None])
            here, known = torch.where(revealed, proposal, here), next_known
        run.codes[:, position], run.visible[:, position] = here, known
        run.finish()
    return run.codes


class _Progress:
    """Codes so far, which positions are left, and the record of the others."""

    def __init__(
        self,
        codes: Int[Tensor, "B L D"] | None,
        visible: Int[Tensor, "B L"] | None,
        shape: tuple[int, int, int],
        device: torch.device,
        config: AutoregressiveConfig | LatentAutoregressiveConfig,
        record: Record | None,
    ) -> None:
        self.codes, visible = given_codes(codes, visible, shape, device)
        self.visible = visible.clone()
        self.masked = (shape[2] - visible).cpu()
        first = config.guidance_scale if config.guidance_first is None else config.guidance_first
        # Of each sample over its own positions, so that nothing depends on the batch.
        ends = (self.masked > 0).mul(torch.arange(1, shape[1] + 1)).amax(1).clamp(min=1).tolist()
        ramps = [guidance_weights(end, first, config.guidance_scale) + [0.0] * (shape[1] - end) for end in ends]
        self.weights, self.guided = torch.tensor(ramps).T[..., None], config.guidance_scale > 0  # [L, B, 1]
        self.record = record

    def positions(self) -> Iterator[int]:
        """Those where anything is to be drawn, in order; sets what the loop over them uses."""
        self._read = 0
        for position, needed in enumerate((self.masked > 0).any(0).tolist()):
            if needed:
                self.position = position
                self.weight = self.weights[position].to(self.codes.device) if self.guided else 0.0
                yield position

    def unread(self) -> Int[Tensor, "B S D"]:
        """Codes of the positions finished since the last call."""
        begin, self._read = self._read, self.position
        return self.codes[:, begin : self.position]

    def finish(self) -> None:
        """Record the position."""
        if self.record is not None:
            revealed = int(self.masked[:, self.position].sum())
            weight = float(self.weights[self.position].max())
            self.record(self.position, weight, revealed, self.codes.clone(), self.visible.clone())


def top_k_filter(logits: Float[Tensor, "N K"], top_k: int) -> Float[Tensor, "N K"]:
    """Exclude (-inf) all but the `top_k` most likely items of each row, and those as likely as the last of them.

    Args:
        logits: unnormalised log probabilities.
        top_k: items to keep; 0 keeps all.

    Raises:
        ConfigError: if `top_k` is negative.
    """
    if top_k < 0:
        raise ConfigError(f"top_k={top_k} must be at least 1, or 0 to keep all")
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)
