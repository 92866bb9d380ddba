"""Coarse-to-fine iterative unmasking (Algorithm 2, App. B.1): a few dozen network evaluations, whatever the length
or depth.

How a step decides which levels are drawn: `sample_codes` makes an order (`ORDERS`) from the noise, and hands its `walk`
to `Distribution.propose`, which hands it to the head. That asks it for a level and the rows to draw it for: a
`LatentHead` in `residual_encode`, a `TokenHead` itself. It fills in their scores; from these `walk` tells which rows
go on to the next level. With all scores, `order.reveal` says what of the drawn is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError, check_range, unknown
from resgen.ops.guidance import guidance_weights
from resgen.ops.masking import MAX_STEPS, SCHEDULES, given_codes, reveal_plan
from resgen.ops.random import fill_normal, fill_uniform, sample_streams
from resgen.ops.sampling import LEAST_TOP_P
from resgen.samplers.order import ORDERS
from resgen.types import CodeSpec, NoiseSize, Predictor, ProposalNoise, Record


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of iterative unmasking.

    Attributes:
        num_steps: T; network evaluations at most (steps that would reveal nothing are skipped).
        mask_schedule: gamma, one of `ops.masking.SCHEDULES`.
        unmasking: by `confidence` (App. B.1), at `random` (BinaryUnmask of Algorithm 2) or, a deviation, by the weight
            of the `component` that a mixture drew; heads of codes have one confidence.
        top_p: nucleus of the mixture's components, or of codes, in (0, 1].
        temperature: scale of the Gaussian noise within a component, >= 0; of codes it divides the logits, > 0.
        choice_temperature: tau, scale of the Gumbel noise on confidence scores, >= 0, in nats; good values grow with H.
        guidance_first: guidance weight of the first step; 0.02 in Table 4, 0 saves a pass.
        guidance_scale: guidance weight of the last step, linear in between; 0 switches guidance off altogether.
        guidance_start: fraction of the steps that come before guidance starts.
        guidance_end: fraction of the steps after which it ends; a single step ignores both.
        prompt_guidance: fraction of the guidance, in [0, 1], that points away from the same request without its prompt,
            instead of away from no request: it strengthens what the prompt alone determines, such as a voice (a
            deviation from the paper). Between 0 and 1 a guided step computes three branches. Sequences only.
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
        check_range(self, 1, "num_steps", most=MAX_STEPS)
        if self.mask_schedule not in SCHEDULES:
            raise ConfigError(unknown("mask schedule", self.mask_schedule, SCHEDULES))
        if self.unmasking not in ORDERS:
            raise ConfigError(unknown("unmasking", self.unmasking, ORDERS))
        check_range(self, LEAST_TOP_P, "top_p", most=1)
        check_range(self, 0, "temperature", "choice_temperature", "guidance_first", "guidance_scale", below=math.inf)
        if not 0 <= self.guidance_start < self.guidance_end <= 1:
            interval = f"guidance_start={self.guidance_start} and guidance_end={self.guidance_end}"
            raise ConfigError(f"{interval} must lie in 0 <= start < end <= 1")
        check_range(self, 0, "prompt_guidance", most=1)

    @property
    def guidance(self) -> list[float]:
        """Guidance weight of every step."""
        interval = (self.guidance_start, self.guidance_end)
        return guidance_weights(self.num_steps, self.guidance_first, self.guidance_scale, interval)

    def passes(self, guidance_scale: float) -> int:
        """Number of branches that an evaluation with this guidance computes."""
        return (3 if 0 < self.prompt_guidance < 1 else 2) if guidance_scale else 1


class Noise(NamedTuple):
    """All random numbers of a batch, for every step (T steps).

    Attributes:
        uniform: in [0, 1), for the proposals; float64.
        normal: standard normal, for the proposals.
        choice: uniform in (0, 1); random unmasking, or Gumbel noise of confidence unmasking.
    """

    uniform: Float[Tensor, "B T L U"]
    normal: Float[Tensor, "B T L G"]
    choice: Float[Tensor, "B T L D"]

    def proposal(self, step: int, rows: Int[Tensor, " N"]) -> ProposalNoise:
        """What a step's proposals at the flat positions `rows` take."""
        return ProposalNoise(*(part[:, step].flatten(0, 1)[rows] for part in (self.uniform, self.normal)))


