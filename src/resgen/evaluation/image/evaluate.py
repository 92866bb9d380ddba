"""Evaluation of generators and tokenizers under a protocol, chunk by chunk, so that it can be interrupted.

What is evaluated comes as a function, so that nothing here knows of pipelines or trainers. Features of finished chunks
are kept under a hash of all that they depend on: the model's weights, the sampler's settings, the seed, the extractor.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Contract

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from resgen.checkpoints.format import Folder
from resgen.errors import ConfigError, DataError
from resgen.evaluation.cache import cache_key, read_cache, trim_cache, write_cache
from resgen.evaluation.image.checks import check_pictures, check_protocol, floor_of, machine, warnings_of
from resgen.evaluation.image.extractors import Extractor
from resgen.evaluation.image.metrics import (
    FeatureStatistics,
    bootstrap_interval,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    ssim,
    wilson_interval,
)
from resgen.evaluation.image.protocol import EvaluationProtocol
from resgen.evaluation.image.reference import CHUNK, Reference, fixed_order, neighbours, reference_features
from resgen.evaluation.image.report import EvaluationReport, GenerationResult, ReconstructionResult
from resgen.evaluation.image.shipped import ReferenceFeatures
from resgen.ops.code_usage import code_histogram, usage_and_perplexity
from resgen.ops.images import psnr_db
from resgen.ops.random import generator
from resgen.progress import Advance, no_progress

FEATURES_VERSION = 2

Chunk = dict[str, Tensor]
"""What is kept of a chunk of images, and what they were made from (`inputs`)."""


class Generate(Contract):
    """Samples by index: sample k of a seed is the same image in chunks of any size."""

    def __call__(self, indices: range, class_ids: list[int], guided: bool, seed: int) -> UInt8[Tensor, "B C S S"]:
        """The samples `indices`, one of each of `class_ids` (0 for a model without classes)."""
        ...


Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""uint8 `[B, C, S, S]` to the same after decoding and codes `[B, L, D]` (None where there are none)."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is evaluated, for the report.

    Attributes:
        name: name of the model.
        sha256: SHA-256 of the weights; empty for a model that is changing, and then nothing of it is cached.
        command: that asked for the evaluation.
        environment: further entries.
    """

    name: str
    sha256: str
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    def entries(self, real: ReferenceFeatures) -> dict[str, Any]:
        """The parts of an `EvaluationReport`."""
        environment = {**machine(), **self.environment}
        if real.shipped:
            environment["shipped_reference"] = real.shipped
        return {"model": self.name, "model_sha256": self.sha256, "command": self.command, "environment": environment}


def class_ids_of(protocol: EvaluationProtocol, reference: Reference) -> list[int]:
    """The class of every sample.

    With `equal` sample k shows class k modulo the number of classes, with `data` the classes are as frequent as in the
    reference (largest remainders) in a fixed random order, with `none` it is 0.
    """
    count, num_classes = protocol.num_samples, len(reference.class_names)
    if protocol.class_balance == "none":
        return [0] * count
    if protocol.class_balance == "equal":
        return [index % num_classes for index in range(count)]
    shares = torch.bincount(reference.labels, minlength=num_classes).double() / len(reference) * count
    counts = shares.floor().long()
    rest = (shares - counts).argsort(descending=True, stable=True)[: count - int(counts.sum())]
    counts[rest] += 1
    ordered = torch.arange(num_classes).repeat_interleave(counts)
    return ordered[torch.randperm(count, generator=generator("evaluation", "classes", count))].tolist()


def evaluate_generation(
    generate: Generate,
    protocol: EvaluationProtocol,
    extractor: Extractor,
    reference: Reference,
    subject: Subject,
    *,
    cache_dir: str | Path | None = None,
    chunk_size: int = CHUNK,
    advance: Advance = no_progress,
) -> EvaluationReport:
    """Compare generated images with real ones, with guidance (where the settings have it) and always without.

    Args:
        generate: makes the samples; called for chunks that are not in the cache.
        protocol: what is to be done.
        extractor: the protocol's.
        reference: the protocol's.
        subject: where the samples come from.
        cache_dir: for features; None keeps nothing.
        chunk_size: samples generated and kept at one time.
        advance: called with (done, total, what) of every phase.

    Raises:
        ConfigError: extractor, reference or purpose are not the protocol's.
        DataError: samples of another shape, or features that are not finite.
        CheckpointError: the cache cannot be written.
    """
    check_protocol(protocol, extractor, reference, "generation")
    cache = Path(cache_dir) if cache_dir is not None else None
    real = reference_features(
        reference,
        extractor,
        manifold_size=protocol.manifold_size,
        cache_dir=cache,
        advance=advance,
    )
    radii = neighbours(real, reference, extractor, protocol.pr_k, cache_dir=cache, advance=advance)
    class_ids = torch.tensor(class_ids_of(protocol, reference))
    judged = protocol.class_balance != "none" and extractor.class_names == reference.class_names
    results = []
    for guided in (True, False) if protocol.guided else (False,):
        setting = "guided" if guided else "unguided"
        for seed in protocol.seeds:

            def generated(begin: int, ids: Tensor, guided: bool = guided, seed: int = seed) -> Chunk:
                start = time.perf_counter()
                pictures = generate(range(begin, begin + len(ids)), ids.tolist(), guided, seed)
                seconds = time.perf_counter() - start
                check_pictures(pictures, len(ids), protocol)
                return _chunk(extractor, pictures, seconds)

            title = f"{setting}, seed {seed}"
            folder = _samples_folder(cache, protocol, extractor, subject.sha256, guided, seed)
            parts = _chunks(generated, class_ids, chunk_size, folder, advance, title)
            advance(0, 1, f"{title}: measures")
            measures = _measures(parts, real, radii, protocol, class_ids if judged else None)
            results.append(GenerationResult(setting=setting, seed=seed, seconds=_seconds(parts), **measures))
            advance(1, 1, f"{title}: measures")
    trim_cache(cache)
    return EvaluationReport(
        protocol=protocol,
        **subject.entries(real),
        floor=floor_of(real, reference),
        generation=tuple(results),
        warnings=warnings_of(protocol, real, extractor),
    )


