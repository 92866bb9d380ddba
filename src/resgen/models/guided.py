"""Guided evaluations of the generators that see all positions at once: ResGen and MaskGIT."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError
from resgen.models.base import CodeModel
from resgen.ops.guidance import guide
from resgen.types import SequenceCondition


class GuidedEvaluation:
    """Evaluations of a generator for a sampler: what does not change is computed once, and all branches of guidance run
    as one batch.

    Args:
        model: to evaluate.
        embed: network input of all positions, from codes and what is visible of them.
        sequence: the condition, for sequences.
        prompt_guidance: share of the guidance that is away from the request without its prompt.
    """

    def __init__(
        self,
        model: CodeModel,
        embed: Callable[[Tensor, Tensor], Tensor],
        sequence: SequenceCondition | None,
        prompt_guidance: float = 0.0,
    ) -> None:
        if prompt_guidance and sequence is None:
            raise ConfigError(f"prompt_guidance={prompt_guidance} is for sequences with prompts; set it to 0")
        self.model, self.embed, self.prompt_guidance = model, embed, prompt_guidance
        self.features, self.valid = model.branches(sequence, prompt_guidance)

    def __call__(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        modulations: Sequence[Float[Tensor, "_ 8 O"]],
        guidance_scale: float,
    ) -> Float[Tensor, "B L O"]:
        """Guided hidden states.

        Args:
            codes: those of masked levels are never looked at.
            visible: levels of each position.
            modulations: that of the conditional branch, then those to move away from, as `CodeModel.branches` orders
                them; the latter of every sample, or one for all.
            guidance_scale: 0 runs the conditional branch only.
        """
        branches = modulations if guidance_scale else modulations[:1]
        modulation = torch.cat([branch.expand_as(modulations[0]) for branch in branches])
        x = self.embed(codes, visible).repeat(len(branches), 1, 1)
        if self.features is not None:
            x = x + self.features[: len(x)]
        valid = None if self.valid is None else self.valid[: len(x)]
        hidden = self.model.transformer(x, modulation, self.model.positions.angles(x.shape[1]), valid)
        conditional, *away = hidden.split(len(codes))
        if not away:
            return conditional
        other = away[0] if len(away) == 1 else torch.lerp(away[0], away[1], self.prompt_guidance)
        return guide(conditional, other, guidance_scale)
