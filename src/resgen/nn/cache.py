"""The keys and values that a causal transformer keeps for earlier positions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from resgen.errors import ConfigError


class KeyValueCache:
    """Keys and values of the positions that a causal layer has seen.

    The buffers are allocated at the first write, for all positions, in the shape and type of what is written; from
    then on they are written in place. `reset` forgets the positions and keeps the buffers.

    Args:
        capacity: positions that will be written at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def reset(self) -> None:
        """Forget all positions."""
        self.length = 0

    def append(
        self, keys: Float[Tensor, "B heads S E"], values: Float[Tensor, "B heads S E"]
    ) -> tuple[Float[Tensor, "B heads M E"], Float[Tensor, "B heads M E"]]:
        """Write S new positions; returns those of all M positions so far, as views of the buffers.

        Raises:
            ConfigError: more positions than the capacity.
        """
        begin, end = self.length, self.length + keys.shape[2]
        if end > self.capacity:
            raise ConfigError(f"{end} positions do not fit into a cache for {self.capacity}")
        if self._keys is None or self._values is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        self._keys[:, :, begin:end] = keys
        self._values[:, :, begin:end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


def new_caches(num_layers: int, capacity: int) -> list[KeyValueCache]:
    """One empty cache per block of a transformer, for at most `capacity` positions."""
    return [KeyValueCache(capacity) for _ in range(num_layers)]
