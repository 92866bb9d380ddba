"""The random numbers that modules are constructed with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from resgen.ops.random import derive_seed


@contextlib.contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Torch's global generator, seeded for the block and put back after it: constructors of modules take no other."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield
