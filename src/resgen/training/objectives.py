"""What each kind of generator is trained to do: its loss on a batch of codes, and its held-out likelihood.

One class per way of masking; which one a model takes is decided by `make_objective`. All losses are nats per token that
counts, and `val_loss` is the exact negative log-likelihood in the same unit. Likelihoods of discrete codes (direct
tokens, MaskGIT, RQ-Transformer) are comparable with each other as far as they are conditioned alike; those of mixtures
are densities and are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from resgen.kinds import kind_of
from resgen.losses.mixture import mixture_loss
from resgen.losses.tokens import masked_level_loss, token_loss
from resgen.models.ar_resgen import ARResGen
from resgen.models.base import CodeModel
from resgen.models.maskgit import MaskGIT, draw_level
from resgen.models.resgen import ResGen
from resgen.models.rq_transformer import RQTransformer
from resgen.models.token_head import TokenHead
from resgen.models.valle import Valle
from resgen.ops.masking import num_masked, sample_visible
from resgen.ops.random import generator as make_generator
from resgen.ops.residual import code_histogram, residual_above
from resgen.types import LOCAL, CodeSpec, Reduce, SequenceCondition

VALIDATION_ROWS = 1024
VALIDATION_PROGRESS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
Batch = tuple[Int[Tensor, "B L D"], Int[Tensor, " B"], SequenceCondition | None]
Batches = Iterable[Batch]
M = TypeVar("M", ResGen, ARResGen)


class Objective(Protocol):
    """What the generator's task knows of a kind."""

    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Initialise from data, before the first step."""
        ...

    def loss(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        generator: torch.Generator,
        sequence: SequenceCondition | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and metrics for the log; masks are drawn from `generator`. Of sequences only the `wanted`
        positions count."""
        ...

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Exact likelihoods on held-out codes; the same masks at every call. Has `val_loss`.

        Of several processes each gives its own batches: of all of them number `rank`, `rank + world_size`, ...
        """
        ...


def make_objective(
    model: CodeModel, *, mask_schedule: str, smoothing: float, level_decay: float, data_start: bool
) -> Objective:
    """The objective of a model's kind; see `GeneratorLossConfig` for the settings."""

    def unmasking() -> Objective:
        return UnmaskingObjective(cast(ResGen, model), mask_schedule, smoothing, level_decay, data_start)

    makers: dict[str, Callable[[], Objective]] = {
        "resgen": unmasking,
        "residual": unmasking,
        "direct": unmasking,
        "maskgit": lambda: DepthwiseObjective(cast(MaskGIT, model), mask_schedule, data_start),
        "rq_transformer": lambda: AutoregressiveObjective(cast(RQTransformer, model), data_start),
        "ar_resgen": lambda: LatentAutoregressiveObjective(
            cast(ARResGen, model), mask_schedule, smoothing, level_decay, data_start
        ),
        "valle": lambda: FirstThenRestObjective(cast(Valle, model), data_start),
    }
    return makers[kind_of(model.config).name]()


