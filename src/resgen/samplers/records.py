"""Records of what a sampler does: time, guidance and progress of every network evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor


class StepRecord(NamedTuple):
    """Record of one network evaluation, over the whole batch; `passes`: the branches of guidance that it computed."""

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
    """The `types.Record` of a call: keeps what every evaluation did, and passes it on.

    Args:
        num_steps: evaluations at most.
        visible_tokens: codes that are given, over the whole batch.
        callback: called after every evaluation with (record, codes, visible); masked levels of `codes` are 0.
        passes: branches of guidance that an evaluation computes, by its guidance weight.
    """

    def __init__(
        self,
        num_steps: int,
        visible_tokens: int = 0,
        callback: StepCallback | None = None,
        passes: Callable[[float], int] = lambda weight: 2 if weight else 1,
    ) -> None:
        self.steps: list[StepRecord] = []
        self.num_steps, self.visible_tokens, self.callback, self.passes = num_steps, visible_tokens, callback, passes
        self.started = time.perf_counter()

    def __call__(self, step: int, weight: float, revealed: int, codes: Tensor, visible: Tensor) -> None:
        """Note an evaluation; its time is what has passed since the one before."""
        seconds = time.perf_counter() - self.started
        self.visible_tokens += revealed
        record = (step + 1, self.num_steps, weight, revealed, self.visible_tokens, seconds, self.passes(weight))
        self.steps.append(StepRecord(*record))
        if self.callback is not None:
            self.callback(self.steps[-1], codes, visible)
        self.started = time.perf_counter()
