"""The losses of a training step, as the trainer asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from resgen.types import LOCAL, Reduce


def losses(
    task: Any, indices: Tensor, step: int, generator: torch.Generator, parts: int = 1, reduce: Reduce = LOCAL
) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """Group, loss and metrics of a process's parts, each computed when the one before it has been taken."""
    size = len(indices) // (parts * reduce.world_size)
    rows = [slice(k * size, (k + 1) * size) for k in range(reduce.rank * parts, (reduce.rank + 1) * parts)]
    for group, compute in task.losses(indices, rows, step, generator, reduce):
        yield group, *compute()
