"""How a head for all masked levels of a position is trained: a density of their sum, or the codes themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.kinds.objective import Batch, GeneratorLossConfig, log_frequencies
from resgen.losses.mixture import mixture_loss, target_log_prob
from resgen.losses.tokens import level_weight, masked_level_loss, residual_above
from resgen.models.ar_resgen import ARResGen
from resgen.models.head_start import start_mixture
from resgen.models.heads import MixtureHead
from resgen.models.metric import MetricHead
from resgen.models.resgen import ResGen
from resgen.models.token_head import TokenHead

VALIDATION_ROWS = 1024
Rows = tuple[Float[Tensor, "N O"], Int[Tensor, "N D"], Int[Tensor, " N"]]
"""Hidden states, true codes and visible levels of positions with something masked."""


class HeadLoss(Protocol):
    """What the objectives know of a head."""

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Fit the head to data."""
        ...

    def loss(self, rows: Rows, whole: Int[Tensor, "G M"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss per masked token of the whole batch, whose masks are `whole`, and metrics for the log."""
        ...

    def nll(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Exact negative log-likelihood of each row's masked levels, in nats."""
        ...


class DensityLoss:
    """Of a mixture over the sum of the masked embeddings (Eq. 1)."""

    def __init__(self, model: ResGen | ARResGen, head: MixtureHead | MetricHead, config: GeneratorLossConfig) -> None:
        self.model, self.head, self.smoothing = model, head, config.smoothing

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Fit the mixture to the targets of every number of visible levels."""
        flat = codes.flatten(0, 1)
        start_mixture(self.head, lambda c: self.model.target(flat, torch.full_like(flat[:, 0], c)), generator)

    def loss(self, rows: Rows, whole: Int[Tensor, "G M"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The bound, summed over the rows, over the number of masked tokens."""
        hidden, codes, visible = rows
        tokens = (self.model.spec.depth - whole).sum()
        weight = (1 / tokens).expand(len(hidden)).float()
        target = self.model.target(codes, visible)
        bound = mixture_loss(self.head, hidden, target, visible, weight, smoothing=self.smoothing)
        return bound.loss, {"regression": bound.regression, "classification": bound.classification}

    def nll(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """See `HeadLoss`."""
        return -target_log_prob(self.head, hidden, self.model.target(codes, visible), visible)


class CodesLoss:
    """Of logits of the masked codes (Eq. 2), each level alone or given the sum of those above it."""

    def __init__(self, model: ResGen | ARResGen, head: TokenHead, config: GeneratorLossConfig) -> None:
        self.model, self.head, self.level_decay = model, head, config.level_decay

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        self.head.logits.bias.copy_(log_frequencies(codes, self.model.spec).flatten())

    def loss(self, rows: Rows, whole: Int[Tensor, "G M"]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy; deeper levels may weigh less."""
        hidden, codes, visible = rows
        depth = self.model.spec.depth
        above, steering = self.above(codes, visible), self.head.steering
        loss = masked_level_loss(
            hidden, codes, visible, *self.head.levels, above=above, steering=steering, decay=self.level_decay
        )
        nll = loss.per_level.sum() / (depth - whole).sum()
        return loss.total / level_weight(whole, depth, self.level_decay), {"nll": nll}

    def nll(
        self, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """See `HeadLoss`."""
        masked = torch.arange(self.model.spec.depth, device=codes.device) >= visible[:, None]
        parts = []
        for begin in range(0, len(hidden), VALIDATION_ROWS):
            rows = slice(begin, begin + VALIDATION_ROWS)
            logits = self.head(hidden[rows], self.above(codes[rows], visible[rows]))
            log_prob = logits.log_softmax(-1).gather(2, codes[rows, :, None]).squeeze(2)
            parts.append(-(log_prob * masked[rows]).sum(1))
        return torch.cat(parts)

    def above(self, codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]) -> Float[Tensor, "N D H"] | None:
        """What every level sees of those above it; None for independent levels."""
        return None if self.head.steering is None else residual_above(codes, self.model.codebooks, visible)


class HeadObjective:
    """What the objectives of models with such a head share: all masked levels of a position at once."""

    def __init__(self, model: ResGen | ARResGen, config: GeneratorLossConfig) -> None:
        make: Callable[..., HeadLoss] = DensityLoss if model.head.is_density else CodesLoss
        self.model, self.head_loss = model, make(model, model.head, config)
        self.mask_schedule, self.data_start = config.mask_schedule, config.data_start

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Fit the head to data."""
        if self.data_start:
            self.head_loss.start(codes, generator)

    def loss(
        self, batch: Batch, visible: Int[Tensor, "B L"], whole: Int[Tensor, "G M"] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The batch sum of the mixture's bound (Eq. 1) or of the cross-entropy (Eq. 2) over the number of masked
        tokens."""
        return self.head_loss.loss(self.masked_rows(batch, visible), visible if whole is None else whole)

    def masked_rows(self, batch: Batch, visible: Int[Tensor, "B L"]) -> Rows:
        """The positions with something masked."""
        codes, class_ids, sequence = batch
        hidden, flat = self.model(codes, visible, class_ids, sequence), visible.flatten()
        rows = (flat < codes.shape[2]).nonzero().squeeze(1)
        return hidden.flatten(0, 1)[rows], codes.flatten(0, 1)[rows], flat[rows]

    def nll(self, batch: Batch, visible: Int[Tensor, "B L"]) -> Float[Tensor, "2 D"]:
        """Sums of the exact negative log-likelihood and of the masked tokens, by visible levels."""
        hidden, codes, start = self.masked_rows(batch, visible)
        value = self.head_loss.nll(hidden, codes, start).double().cpu()
        depth, start = self.model.spec.depth, start.cpu()
        sums = torch.zeros(2, depth, dtype=torch.float64)
        sums[0].index_add_(0, start, value)
        sums[1].index_add_(0, start, (depth - start).double())
        return sums
