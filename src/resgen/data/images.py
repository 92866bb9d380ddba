"""Pictures with labels: built-in digits, folders, parquet files; opened lazily, decoded into one array."""

from __future__ import annotations

import hashlib
import os
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from resgen.data.parquet import join_names, read_parquet
from resgen.data.pictures import Picture, check_shape, decode_picture, pixels, read_image
from resgen.errors import DataError, MissingExtraError, unknown

__all__ = ["ImageSource", "available_splits", "load_array", "open_images", "read_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BUILT_IN = ("digits",)
FLAT_CLASS = "picture"
_SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?(-[0-9a-f]{6,})?$")
_PROGRESS_AFTER_S = 2.0
_DECODE_ROWS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """A read-only view of labelled pictures, decoded when asked for.

    Attributes:
        name: short name for messages and model cards.
        class_names: one per label; `("picture",)` where there are no labels.
        labels: int64 [N], each below `len(class_names)`.
        pictures: the pictures as they are stored.
        where: what to call picture `i` in an error.
        digest: computes `fingerprint`.
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    pictures: Sequence[Picture]
    where: Callable[[int], str]
    digest: Callable[[], str]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Picture `index` at its own size, uint8 [rows, columns, 1 or 3], and its label."""
        index = range(len(self))[index]
        array = np.asarray(decode_picture(self.pictures[index], self.where(index)))
        return (array[..., None] if array.ndim == 2 else array), int(self.labels[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the names and contents; reads every byte on first use."""
        return self.digest()


def open_images(path_or_name: str | Path, *, split: str = "train") -> ImageSource:
    """Open a labelled set of pictures.

    * `digits`: scikit-learn's 1,797 grey 8x8 digits; every tenth (index 9, 19, ...) is `test`, the others `train`.
    * a parquet file, or a folder of them (or of `data/*.parquet`) named by split: `train.parquet`,
      `test-00000-of-00002.parquet`.
    * a folder of class folders (sorted names are the labels), or a folder of pictures (label 0, class `picture`);
      also such folders inside `train/`, `test/`, ...

    A path without splits has the single split `train`, which is all of it; a single file may also be asked for by the
    split in its name.

    Raises:
        DataError: nothing there, no such split, empty, or of a form that cannot be read.
        MissingExtraError: scikit-learn or pyarrow is needed and not installed.
    """
    splits = available_splits(path_or_name)
    path = Path(path_or_name)
    if path.is_file() and split == _split_of(path):
        split = "train"
    if split not in splits:
        raise DataError(f"'{path_or_name}': {unknown('split', split, splits)}")
    if str(path_or_name) in BUILT_IN:
        return _open_digits(split)
    try:
        if path.is_file():
            return _open_parquet([path], path.name)
        files = _parquet_files(path)
        if files:
            return _open_parquet([file for file in files if _split_of(file) == split], f"{path.name}/{split}")
        return _open_folder(path, split)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error


def available_splits(path_or_name: str | Path) -> tuple[str, ...]:
    """The splits that `open_images` accepts; `("train",)` for a path that is not divided.

    Raises:
        DataError: neither a built-in name nor an existing parquet file or folder.
    """
    if str(path_or_name) in BUILT_IN:
        return ("train", "test")
    path = Path(path_or_name)
    try:
        if path.is_file():
            if path.suffix.lower() != ".parquet":
                raise DataError(f"file '{path}' is not a .parquet file; for pictures give their folder")
            return ("train",)
        if not path.is_dir():
            allowed = [*BUILT_IN, "an existing folder", "a .parquet file"]
            raise DataError(unknown("data", path_or_name, allowed))
        files = _parquet_files(path)
        if files:
            return tuple(sorted({_split_of(file) for file in files}, key=lambda name: (name != "train", name)))
        return tuple(folder.name for folder in _split_folders(path)) or ("train",)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error


def load_array(
    source: ImageSource, *, size: int, channels: int, resize: bool = False
) -> tuple[UInt8[Tensor, "N C S S"], Int64[Tensor, " N"]]:
    """Decode every picture into one array, in a few threads; a progress bar on stderr appears after two seconds.

    Args:
        source: the pictures.
        size: S, side in pixels.
        channels: C, 1 (grey) or 3 (RGB); pictures are converted.
        resize: cut out the centred square and resize it (Lanczos); without it a picture of another size is an error.

    Returns:
        Pictures in 0..255 and labels.

    Raises:
        DataError: naming the first picture that is damaged or of another size.
    """
    check_shape(size, channels)
    count = len(source)
    try:
        images = torch.empty(count, channels, size, size, dtype=torch.uint8)
    except RuntimeError as error:
        needed = count * channels * size * size / 2**30
        raise DataError(f"'{source.name}': {count} pictures need {needed:.1f} GiB of memory") from error
    rows = images.numpy()

    def decode(start: int) -> int:
        stop = min(start + _DECODE_ROWS, count)
        for index in range(start, stop):
            rows[index] = pixels(source.pictures[index], source.where(index), size, channels, resize)
        return stop - start

    pool = ThreadPoolExecutor(max_workers=max(2, min(4, os.cpu_count() or 1)))
    try:
        futures = [pool.submit(decode, start) for start in range(0, count, _DECODE_ROWS)]
        _show_progress((future.result() for future in futures), count, f"decoding {source.name}")
    finally:
        pool.shutdown(cancel_futures=True)
    return images, torch.from_numpy(source.labels.copy())


def _show_progress(counts: Iterable[int], total: int, title: str) -> None:
    begin = time.monotonic()
    progress = Progress(console=Console(stderr=True))
    task = progress.add_task(title, total=total)
    try:
        for count in counts:
            progress.advance(task, count)
            if not progress.live.is_started and time.monotonic() - begin > _PROGRESS_AFTER_S:
                progress.start()
    finally:
        if progress.live.is_started:
            progress.stop()


def _open_digits(split: str) -> ImageSource:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data") from error
    bunch = load_digits()
    test = np.arange(len(bunch.target)) % 10 == 9
    chosen = test if split == "test" else ~test
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0..16
    return ImageSource(
        name=f"digits/{split}",
        class_names=tuple("0123456789"),
        labels=bunch.target[chosen].astype(np.int64),
        pictures=list(images),
        where=lambda index: f"digits/{split} picture {index}",
        digest=lambda: hashlib.sha256(f"digits/{split}\0".encode() + images.tobytes()).hexdigest(),
    )


def _parquet_files(folder: Path) -> list[Path]:
    for place in (folder, folder / "data"):
        files = sorted(f for f in place.glob("*.parquet") if f.is_file() and not f.name.startswith("."))
        if files:
            return files
    return []


def _split_of(file: Path) -> str:
    return _SHARD.sub("", file.stem) or "train"


def _open_parquet(files: Sequence[Path], name: str) -> ImageSource:
    parts = [read_parquet(file) for file in files]
    ends = list(accumulate(len(part.pictures) for part in parts))
    if not ends[-1]:
        raise DataError(f"'{name}' holds no rows")

    def where(index: int) -> str:
        part = bisect_right(ends, index)
        return f"'{files[part]}' row {index - (ends[part - 1] if part else 0)}"

    return ImageSource(
        name=name,
        class_names=join_names(parts, name),
        labels=np.concatenate([part.labels for part in parts]),
        pictures=[picture for part in parts for picture in part.pictures],
        where=where,
        digest=lambda: _files_digest((file.name, file) for file in files),
    )


def _split_folders(path: Path) -> list[Path]:
    """The folders `train`, `test`, ... if `path` holds no others."""
    folders = _subfolders(path)
    named = [folder for name in _SPLIT_FOLDERS for folder in folders if folder.name == name]
    return named if len(named) == len(folders) else []


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _picture_files(folder: Path, pattern: str) -> list[Path]:
    found = (p for p in folder.glob(pattern) if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def _open_folder(path: Path, split: str) -> ImageSource:
    splits = _split_folders(path)
    root = path / split if splits else path
    flat = _picture_files(root, "*")
    classes = sorted({c.name for place in splits or [path] for c in _subfolders(place) if _picture_files(c, "**/*")})
    if flat and classes:
        raise DataError(f"'{root}' holds both pictures ('{flat[0].name}') and class folders ('{classes[0]}')")
    files, labels = flat, [0] * len(flat)
    if not flat:
        by_class = [_picture_files(root / name, "**/*") if (root / name).is_dir() else [] for name in classes]
        files = [file for found in by_class for file in found]
        labels = [label for label, found in enumerate(by_class) for _ in found]
    if not files:
        raise DataError(f"folder '{root}' holds no pictures ({' '.join(SUFFIXES)}) and no parquet files")
    return ImageSource(
        name=f"{path.name}/{split}" if splits else path.name,
        class_names=(FLAT_CLASS,) if flat else tuple(classes),
        labels=np.asarray(labels, np.int64),
        pictures=files,
        where=lambda index: f"picture '{files[index]}'",
        digest=lambda: _files_digest((file.relative_to(root).as_posix(), file) for file in files),
    )


def _files_digest(files: Iterable[tuple[str, Path]]) -> str:
    total = hashlib.sha256()
    for name, path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                length = file.tell()
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
        total.update(f"{name}\0{length}\0{content}\n".encode())
    return total.hexdigest()
