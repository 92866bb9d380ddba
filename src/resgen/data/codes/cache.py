"""Encoded data sets of images and speech: codes in shards, with named columns.

```
meta.json                 {"format": "resgen-codes", "format_version": 1, "spec", "num_samples", "versions", "columns",
                           "class_names", "class_axes", "made_from", "ragged", "shard_samples",
                           "shards": [{"file": "codes-00000.safetensors", "num_samples", "sha256"}, ...]}
codes-00000.safetensors   codes, uint16 or int32 [positions, D], of its samples one after another, and lengths,
                          int64 [samples]; of a column of numbers int64 [samples]; of a column of rows their int32
                          values one after another, and NAME_lengths; as metadata the columns of texts
```

A sample is a row of codes; images are the case of rows of equal length. No shard holds samples of two versions. The
files are read as if they were hostile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resgen.config import config_from_dict, config_to_dict
from resgen.data.text import NUM_TOKENS
from resgen.errors import ConfigError, DataError
from resgen.ops.axes import count_ids
from resgen.types import CodeSpec

FORMAT, FORMAT_VERSION = "resgen-codes", 1
META_NAME = "meta.json"
MAX_SHARDS = 512
"""Every shard is a file that stays open while it is mapped; systems allow a process 1,024 open files or more."""
REMEDY = "encode again (only what is missing or damaged is made)"


class Shard(NamedTuple):
    """One file: samples `begin` to `begin + num_samples`, counted over all versions."""

    file: str
    begin: int
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The contents of a cache, their source and their division into shards.

    Attributes:
        spec: shape of the codes and size of the codebooks.
        num_samples: samples, each counted once, those left out included.
        versions: encoded versions per sample, one after the other (for example: 0 as it is, 1 mirrored).
        columns: what every sample has besides codes, by name: a number, a row of numbers or a text. Labels (numbers),
            tokens and durations (rows) are checked for what they mean.
        class_names: one per label; may be empty. With several axes, of the first.
        class_axes: names and their classes, of every axis of which the labels tell, in this order; see
            `models.conditions.class_digits`. Empty where a label is a number of `class_names`.
        made_from: fingerprints, by name, of what makes the codes and of the data.
        ragged: samples differ in length, and some may be left out; otherwise all have the positions of `spec`.
        shard_samples: the most samples of a shard.

    Raises:
        ConfigError: a number below 1, or more than `MAX_SHARDS` shards.
    """

    spec: CodeSpec
    num_samples: int
    versions: int = 1
    columns: Mapping[str, Literal["number", "row", "text"]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    class_axes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    made_from: Mapping[str, str]
    ragged: bool = False
    shard_samples: int

    def __post_init__(self) -> None:
        for name in ("num_samples", "versions", "shard_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.versions * -(-self.num_samples // self.shard_samples) > MAX_SHARDS:
            raise ConfigError(
                f"shard_samples={self.shard_samples} makes more than {MAX_SHARDS} shards of {self.versions} x "
                f"{self.num_samples} samples; take at least {usual_shard(self.num_samples, self.versions, least=1)}"
            )

    @property
    def rows(self) -> int:
        """`versions * num_samples`."""
        return self.versions * self.num_samples

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in the order of the samples."""
        spans = [
            (version * self.num_samples + begin, min(self.shard_samples, self.num_samples - begin))
            for version in range(self.versions)
            for begin in range(0, self.num_samples, self.shard_samples)
        ]
        return tuple(Shard(f"codes-{number:05d}.safetensors", *span) for number, span in enumerate(spans))

    @property
    def arrays(self) -> dict[str, torch.dtype]:
        """Names and types of a shard's arrays."""
        codes = torch.uint16 if self.spec.codebook_size <= 1 << 16 else torch.int32
        arrays = {"codes": codes, "lengths": torch.int64}
        for name, content in self.columns.items():
            if content != "text":
                arrays[name] = torch.int64 if content == "number" else torch.int32
            if content == "row":
                arrays[f"{name}_lengths"] = torch.int64
        return arrays


class Part(NamedTuple):
    """A shard's content: arrays (mapped into memory) and texts, by name."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, list[str]]


def usual_shard(num_samples: int, versions: int = 1, *, least: int) -> int:
    """Samples per shard where nobody says how many: `least`, or more where these were too many shards."""
    return max(least, -(-num_samples // max(MAX_SHARDS // versions, 1)))


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeCache:
    """An encoded data set, mapped into memory. Sample `v * num_samples + i` is version `v` of sample `i`.

    Attributes:
        path: its folder.
        plan: what it holds and was made from.
        parts: content of each shard.
        hashes: recorded SHA-256 of each shard.
    """

    path: Path
    plan: CachePlan
    parts: tuple[Part, ...]
    hashes: Mapping[str, str]

    def __len__(self) -> int:
        """Stored samples, those of all versions."""
        return len(self.lengths)

    @property
    def spec(self) -> CodeSpec:
        """Shape of the codes and size of the codebooks."""
        return self.plan.spec

    @cached_property
    def lengths(self) -> Int[Tensor, " N"]:
        """Positions of each sample."""
        return self.numbers("lengths")

    @cached_property
    def _ends(self) -> np.ndarray:
        """Samples of the first, the first two, ... shards."""
        return np.cumsum([len(part.arrays["lengths"]) for part in self.parts])

    @cached_property
    def _spans(self) -> tuple[dict[str, np.ndarray], ...]:
        """Of each shard, where the codes and the rows of its samples end, by name."""
        names = {"codes": "lengths"} | {
            n: f"{n}_lengths" for n, content in self.plan.columns.items() if content == "row"
        }
        return tuple({name: part.arrays[other].cumsum() for name, other in names.items()} for part in self.parts)

    def numbers(self, name: str) -> Int[Tensor, " N"]:
        """A column of numbers, of all samples."""
        return torch.from_numpy(np.concatenate([part.arrays[name] for part in self.parts]))

    def texts(self, name: str) -> tuple[str, ...]:
        """A column of texts, of all samples."""
        return tuple(text for part in self.parts for text in part.texts[name])

    def sample(self, index: int) -> dict[str, Int[Tensor, " ..."]]:
        """The codes `[L, D]` of one sample under "codes", and its columns of rows; int64.

        Raises:
            DataError: a stored code is not below the codebook's size.
            IndexError: there is no such sample.
        """
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        result = {}
        for name, ends in self._spans[number].items():
            values = self.parts[number].arrays[name][ends[row - 1] if row else 0 : ends[row]]
            result[name] = torch.from_numpy(values.astype(np.int64))
        _check_codes(result["codes"].numpy(), self.spec, f"code cache '{self.path}'")
        return result

    def batch(self, indices: Int[Tensor, " B"]) -> tuple[Int[Tensor, "B L D"], Int[Tensor, " B"]]:
        """Codes and labels (int64) of samples of equal length, in whatever shards they are.

        Raises:
            DataError: a stored code is not below the codebook's size.
            IndexError: there is no such sample.
        """
        rows = indices.cpu().numpy()
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()}, but code cache '{self.path}' has {len(self)}")
        places = np.searchsorted(self._ends, rows, side="right")
        codes = np.empty((len(rows), self.spec.num_positions, self.spec.depth), np.int64)
        for number in np.unique(places):
            inside, part = places == number, self.parts[number].arrays
            begin = self._ends[number] - len(part["lengths"])
            codes[inside] = part["codes"].reshape(-1, *codes.shape[1:])[rows[inside] - begin]
        _check_codes(codes, self.spec, f"code cache '{self.path}'")
        return torch.from_numpy(codes), self.labels[indices.cpu()]

    @cached_property
    def labels(self) -> Int[Tensor, " N"]:
        """The column of labels."""
        return self.numbers("labels")

    def require(self, name: str, fingerprint: str) -> None:
        """Check that the cache was made from what is given.

        Raises:
            DataError: it was made from something else.
        """
        if self.plan.made_from.get(name) != fingerprint:
            raise DataError(
                f"code cache '{self.path}' was made from {name} {self.plan.made_from.get(name)}, not from "
                f"{fingerprint}; encode again"
            )

    def verify(self) -> None:
        """Read everything: compare all shards with their recorded SHA-256 and all codes with the codebooks' size.

        Raises:
            DataError: naming the first file that differs.
        """
        where = f"code cache '{self.path}'"
        for file, expected in self.hashes.items():
            if file_hash(self.path / file) != expected:
                raise DataError(f"{where}: {file} is damaged (its SHA-256 differs); {REMEDY}")
        for part in self.parts:
            _check_codes(part.arrays["codes"], self.spec, where)


def open_codes(path: str | Path, *, verify: bool = False) -> CodeCache:
    """Open a code cache; the codes stay on disk until they are used, all else is checked.

    Args:
        path: its folder.
        verify: also read the codes; see `CodeCache.verify`.

    Raises:
        DataError: missing, of a newer format, truncated, damaged, or at odds with its own description.
    """
    path = Path(path)
    plan, hashes = read_meta(path / META_NAME)
    parts = tuple(read_shard(path, plan, shard) for shard in plan.shards)
    if not any(len(part.arrays["lengths"]) for part in parts):
        raise DataError(f"code cache '{path}' holds no samples; encode again")
    cache = CodeCache(path=path, plan=plan, parts=parts, hashes=hashes)
    if verify:
        cache.verify()
    return cache


def describe(plan: CachePlan, hashes: Mapping[str, str] | None = None) -> str:
    """The content of `meta.json`; without the hashes of its shards, of a plan that is not carried out yet."""
    meta: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **config_to_dict(plan)}
    if hashes is not None:
        meta["shards"] = [shard._asdict() | {"sha256": hashes[shard.file]} for shard in plan.shards]
        for entry in meta["shards"]:
            del entry["begin"]
    return json.dumps(meta, indent=1, ensure_ascii=False)


def read_meta(path: Path) -> tuple[CachePlan, dict[str, str]]:
    """What `describe` wrote: the plan, and the SHA-256 of every shard (of none if it is not carried out).

    Raises:
        DataError: missing, of another or a newer format, or damaged.
    """
    folder = path.parent
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"'{folder}' is not a code cache: it has no {path.name}") from error
    except OSError as error:
        raise DataError(f"code cache '{folder}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"code cache '{folder}': {path.name} is damaged (not JSON); encode again") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"'{folder}' is not a code cache: {path.name} does not say format '{FORMAT}'")
    if meta.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"code cache '{folder}' has format version {meta.get('format_version')}; this version reads "
            f"{FORMAT_VERSION}: upgrade resgen, or encode again"
        )
    try:
        names = {item.name for item in fields(CachePlan)}
        plan = config_from_dict(CachePlan, {name: value for name, value in meta.items() if name in names})
        if "shards" not in meta:
            return plan, {}
        entries = [(str(entry["file"]), entry["num_samples"], str(entry["sha256"])) for entry in meta["shards"]]
        if [entry[:2] for entry in entries] != [(shard.file, shard.num_samples) for shard in plan.shards]:
            raise ValueError("its shards are not those of its numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"code cache '{folder}': {path.name} is damaged ({type(error).__name__}: {error}); encode again"
        ) from error
    return plan, {file: sha256 for file, _, sha256 in entries}


def pack_shard(
    plan: CachePlan, shard: Shard, codes: Iterable[Tensor], columns: Mapping[str, Sequence[Any]], where: str
) -> bytes:
    """The content of a shard.

    Args:
        plan: plan of the cache.
        shard: which one.
        codes: codes of each sample, whole numbers [L, D].
        columns: by name: of each sample a number, a row or a text.
        where: begins errors.

    Raises:
        DataError: samples of a wrong number, length or value.
    """
    depth = plan.spec.depth

    def flatten(rows: Iterable[Tensor], empty: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(rows)
        lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        return torch.cat(parts).cpu() if parts else empty, lengths

    arrays: dict[str, Tensor] = {}
    arrays["codes"], arrays["lengths"] = flatten(codes, torch.zeros(0, depth, dtype=torch.int64))
    for name, content in plan.columns.items():
        if content == "row":
            empty = torch.zeros(0, dtype=torch.int64)
            arrays[name], arrays[f"{name}_lengths"] = flatten(columns[name], empty)
        elif content == "number":
            arrays[name] = torch.as_tensor(columns[name]).cpu()
    texts = {name: list(columns[name]) for name, content in plan.columns.items() if content == "text"}
    for name, array in arrays.items():
        if array.is_floating_point():
            raise DataError(f"{where}: {name} must be whole numbers, not {array.dtype}")
    if arrays["codes"].ndim == 2:  # before a smaller type hides what is too large
        _check_codes(arrays["codes"].numpy(), plan.spec, where)
    arrays = {name: array.to(plan.arrays[name]).contiguous() for name, array in arrays.items()}
    _check(Part({name: array.numpy() for name, array in arrays.items()}, texts), plan, shard, where)
    return save(arrays, metadata={"resgen": json.dumps(_origin(plan) | {"texts": texts})})


def read_shard(folder: Path, plan: CachePlan, shard: Shard) -> Part:
    """The checked content of a shard, but for the range of its codes, which are not read.

    Raises:
        DataError: missing, damaged, or at odds with the plan.
    """
    where = f"code cache '{folder}': {shard.file}"
    try:
        with safe_open(folder / shard.file, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("resgen", ""))
            arrays = {name: file.get_tensor(name) for name in plan.arrays}
        texts, origin = meta.pop("texts"), meta
        for name, array in arrays.items():
            if array.dtype != plan.arrays[name]:
                raise ValueError(f"{name} is of type {array.dtype}, not {plan.arrays[name]}")
    except FileNotFoundError as error:
        raise DataError(f"{where} is missing; {REMEDY}") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where} is truncated or damaged ({reason}); {REMEDY}") from error
    if origin != _origin(plan):
        raise DataError(f"{where} was made from other things; {REMEDY}")
    part = Part({name: array.numpy() for name, array in arrays.items()}, texts)
    _check(part, plan, shard, where)
    return part


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _origin(plan: CachePlan) -> dict[str, Any]:
    """What a shard says of its cache."""
    return {"spec": config_to_dict(plan.spec), "made_from": dict(plan.made_from)}


def _check_codes(codes: np.ndarray, spec: CodeSpec, where: str) -> None:
    if codes.size and (codes.min() < 0 or codes.max() >= spec.codebook_size):
        raise DataError(f"{where} has codes {codes.min()}..{codes.max()}, but the codebooks hold {spec.codebook_size}")


def _check(part: Part, plan: CachePlan, shard: Shard, where: str) -> None:
    """Everything that a cache relies on, but for the range of codes.

    Raises:
        DataError: naming the column.
    """
    arrays, lengths = part.arrays, part.arrays["lengths"]
    for name, array in arrays.items():
        if array.ndim != (2 if name == "codes" else 1):
            raise DataError(f"{where}: {name} has shape {array.shape}; {REMEDY}")
    count, depth = len(lengths), arrays["codes"].shape[1]
    if depth != plan.spec.depth:
        raise DataError(f"{where}: codes of {depth} levels, but {plan.spec} is described; {REMEDY}")
    if count > shard.num_samples or (count < shard.num_samples and not plan.ragged):
        raise DataError(f"{where}: {count} samples, but {shard.num_samples} are expected; {REMEDY}")
    if not plan.ragged and (lengths != plan.spec.num_positions).any():
        raise DataError(f"{where}: samples of {lengths.min()}..{lengths.max()} positions do not fit {plan.spec}")
    _check_rows("codes", arrays["codes"], lengths, count, where)
    for name, content in plan.columns.items():
        if content == "row":
            _check_rows(name, arrays[name], arrays[f"{name}_lengths"], count, where)
        elif content == "number" and (len(arrays[name]) != count or (count and arrays[name].min() < 0)):
            raise DataError(f"{where}: {name} must be one number of at least 0 per sample; {REMEDY}")
        elif content == "text" and not _are_texts(part.texts, name, count):
            raise DataError(f"{where}: {name} must be one text per sample; {REMEDY}")
    if not count:
        return
    if "labels" in plan.columns:
        most = count_ids([len(names) for _, names in plan.class_axes]) if plan.class_axes else len(plan.class_names)
        if most and (top := arrays["labels"].max()) >= most:
            raise DataError(f"{where} has labels {arrays['labels'].min()}..{top}, but {most} classes")
    if "tokens" in plan.columns and (arrays["tokens"].min() < 0 or arrays["tokens"].max() >= NUM_TOKENS):
        raise DataError(f"{where}: tokens must lie in 0..{NUM_TOKENS - 1}; {REMEDY}")
    if "durations" in plan.columns:
        durations = arrays["durations"].astype(np.int64)
        if durations.min() < 0 or (arrays["durations_lengths"] != arrays["tokens_lengths"]).any():
            raise DataError(f"{where}: durations must be one number of at least 0 per token; {REMEDY}")
        frames = np.diff(durations.cumsum()[arrays["tokens_lengths"].cumsum() - 1], prepend=0)
        if (frames * lengths[0] != frames[0] * lengths).any():
            raise DataError(f"{where}: the durations of each sample must sum to the frames of its positions; {REMEDY}")


def _check_rows(name: str, values: np.ndarray, lengths: np.ndarray, count: int, where: str) -> None:
    if len(lengths) != count or (count and lengths.min() < 1) or lengths.max(initial=0) > len(values):
        raise DataError(f"{where}: {name} must be a row of 1 to {len(values)} numbers per sample; {REMEDY}")
    if lengths.sum() != len(values):
        raise DataError(f"{where}: {name} of {lengths.sum()} numbers, but there are {len(values)}; {REMEDY}")


def _are_texts(texts: Any, name: str, count: int) -> bool:
    values = texts.get(name) if isinstance(texts, dict) else None
    return isinstance(values, list) and len(values) == count and all(isinstance(value, str) for value in values)
