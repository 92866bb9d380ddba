"""Parquet files in the schema of Hugging Face `datasets`: pictures as bytes, whole-number labels, class names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resgen.errors import DataError, MissingExtraError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
_BATCH_ROWS = 1024
_MAX_UNNAMED_CLASSES = 100_000


class ParquetPictures(NamedTuple):
    """The pictures of one file, still encoded.

    Attributes:
        pictures: the encoded bytes of every row, shared with Arrow's memory.
        labels: int64 [N]; zeros if the file has no label column.
        class_names: from the schema's metadata; None where it names no classes.
        labelled: whether the file has a label column.
    """

    pictures: list[memoryview]
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    labelled: bool


def read_parquet(path: Path) -> ParquetPictures:
    """Read the picture and label columns of one parquet file; the pictures are not decoded.

    Raises:
        DataError: unreadable, no picture column, a row without bytes, a label that is missing, negative or has no name.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            image, label = _columns(path, schema.names)
            nested = _check_types(path, schema, image, label)
            pictures: list[memoryview] = []
            labels = [np.zeros(0, np.int64)]
            columns = [image] if label is None else [image, label]
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):  # a whole struct column may exceed 2 GB
                column = batch.column(image)
                column = pyarrow.compute.struct_field(column, "bytes") if nested else column
                if column.null_count:
                    row = len(pictures) + column.is_null().to_pylist().index(True)
                    raise DataError(f"'{path}' row {row} holds no picture bytes in column '{image}'")
                start = len(pictures)
                pictures += [memoryview(value.as_buffer()) for value in column]
                if label is not None:
                    labels.append(_labels(path, batch.column(label), start))
    except (pyarrow.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"parquet file '{path}' cannot be read: {reason}") from error
    joined = np.concatenate(labels) if label is not None else np.zeros(len(pictures), np.int64)
    names = _class_names(schema.metadata, label)
    if names is not None and joined.size and joined.max() >= len(names):
        row = int(np.argmax(joined >= len(names)))
        raise DataError(f"'{path}' row {row} has label {joined[row]}, but only {len(names)} classes are named")
    return ParquetPictures(pictures, joined, names, label is not None)


def join_names(parts: Sequence[ParquetPictures], where: str) -> tuple[str, ...]:
    """Class names of several files that form one data set: the schema's, or the numbers as text.

    Raises:
        DataError: the files name different classes, or labels too large to be numbered.
    """
    named = {part.class_names for part in parts}
    if len(named) > 1 or len({part.labelled for part in parts}) > 1:
        raise DataError(f"the parquet files of '{where}' do not agree on labels or class names")
    names = named.pop()
    if names is not None:
        return names
    if not parts[0].labelled:
        return ("picture",)
    highest = max((int(part.labels.max()) for part in parts if part.labels.size), default=0)
    if highest >= _MAX_UNNAMED_CLASSES:
        raise DataError(f"'{where}' has label {highest}, but no class names; at most {_MAX_UNNAMED_CLASSES - 1}")
    return tuple(str(number) for number in range(highest + 1))


def _columns(path: Path, names: Sequence[str]) -> tuple[str, str | None]:
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        raise DataError(f"'{path}' has no column {' or '.join(IMAGE_COLUMNS)}; it has: {', '.join(names) or 'none'}")
    return image, next((name for name in LABEL_COLUMNS if name in names), None)


def _check_types(path: Path, schema: Any, image: str, label: str | None) -> bool:
    from pyarrow import types

    kind = schema.field(image).type
    nested = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    content = kind.field("bytes").type if nested else kind
    if not (types.is_binary(content) or types.is_large_binary(content)):
        raise DataError(f"'{path}' column '{image}' must hold bytes or {{bytes, path}}, not {kind}")
    if label is not None and not types.is_integer(schema.field(label).type):
        raise DataError(f"'{path}' column '{label}' must hold whole numbers, not {schema.field(label).type}")
    return nested


def _labels(path: Path, column: Any, start: int) -> np.ndarray:
    if column.null_count:
        raise DataError(f"'{path}' row {start + column.is_null().to_pylist().index(True)} has no label")
    values = column.to_numpy(zero_copy_only=False).astype(np.int64)
    if values.size and values.min() < 0:
        row = int(np.argmax(values < 0))
        raise DataError(f"'{path}' row {start + row} has label {values[row]}; labels start at 0")
    return values


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None
