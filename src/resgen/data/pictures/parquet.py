"""Parquet files of images: encoded images, labels as whole numbers or names."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resgen.data.labels import label_name
from resgen.data.parquet import check_encoded, check_unpacked, encoded_cells, open_parquet
from resgen.errors import DataError, unknown

IMAGE_COLUMNS = ("image", "img")
_BATCH_ROWS = 1024
_MAX_UNNAMED_CLASSES = 100_000


class ParquetPictures(NamedTuple):
    """The images of one file, still encoded.

    Attributes:
        pictures: the encoded bytes of every row, shared with Arrow's memory; none if not requested.
        labels: int64 [N], -1 where there is none; zeros if the file has no label column.
        class_names: from the schema's metadata or, where labels are names, those of the file; else None.
        labelled: whether the file has a label column.
        by_name: whether its labels are names, of which other files of the data may have more.
        unused: the columns that are neither image nor label.
    """

    pictures: list[memoryview]
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    labelled: bool
    by_name: bool = False
    unused: tuple[str, ...] = ()


def read_parquet(path: Path, *, pictures: bool = True, column: str | None = None) -> ParquetPictures:
    """Read the image and label columns of one parquet file; the images are not decoded.

    Args:
        path: the file.
        pictures: read them; without, `ParquetRows` reads them on request.
        column: the label column, in which labels may be missing; without, it is found by its name or type.

    Raises:
        DataError: unreadable, no image or label column, a row without bytes, a label that is missing, negative or has
            no name, several columns that may be the label.
        MissingExtraError: pyarrow is not installed.
    """
    files: list[memoryview] = []
    labels: list[np.ndarray] = []
    with open_parquet(path) as file:
        schema = file.schema_arrow
        image, label = _image_column(path, schema.names), _label_column(path, schema, column)
        _check_types(path, schema, image, label)
        by_name = label is not None and _is_text(schema.field(label).type)
        count = file.metadata.num_rows
        columns = [image] * pictures + [label] * (label is not None)
        start = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):  # a whole struct column may exceed 2 GB
            if pictures:
                files += encoded_cells(path, batch.column(image), image, start)
            if label is not None:
                labels.append(_labels(path, batch.column(label), start, missing=column is not None))
            start += len(batch)
    all_labels = np.concatenate(labels) if labels else np.zeros(count, np.int64)
    unused = tuple(name for name in schema.names if name not in (image, label))
    if by_name:
        texts = all_labels[there := np.array([text is not None for text in all_labels], bool)]
        names, numbers = np.unique(texts.astype(str), return_inverse=True)
        all_labels = np.full(count, -1)
        all_labels[there] = numbers
        return ParquetPictures(files, all_labels, tuple(map(str, names)), True, True, unused)
    named = _class_names(schema.metadata, label)
    if named is not None and all_labels.size and all_labels.max() >= len(named):
        row = int(np.argmax(all_labels >= len(named)))
        raise DataError(f"'{path}' row {row} has label {all_labels[row]}, but only {len(named)} classes are named")
    return ParquetPictures(files, all_labels, named, label is not None, unused=unused)


def join_labels(
    parts: Sequence[ParquetPictures], others: Sequence[ParquetPictures], where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and labels, int64 [N], of several files that form one data set; labels may be missing, -1.

    The names are the schema's, or the numbers as text; of labels that are names, all that occur, sorted.

    Args:
        parts: the files.
        others: those of other splits whose classes are the same.
        where: what to call the data in an error.

    Raises:
        DataError: the files name different classes, or labels too large to be numbered.
    """
    if len({(part.labelled, part.by_name) for part in parts}) > 1:
        raise DataError(f"the parquet files of '{where}' do not agree on labels")
    if parts[0].by_name:
        every = sorted({name for part in (*parts, *others) if part.by_name for name in part.class_names or ()})
        numbers = {name: number for number, name in enumerate(every)}
        tables = [np.array([*(numbers[name] for name in part.class_names or ()), -1], np.int64) for part in parts]
        return tuple(every), np.concatenate([table[part.labels] for part, table in zip(parts, tables, strict=True)])
    labels = np.concatenate([part.labels for part in parts])
    name_lists = {part.class_names for part in (*parts, *others)}
    if len(name_lists) > 1:
        raise DataError(f"the parquet files of '{where}' do not agree on class names")
    names = name_lists.pop()
    if names is None and not parts[0].labelled:
        names = ("picture",)
    if names is None:
        highest = max(int(part.labels.max(initial=0)) for part in (*parts, *others))
        if highest >= _MAX_UNNAMED_CLASSES:
            raise DataError(f"'{where}' has label {highest}, but no class names; at most {_MAX_UNNAMED_CLASSES - 1}")
        names = tuple(map(str, range(highest + 1)))
    return names, labels


def encoded_bytes(paths: Iterable[Path]) -> int:
    """Bytes of the image columns of files, as they are when read."""
    return sum(size for path in paths for _, size in _groups(path))


