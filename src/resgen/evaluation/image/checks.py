"""Parts of every evaluation: its protocol and the checks against it, warnings, the machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resgen.checkpoints.format import resgen_version
from resgen.errors import ConfigError, DataError
from resgen.evaluation.image.extractors import Extractor
from resgen.evaluation.image.protocol import FEW_SAMPLES, MANIFOLD_SIZE, EvaluationProtocol
from resgen.evaluation.image.reference import Reference
from resgen.evaluation.image.report import Floor
from resgen.evaluation.image.shipped import ReferenceFeatures


def generation_protocol(
    extractor: Extractor,
    reference: Reference,
    *,
    num_samples: int,
    sampling: Mapping[str, Any],
    class_balance: str = "equal",
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> EvaluationProtocol:
    """The protocol of generating `num_samples` images per seed and comparing them with all of the reference.

    Where `settings` do not name them, subsets of the kernel distance have 1,000 rows or half of what there is, and the
    Inception score has 10 parts or as many as samples.

    Raises:
        ConfigError: a value that is not allowed, or too few samples for a measure.
    """
    least = min(num_samples, len(reference), settings.get("manifold_size", MANIFOLD_SIZE))
    sizes = {"kid_subset_size": max(2, min(1000, least // 2)), "is_splits": max(1, min(10, num_samples))}
    return EvaluationProtocol(
        purpose="generation",
        num_samples=num_samples,
        sampling=dict(sampling),
        class_balance=class_balance,
        seeds=tuple(seeds),
        **_named(extractor, reference),
        **{**sizes, **settings},
    )


def reconstruction_protocol(
    extractor: Extractor, reference: Reference, *, num_samples: int | None = None, **settings: Any
) -> EvaluationProtocol:
    """The protocol of reconstructing `num_samples` images of the reference (all by default).

    Raises:
        ConfigError: a value that is not allowed.
    """
    return EvaluationProtocol(
        purpose="reconstruction",
        num_samples=len(reference) if num_samples is None else num_samples,
        class_balance="none" if not reference.is_labelled else "data",
        **_named(extractor, reference),
        **settings,
    )


def _named(extractor: Extractor, reference: Reference) -> dict[str, Any]:
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "reference": reference.name,
        "reference_split": reference.split,
        "reference_sha256": reference.sha256,
        "num_reference": len(reference),
        "image_size": reference.image_size,
        "channels": reference.channels,
        "resize": reference.resize,
    }


def check_protocol(protocol: EvaluationProtocol, extractor: Extractor, reference: Reference, purpose: str) -> None:
    """Reject an extractor or a reference that is not the protocol's.

    Raises:
        ConfigError: naming the first thing that differs.
        DataError: classes are to be balanced and there are no labels.
    """
    facts = {"purpose": purpose, **_named(extractor, reference)}
    del facts["reference"]  # only a name; its contents count
    for name, value in facts.items():
        if getattr(protocol, name) != value:
            raise ConfigError(
                f"the protocol has {name}={getattr(protocol, name)!r}, but what is given has {value!r}; "
                "give what the protocol names, or make a new protocol"
            )
    extractor.check_pictures(protocol.image_size, protocol.channels)
    if protocol.class_balance != "none" and not reference.is_labelled:
        raise DataError(
            f"class_balance='{protocol.class_balance}' needs labels, and '{reference.name}' has none; give folders of "
            "classes or a parquet file with a label column"
        )


def check_pictures(pictures: Tensor, count: int, protocol: EvaluationProtocol) -> None:
    """Reject samples of another number, shape or type than the protocol's.

    Raises:
        DataError: naming both.
    """
    shape = (count, protocol.channels, protocol.image_size, protocol.image_size)
    if tuple(pictures.shape) != shape or pictures.dtype != torch.uint8:
        raise DataError(
            f"the model made {pictures.dtype} images of shape {tuple(pictures.shape)}; the protocol wants "
            f"torch.uint8 of {shape}"
        )


def warnings_of(protocol: EvaluationProtocol, real: ReferenceFeatures, extractor: Extractor) -> tuple[str, ...]:
    """Warnings that readers of the numbers need."""
    lines = []
    width = real.statistics.num_features
    if protocol.num_samples < FEW_SAMPLES:
        lines.append(
            f"{protocol.num_samples} samples are fewer than {FEW_SAMPLES:,}: the distance is biased upwards; compare "
            "it only with distances of as many samples"
        )
    for what, count in (("samples", protocol.num_samples), ("reference images", real.statistics.count)):
        if count <= width:
            lines.append(
                f"the covariance of {count} {what} in {width} features is singular, "
                f"which biases the distance strongly; use more than {width}"
            )
    if not extractor.sha256:
        lines.append(f"extractor '{extractor.name}' has no hash: nobody can verify which one it was")
    return tuple(lines)


def floor_of(real: ReferenceFeatures, reference: Reference) -> Floor:
    """The measures of the real images."""
    recognised = None if real.num_recognised is None else real.num_recognised / len(reference)
    return Floor(halves_distance=real.halves_distance, num_per_half=len(reference) // 2, recognised=recognised)


def machine() -> dict[str, Any]:
    """Versions and processor, for the report."""
    return {
        "resgen": resgen_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
