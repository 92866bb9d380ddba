"""Encoded data as two caches, of training and held-out samples, written by all processes together, for any modality."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from resgen.data.announce import announce
from resgen.data.codes.cache import META_NAME, CachePlan, CodeCache, Shard, open_codes
from resgen.data.codes.encoding import Encoding
from resgen.errors import DataError
from resgen.progress import progress_bars
from resgen.training.parallel import first_alone, initialise
from resgen.training.stages import CODE_FOLDERS
from resgen.training.state import lock_folder
from resgen.types import Reduce

S = TypeVar("S")
COUNT_EVERY = 16
"""Batches between two sums of what all processes have encoded: seldom enough to cost nothing, often enough that none
waits for another until it gives up."""


def is_encoded(path: str | Path) -> bool:
    """Whether a folder holds encoded data."""
    return all((Path(path) / name / META_NAME).is_file() for name in CODE_FOLDERS)


def open_encoded(path: str | Path, *columns: str, verify: bool = False) -> tuple[CodeCache, CodeCache]:
    """Training and held-out codes of a folder.

    Args:
        path: the folder of both caches.
        columns: that they must have.
        verify: also read the codes; see `CodeCache.verify`.

    Raises:
        DataError: something is missing or damaged, or a column is not there.
    """
    train, held_out = (open_codes(Path(path) / name, verify=verify) for name in CODE_FOLDERS)
    for cache in (train, held_out):
        if missing := [name for name in columns if name not in cache.plan.columns]:
            raise DataError(f"code cache '{cache.path}' has no {', '.join(missing)}: it is of another kind of data")
    return train, held_out


def encode_splits(
    out: str | Path,
    sources: tuple[S, S],
    *,
    plan: Callable[[S, str], CachePlan],
    make: Callable[[S, Encoding, list[Shard]], Iterator[int]],
    title: Callable[[S], str],
    batches: Callable[[Shard], int],
) -> tuple[CodeCache, CodeCache]:
    """Encode data into `out/train` and `out/held_out`; shards already made from the same things are kept.

    The processes of `torchrun` share the shards; each calls this. On the same kind of machine, with as many threads per
    process, the files are the same however many processes there are and however often the work was interrupted.

    Args:
        out: folder for the two caches.
        sources: training and held-out data.
        plan: what the cache of a source and of this name is to hold.
        make: see `encode_together`.
        title: title of a source, for the progress bar.
        batches: see `encode_together`.

    Raises:
        TrainingError: others are encoding into the same folder.
    """
    reduce = initialise()
    with lock_folder(Path(out), "encoding") if reduce.rank == 0 else contextlib.nullcontext():
        for source, name in zip(sources, CODE_FOLDERS, strict=True):
            encode_together(
                Path(out) / name,
                partial(plan, source, name),
                partial(make, source),
                name=title(source),
                batches=batches,
                reduce=reduce,
            )
    return open_encoded(out)


def encode_together(
    out: Path,
    plan: Callable[[], CachePlan],
    make: Callable[[Encoding, list[Shard]], Iterator[int]],
    *,
    name: str,
    batches: Callable[[Shard], int],
    reduce: Reduce,
) -> None:
    """Make a cache, or what is missing of it; every process calls this, and the first holds the folder.

    Args:
        out: its place.
        plan: what it is to hold; asked of the first process only, for it may have to read all data.
        make: makes shards, and yields after every batch how many samples it had.
        name: name of the data, for the progress bar.
        batches: the most that `make` yields for a shard.
        reduce: the processes.
    """
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
    counts = make(encoding, parts[rank])
    title, total = f"encoding {name}", encoding.plan.rows
    with progress_bars(enabled=rank == 0) as advance:
        num_encoded = torch.zeros((), dtype=torch.int64)
        for step in range(1, steps + 1):
            num_encoded += next(counts, 0)
            if count == 1 or step % COUNT_EVERY == 0:
                advance(before + int(reduce.sum(num_encoded)), total, title)
        for _ in counts:  # none is left, but the last shard gets its name
            pass
        advance(before + int(reduce.sum(num_encoded)), total, title)
