"""Features of well-known data that come with the package, so that users need not compute them.

They lie beside the classifier whose features they are: `statistics-<split>.json` says of which images, by a hash of
their pixels and labels, and `statistics-<split>.safetensors` holds the numbers. Mean and scatter are as they were
computed, to the last bit; the rows of the random choice are rounded to 256 values of each feature, a byte each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from resgen.checkpoints.format import check_hash, read_json
from resgen.checkpoints.locate import ASSETS
from resgen.checkpoints.tensors import read_tensors, sha256_file, write_tensors
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError, ConfigError
from resgen.evaluation.image.metrics import FeatureStatistics
from resgen.evaluation.image.protocol import METRICS_VERSION
from resgen.files import atomic_path, write_json

LEVELS = 255


class ReferenceFeatures(NamedTuple):
    """What the measures need of the reference.

    Attributes:
        statistics: statistics of all images.
        rows: features of a fixed random choice of them, at most `manifold_size`.
        halves_distance: Fréchet distance between two random halves: what no model can be expected to beat by much.
        num_recognised: images recognised as their label; None without a classifier of these classes.
        shipped: SHA-256 of the file they were shipped in; empty where they were computed from the images.
    """

    statistics: FeatureStatistics
    rows: Float[Tensor, "K F"]
    halves_distance: float
    num_recognised: int | None
    shipped: str = ""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What shipped features belong to.

    Attributes:
        data: name of the images.
        pixels_sha256: `pixels_sha256` of them.
        files_sha256: SHA-256 of the files that they were read from.
        resize: how those files were made to fit.
        count: N.
        image_size: side in pixels.
        channels: 1 or 3.
        class_names: names of the labels.
        extractor: name of the classifier.
        extractor_sha256: SHA-256 of its weights.
        manifold_size: the requested rows.
        halves_distance: as in `ReferenceFeatures`, and so is the next.
        num_recognised: images recognised.
        sha256: SHA-256 of the file with the numbers.
        metrics_version: version of the measures' definition.
    """

    data: str
    pixels_sha256: str
    files_sha256: str
    resize: str
    count: int
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    extractor: str
    extractor_sha256: str
    manifold_size: int
    halves_distance: float
    num_recognised: int | None
    sha256: str = ""
    metrics_version: int = METRICS_VERSION


def write_shipped(path: Path, shipped: Shipped, features: ReferenceFeatures) -> None:
    """Write the pair of files `path` (`.json`) and `.safetensors`.

    Raises:
        WriteError: they cannot be written.
    """
    statistics, rows = features.statistics, features.rows.float()
    low = rows.amin(0)
    step = ((rows.amax(0) - low) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = path.with_suffix(".safetensors")
    below = torch.tril_indices(*statistics.scatter.shape)
    with atomic_path(numbers) as temporary:
        tensors = {
            "mean": statistics.mean,
            "scatter": statistics.scatter[below[0], below[1]],
            "rows": ((rows - low) / step).round().to(torch.uint8),
            "low": low,
            "step": step,
        }
        write_tensors(temporary, tensors)
    write_json(path, {**config_to_dict(shipped), "sha256": sha256_file(numbers)})


def shipped_of(extractor_sha256: str) -> list[tuple[Path, Shipped]]:
    """What comes with the package of the extractor with these weights; without what cannot be read."""
    found = []
    for path in sorted(ASSETS.glob("*/statistics-*.json")) if extractor_sha256 else ():
        try:
            shipped = config_from_dict(Shipped, read_json(path))
        except (CheckpointError, ConfigError):
            continue  # then it is computed
        if (shipped.extractor_sha256, shipped.metrics_version) == (extractor_sha256, METRICS_VERSION):
            found.append((path, shipped))
    return found


def read_shipped(path: Path, shipped: Shipped) -> ReferenceFeatures | None:
    """The numbers that belong to the record at `path`; None where their file is missing or another than recorded."""
    numbers = path.with_suffix(".safetensors")
    try:
        check_hash(numbers, shipped.sha256)
        tensors = read_tensors(numbers)
    except CheckpointError:
        return None
    width = len(tensors["mean"])
    below = torch.tril_indices(width, width)
    scatter = torch.zeros(width, width, dtype=torch.float64)
    scatter[below[0], below[1]] = scatter[below[1], below[0]] = tensors["scatter"]
    return ReferenceFeatures(
        FeatureStatistics.from_tensors(shipped.count, tensors["mean"], scatter),
        tensors["rows"] * tensors["step"] + tensors["low"],
        shipped.halves_distance,
        shipped.num_recognised,
        shipped.sha256,
    )
