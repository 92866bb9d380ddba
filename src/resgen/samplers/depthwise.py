"""Sampling of MaskGIT, depth by depth: levels in order, and within a level the most confident positions first
(Sec. 5.2.1, Table 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.errors import ConfigError, check_range, unknown
from resgen.ops.guidance import guidance_weights
from resgen.ops.masking import MAX_STEPS, SCHEDULES, given_codes, reveal, reveal_plan
from resgen.ops.random import fill_uniform, sample_streams
from resgen.ops.sampling import LEAST_TEMPERATURE, LEAST_TOP_P, nucleus_choice
from resgen.types import CodeSpec, Record


class LevelPredictor(Protocol):
    """The model as this sampler sees it: maps codes, `visible` and a level to the logits of that level."""

    def __call__(
        self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"], level: int, guidance_scale: float
    ) -> Float[Tensor, "B L V"]:
        """One network evaluation; `guidance_scale` 0 runs the conditional pass only."""
        ...


@dataclass(frozen=True, kw_only=True)
class DepthwiseConfig:
    """Settings of depth-by-depth sampling.

    Attributes:
        num_steps: network evaluations over all levels together, at most (steps that would reveal nothing are skipped);
            at least the depth.
        mask_schedule: gamma within a level, one of `ops.masking.SCHEDULES`.
        level_decay: how the steps are spread over the levels, see `steps_per_level`; 1 is evenly, less gives more of
            them to the coarse levels.
        top_p: nucleus of the codes, in (0, 1].
        temperature: divides the logits before the draw, > 0.
        choice_temperature: scale of the Gumbel noise on confidence scores at the start of a level, >= 0, in nats; it
            falls linearly to 0 within the level.
        guidance_first: guidance weight of the first step.
        guidance_scale: guidance weight of the last step, linear over all steps in between; 0 switches guidance off
            altogether.
        guidance_start: fraction of the steps that come before guidance starts.
        guidance_end: fraction of the steps after which it ends.
    """

    tag: ClassVar[str] = "depthwise"
    num_steps: int = 64
    mask_schedule: str = "cosine"
    level_decay: float = 1.0
    top_p: float = 1.0
    temperature: float = 1.0
    choice_temperature: float = 4.5
    guidance_first: float = 0.0
    guidance_scale: float = 2.4
    guidance_start: float = 0.0
    guidance_end: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, 1, "num_steps", most=MAX_STEPS)
        if self.mask_schedule not in SCHEDULES:
            raise ConfigError(unknown("mask schedule", self.mask_schedule, SCHEDULES))
        if not 0 < self.level_decay <= 1:
            raise ConfigError(f"level_decay={self.level_decay} must lie in (0, 1]")
        check_range(self, LEAST_TOP_P, "top_p", most=1)
        check_range(self, LEAST_TEMPERATURE, "temperature", below=math.inf)
        check_range(self, 0, "choice_temperature", "guidance_first", "guidance_scale", below=math.inf)
        if not 0 <= self.guidance_start < self.guidance_end <= 1:
            interval = f"guidance_start={self.guidance_start} and guidance_end={self.guidance_end}"
            raise ConfigError(f"{interval} must lie in 0 <= start < end <= 1")

    @property
    def guidance(self) -> list[float]:
        """Guidance weight of every step."""
        interval = (self.guidance_start, self.guidance_end)
        return guidance_weights(self.num_steps, self.guidance_first, self.guidance_scale, interval)


class DepthwiseNoise(NamedTuple):
    """All random numbers of a batch, for every step (T steps over all levels).

    Attributes:
        code: uniform in [0, 1), float64; chooses the code.
        choice: uniform in (0, 1); Gumbel noise of the confidence.
    """

    code: Float[Tensor, "B T L"]
    choice: Float[Tensor, "B T L"]


def draw_noise(
    seed: int | Sequence[int],
    indices: Sequence[int],
    num_steps: int,
    spec: CodeSpec,
    *,
    lengths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> DepthwiseNoise:
    """Noise of the samples `indices` of a call: sample k's stream is derived from (seed, k) and nothing else.

    `seed` is that of all samples, or one for each; `lengths` are the positions of each sample, for sequences; the
    longest sets L. The numbers are drawn on the CPU, whatever the `device` of the result.
    """
    lengths = [spec.num_positions] * len(indices) if lengths is None else lengths
    shape = (len(indices), num_steps, max(lengths))
    code, choice = torch.full(shape, 0.5, dtype=torch.float64), torch.full(shape, 0.5)
    for row, (stream, length) in enumerate(zip(sample_streams(seed, indices), lengths, strict=True)):
        fill_uniform(code[row, :, :length], stream)
        fill_uniform(choice[row, :, :length], stream)
    return DepthwiseNoise(code.to(device), choice.clamp_(min=torch.finfo(torch.float32).tiny).to(device))


def steps_per_level(num_steps: int, depth: int, level_decay: float = 1.0) -> list[int]:
    """Spread `num_steps` network evaluations over the levels, at least one each (**Default**; the paper is silent).

    What remains after one step per level is shared in proportion to `level_decay ** level` and rounded to whole steps
    by largest remainder; coarse levels come first among equals. 63 evenly shared steps at depth 16 are 4 for each level
    but the last, which has 3.

    Raises:
        ConfigError: fewer steps than levels.
    """
    if num_steps < depth:
        raise ConfigError(f"num_steps={num_steps} must be at least depth={depth}: every level takes one step or more")
    weights = [level_decay**level for level in range(depth)]
    shares = [(num_steps - depth) * weight / sum(weights) for weight in weights]
    steps = [1 + math.floor(share) for share in shares]
    by_remainder = sorted(range(depth), key=lambda level: math.floor(shares[level]) - shares[level])  # stable
    for level in by_remainder[: num_steps - sum(steps)]:
        steps[level] += 1
    return steps


@torch.inference_mode()
def sample_codes(
    predict: LevelPredictor,
    spec: CodeSpec,
    noise: DepthwiseNoise,
    config: DepthwiseConfig,
    whole: Bool[Tensor, "B L"] | None = None,
    *,
    codes: Int[Tensor, "B L D"] | None = None,
    visible: Int[Tensor, "B L"] | None = None,
    record: Record | None = None,
) -> Int[Tensor, "B L D"]:
    """Decode all levels of a batch, coarse to fine, on the device of the noise.

    Each step draws a code at every masked position of the level, scores it by its log-probability (the model's own,
    before temperature and nucleus) plus annealed Gumbel noise, and keeps the best; the others are redrawn in the
    next step. After step t of a level's T, `ceil(gamma(t/T) n)` of the n positions to decode there remain masked.

    Args:
        predict: one network evaluation. It sees at most `level + 1` levels of a position, also where more are given.
        spec: shape of the codes.
        noise: from `draw_noise`, for the same batch and `config.num_steps`.
        config: settings of the sampler.
        whole: positions of which it sees all that is given: the prompts of sequences, as in training.
        codes: given codes; only the first `visible` levels of a position are read, and those are never altered.
        visible: how many levels of each position are given (none by default).
        record: called after every evaluation; masked levels of the codes are 0.

    Raises:
        ConfigError: fewer steps than levels, only one of `codes` and `visible` is given, or the noise is made for
            another number of steps.
    """
    level_steps = steps_per_level(config.num_steps, spec.depth, config.level_decay)
    batch, num_steps, positions = noise.code.shape
    if num_steps != config.num_steps:
        raise ConfigError(f"noise for {num_steps} steps does not fit num_steps={config.num_steps}")
    codes, visible = given_codes(codes, visible, (batch, positions, spec.depth), noise.code.device)
    levels, weights = torch.arange(spec.depth, device=visible.device), config.guidance
    # Known before the first step, so that none waits for the device: positions are decoded from their `visible` on.
    counts = [(visible.cpu() <= level).sum(1) for level in range(spec.depth)]
    plans = [reveal_plan(config.mask_schedule, *sizes) for sizes in zip(level_steps, counts, strict=True)]
    step = -1
    for level, plan in enumerate(plans):
        for level_step, num_reveal in enumerate(plan):
            step += 1
            if not num_reveal.any():  # reveals nothing, costs nothing
                continue
            prefix = visible.clamp(max=level + 1)
            prefix = prefix if whole is None else torch.where(whole, visible, prefix)
            logits = predict(torch.where(levels < prefix[..., None], codes, 0), prefix, level, weights[step])
            rows = (visible.flatten() == level).nonzero().squeeze(1)
            log_probs = logits.flatten(0, 1)[rows].float().log_softmax(-1)
            uniform = noise.code[:, step].flatten()[rows]
            draws = nucleus_choice(log_probs / config.temperature, uniform, config.top_p)
            confidence = torch.zeros(batch * positions, device=visible.device)
            confidence[rows] = log_probs.gather(1, draws[:, None]).squeeze(1)
            scale = config.choice_temperature * (1 - (level_step + 1) / len(plan))
            scores = confidence.view(batch, positions) - scale * torch.log(-torch.log(noise.choice[:, step]))
            known = (visible > level).long()
            revealed = reveal(scores[..., None], known, num_reveal.to(visible.device)) > known
            proposal = torch.zeros_like(visible).flatten().index_copy_(0, rows, draws).view_as(visible)
            codes = torch.where(revealed[..., None] & (levels == level), proposal[..., None], codes)
            visible = visible + revealed
            if record is not None:
                record(step, weights[step], int(num_reveal.sum()), codes, visible)
    return codes
