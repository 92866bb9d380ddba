"""Features on disk by the hash of what they depend on, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from resgen.checkpoints.tensors import read_tensors, write_tensors
from resgen.errors import CheckpointError
from resgen.files import atomic_path


def cache_key(**values: Any) -> str:
    """A name for what depends on `values` (of JSON types) and on nothing else."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def write_cache(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file that is whole or not there.

    Raises:
        WriteError: it cannot be written.
    """
    with atomic_path(path, sync=False) as temporary:
        write_tensors(temporary, tensors)


def read_cache(path: Path | None) -> dict[str, Tensor] | None:
    """The tensors of a file; None where there is none or it is damaged: they are then computed again."""
    if path is None or not path.is_file():
        return None
    try:
        return read_tensors(path)
    except CheckpointError:
        return None
