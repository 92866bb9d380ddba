"""Parquet files in the schema of Hugging Face `datasets`: cells with encoded files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resgen.errors import DataError
from resgen.extras import MissingExtraError

LARGE_BYTES, MOST_UNPACKED = 1 << 28, 1000
"""A file of more bytes when it is read may grow so many times; images and sounds hardly do, for they are packed."""


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: it cannot be opened, or, within the block, not be read.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"parquet file '{path}' cannot be read: {reason}") from error


def check_unpacked(path: Path, about: Any) -> None:
    """Reject a file designed to exhaust memory.

    Args:
        path: the file.
        about: its metadata.

    Raises:
        DataError: it is large when it is read, and hardly anything on the disk.
    """
    groups = map(about.row_group, range(about.num_row_groups))
    size = sum(group.column(column).total_uncompressed_size for group in groups for column in range(group.num_columns))
    packed = path.stat().st_size
    if size > max(LARGE_BYTES, MOST_UNPACKED * packed):
        raise DataError(f"parquet file '{path}' has {packed:,} bytes, but {size:,} when read; remove it")


def check_encoded(path: Path, schema: Any, name: str) -> None:
    """Reject a column that holds no encoded files.

    Raises:
        DataError: naming it and what is allowed.
    """
    from pyarrow import types

    column_type = schema.field(name).type
    nested = types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0
    content = column_type.field("bytes").type if nested else column_type
    if not (types.is_binary(content) or types.is_large_binary(content)):
        raise DataError(f"'{path}' column '{name}' must hold bytes or {{bytes, path}}, not {column_type}")


def encoded_cells(path: Path, column: Any, name: str, start: int) -> list[memoryview]:
    """The encoded bytes of a batch's column, shared with Arrow's memory; `start` is the row of the first.

    Raises:
        DataError: a row without bytes.
    """
    from pyarrow import compute, types

    column = compute.struct_field(column, "bytes") if types.is_struct(column.type) else column
    if column.null_count:
        row = start + column.is_null().to_pylist().index(True)
        raise DataError(f"'{path}' row {row} holds no bytes in column '{name}'; they must be in the file")
    return [memoryview(value.as_buffer()) for value in column]


def file_names(column: Any) -> list[str | None]:
    """The `path` beside the bytes of each cell, where there is one."""
    from pyarrow import compute, types

    has_paths = types.is_struct(column.type) and column.type.get_field_index("path") >= 0
    paths = compute.struct_field(column, "path").to_pylist() if has_paths else [None] * len(column)
    return [path if isinstance(path, str) else None for path in paths]
