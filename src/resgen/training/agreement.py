"""Processes that train together must start alike; a difference is reported before any work is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from resgen.errors import ConfigError
from resgen.training.state import flatten
from resgen.types import Reduce

OWN = ("device",)
"""Settings (last part of the dotted name) that every process may have for itself."""


def check_agreement(settings: Mapping[str, Any], reduce: Reduce) -> None:
    """Compare settings over processes; all must call this together, and all are refused together.

    Args:
        settings: JSON values, nested mappings included.
        reduce: the processes.

    Raises:
        ConfigError: naming the first setting that differs, and its values.
    """
    if reduce.world_size == 1:
        return
    own = {key: value for key, value in flatten(settings).items() if key.rpartition(".")[2] not in OWN}
    text = json.dumps(own, sort_keys=True).encode()
    hashes = torch.zeros(reduce.world_size, dtype=torch.int64)
    hashes[reduce.rank] = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
    different = (hashes := reduce.sum(hashes)).ne(hashes[0]).nonzero().flatten().tolist()
    if not different:
        return
    first, other = (json.loads(_from(rank, text, reduce)) for rank in (0, different[0]))
    key = next(key for key in sorted({*first, *other}) if first.get(key, "<absent>") != other.get(key, "<absent>"))
    raise ConfigError(
        f"the processes were started differently: process 0 has {key}={first.get(key, '<absent>')}, process "
        f"{different[0]} has {key}={other.get(key, '<absent>')}; start all with the same command and the same files"
    )


def _from(rank: int, text: bytes, reduce: Reduce) -> bytes:
    """The text that one of the processes has."""
    mine = reduce.rank == rank
    length = int(reduce.max(torch.tensor(len(text) if mine else 0)))
    letters = torch.tensor(list(text), dtype=torch.int64) if mine else torch.zeros(length, dtype=torch.int64)
    return bytes(reduce.sum(letters).tolist())
