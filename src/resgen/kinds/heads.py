"""How a head for all masked levels of a position is trained: a density of their sum, or the codes themselves."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.kinds.objective import GeneratorLossConfig, log_frequencies
from resgen.losses.mixture import mixture_loss
from resgen.losses.tokens import masked_level_loss, residual_above
from resgen.models.ar_resgen import ARResGen
from resgen.models.head_start import start_mixture
from resgen.models.heads import MixtureHead
from resgen.models.resgen import ResGen
from resgen.models.token_head import TokenHead

VALIDATION_ROWS = 1024


class HeadLoss(Protocol):
    """What the objectives know of a head; rows are positions with at least one level masked."""

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Fit the head to data."""
        ...

    def loss(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss per masked token, and metrics for the log."""
        ...

    def nll(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Exact negative log-likelihood of each row's masked levels, in nats."""
        ...


class DensityLoss:
    """Of a mixture over the sum of the masked embeddings (Eq. 1)."""

    def __init__(self, model: ResGen | ARResGen, head: MixtureHead, config: GeneratorLossConfig) -> None:
        self.model, self.head, self.smoothing = model, head, config.smoothing

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Fit the mixture to the targets of every number of visible levels."""
        flat = codes.flatten(0, 1)
        start_mixture(self.head, lambda c: self.model.target(flat, torch.full_like(flat[:, 0], c)), generator)

    def loss(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bound, summed over the batch, over the number of masked tokens."""
        total = (self.model.spec.depth - visible).sum()
        weight = (1 / total).expand(len(hidden)).float()
        target = self.model.target(codes, visible)
        bound = mixture_loss(self.head, hidden, target, visible, weight, smoothing=self.smoothing)
        return bound.loss, {"regression": bound.regression, "classification": bound.classification}

    def nll(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """See `HeadLoss`."""
        return -self.head.log_prob(hidden, self.model.target(codes, visible), visible)


class CodesLoss:
    """Of logits of the masked codes (Eq. 2), each level alone or given the sum of those above it."""

    def __init__(self, model: ResGen | ARResGen, head: TokenHead, config: GeneratorLossConfig) -> None:
        self.model, self.head, self.level_decay = model, head, config.level_decay

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        self.head.logits.bias.copy_(log_frequencies(codes, self.model.spec).flatten())

    def loss(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy; deeper levels may weigh less."""
        steering = self.head.steering
        above = None if steering is None else residual_above(codes, self.model.codebooks, visible)
        loss = masked_level_loss(
            hidden, codes, visible, *self.head.levels, above=above, steering=steering, decay=self.level_decay
        )
        return loss.total / loss.weight, {"nll": loss.per_level.sum() / loss.counts.sum()}

    def nll(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """See `HeadLoss`."""
        masked = torch.arange(self.model.spec.depth, device=codes.device) >= visible[:, None]
        above = residual_above(codes, self.model.codebooks, visible)
        parts = []
        for begin in range(0, len(hidden), VALIDATION_ROWS):
            rows = slice(begin, begin + VALIDATION_ROWS)
            logits = self.head(hidden[rows], above[rows])
            log_prob = logits.log_softmax(-1).gather(2, codes[rows, :, None]).squeeze(2)
            parts.append(-(log_prob * masked[rows]).sum(1))
        return torch.cat(parts)


def head_loss(model: ResGen | ARResGen, config: GeneratorLossConfig) -> HeadLoss:
    """The loss of a model's head."""
    if isinstance(model.head, MixtureHead):
        return DensityLoss(model, model.head, config)
    return CodesLoss(model, cast(TokenHead, model.head), config)
