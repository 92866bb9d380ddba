"""The contract of every tokenizer: signals to codes and back; other code knows nothing else about it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from resgen.quantizers import Quantizer
from resgen.types import CodeSpec


@runtime_checkable
class Tokenizer(Protocol):
    """Signals `[B, ...]` (float, in [-1, 1]) to codes `Int64[B, L, D]` and back."""

    quantizer: Quantizer

    @property
    def spec(self) -> CodeSpec:
        """The shape of the codes."""
        ...

    def encode(self, signals: Float[Tensor, "B ..."]) -> Int[Tensor, "B L D"]:
        """Codes of the signals."""
        ...

    def decode(self, codes: Int[Tensor, "B L D"], num_levels: int | None = None) -> Float[Tensor, "B ..."]:
        """Signals from the first `num_levels` levels of the codes (all by default)."""
        ...


def level_counts(depth: int) -> list[int]:
    """Numbers of levels at which a tokenizer is looked at: 1, 2, 4, 8, ... below `depth`, and `depth`."""
    return [*(1 << power for power in range((depth - 1).bit_length())), depth]
