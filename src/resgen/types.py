"""Data that crosses layers, and the letters used in shapes.

| letter | meaning |
|---|---|
| B | samples of a batch |
| L | positions of the latent sequence or grid |
| D | residual levels (depth), 0 = coarsest |
| V | entries per codebook |
| H | width of a codebook vector (`code_dim`) |
| K | components of the mixture |
| O | width of the transformer |
| S, C | rows and width of the features of a sequence |
| N | rows of a flattened batch (positions of all samples) |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from resgen.errors import check_range


@dataclass(frozen=True, kw_only=True)
class CodeSpec:
    """Everything a generator knows about its tokenizer: the shape of a code array.

    Attributes:
        depth: D, residual levels per position.
        codebook_size: V, entries of each level's codebook.
        code_dim: H, width of a codebook vector.
        shape: the grid of positions, `(rows, columns)`; for sequences the largest number of positions of a sample,
            `(positions,)`.
    """

    depth: int
    codebook_size: int
    code_dim: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check_range(self, 1, "depth", "codebook_size", "code_dim", "shape")

    @property
    def num_positions(self) -> int:
        """L, the product of `shape`."""
        return math.prod(self.shape)

    @property
    def num_tokens(self) -> int:
        """L x D, the codes of one sample."""
        return self.num_positions * self.depth


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceCondition:
    """Conditions of a batch of sequences of different lengths, besides its class.

    Attributes:
        valid: True where a sample has a position; False at the padding after its end.
        prompt: True at the positions of an example: all their codes are given, none is predicted, and the
            unconditional branch of guidance does not see them.
        features: what every position is to hold, at `feature_stride` rows per position; None for a model that takes
            none.
        keep: False for samples that go without features and prompt, to learn the unconditional branch; None keeps
            those of all.
    """

    valid: Bool[Tensor, "B L"]
    prompt: Bool[Tensor, "B L"]
    features: Float[Tensor, "B S C"] | None = None
    keep: Bool[Tensor, " B"] | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], prompts: Sequence[int], features: Sequence[Float[Tensor, "_ C"]] | None = None
    ) -> SequenceCondition:
        """A batch of samples with their own lengths, prompts and features, padded.

        Args:
            lengths: positions of each sample, with its prompt.
            prompts: how many of them, from the first, are the prompt.
            features: features of each sample, `feature_stride` rows per position; their device is the result's.
        """
        device = features[0].device if features else None
        at = torch.arange(max(lengths), device=device)
        return cls(
            valid=at < torch.tensor(lengths, device=device)[:, None],
            prompt=at < torch.tensor(prompts, device=device)[:, None],
            features=pad_sequence(list(features), batch_first=True) if features else None,
        )

    @property
    def attended(self) -> Bool[Tensor, "B L"]:
        """The positions that others may attend to."""
        return self.valid if self.keep is None else self.valid & (self.keep[:, None] | ~self.prompt)

    @property
    def targets(self) -> Bool[Tensor, "B L"]:
        """The positions that are to be predicted."""
        return self.valid & ~self.prompt

    @property
    def lengths(self) -> list[int]:
        """Positions of each sample."""
        return self.valid.sum(1).tolist()

    def to(self, device: torch.device) -> SequenceCondition:
        """The same on another device."""
        moved: dict[str, Any] = {name: part if part is None else part.to(device) for name, part in vars(self).items()}
        return SequenceCondition(**moved)


@runtime_checkable
class Reduce(Protocol):
    """Combines statistics over processes; the default, `LOCAL`, is a single process."""

    rank: int
    world_size: int

    def sum(self, value: Tensor) -> Tensor:
        """Elementwise sum over processes."""

    def max(self, value: Tensor) -> Tensor:
        """Elementwise maximum over processes."""


class _Local:
    rank = 0
    world_size = 1

    def sum(self, value: Tensor) -> Tensor:
        return value

    def max(self, value: Tensor) -> Tensor:
        return value


LOCAL: Reduce = _Local()


class NoiseSize(NamedTuple):
    """Number of random numbers in a proposal at one position: U uniform, G standard normal."""

    uniform: int
    normal: int


class ProposalNoise(NamedTuple):
    """Random numbers of N proposals: uniform in [0, 1) and standard normal."""

    uniform: Float[Tensor, "N U"]
    normal: Float[Tensor, "N G"]


class LevelWalk(Protocol):
    """The masked levels of N rows that are worth drawing, coarse to fine; see `ops.blocks.walk_levels`."""

    def __call__(self, scores: Float[Tensor, "N D"], elements: int) -> Iterator[tuple[int, Int[Tensor, " M"]]]:
        """Pairs of a level and rows to draw it for.

        Args:
            scores: the caller fills them in before it asks for the next pair; they tell which rows need not go on.
            elements: numbers that a row and level take, which sets how many rows come at one time.
        """


@runtime_checkable
class Distribution(Protocol):
    """The prediction of one network evaluation: the masked codes at every position of a batch."""

    def propose(
        self, rows: Int[Tensor, " N"], noise: ProposalNoise, walk: LevelWalk, **settings: Any
    ) -> tuple[Int[Tensor, "N D"], Float[Tensor, "N D"]]:
        """Draw codes, a function of `noise` alone.

        Args:
            rows: flat numbers (into B x L) of the positions to draw for.
            noise: noise of each row.
            walk: which of the masked levels to draw.
            settings: `top_p`, the nucleus of components or codes, in (0, 1]; `temperature` of the Gaussian noise or of
                the logits; `by_component`: a mixture's scores are log-weights of the components that it drew.

        Returns:
            Codes, and what each adds to its position's confidence: both 0 at visible levels; code 0 with a score of
            -inf where nothing was drawn. Scores are never positive.
        """


Record = Callable[[int, float, int, Tensor, Tensor], None]
"""What a sampler tells of an evaluation: `(number from 0, guidance weight, tokens revealed, codes, visible)`; see
`samplers.records.Recorder`."""


@runtime_checkable
class Predictor(Protocol):
    """The model as samplers see it: maps codes and `visible` to a distribution of the masked codes."""

    def __call__(self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"], guidance_scale: float) -> Distribution:
        """One network evaluation; `guidance_scale` 0 runs the conditional pass only."""
