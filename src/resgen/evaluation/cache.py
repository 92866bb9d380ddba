"""Features on disk by the hash of what they depend on, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from resgen.checkpoints.tensors import read_tensors, write_tensors
from resgen.errors import CheckpointError


def cache_key(**values: Any) -> str:
    """A name for what depends on `values` (of JSON types) and on nothing else."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def write_cache(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file under a temporary name and rename it: it is whole or not there.

    Raises:
        CheckpointError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(temporary, tensors)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"the evaluation's features cannot be kept in '{path}': {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_cache(path: Path | None) -> dict[str, Tensor] | None:
    """The tensors of a file; None where there is none or it is damaged: they are then computed again."""
    if path is None or not path.is_file():
        return None
    try:
        return read_tensors(path)
    except CheckpointError:
        return None
