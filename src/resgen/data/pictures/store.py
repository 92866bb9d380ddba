"""Training images by index: decoded once where they fit into memory, on demand otherwise."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from resgen.data.pictures.decode import pixels
from resgen.data.pictures.sources import ImageSource, load_array, readable
from resgen.errors import DataError

MAX_BYTES_IN_MEMORY = 4 << 30


class PictureStore:
    """Images of one size and mode.

    Args:
        source: where they come from.
        size: S, side in pixels.
        channels: C, 1 or 3.
        resize: cut out and resize images of another size, instead of refusing them.
        max_bytes: decoded images beyond this many bytes stay compressed and are decoded batch by batch.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        size: int,
        channels: int,
        resize: bool = False,
        max_bytes: int = MAX_BYTES_IN_MEMORY,
    ) -> None:
        self.source, self.size, self.channels, self.resize = source, size, channels, resize
        self.labels = torch.from_numpy(np.asarray(source.labels).copy())
        self._array: Tensor | None = None
        self._ahead: dict[int, Future[np.ndarray]] = {}
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)  # which starts no thread before it has work
        if len(source) * channels * size * size <= max_bytes:
            self._array, _ = load_array(source, size=size, channels=channels, resize=resize)

    def __len__(self) -> int:
        return len(self.source)

    def readable(self) -> None:
        """See that every image can be decoded, as was seen of those in memory.

        Raises:
            DataError: see `sources.readable`.
        """
        if self._array is None:
            readable(self.source, size=self.size, channels=self.channels, resize=self.resize)

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded."""
        return self._array is not None

    def batch(self, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        """The images at `indices`, in that order.

        Raises:
            DataError: an image is damaged or of another size.
        """
        if self._array is not None:
            return self._array[indices]
        order = indices.tolist()
        self.prefetch(indices)
        parts = {index: self._ahead.pop(index) for index in set(order)}
        try:
            return torch.from_numpy(np.stack([parts[index].result() for index in order]))
        except DataError:
            self.readable()  # names all that are damaged
            raise

    def prefetch(self, indices: Int[Tensor, " B"]) -> None:
        """Begin to decode what one of the next calls of `batch` will ask for."""
        if self._array is None:
            for index in indices.tolist():
                if index not in self._ahead:
                    self._ahead[index] = self._pool.submit(self._decode, index)

    def _decode(self, index: int) -> np.ndarray:
        source = self.source
        return pixels(source.pictures[index], source.where(index), self.size, self.channels, self.resize)
