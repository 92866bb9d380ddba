"""Conditions: what a generator is asked for, as one vector per sample."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ClassCondition(nn.Module):
    """One learned vector per class, and one for "no class" (`null_id`), which guidance and unlabelled data use."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.null_id = num_classes
        self.embedding = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, class_ids: Int[Tensor, " B"]) -> Float[Tensor, "B O"]:
        return self.embedding(class_ids)

    def drop(self, class_ids: Int[Tensor, " B"], probability: float, generator: torch.Generator) -> Int[Tensor, " B"]:
        """Replace each class by "no class" with the given probability (0.1 in the paper)."""
        dropped = (
            torch.rand(class_ids.shape, generator=generator, device=generator.device).to(class_ids.device) < probability
        )
        return torch.where(dropped, self.null_id, class_ids)
