"""The real images of an evaluation, and what an extractor makes of them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.data.pictures.decode import pixels
from resgen.data.pictures.sources import FLAT_CLASS, available_splits, open_images, readable
from resgen.data.pictures.store import PictureStore
from resgen.errors import DataError
from resgen.evaluation.cache import cache_key, read_cache, write_cache
from resgen.evaluation.image.extractors import Extractor
from resgen.evaluation.image.metrics import FeatureStatistics, frechet_distance, neighbour_radii
from resgen.evaluation.image.protocol import METRICS_VERSION
from resgen.evaluation.image.shipped import ReferenceFeatures, read_shipped, shipped_of
from resgen.ops.random import generator
from resgen.progress import Advance, no_progress

CHUNK = 500
SAVE_EVERY = 10
WHOLE = "all"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real images by index.

    Attributes:
        name: what the protocol calls them.
        split: the part of the data set.
        sha256: the SHA-256 of names and contents.
        class_names: names of the labels; `("picture",)` where there are none.
        labels: one per image.
        image_size: S, side in pixels.
        channels: C, 1 or 3.
        resize: `lanczos` if images of another size were cut out and resized, else `none`.
        batch: uint8 `[B, C, S, S]` at the given indices.
    """

    name: str
    split: str
    sha256: str
    class_names: tuple[str, ...]
    labels: Int[Tensor, " N"]
    image_size: int
    channels: int
    resize: str
    batch: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labelled(self) -> bool:
        """Whether the images have classes."""
        return self.class_names not in ((), (FLAT_CLASS,))

    def check_classes(self, class_names: Sequence[str], num_classes: int) -> None:
        """Reject labels that are not those of a model with classes.

        Raises:
            DataError: no labels, or others.
        """
        if num_classes and not self.is_labelled:
            raise DataError(
                f"'{self.name}' has no labels, but the model generates {num_classes} classes; give folders of classes "
                "or a parquet file with a label column"
            )
        names = list(class_names) or [f"class {i}" for i in range(num_classes)]
        same = list(self.class_names) == names if class_names else len(self.class_names) == num_classes
        if num_classes and not same:
            raise DataError(
                f"the classes of '{self.name}' are {', '.join(self.class_names)}; the model has {', '.join(names)}; "
                "give the data that the model was trained on"
            )


def open_reference(
    path: str | Path,
    *,
    split: str,
    image_size: int,
    channels: int,
    resize: bool = False,
    skip_unreadable: bool = False,
) -> Reference:
    """The images of one split of a data set, see `resgen.data.open_images`; `all` is all of a single file.

    They are decoded when the first of them is asked for: where their features are known nobody waits for it.
    With `skip_unreadable` those that cannot be read are left out; all are decoded once more for it.

    Raises:
        DataError: nothing there, fewer than two images, or of another size without `resize`.
    """
    source = open_images(path, split="train" if split == WHOLE and Path(path).is_file() else split)
    if skip_unreadable:
        source = readable(source, size=image_size, channels=channels, resize=resize, skip=True)
    if len(source) < 2:
        raise DataError(f"'{source.name}' holds {len(source)} image; at least 2 are needed to compare with")

    @functools.cache
    def store() -> PictureStore:
        return PictureStore(source, size=image_size, channels=channels, resize=resize)

    try:
        pixels(source.pictures[0], source.where(0), image_size, channels, resize)
    except DataError:
        store()  # names all that do not fit
        raise
    return Reference(
        name=source.name,
        split=split,
        sha256=source.fingerprint,
        class_names=source.class_names,
        labels=torch.from_numpy(np.array(source.labels)),
        image_size=image_size,
        channels=channels,
        resize="lanczos" if resize else "none",
        batch=lambda indices: store().batch(indices),
    )


def choose_split(path: str | Path, preferred: str) -> str:
    """The split `preferred` if the data has it, else its first; `all` for a single file.

    Raises:
        DataError: nothing there.
    """
    splits = available_splits(path)
    if Path(path).is_file():
        return WHOLE
    return preferred if preferred in splits else splits[0]


def fixed_order(count: int) -> Int[Tensor, " N"]:
    """A random order of the reference that depends on its length only."""
    return torch.randperm(count, generator=generator("evaluation", "reference", count))


