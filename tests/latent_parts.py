"""Predictions for samplers' tests that draw latents and quantize them, as the mixture head's do."""

from __future__ import annotations

from typing import Any

import torch

from resgen.ops.residual import confidence_unit, residual_encode
from resgen.samplers.records import Recorder, Samples
from resgen.types import LevelWalk, ProposalNoise


class LatentPrediction:
    """A `types.Distribution` from `sample`, which draws latents at `rows`.

    What derives from it sets `codebooks`, `level_std` and, in every evaluation, the flat `visible`.
    """

    codebooks: torch.Tensor
    level_std: torch.Tensor
    visible: torch.Tensor
    sample: Any

    def propose(
        self,
        rows: torch.Tensor,
        noise: ProposalNoise,
        walk: LevelWalk,
        *,
        top_p: float,
        temperature: float,
        by_component: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        latents = self.sample(rows, noise.uniform[:, 0], noise.normal, top_p=top_p, temperature=temperature)
        start, unit = self.visible[rows], confidence_unit(self.level_std)
        return residual_encode(latents, self.codebooks, start, walk=walk, unit=unit)


def recorded(sampler: Any, *args: Any, num_steps: int | None = None, callback: Any = None, **given: Any) -> Samples:
    """What a sampler gives, with its records; the number of steps is that of the settings by default."""
    visible = given.get("visible")
    record = Recorder(num_steps or args[-1].num_steps, 0 if visible is None else int(visible.sum()), callback)
    return Samples(sampler(*args, record=record, **given), record.steps)