def evaluate_reconstruction(
    reconstruct: Reconstruct,
    protocol: EvaluationProtocol,
    extractor: Extractor,
    reference: Reference,
    subject: Subject,
    *,
    codebook_size: int,
    cache_dir: str | Path | None = None,
    chunk_size: int = CHUNK,
    advance: Advance = no_progress,
) -> EvaluationReport:
    """Compare images of the reference with what a tokenizer makes of them.

    If the protocol asks for fewer samples than the reference holds, a fixed random choice of it is reconstructed.
    Arguments that are not listed are those of `evaluate_generation`.

    Args:
        reconstruct: encodes and decodes a batch.
        codebook_size: V, for the usage of the codes.

    Raises:
        ConfigError: extractor, reference or purpose are not the protocol's, or more samples than images.
    """
    check_protocol(protocol, extractor, reference, "reconstruction")
    if protocol.num_samples > len(reference):
        raise ConfigError(
            f"num_samples={protocol.num_samples} must be at most {len(reference)}, the images of '{reference.name}'"
        )
    cache = Path(cache_dir) if cache_dir is not None else None
    real = reference_features(
        reference, extractor, manifold_size=protocol.manifold_size, cache_dir=cache, advance=advance
    )
    order = fixed_order(len(reference))[: protocol.num_samples].sort().values
    key = cache_key(
        kind="reconstruction",
        model=subject.sha256,
        reference=[reference.sha256, reference.resize, reference.image_size, reference.channels],
        extractor=[extractor.name, extractor.sha256],
        codebook_size=codebook_size,
        version=FEATURES_VERSION,
    )
    folder = cache / f"reconstructions-{key}" if cache is not None and subject.sha256 and extractor.sha256 else None

    def reconstructed(begin: int, indices: Tensor) -> Chunk:
        return _reconstructed(reconstruct, extractor, reference.batch(indices), codebook_size)

    parts = _chunks(reconstructed, order, chunk_size, folder, advance, "reconstructions")
    trim_cache(cache)
    return EvaluationReport(
        protocol=protocol,
        **subject.entries(real),
        floor=floor_of(real, reference),
        reconstruction=_reconstruction_result(parts, real, reference, protocol),
        warnings=warnings_of(protocol, real, extractor),
    )


def folder_sha256(folder: Folder, *names: str) -> str:
    """One hash for the components `names` of an artefact (all by default): their configurations and weights."""
    components = [folder.component(name) for name in names] or list(folder.components.values())
    parts = {part.name: [part.type, part.sha256, part.config] for part in components}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _chunks(
    make: Callable[[int, Tensor], Chunk],
    inputs: Int[Tensor, " N"],
    size: int,
    folder: Path | None,
    advance: Advance,
    title: str,
) -> list[Chunk]:
    """What `make` makes of the number of a chunk's first input and its inputs; from `folder` where it is there."""
    parts = []
    for begin in range(0, len(inputs), size):
        advance(begin, len(inputs), title)
        own = inputs[begin : begin + size]
        path = folder / f"chunk-{begin:08d}.safetensors" if folder is not None else None
        part = read_cache(path)
        if part is None or not torch.equal(part["inputs"], own):
            part = {"inputs": own, **make(begin, own)}
            if path is not None:
                write_cache(path, part)
        parts.append(part)
    advance(len(inputs), len(inputs), title)
    return parts


def _chunk(extractor: Extractor, pictures: Tensor, seconds: float) -> Chunk:
    output = extractor(pictures)
    part = {"features": output.features, "seconds": torch.tensor(seconds, dtype=torch.float64)}
    return part if output.logits is None else {**part, "logits": output.logits}