class ParquetRows:
    """`Pictures` of parquet files, of which the row groups used last are in memory.

    A row group (a few hundred or thousand rows that are stored as one) is read as a whole; whoever asks for rows in an
    order that keeps to few of them at a time reads each once.

    Args:
        paths: the files, all with the same columns.
        max_bytes: most bytes of images kept in memory; at least the last row group is.

    Attributes:
        blocks: int64 [K], ends of stretches of rows: as many whole row groups as fit into half of `max_bytes`.
    """

    def __init__(self, paths: Sequence[Path], *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._places: list[tuple[Path, int, int, int]] = []  # file, number of the row group, its first row, bytes
        ends, stretches, num_bytes, total = [], [], 0, 0
        for path in paths:
            row = 0
            for number, (count, size) in enumerate(_groups(path)):
                if num_bytes + size > max_bytes // 2 and num_bytes:
                    stretches.append(total)
                    num_bytes = 0
                self._places.append((path, number, row, size))
                row, total, num_bytes = row + count, total + count, num_bytes + size
                ends.append(total)
        self._ends = np.array(ends, np.int64)
        self.blocks = np.array([*stretches, total], np.int64)
        self._cache: OrderedDict[int, _Group] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> memoryview:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._rows(number)[index - (int(self._ends[number - 1]) if number else 0)]

    def _rows(self, number: int) -> list[memoryview]:
        with self._lock:
            group = self._cache.setdefault(number, _Group())
            self._cache.move_to_end(number)
            size = sum(self._places[other][3] for other in self._cache)
            while size > self._max_bytes and len(self._cache) > 1:
                size -= self._places[self._cache.popitem(last=False)[0]][3]
        with group.lock:  # other threads wait for the one that reads
            if group.rows is None:
                path, place, row, _ = self._places[number]
                group.rows = _read_group(path, place, row)
            return group.rows


class _Group:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: list[memoryview] | None = None


def _read_group(path: Path, number: int, start: int) -> list[memoryview]:
    rows: list[memoryview] = []
    with open_parquet(path) as file:
        image = _image_column(path, file.schema_arrow.names)
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[number], columns=[image]):
            rows += encoded_cells(path, batch.column(image), image, start + len(rows))
    return rows


def _groups(path: Path) -> list[tuple[int, int]]:
    """Rows and bytes of images of every row group."""
    with open_parquet(path) as file:
        image = _image_column(path, file.schema_arrow.names)
        about = file.metadata
        check_unpacked(path, about)
        groups = []
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            columns = [group.column(column) for column in range(group.num_columns)]
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == image)
            groups.append((group.num_rows, size))
    return groups


def _image_column(path: Path, names: Sequence[str]) -> str:
    for name in names:
        if name.lower() in IMAGE_COLUMNS:
            return name
    raise DataError(f"'{path}' has no column {' or '.join(IMAGE_COLUMNS)}; it has: {', '.join(names) or 'none'}")


def _label_column(path: Path, schema: Any, column: str | None) -> str | None:
    """The given one, or by its name or, without such a one, by its type `ClassLabel`."""
    if column is not None and column not in schema.names:
        raise DataError(f"'{path}': {unknown('class column', column, schema.names)}")
    if column is not None:
        return column
    name = label_name(schema.names, f"'{path}'")
    classes = [] if name else [one for one in schema.names if _class_names(schema.metadata, one)]
    if len(classes) > 1:
        raise DataError(f"'{path}' has {' and '.join(classes)}, which may all be the class; name the right one 'label'")
    return name or next(iter(classes), None)


def _check_types(path: Path, schema: Any, image: str, label: str | None) -> None:
    check_encoded(path, schema, image)
    if label is not None and not _is_label(schema.field(label).type):
        raise DataError(f"'{path}' column '{label}' must hold whole numbers or names, not {schema.field(label).type}")


def _is_label(column_type: Any) -> bool:
    from pyarrow import types

    content = column_type.value_type if types.is_dictionary(column_type) else column_type
    return bool(types.is_integer(content) or types.is_boolean(content) or _is_text(content))


def _is_text(column_type: Any) -> bool:
    from pyarrow import types

    content = column_type.value_type if types.is_dictionary(column_type) else column_type
    return bool(types.is_string(content) or types.is_large_string(content))


def _labels(path: Path, column: Any, start: int, *, missing: bool) -> np.ndarray:
    """Names (or None), or numbers (or -1)."""
    absent = np.array(column.is_null().to_pylist(), bool)
    if absent.any() and not missing:
        raise DataError(f"'{path}' row {start + int(absent.argmax())} has no label")
    if _is_text(column.type):
        return np.array(column.to_pylist(), object)
    values = np.array([0 if value is None else value for value in column.to_pylist()]).astype(np.int64)
    if values.size and values.min() < 0:
        row = int(np.argmax(values < 0))
        raise DataError(f"'{path}' row {start + row} has label {values[row]}; labels start at 0")
    values[absent] = -1
    return values


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None
