"""Which tar shards a path refers to: one file, a pattern with numbers, a folder, folders of splits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from resgen.data.splits import known_split, split_of, subfolders
from resgen.errors import DataError

MAX_SHARDS = 100_000
CLASS_NAMES = "classnames.txt"
"""A file beside the shards with the name of a class on every line."""

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_COMMAND = re.compile(r"^(pipe:|[a-zA-Z][\w+.-]*://)")


def shard_splits(path: str | Path) -> dict[str, list[Path]]:
    """Tar shards by split, `train` first; empty if the path means none.

    * `shards/name-{000000..000123}.tar`: exactly these, all of them.
    * one `.tar` file.
    * a folder of `.tar` files, or of `data/*.tar`, in the order of their names; see `data.splits.split_of`. A name
      without the word of a split is of `train`.
    * a folder of folders `train`, `test`, ... of them.

    Raises:
        DataError: a command or an address, a shard of a pattern that is missing, or a pattern without end.
    """
    if _COMMAND.match(str(path)):
        raise DataError(f"'{path}': commands and URLs are not opened; download the shards and give their folder")
    if _RANGE.search(str(path)) and str(path).endswith(".tar"):
        return {"train": list(_expanded(str(path)))}
    path = Path(path)
    if path.is_file():
        return {"train": [path]} if path.suffix.lower() == ".tar" else {}
    if not path.is_dir():
        return {}
    splits: dict[str, list[Path]] = {}
    for folder in (path, path / "data"):
        for file in _tars(folder):
            splits.setdefault(split_of(file, other="train"), []).append(file)
        if splits:
            break
    else:
        for folder in subfolders(path):
            if (split := known_split(folder.name)) and (files := _tars(folder)):
                splits.setdefault(split, []).extend(files)
    return dict(sorted(splits.items(), key=lambda item: (item[0] != "train", item[0])))


def class_names(path: str | Path, files: list[Path]) -> tuple[str, ...] | None:
    """The lines of `classnames.txt` in the data's folder or beside its shards; None if there is none.

    Raises:
        DataError: it cannot be read, or holds no names or one twice.
    """
    for folder in (Path(path), files[0].parent):
        place = folder / CLASS_NAMES
        if not place.is_file():
            continue
        try:
            names = place.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"'{place}' cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
        names = [name.strip() for name in names if name.strip()]
        if not names or len(set(names)) < len(names):
            raise DataError(f"'{place}' holds {'a name twice' if names else 'no names'}; allowed: one per line")
        return tuple(names)
    return None


def _tars(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.glob("*.tar") if f.is_file() and not f.name.startswith("."))


def _expanded(pattern: str) -> Iterator[Path]:
    """The files of a pattern, numbers with as many digits as its first ones."""
    texts = [pattern]
    while match := _RANGE.search(texts[0]):
        first, last = match.groups()
        if int(last) < int(first):
            raise DataError(f"'{pattern}': {match[0]} is descending; allowed: {{FIRST..LAST}}")
        count = int(last) - int(first) + 1
        if count * len(texts) > MAX_SHARDS:
            raise DataError(f"'{pattern}' covers more than {MAX_SHARDS} shards; make larger ones")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        texts = [_RANGE.sub(number, text, count=1) for text in texts for number in numbers]
    for text in texts:
        if not Path(text).is_file():
            raise DataError(f"shard '{text}' of '{pattern}' is missing; give the numbers of existing shards")
        yield Path(text)