def _joined(parts: list[Chunk], name: str) -> Tensor:
    return torch.cat([part[name] for part in parts])


def _seconds(parts: list[Chunk]) -> float:
    return sum(float(part["seconds"]) for part in parts)


def _measures(
    parts: list[Chunk],
    real: ReferenceFeatures,
    radii: Tensor,
    protocol: EvaluationProtocol,
    class_ids: Int[Tensor, " N"] | None,
) -> dict[str, Any]:
    """The numbers of one setting and seed, by the names of `GenerationResult`. All draws come from fixed streams."""
    rows, logits = _joined(parts, "features"), _joined(parts, "logits") if "logits" in parts[0] else None
    kid = kernel_distance(
        rows,
        real.rows,
        num_subsets=protocol.kid_subsets,
        subset_size=protocol.kid_subset_size,
        stream=generator("evaluation", "kernel distance"),
    )
    manifold = precision_recall(rows[: protocol.manifold_size], real.rows, k=protocol.pr_k, reference_radii=radii)
    score = None
    if logits is not None:
        stream = generator("evaluation", "inception score")
        score = inception_score(logits, splits=protocol.is_splits, stream=stream)
    right = None if class_ids is None or logits is None else int((logits.argmax(1) == class_ids).sum())
    return {
        **_distance(rows, real.statistics, protocol),
        "kernel_distance": kid.mean,
        "kernel_distance_std": kid.std,
        "inception_score": score.mean if score else None,
        "inception_score_std": score.std if score else None,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "recognised": right / len(rows) if right is not None else None,
        "recognised_interval": wilson_interval(right, len(rows)) if right is not None else None,
    }


def _distance(rows: Tensor, reference: FeatureStatistics, protocol: EvaluationProtocol) -> dict[str, Any]:
    value = frechet_distance(rows, reference)
    interval = bootstrap_interval(
        rows,
        lambda part: frechet_distance(part, reference),
        value,
        num_resamples=protocol.bootstrap,
        stream=generator("evaluation", "bootstrap"),
    )
    return {"distance": value, "distance_interval": (max(0.0, interval.low), interval.high)}


def _reconstructed(reconstruct: Reconstruct, extractor: Extractor, pictures: Tensor, codebook_size: int) -> Chunk:
    start = time.perf_counter()
    outputs, codes = reconstruct(pictures)
    seconds = time.perf_counter() - start
    if outputs.shape != pictures.shape or outputs.dtype != torch.uint8:
        raise DataError(
            f"reconstructions are {outputs.dtype} of shape {tuple(outputs.shape)}, but the images are "
            f"{pictures.dtype} of shape {tuple(pictures.shape)}"
        )
    outputs = outputs.cpu()
    part = {"psnr_db": psnr_db(outputs, pictures), "ssim": ssim(outputs, pictures)}
    if codes is not None:
        part["histogram"] = code_histogram(codes.cpu(), codebook_size)
    return {**_chunk(extractor, outputs, seconds), **part}


def _reconstruction_result(
    parts: list[Chunk],
    real: ReferenceFeatures,
    reference: Reference,
    protocol: EvaluationProtocol,
) -> ReconstructionResult:
    recognised = None
    if real.num_recognised is not None and "logits" in parts[0]:
        right = _joined(parts, "logits").argmax(1) == reference.labels[_joined(parts, "inputs")]
        recognised = float(right.double().mean())
    usage: tuple[float, ...] = ()
    perplexity: tuple[float, ...] = ()
    if "histogram" in parts[0]:
        levels = usage_and_perplexity(torch.stack([part["histogram"] for part in parts]).sum(0))
        usage, perplexity = (tuple(values.tolist()) for values in levels)
    psnr, similarity = _joined(parts, "psnr_db"), _joined(parts, "ssim")
    return ReconstructionResult(
        **_distance(_joined(parts, "features"), real.statistics, protocol),
        psnr_db=float(psnr.mean()),
        psnr_db_std=float(psnr.std()),
        ssim=float(similarity.mean()),
        ssim_std=float(similarity.std()),
        recognised=recognised,
        usage=usage,
        perplexity=perplexity,
        seconds=_seconds(parts),
    )


def _samples_folder(
    cache: Path | None,
    protocol: EvaluationProtocol,
    extractor: Extractor,
    model_sha256: str,
    guided: bool,
    seed: int,
) -> Path | None:
    if cache is None or not model_sha256 or not extractor.sha256:
        return None
    off = {} if guided else {key: 0.0 for key in protocol.sampling if key.startswith("guidance")}
    key = cache_key(
        kind="samples",
        model=model_sha256,
        sampling={**protocol.sampling, **off},
        seed=seed,
        class_balance=protocol.class_balance,
        extractor=[extractor.name, extractor.sha256],
        shape=[protocol.channels, protocol.image_size],
        version=FEATURES_VERSION,
    )
    return cache / f"samples-{key}"
