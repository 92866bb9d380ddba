"""The report of an evaluation: numbers that cannot be separated from their protocol; JSON, Markdown, comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resgen.checkpoints.format import read_json
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError, ConfigError
from resgen.evaluation.image.metrics import MeanStd
from resgen.evaluation.image.protocol import EvaluationProtocol
from resgen.evaluation.report import markdown_table, plain

FORMAT, FORMAT_VERSION = "resgen-evaluation", 1
MAX_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """Numbers of one setting and seed.

    Attributes:
        setting: `guided` or `unguided`.
        seed: seed of the samples.
        distance: the Fréchet distance that `protocol.metric_name` names.
        distance_interval: 95 %, by bootstrap over the samples.
        kernel_distance: KID in the same features.
        kernel_distance_std: over its subsets.
        inception_score: None where the extractor does not classify.
        inception_score_std: over its parts.
        precision: share of samples within the manifold of the reference.
        recall: share of the reference within the manifold of the samples.
        recognised: share of samples that the extractor takes for their class; None where it does not know the classes.
        recognised_interval: 95 %, Wilson's.
        seconds: seconds of generating.
    """

    setting: str
    seed: int
    distance: float
    distance_interval: tuple[float, float]
    kernel_distance: float
    kernel_distance_std: float
    inception_score: float | None
    inception_score_std: float | None
    precision: float
    recall: float
    recognised: float | None
    recognised_interval: tuple[float, float] | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """Numbers of a tokenizer.

    Attributes:
        distance: Fréchet distance between reconstructions and reference.
        distance_interval: 95 %, by bootstrap over the reconstructions.
        psnr_db: averaged over the images.
        psnr_db_std: over the images.
        ssim: structural similarity, averaged over the images.
        ssim_std: over the images.
        recognised: share of reconstructions that the extractor takes for their class.
        usage: by level, the share of codes that occur.
        perplexity: by level, the exponential of the entropy of the codes.
        seconds: seconds of encoding and decoding.
    """

    distance: float
    distance_interval: tuple[float, float]
    psnr_db: float
    psnr_db_std: float
    ssim: float
    ssim_std: float
    recognised: float | None
    usage: tuple[float, ...]
    perplexity: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The same measures on real images.

    Attributes:
        halves_distance: Fréchet distance between two random halves of the reference, of `num_per_half` images.
        num_per_half: images of the smaller half.
        recognised: share of the reference that the extractor takes for its label.
    """

    halves_distance: float
    num_per_half: int
    recognised: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The result of an evaluation.

    Attributes:
        protocol: everything that the numbers depend on, besides the model.
        model: its name or folder.
        model_sha256: SHA-256 of its weights.
        floor: the same measures on real images.
        generation: one entry per setting and seed.
        reconstruction: reconstruction of a tokenizer.
        warnings: what to keep in mind.
        environment: versions and machine.
        command: that made the report.
    """

    protocol: EvaluationProtocol
    model: str
    model_sha256: str
    floor: Floor
    generation: tuple[GenerationResult, ...] = ()
    reconstruction: ReconstructionResult | None = None
    warnings: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        content = "reconstruction" if self.reconstruction is not None else "generation"
        if content != self.protocol.purpose or bool(self.generation) == (self.reconstruction is not None):
            raise ConfigError(f"a report under a protocol for {self.protocol.purpose} cannot hold numbers of {content}")

    @property
    def settings(self) -> tuple[str, ...]:
        """`guided` and `unguided`, as far as they were evaluated."""
        return tuple(dict.fromkeys(result.setting for result in self.generation))

    def over_seeds(self, setting: str, metric: str) -> MeanStd | None:
        """Mean and sample standard deviation (0 for one seed) of a number over the seeds; None if it is not known."""
        values = [getattr(r, metric) for r in self.generation if r.setting == setting]
        if not values or None in values:
            return None
        return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def document(self) -> dict[str, Any]:
        """With the names of format, distance and protocol."""
        names = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "metric": self.protocol.metric_name,
            "protocol_id": self.protocol.protocol_id,
        }
        return {**names, **config_to_dict(self)}

    def markdown(self) -> str:
        """Numbers, warnings, protocol, command."""
        protocol, floor = self.protocol, self.floor
        lines = [f"# Evaluation of {self.model}", ""]
        lines += [markdown_table(_columns(self), _rows(self)), ""]
        if len(protocol.seeds) > 1:
            lines += [f"Mean and standard deviation over {len(protocol.seeds)} seeds.", ""]
        if protocol.purpose == "generation":
            lines += [
                "In brackets: 95 % confidence intervals; that of the distance is bootstrapped over the samples.",
                "",
            ]
        if self.reconstruction is not None:
            pairs = zip(self.reconstruction.usage, self.reconstruction.perplexity, strict=True)
            levels = [[str(i + 1), f"{u:.1%}", f"{p:.1f}"] for i, (u, p) in enumerate(pairs)]
            lines += [markdown_table(["level", "usage", "perplexity"], levels), ""] if levels else []
        known = f"; {floor.recognised:.1%} of the reference are recognised" if floor.recognised is not None else ""
        distance = protocol.metric_name.removeprefix("r")
        lines += [
            f"Floor: {distance} between two random halves of the reference ({floor.num_per_half:,} images each) is "
            f"{floor.halves_distance:.4g}{known}.",
            "",
        ]
        lines += [*(f"- Warning: {warning}." for warning in self.warnings), ""] if self.warnings else []
        lines += [f"## Protocol {protocol.protocol_id}", ""]
        entries = {**config_to_dict(protocol), "model_sha256": self.model_sha256, **self.environment}
        lines += [markdown_table(["setting", "value"], [[key, plain(value)] for key, value in entries.items()])]
        if self.command:
            lines += ["", "```", self.command, "```"]
        return "\n".join(lines) + "\n"


def load_report(path: str | Path) -> EvaluationReport:
    """Read a report's JSON file.

    Raises:
        CheckpointError: missing, not JSON, or not a report of a version that this resgen reads.
        ConfigError: a key is missing or unknown: the protocol, for example.
    """
    data = read_json(path, max_bytes=MAX_BYTES)
    if data.get("format") != FORMAT:
        raise CheckpointError(f"'{path}': format={data.get('format')!r} must be '{FORMAT}'")
    if data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"'{path}': format_version={data.get('format_version')!r} must be {FORMAT_VERSION}")
    entries = {k: v for k, v in data.items() if k not in ("format", "format_version", "metric", "protocol_id")}
    report = config_from_dict(EvaluationReport, entries, where="report.")
    for name, value in (("metric", report.protocol.metric_name), ("protocol_id", report.protocol.protocol_id)):
        if data.get(name) != value:
            raise CheckpointError(f"'{path}': {name}={data.get(name)!r} is not that of its protocol, '{value}'")
    return report


def _columns(report: EvaluationReport) -> list[str]:
    name = report.protocol.metric_name
    if report.reconstruction is not None:
        return [name, "PSNR [dB]", "SSIM", "recognised", "time [s]"]
    return ["setting", name, "KID x 1000", "IS", "precision", "recall", "recognised", "time [s]"]


def _rows(report: EvaluationReport) -> list[list[str]]:
    r = report.reconstruction
    if r is not None:
        return [
            [
                _with_interval(r.distance, r.distance_interval),
                f"{r.psnr_db:.2f} ± {r.psnr_db_std:.2f}",
                f"{r.ssim:.4f} ± {r.ssim_std:.4f}",
                f"{r.recognised:.1%}" if r.recognised is not None else "",
                f"{r.seconds:.1f}",
            ]
        ]
    return [_generation_row(report, setting) for setting in report.settings]


def _generation_row(report: EvaluationReport, setting: str) -> list[str]:
    results = [r for r in report.generation if r.setting == setting]
    if len(results) > 1:
        names = ("distance", "kernel_distance", "inception_score", "precision", "recall", "recognised", "seconds")
        scales = (1, 1000, 1, 1, 1, 1, 1)
        means = [report.over_seeds(setting, name) for name in names]
        cells = [f"{m.mean * s:.4g} ± {m.std * s:.2g}" if m else "" for m, s in zip(means, scales, strict=True)]
        return [setting, *cells]
    r = results[0]
    recognised = ""
    if r.recognised is not None and r.recognised_interval is not None:
        low, high = r.recognised_interval
        recognised = f"{r.recognised:.1%} ({low:.1%} to {high:.1%})"
    score = f"{r.inception_score:.3f} ± {r.inception_score_std or 0:.3f}" if r.inception_score is not None else ""
    return [
        setting,
        _with_interval(r.distance, r.distance_interval),
        f"{1000 * r.kernel_distance:.4g} ± {1000 * r.kernel_distance_std:.3g}",
        score,
        f"{r.precision:.3f}",
        f"{r.recall:.3f}",
        recognised,
        f"{r.seconds:.1f}",
    ]


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.4g} ({interval[0]:.4g} to {interval[1]:.4g})"