def reference_features(
    reference: Reference,
    extractor: Extractor,
    *,
    manifold_size: int,
    cache_dir: Path | None = None,
    use_shipped: bool = True,
    advance: Advance = no_progress,
) -> ReferenceFeatures:
    """Statistics and features of the reference: from `cache_dir`, from the package, or computed.

    What is computed is written every few chunks; an interrupted run resumes there, with the same result. The package's
    are taken if pixels and labels of all images are those that they belong to, in whatever files and order, unless
    `use_shipped` is off.

    Raises:
        DataError: damaged images, or features that are not finite.
        CheckpointError: the cache cannot be written.
    """
    path = _cache_path(reference, extractor, manifold_size, cache_dir)
    total, order = len(reference), fixed_order(len(reference))
    first_half = torch.zeros(total, dtype=torch.bool).index_fill_(0, order[: total // 2], True)
    in_manifold = torch.zeros(total, dtype=torch.bool).index_fill_(0, order[:manifold_size], True)
    knows_labels = reference.is_labelled and extractor.class_names == reference.class_names
    halves: list[FeatureStatistics] = []
    rows: list[Tensor] = []
    count, recognised = 0, 0
    saved = read_cache(path)
    if use_shipped and (saved is None or int(saved["done"]) < total):
        shipped = _shipped(reference, extractor, manifold_size, cache_dir)
        if shipped is not None:
            return shipped if knows_labels else shipped._replace(num_recognised=None)
    if saved is not None:
        count, recognised = int(saved["done"]), int(saved["recognised"])
        halves = [
            FeatureStatistics.from_tensors(int(saved[f"count{i}"]), saved[f"mean{i}"], saved[f"scatter{i}"])
            for i in range(2)
        ]
        rows = [saved["rows"]]
    while count < total:
        advance(count, total, "reference")
        indices = torch.arange(count, min(count + CHUNK, total))
        output = extractor(reference.batch(indices))
        halves = halves or [FeatureStatistics(output.features.shape[1]) for _ in range(2)]
        first = first_half[indices]
        halves[0].update(output.features[first])
        halves[1].update(output.features[~first])
        rows.append(output.features[in_manifold[indices]])
        if knows_labels and output.logits is not None:
            recognised += int((output.logits.argmax(1) == reference.labels[indices]).sum())
        count += len(indices)
        if path is not None and (count == total or count // CHUNK % SAVE_EVERY == 0):
            rows = [torch.cat(rows)]
            write_cache(path, _state(count, recognised, halves, rows[0]))
    advance(total, total, "reference")
    statistics = FeatureStatistics(halves[0].num_features)
    for half in halves:
        statistics.merge(half)
    distance = frechet_distance(*halves) if min(half.count for half in halves) > 1 else 0.0
    return ReferenceFeatures(statistics, torch.cat(rows), distance, recognised if knows_labels else None)


def neighbours(
    real: ReferenceFeatures,
    reference: Reference,
    extractor: Extractor,
    k: int,
    *,
    cache_dir: Path | None = None,
    advance: Advance = no_progress,
) -> Float[Tensor, " K"]:
    """`neighbour_radii` of the rows of the reference, from `cache_dir` where they are known.

    Raises:
        DataError: no more than k rows.
        CheckpointError: the cache cannot be written.
    """
    facts = _facts(reference, extractor)
    key = cache_key(**facts, rows=len(real.rows), shipped=real.shipped, k=k)
    path = cache_dir / f"neighbours-{key}.safetensors" if cache_dir is not None and extractor.sha256 else None
    saved = read_cache(path)
    if saved is not None:
        return saved["radii"]
    advance(0, 1, "neighbours within the reference")
    radii = neighbour_radii(real.rows, k)
    advance(1, 1, "neighbours within the reference")
    if path is not None:
        write_cache(path, {"radii": radii})
    return radii


def pixels_sha256(reference: Reference) -> str:
    """SHA-256 (hex) of pixels and labels of all images, in whatever files, encoding and order; decodes them."""
    lines = []
    for indices in torch.arange(len(reference)).split(CHUNK):
        pictures, labels = reference.batch(indices).numpy(), reference.labels[indices].tolist()
        for picture, label in zip(pictures, labels, strict=True):
            lines.append(hashlib.sha256(f"{label}\0".encode() + picture.tobytes()).digest())
    head = [reference.image_size, reference.channels, list(reference.class_names)]
    return hashlib.sha256(b"".join([json.dumps(head).encode(), *sorted(lines)])).hexdigest()


def _shipped(
    reference: Reference, extractor: Extractor, manifold_size: int, cache_dir: Path | None
) -> ReferenceFeatures | None:
    """The package's features of these very images; nothing is decoded where their number or classes are others."""
    shape = len(reference), reference.image_size, reference.channels, reference.class_names, manifold_size
    for path, record in shipped_of(extractor.sha256):
        if shape != (record.count, record.image_size, record.channels, record.class_names, record.manifold_size):
            continue
        same_files = (record.files_sha256, record.resize) == (reference.sha256, reference.resize)
        if same_files or record.pixels_sha256 == _known_pixels_sha256(reference, cache_dir):
            return read_shipped(path, record)
    return None


def _known_pixels_sha256(reference: Reference, cache_dir: Path | None) -> str:
    """`pixels_sha256`, kept in the cache."""
    key = cache_key(**_facts(reference), classes=list(reference.class_names))
    path = None if cache_dir is None else cache_dir / f"pixels-{key}.safetensors"
    saved = read_cache(path)
    if saved is not None:
        return bytes(saved["sha256"].tolist()).hex()
    sha256 = pixels_sha256(reference)
    if path is not None:
        write_cache(path, {"sha256": torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8)})
    return sha256


def _facts(reference: Reference, extractor: Extractor | None = None) -> dict[str, Any]:
    of_extractor = {"extractor": [extractor.name, extractor.sha256], "version": METRICS_VERSION} if extractor else {}
    return {
        **of_extractor,
        "reference": reference.sha256,
        "count": len(reference),
        "image_size": reference.image_size,
        "channels": reference.channels,
        "resize": reference.resize,
    }


def _cache_path(reference: Reference, extractor: Extractor, size: int, cache_dir: Path | None) -> Path | None:
    if cache_dir is None or not extractor.sha256:
        return None
    key = cache_key(
        **_facts(reference, extractor),
        classes=[list(extractor.class_names), list(reference.class_names)],
        manifold_size=size,
    )
    return cache_dir / f"reference-{key}.safetensors"


def _state(count: int, recognised: int, halves: list[FeatureStatistics], rows: Tensor) -> dict[str, Tensor]:
    tensors = {"done": torch.tensor(count), "recognised": torch.tensor(recognised), "rows": rows}
    for i, half in enumerate(halves):
        tensors |= {f"count{i}": torch.tensor(half.count), f"mean{i}": half.mean, f"scatter{i}": half.scatter}
    return tensors
