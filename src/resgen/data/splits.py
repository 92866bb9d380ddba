"""Splits of a data set, recognised by the names of its files and folders in every common spelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from resgen.errors import DataError

SPLITS = {name: name for name in ("train", "test", "val", "valid", "validation", "dev")}
SPLITS |= {"training": "train", "testing": "test"}
HELD_OUT_SPLITS = ("test_seen_speaker", "test_seen", "test", "val", "valid", "validation", "dev")
"""Which of the splits beside `train` validates training, the first that is there."""
_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+)?(-[0-9a-f]{6,})?$")
_FOREIGN = ("__macosx",)
"""Folders that programs leave in archives."""


def known_split(name: str) -> str | None:
    """`train` for `Train` and `training`, and so on; None for what names no split."""
    return SPLITS.get(name.lower())


def split_of(file: Path, *, other: str | None = None) -> str:
    """The split in a file's name without its number.

    `test` of `test-00000-of-00002` and `mnist_test`, `train` of `train.clean.100`, but `test.clean` of `test.clean-0`:
    there may be several kinds of test. A name that is all number is of the split `train`; one without the word of a
    split is a split by itself, or of the split `other` if that is given.
    """
    name = _NUMBER.sub("", file.stem) or "train"
    words = re.split(r"[-_. ]", name)
    first, last = known_split(words[0]), known_split(words[-1])
    if first and first != "train" and len(words) > 1:
        return name
    return first or last or other or name


def training_split(splits: Sequence[str], data: str | Path) -> str:
    """The split to train on: `train`, or the only one if its name is not that of another split.

    Raises:
        DataError: there is no such split in `data`.
    """
    if "train" in splits:
        return "train"
    if len(splits) > 1 or known_split(splits[0]):
        raise DataError(f"'{data}' has the splits {', '.join(splits)}; training needs 'train'")
    return splits[0]


def held_out_split(splits: Sequence[str]) -> str | None:
    """The split that validates training, by the order of `HELD_OUT_SPLITS`; `test.clean` counts as `test`."""
    for word in HELD_OUT_SPLITS:
        for name in splits:
            if re.split(r"[-. ]", name)[0] == word:
                return name
    return None


def parquet_splits(folder: Path) -> dict[str, list[Path]]:
    """Parquet files by split, `train` first: those in a folder, in its `data/`, or in folders named by split."""
    groups: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for file in _files(place):
            groups.setdefault(split_of(file), []).append(file)
        if groups:
            break
    else:
        for part in subfolders(folder) if folder.is_dir() else ():
            if (split := known_split(part.name)) and (files := _files(part)):
                groups.setdefault(split, []).extend(files)
    return dict(sorted(groups.items(), key=lambda group: (group[0] != "train", group[0])))


def split_folders(path: Path, is_filled: Callable[[Path], bool]) -> dict[str, Path]:
    """The folders `train`, `test`, ... of a folder, if they are its splits and not classes of these names.

    They are splits if nothing else beside them is filled, if there are two of them, or if the one that there is holds
    filled folders itself; else a `train` beside `car` and `bus` is a class.

    Raises:
        DataError: two folders are of one split.
    """
    folders = subfolders(path)
    matches = [folder for folder in folders if known_split(folder.name)]
    others = [folder for folder in folders if folder not in matches and is_filled(folder)]
    splits = {known_split(folder.name) or "": folder for folder in reversed(matches)}
    if others and len(splits) < 2 and not any(is_filled(inner) for folder in matches for inner in subfolders(folder)):
        return {}
    if len(splits) < len(matches):
        raise DataError(
            f"'{path}' holds {', '.join(repr(folder.name) for folder in matches)}, two of one split; join them"
        )
    return splits


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder by name, but hidden ones and those that programs leave behind."""
    folders = (p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(folder for folder in folders if folder.name.lower() not in _FOREIGN)


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.glob("*.parquet") if f.is_file() and not f.name.startswith("."))
