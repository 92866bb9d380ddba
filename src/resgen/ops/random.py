"""Random streams derived from names, so that nothing depends on global state or on the order of calls."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all `parts` and nothing else; different parts give unrelated streams."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` seeded with `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def sample_streams(seed: int | Sequence[int], indices: Sequence[int]) -> list[torch.Generator]:
    """The stream of every sample of a call: sample k draws from (seed, k) and nothing else.

    Args:
        seed: one seed for all samples, or one for each: samples of several calls can then be drawn in one batch.
        indices: number of each sample within its call.
    """
    seeds = [seed] * len(indices) if isinstance(seed, int) else seed
    return [generator("sample", own, index) for own, index in zip(seeds, indices, strict=True)]


def fill_uniform(target: Tensor, generator: torch.Generator) -> None:
    """Fill a tensor of any layout with numbers in [0, 1); they do not depend on the padding around it."""
    target.copy_(torch.empty(target.shape, dtype=target.dtype).uniform_(generator=generator))


def fill_normal(target: Tensor, generator: torch.Generator) -> None:
    """Fill a tensor of any layout with standard normal numbers; they do not depend on the padding around it."""
    target.copy_(torch.empty(target.shape, dtype=target.dtype).normal_(generator=generator))
