"""Images with labels: built-in digits, folders, parquet files, tar shards; opened lazily, decoded into one array."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from resgen.config import is_text
from resgen.data.announce import announce, leave_out, listed
from resgen.data.labels import axis_columns, class_ids
from resgen.data.pictures.decode import (
    REMEDY,
    Pictures,
    ReadPictures,
    check_shape,
    decode_picture,
    pixels,
    read_image,
)
from resgen.data.pictures.parquet import ParquetPictures, ParquetRows, encoded_bytes, join_labels, read_parquet
from resgen.data.splits import known_split, parquet_splits, split_folders, split_of, subfolders
from resgen.data.tar.index import fingerprint, index_shards, join_classes, labels_of, reader
from resgen.data.tar.paths import class_names, shard_splits
from resgen.errors import DataError, unknown
from resgen.extras import MissingExtraError
from resgen.files import nearest_path
from resgen.progress import show_progress

__all__ = ["ImageSource", "available_splits", "load_array", "open_images", "read_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
BUILT_IN = ("digits",)
MAX_ENCODED_BYTES = 4 << 30
"""Of images in parquet files that are kept in memory as they are stored; of more, stretch by stretch is read."""
MAX_OTHERS = 100_000
"""Files without images in a folder, besides one for each image."""
FLAT_CLASS = "picture"
_DECODE_ROWS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """A read-only view of labelled images, decoded on request.

    Attributes:
        name: short name for messages and model cards.
        class_names: one per label; `("picture",)` where there are no labels. With several axes, of the first.
        class_axes: names on every axis, by its name; empty where a label is all that an image has.
        labels: int64 [N], each below `len(class_names)`; with `class_axes` class ids, see `models.conditions`.
        pictures: the images as they are stored.
        where: what to call image `i` in an error.
        digest: computes `fingerprint`.
        left_out: what there is besides, and why it is not used.
        blocks: int64 [K], ends of the stretches that are read as one and are too large to be kept all at once; None
            where every image is read by itself. See `CounterSampler`.
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    pictures: Pictures
    where: Callable[[int], str]
    digest: Callable[[], str]
    class_axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    blocks: np.ndarray | None = None

    def __post_init__(self) -> None:
        names = [name for axis in self.class_axes.values() for name in axis] or self.class_names
        for label, name in enumerate(names):
            if not is_text(name):
                samples = np.flatnonzero(self.labels == label)
                known = len(samples) and not self.class_axes
                where = self.where(int(samples[0])) if known else f"data '{self.name}'"
                raise DataError(f"{where} has a class whose name is not text, {ascii(name[:40])}; give it another one")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Image `index` at its own size, uint8 [rows, columns, 1 or 3], and its label."""
        index = range(len(self))[index]
        array = np.asarray(decode_picture(self.pictures[index], self.where(index)))
        return (array[..., None] if array.ndim == 2 else array), int(self.labels[index])

    def summary(self) -> str:
        """A one-line description."""
        names = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
        classes = f"{len(self.class_names)} classes ({names})" if len(self.class_names) > 1 else "no classes"
        if self.class_axes:
            axes = ", ".join(f"{axis} ({len(names)})" for axis, names in self.class_axes.items())
            classes = f"classes by {axes}"
        present = set(range(len(self.class_names))) if self.class_axes else set(self.labels.tolist())
        absent = [repr(name) for label, name in enumerate(self.class_names) if label not in present]
        none_of = f"; no images of {', '.join(absent[:8])}{', ...' * (len(absent) > 8)}" if absent else ""
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"data '{self.name}': {len(self):,} image{'s' * (len(self) != 1)}, {classes}{none_of}{left_out}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the names and contents; reads every byte on first use, of tar shards when first opened."""
        return self.digest()

    def subset(self, rows: np.ndarray) -> ImageSource:
        """The images of the given rows, int64 and rising; with the fingerprint of all."""
        return ImageSource(
            name=self.name,
            class_names=self.class_names,
            class_axes=self.class_axes,
            labels=self.labels[rows],
            pictures=ReadPictures(len(rows), lambda index: self.pictures[int(rows[index])]),
            where=lambda index: self.where(int(rows[index])),
            digest=lambda: self.fingerprint,
            left_out=self.left_out,
            blocks=None if self.blocks is None else np.searchsorted(rows, self.blocks),
        )


