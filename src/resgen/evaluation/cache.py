"""Features on disk by the hash of what they depend on, so that an interrupted evaluation continues where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from resgen.checkpoints.tensors import read_tensors, write_tensors
from resgen.errors import CheckpointError
from resgen.files import atomic_path

MAX_BYTES = 4 << 30
"""Maximum size of a cache; a whole evaluation of 10,000 samples writes about 50 MB."""
_OWN = re.compile(
    r"(reference|pixels|neighbours)-[0-9a-f]{24}\.safetensors"
    r"|(samples|reconstructions)-[0-9a-f]{24}/chunk-[0-9]{8}\.safetensors"
)


def cache_key(**values: Any) -> str:
    """A name for what depends on `values` (of JSON types) and on nothing else."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def write_cache(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file that is either complete or absent.

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
        tensors = read_tensors(path)
    except CheckpointError:
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(path)
    return tensors


def trim_cache(folder: Path | None, max_bytes: int = MAX_BYTES) -> None:
    """Delete what was used longest ago until the rest has at most `max_bytes`; other files stay and do not count."""
    if folder is None:
        return
    files = []
    for path in folder.rglob("*.safetensors"):
        if _OWN.fullmatch(path.relative_to(folder).as_posix()):
            with contextlib.suppress(OSError):  # another evaluation has just deleted it
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= max_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            held -= size
