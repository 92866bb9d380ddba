"""Which levels one step can still reveal: the others are never drawn.

A step of Algorithm 2 proposes codes for all masked levels and keeps the best few. Scores never grow with depth but for
the noise that is added to them, and the noise is drawn beforehand. So once enough tokens have better scores than any
deeper level of a position could get, that position's deeper levels cannot be revealed, and drawing them would change
nothing. What is left costs about as much as there is to reveal, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.ops.blocks import rows_per_block

ROUNDING = 1e-4
"""Relative error of scores that are added up here, level by level, and elsewhere in other orders."""


class LevelsUntil:
    """`types.LevelWalk` over the levels `visible..end - 1` of every row.

    Args:
        visible: first level of each row, 0..D.
        end: what each row's levels end before.
    """

    def __init__(self, visible: Int[Tensor, " N"], end: Int[Tensor, " N"]) -> None:
        self.visible, self.end = visible, end

    def blocks(self, values: Float[Tensor, "N D"], elements: int) -> Iterator[tuple[int, Int[Tensor, " M"]]]:
        """Levels, coarse to fine, and blocks of the rows to draw them for; see `types.LevelWalk`."""
        size = rows_per_block(elements, self.visible.device)
        for level in range(values.shape[1]):
            rows = self.rows(level).nonzero().squeeze(1)
            if len(rows):
                yield from ((level, part) for part in rows.split(size))
                self.finish(level, rows, values[rows, level])

    def rows(self, level: int) -> Bool[Tensor, " N"]:
        """Those to draw this level for."""
        return (self.visible <= level) & (level < self.end)

    def finish(self, level: int, rows: Int[Tensor, " M"], values: Float[Tensor, " M"]) -> None:
        """Take note of what the level gave."""


class Frontier(LevelsUntil):
    """`types.LevelWalk` over the levels that one step of confidence unmasking can reveal.

    Args:
        visible: visible levels of every position.
        rows: flat numbers (into B x L) of the positions that are drawn for, the N rows of the walk.
        noise: what is added to every token's confidence.
        num_reveal: tokens that each sample reveals.
        unit: what a value of each level is multiplied by to become a confidence, never positive; a position's
            confidence at a level is the sum down to there. 1 by default, for log-probabilities.
    """

    def __init__(
        self,
        visible: Int[Tensor, "B L"],
        rows: Int[Tensor, " N"],
        noise: Float[Tensor, "B L D"],
        num_reveal: Int[Tensor, " B"],
        unit: Float[Tensor, " D"] | None = None,
    ) -> None:
        batch, positions, depth = noise.shape
        flat = noise.reshape(-1, depth)[rows]
        super().__init__(visible.flatten()[rows], torch.full_like(rows, depth))
        self.sample, self.place = rows // positions, rows
        self.noise, self.unit = flat, unit
        never = flat.new_full((len(flat), 1), -torch.inf)
        self.later = torch.cat([flat.flip(1).cummax(1).values.flip(1), never], dim=1)
        self.confidence = flat.new_zeros(len(flat))
        self.scores = noise.new_full((batch * positions, depth), -torch.inf)
        self.most, self.num_reveal = int(num_reveal.max()), num_reveal.to(noise.device)
        self.end = torch.where(self.num_reveal[self.sample] > 0, self.end, 0)

    def finish(self, level: int, rows: Int[Tensor, " M"], values: Float[Tensor, " M"]) -> None:
        """End the rows whose later levels are out of reach."""
        gain = values.to(self.confidence.dtype) * (1 if self.unit is None else self.unit[level])
        self.confidence[rows] += gain
        self.scores[self.place[rows], level] = self.confidence[rows] + self.noise[rows, level]
        seen = self.scores[:, : level + 1].reshape(len(self.num_reveal), -1)
        if not 0 < self.most <= seen.shape[1]:
            return
        best = seen.topk(self.most, dim=1).values
        least = best.gather(1, (self.num_reveal - 1).clamp(min=0)[:, None]).squeeze(1)[self.sample]
        # A row that has not begun has the confidence 0.
        next_level = self.visible.clamp(min=level + 1)
        reach = self.confidence + self.later.gather(1, next_level[:, None]).squeeze(1)
        hopeless = reach < least - ROUNDING * (1 + least.abs())
        self.end = torch.where(hopeless, 0, self.end)
