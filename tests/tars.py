"""Tar shards for tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(value: int, size: int = 4) -> bytes:
    """A grey image of one value."""
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes | str], *, form: int = tarfile.PAX_FORMAT) -> Path:
    """An archive of files by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_pictures(path: Path, values: list[int], labels: list[int] | None = None) -> Path:
    """A shard of images of one value each, with classes."""
    files: dict[str, bytes | str] = {}
    for number, value in enumerate(values):
        files[f"{number:05d}.png"] = png(value)
        if labels is not None:
            files[f"{number:05d}.cls"] = str(labels[number])
    return write_tar(path, files)