def open_images(path_or_name: str | Path, *, split: str = "train", class_columns: Sequence[str] = ()) -> ImageSource:
    """Open a labelled set of images.

    * `digits`: scikit-learn's 1,797 grey 8x8 digits; every tenth (index 9, 19, ...) is `test`, the others `train`.
    * a parquet file, or a folder of them (or of `data/*.parquet`) named by split: `train.parquet`,
      `test-00000-of-00002.parquet`.
    * tar shards: see `data.tar.paths.shard_splits`. They are indexed once.
    * a folder of class folders (sorted names are the labels), or a folder of images (label 0, class `picture`);
      also such folders inside `train/`, `test/`, ...

    A path without splits has the single split `train`, which is all of it; a single file may also be asked for by the
    split in its name. One line on standard error says what was opened.

    Args:
        path_or_name: one of these.
        split: of it.
        class_columns: of parquet files, the columns that are axes of the class, `column` or `axis=column`, the most
            telling first; values may be missing. By default one column is the label.

    Raises:
        ConfigError: `class_columns` of which two have one name.
        DataError: nothing there, no such split or column, empty, or of a form that cannot be read.
        MissingExtraError: scikit-learn or pyarrow is needed and not installed.
    """
    source = _open(path_or_name, known_split(split) or split, axis_columns(class_columns))
    announce(source.summary())
    return source


def _open(path_or_name: str | Path, split: str, axes: Mapping[str, str]) -> ImageSource:
    splits = available_splits(path_or_name)
    path = Path(path_or_name)
    if path.is_file() and split == split_of(path):
        split = "train"
    if split not in splits:
        raise DataError(f"'{path_or_name}': {unknown('split', split, splits)}")
    if axes and not (path.suffix.lower() == ".parquet" or (path.is_dir() and parquet_splits(path))):
        raise DataError(f"class_columns={list(axes)} are columns of parquet files, not of '{path}'; leave them out")
    if str(path_or_name) in BUILT_IN:
        return _open_digits(split)
    try:
        if shards := _shards(path_or_name):
            return _open_shards(path_or_name, shards, split)
        if path.is_file():
            return _open_parquet({"train": [path]}, "train", path.name, axes)
        if groups := parquet_splits(path):
            return _open_parquet(groups, split, f"{path.name}/{split}", axes)
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
        if shards := _shards(path_or_name):
            return tuple(shards)
        if path.is_file():
            if path.suffix.lower() != ".parquet":
                raise DataError(f"file '{path}' is no .parquet or .tar file; give one, or a folder of images")
            return ("train",)
        if not path.is_dir():
            allowed = [*BUILT_IN, "an existing folder", "a .parquet or .tar file"]
            raise DataError(f"{unknown('data', path_or_name, allowed)}; no such file or folder: {nearest_path(path)}")
        names = list(parquet_splits(path))
        if not names:
            _other_files(path)  # before all is searched for images
            names = list(split_folders(path, _has_pictures))
        return tuple(sorted(names, key=lambda name: (name != "train", name))) or ("train",)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error


def load_array(
    source: ImageSource, *, size: int, channels: int, resize: bool = False
) -> tuple[UInt8[Tensor, "N C S S"], Int64[Tensor, " N"]]:
    """Decode every image into one array, in a few threads; a progress bar on stderr appears after two seconds.

    Args:
        source: the images.
        size: S, side in pixels.
        channels: C, 1 (grey) or 3 (RGB); images are converted.
        resize: cut out the centred square and resize it (Lanczos); without it an image of another size is an error.

    Returns:
        Images in 0..255 and labels.

    Raises:
        DataError: naming the images that are damaged or of another size, see `readable`.
    """
    check_shape(size, channels)
    count = len(source)
    try:
        images = torch.empty(count, channels, size, size, dtype=torch.uint8)
    except RuntimeError as error:
        needed = count * channels * size * size / 2**30
        raise DataError(f"'{source.name}': {count} images need {needed:.1f} GiB of memory") from error
    rows = images.numpy()

    def keep(index: int, array: UInt8[np.ndarray, "C S S"]) -> None:
        rows[index] = array

    _leave_out(source, _decode_all(source, keep, size, channels, resize), skip=False)
    return images, torch.from_numpy(source.labels.copy())


def readable(source: ImageSource, *, size: int, channels: int, resize: bool = False, skip: bool = False) -> ImageSource:
    """The images that can be decoded, all of which are tried.

    Args:
        source: the images.
        size: as in `load_array`, and so are the next two.
        channels: 1 or 3.
        resize: cut out and resize.
        skip: leave out what cannot be read, and say so, in place of refusing it.

    Raises:
        DataError: naming all that cannot be read, or the first 20 and their number; nothing can be read.
    """
    bad = _decode_all(source, lambda index, array: None, size, channels, resize)
    _leave_out(source, bad, skip=skip and len(bad) < len(source))
    return source.subset(np.array([row for row in range(len(source)) if row not in bad])) if bad else source


