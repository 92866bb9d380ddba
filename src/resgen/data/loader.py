"""Which samples belong to which batch: a function of the seed and the batch's number, so that resuming is exact."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from resgen.errors import ConfigError
from resgen.ops.random import generator

BUCKET_BATCHES = 16


class CounterSampler:
    """Indices of batch number `step`; there is no state but the caller's count of batches.

    Every epoch is a permutation drawn from `(seed, epoch)`. Batches do not cross epochs and the remainder of an epoch
    is dropped, unless the data set is smaller than a batch: then batches run on through the epochs one after another.

    Args:
        num_samples: size of the data set.
        batch_size: samples of a batch, over all processes.
        seed: names the order.
        lengths: one per sample. With them a batch holds samples of like length, so that little of it is padding:
            every `BUCKET_BATCHES` batches of the random order are sorted by length and dealt out again, in random
            order.
        blocks: ends of the stretches of samples that are read as one. With them an epoch goes through the stretches in
            random order, and in random order through the samples of each, so that none is read twice.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        *,
        lengths: Int64[Tensor, " num_samples"] | None = None,
        blocks: Int64[Tensor, " K"] | None = None,
    ) -> None:
        if num_samples < 1 or batch_size < 1:
            raise ConfigError(f"num_samples={num_samples} and batch_size={batch_size} must be at least 1")
        if lengths is not None and len(lengths) != num_samples:
            raise ConfigError(f"{len(lengths)} lengths are given for num_samples={num_samples}")
        if blocks is not None and (lengths is not None or int(blocks[-1]) != num_samples):
            raise ConfigError(f"blocks end at {int(blocks[-1])}; allowed: num_samples={num_samples}, without lengths")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.blocks = blocks
        self._last: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch; 0 if the data set is smaller than a batch."""
        return self.num_samples // self.batch_size

    def epoch(self, step: int) -> int:
        """The epoch in which batch `step` begins."""
        if step < 0:
            raise ConfigError(f"step={step} must be at least 0")
        if self.batches_per_epoch:
            return step // self.batches_per_epoch
        return step * self.batch_size // self.num_samples

    def indices(self, step: int) -> Int64[Tensor, " b"]:
        """The samples of batch `step`, of all processes."""
        epoch = self.epoch(step)
        if self.batches_per_epoch:
            begin = step % self.batches_per_epoch * self.batch_size
        else:
            begin = step * self.batch_size % self.num_samples
        parts: list[Tensor] = []
        missing = self.batch_size
        while missing:
            part = self._order(epoch)[begin : begin + missing]
            parts.append(part)
            missing -= len(part)
            epoch, begin = epoch + 1, 0
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if self._last is None or self._last[0] != epoch:
            stream = generator(self.seed, "epoch", epoch)
            order = self._by_blocks(stream) if self.blocks is not None else _shuffled(0, self.num_samples, stream)
            self._last = (epoch, order if self.lengths is None else self._bucketed(order, stream))
        return self._last[1]

    def _by_blocks(self, stream: torch.Generator) -> Tensor:
        assert self.blocks is not None
        ends = self.blocks.tolist()
        spans = list(zip([0, *ends], ends, strict=False))
        order = torch.randperm(len(spans), generator=stream).tolist()
        return torch.cat([_shuffled(begin, end, stream) for begin, end in (spans[number] for number in order)])

    def _bucketed(self, order: Tensor, stream: torch.Generator) -> Tensor:
        assert self.lengths is not None
        whole, lengths = self.batches_per_epoch * self.batch_size, self.lengths
        parts: list[Tensor] = []
        for bucket in order[:whole].split(BUCKET_BATCHES * self.batch_size):
            batches = bucket[lengths[bucket].argsort(stable=True)].unflatten(0, (-1, self.batch_size))
            parts.append(batches[torch.randperm(len(batches), generator=stream)].flatten())
        return torch.cat([*parts, order[whole:]])


def _shuffled(begin: int, end: int, stream: torch.Generator) -> Tensor:
    return begin + torch.randperm(end - begin, generator=stream)
