"""A cache that stays bounded, and deletes nothing but its own files."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from resgen.evaluation.cache import cache_key, read_cache, trim_cache, write_cache


def _entry(folder: Path, name: str, age: int) -> Path:
    path = folder / name
    write_cache(path, {"x": torch.zeros(250, dtype=torch.float32)})
    os.utime(path, (10_000 - age, 10_000 - age))
    return path


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    samples, reconstructions = (f"{kind}-{cache_key(kind=kind)}" for kind in ("samples", "reconstructions"))
    old = _entry(tmp_path, f"reference-{cache_key(a=1)}.safetensors", 50)
    older = _entry(tmp_path, f"{samples}/chunk-00000000.safetensors", 60)
    used = _entry(tmp_path, f"{reconstructions}/chunk-00000500.safetensors", 70)
    new = _entry(tmp_path, f"neighbours-{cache_key(a=2)}.safetensors", 10)
    foreign = [
        _entry(tmp_path, name, 90) for name in ("model.safetensors", "run/model.safetensors", "reference-x.safetensors")
    ]
    size = old.stat().st_size
    trim_cache(tmp_path, 4 * size)
    assert all(path.exists() for path in (old, older, used, new))
    assert read_cache(used) is not None, "which is a use"
    trim_cache(tmp_path, 2 * size)
    assert [path.exists() for path in (old, older, used, new)] == [False, False, True, True]
    trim_cache(tmp_path, 0)
    assert not used.exists() and not new.exists() and all(path.exists() for path in foreign)
    trim_cache(None)
    trim_cache(tmp_path / "none")
