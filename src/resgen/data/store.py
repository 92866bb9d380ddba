"""Training pictures by index: decoded once where they fit into memory, on demand otherwise."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from resgen.data.images import ImageSource, load_array
from resgen.data.pictures import pixels

MAX_BYTES_IN_MEMORY = 4 << 30


class PictureStore:
    """Pictures of one size and mode.

    Args:
        source: where they come from.
        size: S, side in pixels.
        channels: C, 1 or 3.
        resize: cut out and resize pictures of another size, instead of refusing them.
        max_bytes: decoded pictures beyond this many bytes stay compressed and are decoded batch by batch.
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
        if len(source) * channels * size * size <= max_bytes:
            self._array, _ = load_array(source, size=size, channels=channels, resize=resize)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        """The pictures at `indices`, in that order.

        Raises:
            DataError: a picture is damaged or of another size.
        """
        if self._array is not None:
            return self._array[indices]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._decode, indices.tolist()))))

    def _decode(self, index: int) -> np.ndarray:
        source = self.source
        return pixels(source.pictures[index], source.where(index), self.size, self.channels, self.resize)
