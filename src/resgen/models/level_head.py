"""The head of generators that predict one level at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from resgen.models.base import INIT_STD
from resgen.ops.mixture import at_least_float32


class LevelHead(nn.Module):
    """One linear map from the width to the logits of each level, of which only the levels at hand are multiplied.

    The product may run in bfloat16; logits are returned as float32.

    Args:
        width: O.
        depth: D.
        codebook_size: V.
    """

    def __init__(self, width: int, depth: int, codebook_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(depth, codebook_size, width))
        self.bias = nn.Parameter(torch.zeros(depth, codebook_size))
        nn.init.normal_(self.weight, std=INIT_STD)

    def forward(self, hidden: Float[Tensor, "B L O"], level: Int[Tensor, " B"]) -> Float[Tensor, "B L V"]:
        """Logits of each sample's own level; samples of one level are multiplied together."""
        order = level.argsort(stable=True)
        counts = torch.bincount(level, minlength=len(self.weight)).tolist()
        # `unbind` gathers the gradients of all levels at once; indexing would add a full [D, V, O] for each.
        parts = zip(hidden[order].split(counts), self.weight.unbind(), self.bias.unbind(), strict=True)
        logits = torch.cat([functional.linear(part, weight, bias) for part, weight, bias in parts if len(part)])
        return at_least_float32(logits[order.argsort()])

    def at_level(self, hidden: Float[Tensor, "*rows O"], level: int) -> Float[Tensor, "*rows V"]:
        """Logits of one level for all rows."""
        return at_least_float32(functional.linear(hidden, self.weight[level], self.bias[level]))

    def each_level(self, hidden: Float[Tensor, "B L D O"]) -> Iterator[Float[Tensor, "B L V"]]:
        """Logits of one level after the other, from a hidden state for each; not yet float32."""
        # `unbind` gathers the gradients of all levels at once; indexing would add a full [D, V, O] for each.
        parts = zip(hidden.unbind(2), self.weight.unbind(), self.bias.unbind(), strict=True)
        return (functional.linear(*part) for part in parts)