class _HeadObjective(Generic[M]):
    """What the models with a head for all masked levels share."""

    def __init__(self, model: M, mask_schedule: str, smoothing: float, level_decay: float, data_start: bool) -> None:
        self.model: M = model
        self.mask_schedule, self.data_start = mask_schedule, data_start
        self.smoothing, self.level_decay = smoothing, level_decay

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from data, see `start_head`."""
        if self.data_start:
            start_head(self.model, codes, generator)


class UnmaskingObjective(_HeadObjective[ResGen]):
    """ResGen with any head: all masked levels of all positions at once, masked by the forward process (Sec. 3)."""

    def loss(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        generator: torch.Generator,
        sequence: SequenceCondition | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The batch sum of the mixture's bound (Eq. 1) or of the cross-entropy (Eq. 2) over the number of masked
        tokens."""
        progress = torch.rand(len(codes), generator=generator, dtype=torch.float64, device=generator.device)
        visible = self._draw(codes, progress, generator, sequence)
        rows = self._masked_rows(codes, visible, class_ids, sequence)
        return head_loss(self.model, *rows, self.smoothing, self.level_decay)

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per masked token: by progress of the mask schedule and by visible levels."""
        spec = self.model.spec
        by_level = torch.zeros(2, spec.depth, dtype=torch.float64)
        sums = torch.zeros(2, len(VALIDATION_PROGRESS), dtype=torch.float64)
        for number, (codes, class_ids, sequence) in _numbered(batches, reduce):
            for column, progress in enumerate(VALIDATION_PROGRESS):
                stream = make_generator("validation", f"{progress:.2f}", number)
                everywhere = torch.full((len(codes),), progress, dtype=torch.float64)
                visible = self._draw(codes, everywhere, stream, sequence)
                hidden, true, start = self._masked_rows(codes, visible, class_ids, sequence)
                value = head_nll(self.model, hidden, true, start).double().cpu()
                by_level[0].index_add_(0, start.cpu(), value)
                by_level[1].index_add_(0, start.cpu(), (spec.depth - start.cpu()).double())
                sums[0, column] += value.sum()
                sums[1, column] += (spec.depth - start).sum().cpu()
        return _by_progress(reduce.sum(sums)) | _by_name("nll_visible", reduce.sum(by_level))

    def _draw(
        self,
        codes: Int[Tensor, "B L D"],
        progress: Float[Tensor, " B"],
        generator: torch.Generator,
        sequence: SequenceCondition | None,
    ) -> Int[Tensor, "B L"]:
        """Masks at the given progress of the schedule; what is not wanted of a sequence is visible throughout."""
        length, depth = codes.shape[1:]
        wanted = None if sequence is None else sequence.wanted
        tokens = depth * (length if wanted is None else wanted.sum(1).to(progress.device))
        masked = num_masked(self.mask_schedule, progress, tokens).to(codes.device)
        return sample_visible(masked, length, depth, generator, wanted)

    def _masked_rows(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None,
    ) -> tuple[Float[Tensor, "N O"], Int[Tensor, "N D"], Int[Tensor, " N"]]:
        """Hidden states, true codes and visible levels of the positions with something masked."""
        flat = visible.flatten()
        rows = (flat < self.model.spec.depth).nonzero().squeeze(1)
        hidden = self.model(codes, visible, class_ids, sequence).flatten(0, 1)[rows]
        return hidden, codes.flatten(0, 1)[rows], flat[rows]


class DepthwiseObjective:
    """MaskGIT: one level per sample, its positions masked by the schedule, given all coarser levels."""

    def __init__(self, model: MaskGIT, mask_schedule: str, data_start: bool) -> None:
        self.model, self.mask_schedule, self.data_start = model, mask_schedule, data_start

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        if self.data_start:
            self.model.head.bias.copy_(log_frequencies(codes, self.model.spec))

    def loss(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        generator: torch.Generator,
        sequence: SequenceCondition | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy per masked position."""
        level = torch.randint(codes.shape[2], codes.shape[:1], generator=generator, device=generator.device)
        level = level.to(codes.device)
        progress = torch.rand(len(codes), generator=generator, dtype=torch.float64, device=generator.device)
        visible = draw_level(codes, level, self.mask_schedule, progress, generator, sequence)
        weight = (visible == level[:, None]).float()
        logits, true = self._logits(codes, visible, level, class_ids, sequence)
        return token_loss(logits.flatten(0, 1), true.flatten(), weight.flatten() / weight.sum()), {}

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per masked position, by progress of the mask schedule and by level."""
        spec = self.model.spec
        by_level = torch.zeros(2, spec.depth, dtype=torch.float64)
        sums = torch.zeros(2, len(VALIDATION_PROGRESS), dtype=torch.float64)
        for number, (codes, class_ids, sequence) in _numbered(batches, reduce):
            for column, progress in enumerate(VALIDATION_PROGRESS):
                stream = make_generator("validation", f"{progress:.2f}", number)
                level = torch.arange(len(codes), device=codes.device) % spec.depth
                everywhere = torch.full((len(codes),), progress, dtype=torch.float64)
                visible = draw_level(codes, level, self.mask_schedule, everywhere, stream, sequence)
                logits, true = self._logits(codes, visible, level, class_ids, sequence)
                value = -logits.log_softmax(-1).gather(2, true[..., None]).squeeze(2)
                counts = visible == level[:, None]
                value = (value * counts).sum(1).double().cpu()
                by_level[0].index_add_(0, level.cpu(), value)
                by_level[1].index_add_(0, level.cpu(), counts.sum(1).double().cpu())
                sums[0, column] += value.sum()
                sums[1, column] += counts.sum().cpu()
        return _by_progress(reduce.sum(sums)) | _by_name("nll_level", reduce.sum(by_level))

    def _logits(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        level: Int[Tensor, " B"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None,
    ) -> tuple[Float[Tensor, "B L V"], Int[Tensor, "B L"]]:
        true = codes.gather(2, level[:, None, None].expand(-1, codes.shape[1], 1)).squeeze(2)
        return self.model(codes, visible, level, class_ids, sequence), true


class AutoregressiveObjective:
    """RQ-Transformer: every code given all before it."""

    def __init__(self, model: RQTransformer, data_start: bool) -> None:
        self.model, self.data_start = model, data_start

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        if self.data_start:
            self.model.heads.bias.copy_(log_frequencies(codes, self.model.spec))

    def loss(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        generator: torch.Generator,
        sequence: SequenceCondition | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy per token."""
        sums, count = self.sums(codes, class_ids, sequence)
        return sums.sum() / (count * codes.shape[2]), {}

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per token, over all and by level."""
        by_level = torch.zeros(2, self.model.spec.depth, dtype=torch.float64)
        for codes, class_ids, sequence in batches:
            sums, count = self.sums(codes, class_ids, sequence)
            by_level[0] += sums.double().cpu()
            by_level[1] += float(count)
        by_level = reduce.sum(by_level)
        return {"val_loss": float(by_level[0].sum() / by_level[1].sum())} | _by_name("nll_level", by_level)

    def sums(
        self, codes: Int[Tensor, "B L D"], class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None
    ) -> tuple[Float[Tensor, " D"], Float[Tensor, ""]]:
        """Sums per level, and how many positions they are over; the logits of one level exist at a time."""
        hidden = self.model.hidden(codes, class_ids, sequence)
        wanted = torch.ones_like(codes[..., 0], dtype=torch.bool) if sequence is None else sequence.wanted
        weight = wanted.flatten().float()
        # `unbind` gathers the gradients of all levels at once; indexing would add a full [D, V, O] for each.
        parts = zip(hidden.unbind(2), self.model.heads.weight.unbind(), self.model.heads.bias.unbind(), strict=True)
        logits = (functional.linear(part.flatten(0, 1), matrix, bias) for part, matrix, bias in parts)
        sums = [token_loss(rows, true.flatten(), weight) for rows, true in zip(logits, codes.unbind(2), strict=True)]
        return torch.stack(sums), weight.sum()


class LatentAutoregressiveObjective(_HeadObjective[ARResGen]):
    """AR-ResGen: the masked levels of every position given all positions before it; how many are masked is drawn for
    each position from the schedule."""

    def loss(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        generator: torch.Generator,
        sequence: SequenceCondition | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The head's loss per masked token."""
        progress = torch.rand(codes.shape[:2], generator=generator, dtype=torch.float64, device=generator.device)
        rows = self._rows(codes, class_ids, progress, sequence)
        return head_loss(self.model, *rows, self.smoothing, self.level_decay)

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per masked token, by visible levels."""
        spec = self.model.spec
        by_level = torch.zeros(2, spec.depth, dtype=torch.float64)
        for number, (codes, class_ids, sequence) in _numbered(batches, reduce):
            stream = make_generator("validation", number)
            progress = torch.rand(codes.shape[:2], generator=stream, dtype=torch.float64)
            hidden, true, start = self._rows(codes, class_ids, progress, sequence)
            value = head_nll(self.model, hidden, true, start).double().cpu()
            by_level[0].index_add_(0, start.cpu(), value)
            by_level[1].index_add_(0, start.cpu(), (spec.depth - start.cpu()).double())
        by_level = reduce.sum(by_level)
        return {"val_loss": float(by_level[0].sum() / by_level[1].sum())} | _by_name("nll_visible", by_level)

    def _rows(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        progress: Float[Tensor, "B L"],
        sequence: SequenceCondition | None,
    ) -> tuple[Float[Tensor, "N O"], Int[Tensor, "N D"], Int[Tensor, " N"]]:
        """Hidden states, true codes and visible levels of all wanted positions, with at least one level masked each."""
        depth = self.model.spec.depth
        visible = (depth - num_masked(self.mask_schedule, progress, depth)).clamp(max=depth - 1).to(codes.device)
        hidden = self.model(codes, visible, class_ids, sequence)
        if sequence is None:
            return hidden.flatten(0, 1), codes.flatten(0, 1), visible.flatten()
        return hidden[sequence.wanted], codes[sequence.wanted], visible[sequence.wanted]


class FirstThenRestObjective:
    """VALL-E's scheme: level 0 given all positions before it, and one other level given those above it."""

    def __init__(self, model: Valle, data_start: bool) -> None:
        self.model, self.data_start = model, data_start
        self.first = AutoregressiveObjective(model.first, data_start)

    @torch.no_grad()
    def start(self, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
        """Start from the frequencies of the codes."""
        self.first.start(codes[..., :1], generator)
        if self.data_start:
            self.model.rest.head.bias.copy_(log_frequencies(codes, self.model.spec))

    def loss(
        self,
        codes: Int[Tensor, "B L D"],
        class_ids: Int[Tensor, " B"],
        generator: torch.Generator,
        sequence: SequenceCondition | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both networks' cross-entropies per token."""
        level = 1 + torch.randint(codes.shape[2] - 1, codes.shape[:1], generator=generator, device=generator.device)
        first, _ = self.first.loss(codes[..., :1], class_ids, generator, sequence)
        sums, counts = self._rest(codes, level.to(codes.device), class_ids, sequence)
        rest = sums.sum() / counts.sum()
        return first + rest, {"first": first.detach(), "rest": rest.detach()}

    def validate(self, batches: Batches, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Nats per token, over all and by level."""
        depth = self.model.spec.depth
        by_level = torch.zeros(2, depth, dtype=torch.float64)
        for codes, class_ids, sequence in batches:
            sums, count = self.first.sums(codes[..., :1], class_ids, sequence)
            by_level[:, 0] += torch.stack([sums.sum(), count]).double().cpu()
            for level in range(1, depth):
                values, counts = self._rest(codes, torch.full_like(class_ids, level), class_ids, sequence)
                by_level[:, level] += torch.stack([values.sum(), counts.sum()]).double().cpu()
        by_level = reduce.sum(by_level)
        per_level = by_level[0] / by_level[1]
        return {"val_loss": float(per_level.mean())} | _by_name("nll_level", by_level)

    def _rest(
        self,
        codes: Int[Tensor, "B L D"],
        level: Int[Tensor, " B"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None,
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Sum of the cross-entropies of each sample's level, and how many positions it is over."""
        visible = level[:, None].expand(codes.shape[:2])
        wanted = torch.ones_like(visible, dtype=torch.bool) if sequence is None else sequence.wanted
        visible = torch.where(wanted, visible, codes.shape[2])
        logits = self.model.rest(codes, visible, level, class_ids, sequence)
        true = codes.gather(2, level[:, None, None].expand(-1, codes.shape[1], 1))
        value = -logits.log_softmax(-1).gather(2, true).squeeze(2)
        return (value * wanted).sum(1), wanted.sum(1).float()


def start_head(model: ResGen | ARResGen, codes: Int[Tensor, "B L D"], generator: torch.Generator) -> None:
    """Fit a model's head to data: a mixture to the targets of fully masked positions, logits to the frequencies."""
    if isinstance(model.head, TokenHead):
        model.head.logits.bias.copy_(log_frequencies(codes, model.spec).flatten())
    else:
        model.head.initialize(model.target(codes, torch.zeros_like(codes[..., 0])).flatten(0, 1), generator)


def head_loss(
    model: ResGen | ARResGen,
    hidden: Float[Tensor, "N O"],
    codes: Int[Tensor, "N D"],
    visible: Int[Tensor, " N"],
    smoothing: float,
    level_decay: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of rows with at least one level masked, per masked token: Eq. 1 or, for logits, Eq. 2."""
    if isinstance(model.head, TokenHead):
        head = model.head
        above = None if head.steering is None else residual_above(codes, model.codebooks, visible)
        loss = masked_level_loss(
            hidden, codes, visible, *head.levels, above=above, steering=head.steering, decay=level_decay
        )
        return loss.total / loss.weight, {"nll": loss.per_level.sum() / loss.counts.sum()}
    total = (model.spec.depth - visible).sum()
    weight = (1 / total).expand(len(hidden)).float()  # the batch sum over the number of masked tokens
    bound = mixture_loss(model.head, hidden, model.target(codes, visible), weight, smoothing=smoothing)
    return bound.loss, {"regression": bound.regression, "classification": bound.classification}


def head_nll(
    model: ResGen | ARResGen, hidden: Float[Tensor, "N O"], codes: Int[Tensor, "N D"], visible: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Exact negative log-likelihood of each row's masked levels, in nats."""
    if not isinstance(model.head, TokenHead):
        return -model.head.log_prob(hidden, model.target(codes, visible))
    masked = torch.arange(model.spec.depth, device=codes.device) >= visible[:, None]
    above = residual_above(codes, model.codebooks, visible)
    parts = []
    for begin in range(0, len(hidden), VALIDATION_ROWS):
        rows = slice(begin, begin + VALIDATION_ROWS)
        logits = model.head(hidden[rows], above[rows])
        log_prob = logits.log_softmax(-1).gather(2, codes[rows, :, None]).squeeze(2)
        parts.append(-(log_prob * masked[rows]).sum(1))
    return torch.cat(parts)


def log_frequencies(codes: Int[Tensor, "B L D"], spec: CodeSpec) -> Float[Tensor, "D V"]:
    """Logarithm of how often each code of each level occurs, every code counted once more."""
    counts = code_histogram(codes, spec.codebook_size).float() + 1
    return (counts / counts.sum(1, keepdim=True)).log()


def _numbered(batches: Batches, reduce: Reduce) -> Iterator[tuple[int, Batch]]:
    """A process's batches with their numbers among all; masks are drawn by number."""
    return zip(itertools.count(reduce.rank, reduce.world_size), batches, strict=False)


def _by_progress(sums: Float[Tensor, "2 P"]) -> dict[str, float]:
    """Means per progress of the mask schedule, and their mean as `val_loss`."""
    names = [f"nll_progress/{progress:.2f}" for progress in VALIDATION_PROGRESS]
    metrics = dict(zip(names, (sums[0] / sums[1]).tolist(), strict=True))
    return metrics | {"val_loss": sum(metrics.values()) / len(metrics)}


def _by_name(name: str, sums: Float[Tensor, "2 D"]) -> dict[str, float]:
    """Means per level, where there was something to average."""
    means = (sums[0] / sums[1]).tolist()
    return {f"{name}/{level}": mean for level, mean in enumerate(means) if sums[1, level] > 0}
