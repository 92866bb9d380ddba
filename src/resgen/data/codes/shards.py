"""The files of a code cache: its description, the shards that hold the codes, and how each is written and checked.

```
meta.json         {"format": "resgen-codes", "format_version": 2, "spec", "num_samples", "versions", "class_names",
                   "tokenizer_fingerprint", "data_fingerprint", "shard_samples",
                   "shards": [{"file": "codes-00000.npy", "num_samples", "sha256"}, ...],
                   "labels": {"file": "labels.npy", "sha256"}}
codes-00000.npy   [at most shard_samples, L, D], uint16 or int32; no shard holds samples of two versions
labels.npy        int64 [versions * num_samples]
```

Format version 1 has all codes in one file `codes.npy` and its hashes under "sha256"; it is read, but no longer written.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resgen.data.codes.shard_files import MAX_SHARDS, REMEDY, HashedFile, Shard, check_division, divided
from resgen.errors import ConfigError, DataError
from resgen.types import CodeSpec

__all__ = ["MAX_SHARDS", "ArrayWriter", "CodePlan", "Shard", "check_codes", "check_labels", "map_array"]

LABELS_NAME = "labels.npy"
SINGLE_NAME = "codes.npy"
"""All codes, in format version 1."""

SHARD_SAMPLES = 1 << 18
"""Samples per shard, if nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class CodePlan:
    """What a code cache holds, what it was made from and how it is divided.

    Attributes:
        spec: shape of the codes and size of the codebooks.
        num_samples: samples, each counted once.
        versions: encoded versions per sample.
        class_names: one per label; may be empty.
        tokenizer_fingerprint: of the tokenizer that makes the codes.
        data_fingerprint: of the data that is encoded.
        shard_samples: the most samples of a shard; None is the single file of format version 1.

    Raises:
        ConfigError: a number below 1, or more than `MAX_SHARDS` shards.
    """

    spec: CodeSpec
    num_samples: int
    versions: int = 1
    class_names: tuple[str, ...] = ()
    tokenizer_fingerprint: str
    data_fingerprint: str
    shard_samples: int | None = SHARD_SAMPLES

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.versions < 1:
            raise ConfigError(f"num_samples={self.num_samples} and versions={self.versions} must be at least 1")
        if self.shard_samples is not None:
            check_division(self.num_samples, self.shard_samples, versions=self.versions)

    @property
    def rows(self) -> int:
        """`versions * num_samples`."""
        return self.versions * self.num_samples

    @property
    def code_type(self) -> np.dtype:
        """Type of the codes on disk."""
        return np.dtype("<u2" if self.spec.codebook_size <= 1 << 16 else "<i4")

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in the order of the rows."""
        if self.shard_samples is None:
            return (Shard(SINGLE_NAME, 0, self.rows),)
        return divided(self.num_samples, self.shard_samples, "codes-{number:05d}.npy", versions=self.versions)

    def shape(self, shard: Shard) -> tuple[int, int, int]:
        """Shape of a shard's array."""
        return shard.num_samples, self.spec.num_positions, self.spec.depth


def map_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Map an array of the cache into memory; its file must have exactly the size that the array needs.

    Raises:
        DataError: missing, truncated or of another type, shape or size.
    """
    where = f"code cache '{path.parent}'"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{where} has no {path.name}; {REMEDY}") from error
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{where}: {path.name} is truncated or damaged; {REMEDY}") from error
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.shape != shape:
        content = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
        raise DataError(f"{where}: {path.name} holds {content}, but {dtype} {shape} is described; {REMEDY}")
    if size != array.offset + array.nbytes:
        raise DataError(f"{where}: {path.name} has {size} bytes, not {array.offset + array.nbytes}; {REMEDY}")
    return array


def check_codes(codes: np.ndarray, spec: CodeSpec, where: str) -> None:
    """Refuse codes that are in no codebook.

    Raises:
        DataError: naming the range of the codes.
    """
    if codes.size and (codes.min() < 0 or codes.max() >= spec.codebook_size):
        raise DataError(f"{where} has codes {codes.min()}..{codes.max()}, but the codebooks hold {spec.codebook_size}")


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels without a class; with 0 classes any will do that is not negative.

    Raises:
        DataError: naming the range of the labels.
    """
    if labels.size and (labels.min() < 0 or (num_classes and labels.max() >= num_classes)):
        raise DataError(f"{where} has labels {labels.min()}..{labels.max()}, but {num_classes} classes")


class ArrayWriter:
    """Appends to a `.npy` file; plain writes, because a full disk kills a process that writes to mapped memory."""

    def __init__(self, file: HashedFile, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        self._file, self._dtype = file, dtype
        self.rows = 0
        file.write(header.getvalue())

    def write(self, block: np.ndarray) -> None:
        """Append rows."""
        self.rows += len(block)
        self._file.write(np.ascontiguousarray(block, self._dtype).tobytes())