def draw_noise(
    seed: int | Sequence[int],
    indices: Sequence[int],
    num_steps: int,
    spec: CodeSpec,
    size: NoiseSize,
    *,
    lengths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Noise:
    """Noise of the samples `indices` of a call: sample k's stream is derived from (seed, k) and nothing else.

    Args:
        seed: one seed for all samples, or one for each.
        indices: numbers of the samples.
        num_steps: T.
        spec: shape of the codes.
        size: what the model's distribution takes per position.
        lengths: positions of each sample, for sequences; the longest sets L, and what is beyond a sample's end is 0.5
            or 0. All positions of the `spec` by default.
        device: device of the result; the numbers are drawn on the CPU and do not depend on it.
    """
    lengths = [spec.num_positions] * len(indices) if lengths is None else lengths
    shape = (len(indices), num_steps, max(lengths))
    uniform = torch.full((*shape, size.uniform), 0.5, dtype=torch.float64)
    normal = torch.zeros(*shape, size.normal)
    choice = torch.full((*shape, spec.depth), 0.5)
    for row, (stream, length) in enumerate(zip(sample_streams(seed, indices), lengths, strict=True)):
        fill_uniform(uniform[row, :, :length], stream)
        fill_normal(normal[row, :, :length], stream)
        fill_uniform(choice[row, :, :length], stream)
    choice.clamp_(min=torch.finfo(torch.float32).tiny)
    return Noise(*(part.to(device) for part in (uniform, normal, choice)))


@torch.inference_mode()
def sample_codes(
    predict: Predictor,
    noise: Noise,
    config: SamplingConfig,
    *,
    codes: Int[Tensor, "B L D"] | None = None,
    visible: Int[Tensor, "B L"] | None = None,
    record: Record | None = None,
) -> Int[Tensor, "B L D"]:
    """Algorithm 2 for a batch, on the device of the noise.

    Args:
        predict: one network evaluation.
        noise: from `draw_noise`, for the same batch and `config.num_steps`.
        config: settings.
        codes: given codes; only the first `visible` levels of a position are read, and those are never altered.
        visible: how many levels of each position are given (none by default). The schedule then covers the remaining
            tokens.
        record: called after every evaluation; masked levels of the codes are 0.

    Raises:
        ConfigError: only one of `codes` and `visible` is given, or the noise is made for another number of steps.
    """
    batch, num_steps, positions, depth = noise.choice.shape
    if num_steps != config.num_steps:
        raise ConfigError(f"noise for {num_steps} steps does not fit num_steps={config.num_steps}")
    codes, visible = given_codes(codes, visible, (batch, positions, depth), noise.choice.device)
    levels, masked = torch.arange(depth, device=visible.device), (depth - visible).sum(1).cpu()
    likely, weights = config.unmasking == "component", config.guidance
    settings = {"top_p": config.top_p, "temperature": config.temperature, "by_component": likely}
    for step, num_reveal in enumerate(reveal_plan(config.mask_schedule, num_steps, masked)):
        if not num_reveal.any():  # reveals nothing, costs nothing
            continue
        weight = weights[step]
        distribution = predict(codes, visible, weight)
        rows = (visible < depth).flatten().nonzero().squeeze(1)
        order = ORDERS[config.unmasking](visible, rows, noise.choice[:, step], num_reveal, config.choice_temperature)
        draws, scores = distribution.propose(rows, noise.proposal(step, rows), order.walk, **settings)
        proposal = torch.zeros_like(codes).flatten(0, 1).index_copy_(0, rows, draws).view_as(codes)
        next_visible = order.reveal(scores)
        revealed = (levels >= visible[..., None]) & (levels < next_visible[..., None])
        codes, visible = torch.where(revealed, proposal, codes), next_visible
        if record is not None:
            record(step, weight, int(num_reveal.sum()), codes, visible)
    return codes
