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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from resgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CodeSpec:
    """Everything a generator knows of its tokenizer: the shape of a code array.

    Attributes:
        depth: D, residual levels per position.
        codebook_size: V, entries of each level's codebook.
        code_dim: H, width of a codebook vector.
        shape: the grid of positions, `(rows, columns)`; for sequences the most positions that a sample may have,
            `(positions,)`.
    """

    depth: int
    codebook_size: int
    code_dim: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("depth", "codebook_size", "code_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.shape or min(self.shape) < 1:
            raise ConfigError(f"shape={self.shape} must hold one or more positive sizes")

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
    """What a batch of sequences of different lengths is asked for, besides its class.

    Attributes:
        valid: True where a sample has a position; False at the padding after its end.
        prompt: True at the positions of an example: all their codes are given, none is predicted, and the
            unconditional branch of guidance does not see them.
        features: what is wanted at every position, at `feature_stride` rows per position; None for a model that takes
            none.
        kept: False for samples that go without features and prompt, to learn the unconditional branch; None keeps all.
    """

    valid: Bool[Tensor, "B L"]
    prompt: Bool[Tensor, "B L"]
    features: Float[Tensor, "B S C"] | None = None
    kept: Bool[Tensor, " B"] | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], prompts: Sequence[int], features: Sequence[Float[Tensor, "_ C"]] | None = None
    ) -> SequenceCondition:
        """A batch of samples with their own lengths, prompts and features, padded.

        Args:
            lengths: positions of each sample, with its prompt.
            prompts: how many of them, from the first, are the prompt.
            features: of each sample, `feature_stride` rows per position; their device is the result's.
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
        return self.valid if self.kept is None else self.valid & (self.kept[:, None] | ~self.prompt)

    @property
    def wanted(self) -> Bool[Tensor, "B L"]:
        """The positions that are to be predicted."""
        return self.valid & ~self.prompt

    @property
    def lengths(self) -> list[int]:
        """Positions of each sample."""
        return self.valid.sum(1).tolist()

    def to(self, device: torch.device) -> SequenceCondition:
        """The same on another device."""
        return SequenceCondition(
            valid=self.valid.to(device),
            prompt=self.prompt.to(device),
            features=None if self.features is None else self.features.to(device),
            kept=None if self.kept is None else self.kept.to(device),
        )


@runtime_checkable
class Reduce(Protocol):
    """How statistics are combined over processes; the default, `LOCAL`, is a single process."""

    rank: int
    world_size: int

    def sum(self, value: Tensor) -> Tensor:
        """Elementwise sum over processes."""
        ...

    def max(self, value: Tensor) -> Tensor:
        """Elementwise maximum over processes."""
        ...


class _Local:
    rank = 0
    world_size = 1

    def sum(self, value: Tensor) -> Tensor:
        return value

    def max(self, value: Tensor) -> Tensor:
        return value


LOCAL: Reduce = _Local()


@runtime_checkable
class LatentDistribution(Protocol):
    """A distribution over the sum of the masked levels' embeddings at every position of a batch."""

    def sample(
        self,
        rows: Int[Tensor, " N"],
        uniform: Float[Tensor, " N"],
        normal: Float[Tensor, "N H"],
        *,
        top_p: float,
        temperature: float,
    ) -> Float[Tensor, "N H"]:
        """Draw latents at the flattened positions `rows` (index into B*L) from given noise.

        Args:
            rows: which positions to draw.
            uniform: one number in [0, 1) per row; chooses the mixture component.
            normal: standard normal noise per row.
            top_p: mass of the nucleus of components, in (0, 1].
            temperature: scale of the Gaussian noise, >= 0.
        """
        ...


@runtime_checkable
class LevelWalk(Protocol):
    """The masked levels of some rows that are worth drawing, coarse to fine; see `ops.frontier`."""

    def blocks(self, values: Float[Tensor, "N D"], elements: int) -> Iterator[tuple[int, Int[Tensor, " M"]]]:
        """Pairs of a level and rows to draw it for.

        Args:
            values: what the caller finds at every level (log-probabilities, or squared errors), filled in by the caller
                before it asks for the next pair; from them the walk knows which rows need not go on.
            elements: numbers that a row and level take, which sets how many rows come at one time.
        """
        ...


@runtime_checkable
class TokenDistribution(Protocol):
    """A distribution over the masked codes themselves, independent over levels (Eq. 2)."""

    def propose(
        self,
        rows: Int[Tensor, " N"],
        uniform: Float[Tensor, "N D"],
        *,
        top_p: float,
        temperature: float,
        walk: LevelWalk | None = None,
    ) -> tuple[Int[Tensor, "N D"], Float[Tensor, "N D"]]:
        """Draw codes at the flattened positions `rows` (index into B*L), and their log-probabilities.

        Args:
            rows: which positions to draw.
            uniform: one number in [0, 1) per row and level.
            top_p: mass of the nucleus of codes, in (0, 1].
            temperature: divides the logits, above 0.
            walk: which of the masked levels to draw; all of them by default.

        Returns:
            Codes and log-probabilities; 0 at visible levels, and code 0 of log-probability -inf where nothing was
            drawn.
        """
        ...


@runtime_checkable
class Predictor(Protocol):
    """What a sampler knows of a model: codes and what is visible in, a distribution of what is masked out."""

    def __call__(
        self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"], guidance_scale: float
    ) -> LatentDistribution | TokenDistribution:
        """One network evaluation; `guidance_scale` 0 runs the conditional pass only."""
        ...