def _leave_out(source: ImageSource, bad: dict[int, str], *, skip: bool) -> None:
    """As `leave_out`; images that only need to be converted are not named one by one."""
    what = f"images of '{source.name}'"
    unfit = [reason for _, reason in sorted(bad.items()) if reason.endswith(REMEDY)]
    damaged = [reason for _, reason in sorted(bad.items()) if not reason.endswith(REMEDY)]
    if skip or not unfit or len(bad) == 1:
        leave_out(bad, len(source), what, skip=skip)
        return
    first, cure = unfit[0].removesuffix(f"; {REMEDY}"), REMEDY.replace("convert it", "convert them")
    if len(bad) == len(source) and "pixels, but" in first:
        cure += "; a tokenizer for their size is trained with --set tokenizer.image_size=N"
    others = f"; {len(damaged)} more cannot be read: {listed(damaged)}; remove these" if damaged else ""
    raise DataError(f"{len(unfit)} of {len(source)} {what} do not fit; the first: {first}; {cure}{others}")


def _decode_all(
    source: ImageSource,
    take: Callable[[int, UInt8[np.ndarray, "C S S"]], None],
    size: int,
    channels: int,
    resize: bool,
) -> dict[int, str]:
    """Decode every image, in a few threads; those that cannot be read, and why."""
    count, bad = len(source), dict[int, str]()

    def decode(start: int) -> int:
        stop = min(start + _DECODE_ROWS, count)
        for index in range(start, stop):
            try:
                take(index, pixels(source.pictures[index], source.where(index), size, channels, resize))
            except DataError as error:
                bad[index] = str(error)
        return stop - start

    pool = ThreadPoolExecutor(max_workers=max(2, min(4, os.cpu_count() or 1)))
    try:
        futures = [pool.submit(decode, start) for start in range(0, count, _DECODE_ROWS)]
        for _ in show_progress(((future.result(), None) for future in futures), count, f"decoding {source.name}"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return bad


def _open_digits(split: str) -> ImageSource:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data") from error
    bunch = load_digits()
    test = np.arange(len(bunch.target)) % 10 == 9
    in_split = test if split == "test" else ~test
    images = np.rint(bunch.images[in_split] * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0..16
    return ImageSource(
        name=f"digits/{split}",
        class_names=tuple("0123456789"),
        labels=bunch.target[in_split].astype(np.int64),
        pictures=list(images),
        where=lambda index: f"digits/{split} image {index}",
        digest=lambda: hashlib.sha256(f"digits/{split}\0".encode() + images.tobytes()).hexdigest(),
    )


def _open_parquet(groups: dict[str, list[Path]], split: str, name: str, axes: Mapping[str, str]) -> ImageSource:
    files = groups[split]
    large = encoded_bytes(files) > MAX_ENCODED_BYTES
    column = next(iter(axes.values()), None)
    parts = [read_parquet(file, pictures=not large, column=column) for file in files]
    ends = list(accumulate(len(part.labels) for part in parts))
    if not ends[-1]:
        raise DataError(f"'{name}' holds no rows")
    others = [file for other, files in groups.items() if other != split for file in files]

    def joined(parts: list[ParquetPictures], column: str | None) -> tuple[tuple[str, ...], np.ndarray]:
        common = others if column or parts[0].by_name else []
        return join_labels(parts, [read_parquet(file, pictures=False, column=column) for file in common], name)

    told = {}
    for axis, one in axes.items():
        same = parts if one == column else [read_parquet(file, pictures=False, column=one) for file in files]
        told[axis] = joined(same, one)
    class_names, labels = next(iter(told.values())) if told else joined(parts, None)

    def where(index: int) -> str:
        part = bisect_right(ends, index)
        return f"'{files[part]}' row {index - (ends[part - 1] if part else 0)}"

    rows = ParquetRows(files, max_bytes=MAX_ENCODED_BYTES) if large else None
    return ImageSource(
        name=name,
        class_names=class_names,
        class_axes={axis: names for axis, (names, _) in told.items()},
        labels=class_ids(told, name) if told else labels,
        pictures=rows or [picture for part in parts for picture in part.pictures],
        where=where,
        digest=lambda: _files_digest((file.name, file) for file in files),
        left_out=tuple(f"column {column}" for column in parts[0].unused if column not in axes.values()),
        blocks=None if rows is None else rows.blocks,
    )


def _shards(path_or_name: str | Path) -> dict[str, list[Path]]:
    """Tar shards by split, where there are some and no parquet files, which come first."""
    path = Path(path_or_name)
    return {} if path.is_dir() and parquet_splits(path) else shard_splits(path_or_name)


def _open_shards(path_or_name: str | Path, shards: dict[str, list[Path]], split: str) -> ImageSource:
    """One split; all are indexed, for their classes are common."""
    indices = {name: index_shards(files, SUFFIXES) for name, files in shards.items()}
    every = [index for split_indices in indices.values() for index in split_indices]
    files, parts = shards[split], indices[split]
    name = Path(path_or_name).name
    classes = join_classes(every, class_names(path_or_name, files), name)
    ends = list(accumulate(map(len, parts)))
    if not ends[-1]:
        raise DataError(f"'{path_or_name}' split '{split}' holds no samples")
    read = reader(parts, 0)

    def where(index: int) -> str:
        part = bisect_right(ends, index)
        row = index - (ends[part - 1] if part else 0)
        return f"shard '{files[part]}' sample {row} (at byte {parts[part].rows[row, 0]})"

    return ImageSource(
        name=name if len(shards) == 1 else f"{name}/{split}",
        class_names=(FLAT_CLASS,) if classes is None else classes.names,
        labels=np.concatenate([labels_of(index, classes) for index in parts]),
        pictures=ReadPictures(ends[-1], lambda index: memoryview(read(index))),
        where=where,
        digest=lambda: fingerprint(parts),
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _has_pictures(folder: Path) -> bool:
    return any(map(_is_picture, folder.rglob("*")))


def _open_folder(path: Path, split: str) -> ImageSource:
    splits = split_folders(path, _has_pictures)
    root = splits[split] if splits else path
    others = _other_files(root)
    flat = sorted(filter(_is_picture, root.iterdir()))
    names = {c.name for place in splits.values() or [path] for c in subfolders(place)}
    files = {name: sorted(filter(_is_picture, (root / name).rglob("*"))) for name in sorted(names)}
    classes = [name for name in files if files[name] or any(_has_pictures(place / name) for place in splits.values())]
    if flat and classes:
        raise DataError(f"'{root}' holds both images ('{flat[0].name}') and class folders ('{classes[0]}')")
    for name in classes if not splits else ():
        if {"train", "test"} <= set(map(known_split, (p.name for p in subfolders(path / name)))):
            raise DataError(
                f"'{path}' holds the splits within '{name}'; give '{path / name}', or splits of all classes"
            )
    paths = flat or [file for name in classes for file in files[name]]
    if not paths:
        raise DataError(f"folder '{root}' holds no images ({' '.join(SUFFIXES)}), no parquet files and no tar shards")
    labels = [0] * len(flat) or [label for label, name in enumerate(classes) for _ in files[name]]
    return ImageSource(
        name=f"{path.name}/{split}" if splits else path.name,
        class_names=(FLAT_CLASS,) if flat else tuple(classes),
        labels=np.asarray(labels, np.int64),
        pictures=paths,
        where=lambda index: f"image '{paths[index]}'",
        digest=lambda: _files_digest((file.relative_to(root).as_posix(), file) for file in paths),
        left_out=(
            *(f"{count} {suffix} (no image)" for suffix, count in others.most_common(4)),
            *(f"folder '{name}' without images" for name in files if not flat and name not in classes),
            *(f"folder '{p.name}' beside the splits" for p in subfolders(path) if splits and p not in splits.values()),
        ),
    )


def _other_files(root: Path) -> Counter[str]:
    """How many files of other suffixes a folder holds.

    Raises:
        DataError: so many that it is some large folder, named by mistake.
    """
    others: Counter[str] = Counter()
    num_pictures = 0
    for _, _, names in os.walk(root):
        suffixes = [os.path.splitext(name)[1].lower() or name for name in names if not name.startswith(".")]
        others.update(suffix for suffix in suffixes if suffix not in SUFFIXES)
        num_pictures += sum(suffix in SUFFIXES for suffix in suffixes)
        if others.total() > MAX_OTHERS + num_pictures:
            raise DataError(
                f"'{root}' holds more than {MAX_OTHERS:,} files that are not images; give the folder of the classes"
            )
    return others


def _files_digest(files: Iterable[tuple[str, Path]]) -> str:
    total = hashlib.sha256()
    for name, path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                length = file.tell()
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
        total.update(os.fsencode(f"{name}\0{length}\0{content}\n"))
    return total.hexdigest()
