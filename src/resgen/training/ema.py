"""Exponential moving average of a module's parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from resgen.checkpoints.tensors import canonical_name, check_match
from resgen.training.sharding import like


def ema_decay_at(step: int, decay: float) -> float:
    """`min(decay, (1 + step) / (10 + step))`: the average starts short, so that early weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


@contextlib.contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Within the block nothing of a module is in training mode; afterwards every part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class Ema:
    """Averages of parameters in float32; buffers are not averaged, the module's current ones count.

    Args:
        module: whose parameters are followed.
        decay: in (0, 1), weight of the old average once the start is over.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {canonical_name(name): p for name, p in module.named_parameters()}
        self._averages = {name: p.detach().to(torch.float32, copy=True) for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the parameters after optimizer step number `step` (from 0)."""
        averages = list(self._averages.values())
        current = [p.detach().to(torch.float32) for p in self._parameters.values()]
        torch._foreach_lerp_(averages, current, 1.0 - ema_decay_at(step, self.decay))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module holds the averages; its own values come back, bit for bit, afterwards."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._copy(self._averages)
        try:
            yield
        finally:
            self._copy(own)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Restore averages written by `tensors`, whole.

        Raises:
            CheckpointError: names or shapes differ.
        """
        check_match(self._averages, tensors, where)
        for name, average in self._averages.items():
            average.copy_(like(tensors[name], average))

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
