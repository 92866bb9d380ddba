"""A cache in shards, made by all processes together; pictures and speech alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from resgen.data.announce import announce
from resgen.data.codes.cache import CachePlan, Shard
from resgen.data.codes.encoding import Encoding
from resgen.progress import progress_bars
from resgen.training.parallel import first_alone
from resgen.training.state import lock_folder
from resgen.types import Reduce

COUNT_EVERY = 16
"""Batches between two sums of what all processes have encoded: seldom enough to cost nothing, often enough that none
waits for another until it gives up."""


def encode_together(
    out: Path,
    plan: Callable[[], CachePlan],
    make: Callable[[Encoding, list[Shard]], Iterator[int]],
    *,
    name: str,
    batches: Callable[[Shard], int],
    reduce: Reduce,
) -> None:
    """Make a cache, or what is missing of it; every process calls this.

    Args:
        out: its place.
        plan: what it is to hold; asked of the first process only, for it may have to read all data.
        make: makes shards, and yields after every batch how many samples it had.
        name: of the data, for the progress bar.
        batches: the most that `make` yields for a shard.
        reduce: the processes.

    Raises:
        TrainingError: others are encoding into the same folder.
    """
    with lock_folder(out.parent, "encoding") if reduce.rank == 0 else contextlib.nullcontext():
        with first_alone(reduce):
            encoding = Encoding.begin(out, plan()) if reduce.rank == 0 else Encoding.join(out)
        if encoding is None:
            return
        _make_missing(encoding, make, name, batches, reduce)
        with first_alone(reduce):
            if reduce.rank == 0:
                encoding.finish()


def _make_missing(
    encoding: Encoding,
    make: Callable[[Encoding, list[Shard]], Iterator[int]],
    name: str,
    batches: Callable[[Shard], int],
    reduce: Reduce,
) -> None:
    """Make what is missing of a cache, whole shards by each process; returns when all are there."""
    shards, rank, count = encoding.plan.shards, reduce.rank, reduce.world_size
    finished = torch.zeros(len(shards), dtype=torch.int64)
    for number in range(rank, len(shards), count):
        finished[number] = encoding.is_finished(shards[number])
    missing = [shard for shard, there in zip(shards, reduce.sum(finished).tolist(), strict=True) if not there]
    if not missing:
        return
    parts = [missing[first::count] for first in range(count)]
    # Every process counts along until the one with the most to do is done.
    steps = max(sum(map(batches, part)) for part in parts)
    before = encoding.plan.rows - sum(shard.num_samples for shard in missing)
    if len(missing) < len(shards):
        announce(f"{name}: {len(shards) - len(missing)} of {len(shards)} shards are there")
    made = make(encoding, parts[rank])
    title, total = f"encoding {name}", encoding.plan.rows
    with progress_bars(enabled=rank == 0) as advance:
        num_made = torch.zeros((), dtype=torch.int64)
        for step in range(1, steps + 1):
            num_made += next(made, 0)
            if count == 1 or step % COUNT_EVERY == 0:
                advance(before + int(reduce.sum(num_made)), total, title)
        for _ in made:  # none is left, but the last shard gets its name
            pass
        advance(before + int(reduce.sum(num_made)), total, title)
