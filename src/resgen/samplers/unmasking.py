"""Coarse-to-fine iterative unmasking (Algorithm 2, App. B.1): a few dozen network evaluations, whatever the length
or depth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError, unknown
from resgen.ops.confidence import confidence_unit, cumulative_confidence
from resgen.ops.frontier import Frontier, LevelsUntil
from resgen.ops.guidance import check_interval, guidance_weights
from resgen.ops.masking import SCHEDULES, num_masked, reveal
from resgen.ops.random import fill_normal, fill_uniform, sample_streams
from resgen.ops.residual import codebook_norms, residual_encode
from resgen.types import CodeSpec, Predictor, TokenDistribution

UNMASKING = ("confidence", "random")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of iterative unmasking.

    Attributes:
        num_steps: T; network evaluations at most (steps that would reveal nothing are skipped).
        mask_schedule: gamma, one of `ops.masking.SCHEDULES`.
        unmasking: `confidence` or `random` (Algorithm 2's BinaryUnmask).
        top_p: nucleus of the mixture's components, in (0, 1].
        temperature: scale of the Gaussian noise within a component, >= 0.
        choice_temperature: tau, scale of the Gumbel noise on confidence scores, >= 0; in nats, it grows with H.
        guidance_first: guidance weight of the first step.
        guidance_scale: guidance weight of the last step, linear in between; 0 switches guidance off altogether.
        guidance_start: share of the steps that are taken before guidance sets in.
        guidance_end: share of the steps after which it is off again.
        prompt_guidance: share of the guidance, in [0, 1], that is away from the same request without its prompt, and
            not from no request at all: it strengthens what the prompt alone tells, such as a voice (a deviation from
            the paper). Between 0 and 1 a guided step computes three branches in place of two. Sequences only.
    """

    tag: ClassVar[str] = "unmasking"
    num_steps: int = 28
    mask_schedule: str = "circle"
    unmasking: str = "confidence"
    top_p: float = 0.94
    temperature: float = 1.0
    choice_temperature: float = 28.0
    guidance_first: float = 0.0
    guidance_scale: float = 2.4
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    prompt_guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"num_steps={self.num_steps} must be at least 1")
        if self.mask_schedule not in SCHEDULES:
            raise ConfigError(unknown("mask schedule", self.mask_schedule, SCHEDULES))
        if self.unmasking not in UNMASKING:
            raise ConfigError(unknown("unmasking", self.unmasking, UNMASKING))
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]")
        for name in ("temperature", "choice_temperature", "guidance_first", "guidance_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be a number of at least 0")
        check_interval(self.guidance_start, self.guidance_end)
        if not 0 <= self.prompt_guidance <= 1:
            raise ConfigError(f"prompt_guidance={self.prompt_guidance} must lie in [0, 1]")

    def passes(self, guidance_scale: float) -> int:
        """Branches that an evaluation with this guidance computes."""
        return (3 if 0 < self.prompt_guidance < 1 else 2) if guidance_scale else 1


class Noise(NamedTuple):
    """All random numbers of a batch, for every step (T steps).

    Attributes:
        component: uniform in [0, 1); chooses the mixture component, or with `tokens` the code of every level.
        latent: standard normal; the Gaussian within the component (without columns with `tokens`).
        choice: uniform in (0, 1); random unmasking, or Gumbel noise of confidence unmasking.
    """

    component: Float[Tensor, "B T L *D"]
    latent: Float[Tensor, "B T L H"]
    choice: Float[Tensor, "B T L D"]


class StepRecord(NamedTuple):
    """What one network evaluation did, over the whole batch; `passes`: the branches of guidance that it computed."""

    step: int
    num_steps: int
    guidance_scale: float
    revealed: int
    visible_tokens: int
    seconds: float
    passes: int


class Samples(NamedTuple):
    """Finished codes `[B, L, D]` and one record per network evaluation."""

    codes: Int[Tensor, "B L D"]
    steps: list[StepRecord]


StepCallback = Callable[[StepRecord, Tensor, Tensor], None]


def draw_noise(
    seed: int | Sequence[int],
    indices: Sequence[int],
    num_steps: int,
    spec: CodeSpec,
    *,
    tokens: bool = False,
    lengths: Sequence[int] | None = None,
) -> Noise:
    """Noise of the samples `indices` of a call: sample k's stream is derived from (seed, k) and nothing else.

    Args:
        seed: of all samples, or one for each.
        indices: numbers of the samples.
        num_steps: T.
        spec: shape of the codes.
        tokens: for a predictor that gives a `TokenDistribution`.
        lengths: positions of each sample, for sequences; the longest sets L, and what is beyond a sample's end is 0.5
            or 0. All positions of the `spec` by default.
    """
    lengths = [spec.num_positions] * len(indices) if lengths is None else lengths
    shape = (len(indices), num_steps, max(lengths))
    component = torch.full((*shape, *((spec.depth,) if tokens else ())), 0.5, dtype=torch.float64)
    latent = torch.zeros(*shape, 0 if tokens else spec.code_dim)
    choice = torch.full((*shape, spec.depth), 0.5)
    for row, (stream, length) in enumerate(zip(sample_streams(seed, indices), lengths, strict=True)):
        fill_uniform(component[row, :, :length], stream)
        fill_normal(latent[row, :, :length], stream)
        fill_uniform(choice[row, :, :length], stream)
    return Noise(component, latent, choice.clamp_(min=torch.finfo(torch.float32).tiny))


@torch.inference_mode()
def sample_codes(
    predict: Predictor,
    codebooks: Float[Tensor, "D V H"],
    level_std: Float[Tensor, " D"],
    noise: Noise,
    config: SamplingConfig,
    *,
    codes: Int[Tensor, "B L D"] | None = None,
    visible: Int[Tensor, "B L"] | None = None,
    callback: StepCallback | None = None,
) -> Samples:
    """Algorithm 2 for a batch.

    Args:
        predict: one network evaluation.
        codebooks: embeddings of the codes, in the unit of the predictions.
        level_std: `sigma_d`, root mean square of the residual after each level, in the same unit.
        noise: from `draw_noise`, for the same batch and `config.num_steps`.
        codes: given codes; only the first `visible` levels of a position are read, and those are never altered.
        visible: how many levels of each position are given (none by default). The schedule then covers the remaining
            tokens.
        callback: called after every evaluation with (record, codes, visible); masked levels of `codes` are 0.

    Raises:
        ConfigError: only one of `codes` and `visible` is given, or the noise is made for another number of steps.
    """
    if (codes is None) != (visible is None):
        raise ConfigError("codes and visible must be given together")
    if noise.component.shape[1] != config.num_steps:
        raise ConfigError(f"noise for {noise.component.shape[1]} steps does not fit num_steps={config.num_steps}")
    batch, num_steps, positions = noise.component.shape[:3]
    depth, device = codebooks.shape[0], codebooks.device
    levels = torch.arange(depth, device=device)
    if codes is None or visible is None:
        codes = torch.zeros(batch, positions, depth, dtype=torch.int64, device=device)
        visible = torch.zeros(batch, positions, dtype=torch.int64, device=device)
    codes = torch.where(levels < visible[..., None], codes, 0)
    noise = Noise(*(part.to(device) for part in noise))
    weights = guidance_weights(
        num_steps, config.guidance_first, config.guidance_scale, (config.guidance_start, config.guidance_end)
    )
    plan = reveal_plan(config.mask_schedule, num_steps, (depth - visible).sum(1).cpu())
    norms, unit = codebook_norms(codebooks), confidence_unit(level_std)
    records: list[StepRecord] = []
    for step, num_reveal in enumerate(plan):
        if not num_reveal.any():  # reveals nothing, costs nothing
            continue
        started = time.perf_counter()
        weight = weights[step] if config.guidance_scale else 0.0
        distribution = predict(codes, visible, weight)
        rows = (visible.flatten() < depth).nonzero().squeeze(1)
        start, scores = visible.flatten()[rows], noise.choice[:, step]
        tokens, now_visible = isinstance(distribution, TokenDistribution), visible
        # What cannot be revealed in this step is not drawn.
        if config.unmasking == "random":
            now_visible = reveal(scores, visible, num_reveal.to(device))
            walk = LevelsUntil(start, now_visible.flatten()[rows])
        else:
            scores = -config.choice_temperature * torch.log(-torch.log(scores))  # Gumbel noise
            walk = Frontier(visible, rows, scores, num_reveal, None if tokens else unit)
        uniform = noise.component[:, step].flatten(0, 1)[rows]
        if isinstance(distribution, TokenDistribution):
            drawn, log_prob = distribution.propose(
                rows, uniform, top_p=config.top_p, temperature=config.temperature, walk=walk
            )
            confidence = log_prob.cumsum(dim=-1)  # visible levels count 0
        else:
            latents = distribution.sample(
                rows,
                uniform,
                noise.latent[:, step].flatten(0, 1)[rows],
                top_p=config.top_p,
                temperature=config.temperature,
            )
            drawn, errors = residual_encode(latents, codebooks, start, walk=walk, norms=norms)
            confidence = cumulative_confidence(errors, start, level_std)
        if config.unmasking == "confidence":
            everywhere = torch.zeros(batch * positions, depth, device=device)
            everywhere[rows] = confidence.to(everywhere.dtype)
            now_visible = reveal(everywhere.view_as(scores) + scores, visible, num_reveal.to(device))
        proposed = torch.zeros_like(codes).view(-1, depth).index_copy_(0, rows, drawn).view_as(codes)
        revealed = (levels >= visible[..., None]) & (levels < now_visible[..., None])
        codes, visible = torch.where(revealed, proposed, codes), now_visible
        done = sum(int(part.sum()) for part in plan[step + 1 :])
        total = batch * positions * depth - done
        records.append(
            StepRecord(
                step + 1,
                num_steps,
                weight,
                int(num_reveal.sum()),
                total,
                time.perf_counter() - started,
                config.passes(weight),
            )
        )
        if callback is not None:
            callback(records[-1], codes, visible)
    return Samples(codes, records)


def reveal_plan(mask_schedule: str, num_steps: int, masked: Int[Tensor, " B"]) -> list[Int[Tensor, " B"]]:
    """How many tokens each sample reveals in each step, for `masked` tokens to begin with: differences of
    `ceil(gamma(t/T) masked)`, known before the first step, so that no step waits for the device."""
    left = masked
    plan = []
    for step in range(1, num_steps + 1):
        stay = torch.minimum(num_masked(mask_schedule, step / num_steps, masked), left)
        plan.append(left - stay)
        left = stay
    return plan
