"""What all samplers start from and give back: given codes, finished codes, and a record of every network evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from resgen.errors import ConfigError


class StepRecord(NamedTuple):
    """What one network evaluation did, over the whole batch; `passes`: the branches of guidance that it computed."""

    step: int
    num_steps: int
    guidance_scale: float
    revealed: int
    visible_tokens: int
    seconds: float
    passes: int


class Samples(NamedTuple):
    """Finished codes `[B, L, D]` and one record per network evaluation."""

    codes: Int[Tensor, "B L D"]
    steps: list[StepRecord]


StepCallback = Callable[[StepRecord, Tensor, Tensor], None]


class Recorder:
    """Keeps a record of every network evaluation, and passes it on.

    Args:
        num_steps: evaluations at most.
        visible_tokens: codes that are given, over the whole batch.
        callback: called after every evaluation with (record, codes, visible).
    """

    def __init__(self, num_steps: int, visible_tokens: int, callback: StepCallback | None) -> None:
        self.steps: list[StepRecord] = []
        self.num_steps, self.visible_tokens, self.callback = num_steps, visible_tokens, callback
        self.started = time.perf_counter()

    def __call__(
        self, step: int, guidance_scale: float, revealed: int, passes: int, codes: Tensor, visible: Tensor
    ) -> None:
        """Note what evaluation number `step` (from 0) did; its time is what has passed since the one before."""
        seconds = time.perf_counter() - self.started
        self.visible_tokens += revealed
        record = (step + 1, self.num_steps, guidance_scale, revealed, self.visible_tokens, seconds, passes)
        self.steps.append(StepRecord(*record))
        if self.callback is not None:
            self.callback(self.steps[-1], codes, visible)
        self.started = time.perf_counter()


def given_codes(
    codes: Int[Tensor, "B L D"] | None,
    visible: Int[Tensor, "B L"] | None,
    shape: tuple[int, int, int],
    device: torch.device,
) -> tuple[Int[Tensor, "B L D"], Int[Tensor, "B L"]]:
    """Codes to start from and how many levels of each position are visible: by default none; masked codes are 0.

    Raises:
        ConfigError: only one of `codes` and `visible` is given.
    """
    if (codes is None) != (visible is None):
        raise ConfigError("codes and visible must be given together")
    if codes is None or visible is None:
        codes, visible = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape[:2], dtype=torch.int64)
    codes, visible = codes.to(device), visible.to(device)
    return torch.where(torch.arange(shape[2], device=device) < visible[..., None], codes, 0), visible
