"""Which tokens a step of iterative unmasking reveals (Algorithm 2, App. B.1), and which levels are worth drawing.

A step proposes codes for all masked levels and keeps a few. At random it is known beforehand which. By confidence the
best are kept: scores never grow with depth but for noise that is drawn beforehand. So once enough tokens have better
scores than any deeper level of a position could get, drawing those levels would change nothing. What is left costs
about as much as there is to reveal, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.ops.blocks import rows_per_block, walk_levels
from resgen.ops.masking import reveal

ROUNDING = 1e-4
"""Relative error of scores that are added up here, level by level, and elsewhere in other orders."""


class RandomOrder:
    """`BinaryUnmask` of Algorithm 2.

    Args:
        visible: visible levels of every position.
        rows: flat numbers (into B x L) of the N positions with a masked level.
        choice: uniform noise of every token.
        num_reveal: tokens that each sample reveals.
        choice_temperature: not used here.
    """

    def __init__(
        self,
        visible: Int[Tensor, "B L"],
        rows: Int[Tensor, " N"],
        choice: Float[Tensor, "B L D"],
        num_reveal: Int[Tensor, " B"],
        choice_temperature: float,
    ) -> None:
        self.next_visible = reveal(choice, visible, num_reveal.to(visible.device))
        self.walk = walk_levels(visible.flatten()[rows], self.next_visible.flatten()[rows])

    def reveal(self, scores: Float[Tensor, "N D"]) -> Int[Tensor, "B L"]:
        """Visible levels after the step, whatever was drawn."""
        return self.next_visible


class ConfidenceOrder:
    """The most confident tokens first: a token's confidence is the sum of its position's scores down to its level,
    plus Gumbel noise times `choice_temperature` (App. B.1). Arguments as in `RandomOrder`."""

    def __init__(
        self,
        visible: Int[Tensor, "B L"],
        rows: Int[Tensor, " N"],
        choice: Float[Tensor, "B L D"],
        num_reveal: Int[Tensor, " B"],
        choice_temperature: float,
    ) -> None:
        self.visible, self.rows, self.most = visible, rows, int(num_reveal.max())
        self.num_reveal = num_reveal.to(visible.device)
        self.noise = -choice_temperature * torch.log(-torch.log(choice))

    def reveal(self, scores: Float[Tensor, "N D"]) -> Int[Tensor, "B L"]:
        """Visible levels after the step."""
        confidence = torch.zeros_like(self.noise).flatten(0, 1)
        confidence[self.rows] = scores.cumsum(1).to(confidence.dtype)
        return reveal(confidence.view_as(self.noise) + self.noise, self.visible, self.num_reveal)

    def walk(self, scores: Float[Tensor, "N D"], elements: int) -> Iterator[tuple[int, Int[Tensor, " M"]]]:
        """`types.LevelWalk` over the levels that the step can reveal."""
        batch, positions, depth = self.noise.shape
        start, sample = self.visible.flatten()[self.rows], self.rows // positions
        noise = self.noise.flatten(0, 1)[self.rows]
        never = noise.new_full((len(noise), 1), -torch.inf)
        best_below = torch.cat([noise.flip(1).cummax(1).values.flip(1), never], dim=1)  # of a level or a deeper one
        confidence = noise.new_zeros(len(noise))
        reached = noise.new_full((batch * positions, depth), -torch.inf)
        going_on = self.num_reveal[sample] > 0
        for level in range(depth):
            rows = ((start <= level) & going_on).nonzero().squeeze(1)
            if not len(rows):
                continue
            yield from ((level, part) for part in rows.split(rows_per_block(elements, rows.device)))
            confidence[rows] += scores[rows, level].to(confidence.dtype)
            reached[self.rows[rows], level] = confidence[rows] + noise[rows, level]
            candidates = reached[:, : level + 1].reshape(batch, -1)
            if not 0 < self.most <= candidates.shape[1]:
                continue
            best = candidates.topk(self.most, dim=1).values
            least = best.gather(1, (self.num_reveal - 1).clamp(min=0)[:, None]).squeeze(1)[sample]
            # A row that has not begun has the confidence 0.
            reach = confidence + best_below.gather(1, start.clamp(min=level + 1)[:, None]).squeeze(1)
            going_on = going_on & ~(reach < least - ROUNDING * (1 + least.abs()))


ORDERS: dict[str, Any] = {"confidence": ConfidenceOrder, "component": ConfidenceOrder, "random": RandomOrder}
