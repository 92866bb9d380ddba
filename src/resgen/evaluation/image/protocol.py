"""The protocol of an evaluation: everything that a number depends on, as one record that is saved with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from resgen.checkpoints.format import read_json
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import ConfigError, check_range, unknown

METRICS_VERSION = 1
"""Raised with every change that alters a number."""

INCEPTION = "inception"
INCEPTION_SHA256 = "6726825d"
"""First digits of the hash of the standard Inception weights, as in the name of their file."""

PURPOSES = ("generation", "reconstruction")
CLASS_BALANCES = ("equal", "data", "none")
RESIZE_KERNELS = ("none", "lanczos")
FEW_SAMPLES = 10_000
MANIFOLD_SIZE = 10_000

_REASONS = {
    "purpose": "reconstructions are near copies of the images they are compared with, generated images are not",
    "extractor": "distances in different feature spaces have different units",
    "extractor_sha256": "the extractors have the same name, but other weights",
    "reference_split": "training and test images are at different distances from what a model makes",
    "reference_sha256": "the images that are compared with differ",
    "num_reference": "the distance is biased, the more so the fewer images there are",
    "num_samples": "the distance is biased upwards, the more so the fewer samples there are",
    "class_balance": "another mixture of classes is another distribution",
    "image_size": "features depend on the resolution",
    "channels": "features depend on the colours",
    "resize": "features depend on how the reference was resized",
    "sampling": "the samplers' settings differ",
    "seeds": "the samples were drawn from other seeds",
    "metrics_version": "the measures were computed by versions of resgen that give other numbers",
}


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """Everything that the result of an evaluation depends on, besides the model.

    Attributes:
        purpose: `generation` or `reconstruction`.
        extractor: name of the network whose features are compared.
        extractor_sha256: SHA-256 of its weights; empty for a callable without one.
        reference: name of the real images.
        reference_split: `train`, `test`, ...
        reference_sha256: SHA-256 of their names and contents.
        num_reference: how many there are; all of them are compared with.
        num_samples: images generated (or reconstructed) per seed and setting.
        class_balance: classes of the samples: `equal`, `data` (as in the reference) or `none` (no classes).
        image_size: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: `lanczos` where the reference was cut out and resized if it had another size, else `none`.
        sampling: the sampler's settings, guidance, steps and number type among them; empty for reconstruction.
        seeds: one whole evaluation for each.
        kid_subsets: pairs of subsets of the kernel distance.
        kid_subset_size: rows of a subset.
        is_splits: parts of the Inception score.
        pr_k: neighbours of precision and recall.
        manifold_size: rows of each side, at most, for precision, recall and kernel distance.
        bootstrap: resamples of the distance's interval.
        metrics_version: version of the measures' definition.
    """

    purpose: str
    extractor: str
    extractor_sha256: str
    reference: str
    reference_split: str
    reference_sha256: str
    num_reference: int
    num_samples: int
    class_balance: str
    image_size: int
    channels: int
    resize: str = "none"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    is_splits: int = 10
    pr_k: int = 3
    manifold_size: int = MANIFOLD_SIZE
    bootstrap: int = 50
    metrics_version: int = METRICS_VERSION

    def __post_init__(self) -> None:
        for name, allowed in (
            ("purpose", PURPOSES),
            ("class_balance", CLASS_BALANCES),
            ("resize", RESIZE_KERNELS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(unknown(name, getattr(self, name), allowed))
        for name in ("extractor", "reference", "reference_split", "reference_sha256"):
            if not getattr(self, name):
                raise ConfigError(f"{name}='' must not be empty: the protocol names what a number depends on")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds={self.seeds} must be one or more different numbers of at least 0")
        check_range(self, 1, "image_size", "channels", "kid_subsets", "is_splits", "pr_k")
        check_range(self, 2, "num_samples", "num_reference", "bootstrap", "kid_subset_size", "manifold_size")
        least = min(self.num_samples, self.num_reference, self.manifold_size)
        if self.purpose == "generation":
            self._check_samples(least)
        try:
            json.dumps(dict(self.sampling), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"sampling={dict(self.sampling)} must hold plain values only") from error

    def _check_samples(self, least: int) -> None:
        for name, needed in (
            ("kid_subset_size", self.kid_subset_size),
            ("pr_k", self.pr_k + 1),
            ("is_splits", self.is_splits),
        ):
            if needed > (self.num_samples if name == "is_splits" else least):
                raise ConfigError(
                    f"num_samples={self.num_samples} and num_reference={self.num_reference} are too few for "
                    f"{name}={getattr(self, name)}; take more samples or a smaller {name}"
                )

    @property
    def protocol_id(self) -> str:
        """A short hash of everything named here."""
        text = json.dumps(config_to_dict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def metric_name(self) -> str:
        """Name of the distance: `FID` only with the standard Inception features; `r` before it for reconstruction."""
        name = distance_name(self.extractor, self.extractor_sha256)
        return f"r{name}" if self.purpose == "reconstruction" else name

    @property
    def guided(self) -> bool:
        """Whether the sampler's settings have guidance."""
        return bool(self.sampling.get("guidance_scale"))


def distance_name(extractor: str, sha256: str) -> str:
    """`FID` for the standard Inception network, `FD-<extractor>` for everything else."""
    standard = extractor == INCEPTION and sha256.startswith(INCEPTION_SHA256)
    return "FID" if standard else f"FD-{extractor}"


def load_protocol(path: str | Path) -> EvaluationProtocol:
    """The protocol of a file, or of a report's JSON file.

    Raises:
        CheckpointError: the file is missing or not JSON.
        ConfigError: an unknown or missing key, or a value that is not allowed.
    """
    data = read_json(path)
    inner = data.get("protocol")
    return config_from_dict(EvaluationProtocol, inner if isinstance(inner, dict) else data, where="protocol.")


def check_comparable(first: EvaluationProtocol, second: EvaluationProtocol, *, any_sampling: bool = False) -> None:
    """Refuse to compare numbers that were made under different protocols.

    Args:
        first: protocol of one number.
        second: those of the other.
        any_sampling: the samplers' settings may differ, because they are what is compared.

    Raises:
        ConfigError: naming the first field that differs, both values and why they cannot be compared.
    """
    for one in fields(EvaluationProtocol):
        a, b = getattr(first, one.name), getattr(second, one.name)
        if a == b or one.name == "reference":  # a name; the contents are compared
            continue
        if one.name != "sampling":
            raise _different(one.name, a, b, _REASONS.get(one.name, "the measure is defined by it"))
        if not any_sampling:
            key = next(key for key in sorted({*a, *b}) if a.get(key) != b.get(key))
            raise _different(f"sampling.{key}", a.get(key), b.get(key), _REASONS["sampling"])


def _different(name: str, first: object, second: object, reason: str) -> ConfigError:
    values = [f"{v[:12]}..." if isinstance(v, str) and len(v) > 40 else repr(v) for v in (first, second)]
    return ConfigError(f"these numbers cannot be compared: {name} is {values[0]} and {values[1]}; {reason}")
