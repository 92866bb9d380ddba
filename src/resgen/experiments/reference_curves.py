"""The log of a run, and reference curves: earlier runs of the same training, over several seeds."""

from __future__ import annotations

import contextlib
import json
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resgen.checkpoints.format import read_json
from resgen.checkpoints.locate import list_bundled
from resgen.config import config_from_dict, load_yaml
from resgen.data.announce import listed
from resgen.errors import CheckpointError, ConfigError, DataError, ResGenError
from resgen.models.head_choice import head_class

FORMAT, FORMAT_VERSION = "resgen-reference-curves", 1
REFERENCE_FOLDER = Path(__file__).parents[1] / "assets" / "reference-curves"
LOG_NAME, CONFIG_NAME = "metrics.jsonl", "config.yaml"
MAX_LOG_BYTES, MAX_CONFIG_BYTES, MAX_REFERENCE_BYTES = 1 << 28, 1 << 20, 1 << 24
NOT_COMPARED = ("learning_rate", "seconds", "samples_per_second", "grad_norm", "adaptive_weight")

Line = dict[str, float | None]
Points = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder tells.

    Attributes:
        path: the run folder.
        lines: by kind (`train`, `validation`, `evaluation`, `final`), in the order of steps; numbers that were not
            finite are None.
        config: the run's `config.yaml`.
        damaged: lines that could not be read.
        codebook_size: V of the codes, where the folder tells it.
        has_checkpoint: there is something to resume from.
        has_model: the run published its model.
    """

    path: Path
    lines: Mapping[str, Sequence[Line]]
    config: Mapping[str, Any]
    damaged: int = 0
    codebook_size: int | None = None
    has_checkpoint: bool = False
    has_model: bool = False

    @property
    def stage(self) -> str:
        """`tokenizer` or `generator`."""
        return str(self.config.get("stage", "generator"))

    @property
    def kind(self) -> str:
        """Of generator, or of a tokenizer's quantizer."""
        if self.stage == "tokenizer":
            return str(self._get("tokenizer", "quantizer", "kind") or "probabilistic")
        return str(self.config.get("kind", "resgen"))

    @property
    def head(self) -> str | None:
        """What the generator predicts, where its kind has a choice."""
        head = self._get("generator", "head")
        return head if isinstance(head, str) else None

    @property
    def is_density(self) -> bool:
        """Whether likelihoods are densities, which have no natural zero, and not probabilities of codes."""
        return self.head is not None and head_class(self.head).is_density

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return str(self.config.get("recipe", ""))

    @property
    def data_sha256(self) -> str | None:
        """Fingerprint of the training data."""
        value = self._get("data", "sha256")
        return value if isinstance(value, str) else None

    @property
    def last_step(self) -> int:
        """Of any line."""
        return max(int(line["step"] or 0) for lines in self.lines.values() for line in lines)

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return bool(self.lines.get("final"))

    def training(self, name: str, default: int | float) -> float:
        """A number of the trainer's configuration."""
        value = self._get("training", name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else float(default)

    def curve(self, name: str) -> Points:
        """Finite values of a metric by step: training lines, validations and, after both, the end."""
        points: dict[int, float] = {}
        for kind in ("final", "evaluation", "validation", "train"):  # the final line repeats others
            for line in self.lines.get(kind, ()):
                value = line.get(name)
                if value is not None:
                    points[int(line["step"] or 0)] = value
        return sorted(points.items())

    def metrics(self) -> list[str]:
        """Names of all metrics, in the order in which they first appear."""
        names = dict.fromkeys(name for lines in self.lines.values() for line in lines for name in line)
        return [name for name in names if name != "step"]

    def _get(self, *path: str) -> Any:
        return _lookup(self.config, path)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric over the steps: lowest, highest and mean value over the seeds."""

    steps: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.low) == len(self.high) == len(self.mean) > 0:
            raise ConfigError("steps, low, high and mean of a curve must be of one length, at least 1")
        if any(a >= b for a, b in zip((-1, *self.steps), self.steps, strict=False)):
            raise ConfigError("steps of a curve must be 0 or more and ascend")
        for low, mean, high in zip(self.low, self.mean, self.high, strict=True):
            # A mean may leave the band by a rounding error.
            if not (
                math.isfinite(low) and math.isfinite(high) and low - 1e-9 * abs(low) <= mean <= high + 1e-9 * abs(high)
            ):
                raise ConfigError(f"a curve has low {low}, mean {mean}, high {high}, which must be finite and ascend")

    def at(self, step: int | float) -> tuple[float, float, float] | None:
        """Low, high and mean at a step, between its neighbours; None outside the curve."""
        if not self.steps[0] <= step <= self.steps[-1]:
            return None
        low, high, mean = (float(np.interp(step, self.steps, v)) for v in (self.low, self.high, self.mean))
        return low, high, mean


@dataclass(frozen=True, kw_only=True)
class ReferenceCurves:
    """Curves of finished runs that differ in nothing but the seed.

    Attributes:
        name: name of the reference.
        stage: `tokenizer` or `generator`.
        kind: kind of generator, or of a tokenizer's quantizer.
        head: head of a generator, where its kind has a choice.
        recipe: name of the recipe.
        batch_size: samples per step.
        learning_rate: peak value.
        num_steps: number of steps of the configuration; the learning rate's decline depends on it.
        seeds: number of runs.
        data_sha256: fingerprint of the training data, where known.
        curves: by metric.
    """

    name: str
    stage: str
    kind: str
    head: str | None = None
    recipe: str
    batch_size: int
    learning_rate: float
    num_steps: int
    seeds: int
    data_sha256: str | None = None
    curves: Mapping[str, Curve]

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_steps", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} of reference curves must be at least 1")

    def differences(self, run: Run) -> list[str]:
        """How a run's settings differ from the reference's, in words."""
        pairs = (
            ("recipe", run.recipe, self.recipe),
            ("kind", run.kind, self.kind),
            ("head", run.head, self.head),
            ("stage", run.stage, self.stage),
            ("batch_size", run.training("batch_size", self.batch_size), self.batch_size),
            ("learning_rate", run.training("learning_rate", self.learning_rate), self.learning_rate),
            ("num_steps", run.training("num_steps", self.num_steps), self.num_steps),
        )
        differences = [
            f"{name} {_short(mine)} (reference {_short(theirs)})" for name, mine, theirs in pairs if mine != theirs
        ]
        if self.data_sha256 and run.data_sha256 and self.data_sha256 != run.data_sha256:
            differences.append("other data")
        return differences


def read_run(path: str | Path) -> Run:
    """Read `metrics.jsonl` and `config.yaml` of a run folder; lines that cannot be read are counted.

    Raises:
        DataError: a file is missing, empty, too large, or holds nothing of what is expected.
    """
    path = Path(path)
    if not path.is_dir():
        if str(path) in list_bundled():
            raise DataError(
                f"'{path}' is a bundled model; its training run is not included. See `resgen inspect {path} --full`"
            )
        raise DataError(f"'{path}' is no folder; give the folder of a run, the --out of `resgen train`")
    config_path, log_path = path / CONFIG_NAME, path / LOG_NAME
    if not log_path.exists() and (runs := sorted(str(log.parent) for log in path.glob(f"*/{LOG_NAME}"))):
        raise DataError(f"'{path}' is not a run but holds {len(runs)}; give the folder of one: {listed(runs)}")
    if not log_path.exists() and config_path.is_file():
        raise DataError(
            f"'{path}' is too young to be judged: it has no {LOG_NAME} yet, whose lines come every log_every steps "
            f"({CONFIG_NAME}); look again later, or go on with the command that began it and --resume"
        )
    if not log_path.exists():
        raise DataError(
            f"'{path}' is no run: it has no {LOG_NAME}; give the folder of a run, the --out of `resgen train`"
        )
    _check_file(log_path, "the log of `resgen train`, one JSON object a line", MAX_LOG_BYTES)
    _check_file(config_path, "the configuration that `resgen train` writes", MAX_CONFIG_BYTES)
    try:
        config = load_yaml(config_path)
    except (ConfigError, RecursionError) as error:
        raise DataError(f"'{config_path}' is damaged; expected the 'key: value' lines of `resgen train`") from error
    lines: dict[str, dict[int, Line]] = {}
    damaged = 0
    with log_path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            parsed = _read_line(text) if text.strip() else None
            if parsed is not None:
                lines.setdefault(parsed[0], {})[int(parsed[1]["step"] or 0)] = parsed[1]
            elif text.strip():
                damaged += 1
    if not lines:
        raise DataError(f"'{log_path}' has no readable line ({damaged} damaged); expected the log of `resgen train`")
    checkpoints = path / "checkpoints"
    return Run(
        path=path,
        lines={kind: [by_step[step] for step in sorted(by_step)] for kind, by_step in lines.items()},
        config=config,
        damaged=damaged,
        codebook_size=_codebook_size(path, config),
        has_checkpoint=checkpoints.is_dir() and any(checkpoints.glob("step_*/state.json")),
        has_model=(path / "model" / "config.json").is_file(),
    )


def load_reference(path: str | Path) -> ReferenceCurves:
    """Read the JSON file of a reference.

    Raises:
        DataError: missing, damaged, of another format, or with values that are not allowed.
    """
    try:
        data = read_json(path, max_bytes=MAX_REFERENCE_BYTES)
        if (data.pop("format", None), data.pop("format_version", None)) != (FORMAT, FORMAT_VERSION):
            raise ConfigError(f"expected format '{FORMAT}', version {FORMAT_VERSION}")
        return config_from_dict(ReferenceCurves, data)
    except (CheckpointError, ConfigError) as error:
        raise DataError(f"reference curves '{path}': {error}") from error


def find_reference(run: Run, folder: str | Path = REFERENCE_FOLDER) -> ReferenceCurves | None:
    """The shipped reference nearest to a run: of the same stage, kind and head, and for generators of the same recipe.

    A tokenizer may be compared with one of another recipe, by the use of its codebooks; likelihoods of other codes say
    nothing. Among several, the one that differs in the fewest settings; `ReferenceCurves.differences` says in which.

    Raises:
        DataError: a file of the folder is damaged.
    """
    references = [load_reference(path) for path in sorted(Path(folder).glob("*.json"))]
    references = [
        r for r in references
        if (r.stage, r.kind, r.head) == (run.stage, run.kind, run.head)
        and (run.stage == "tokenizer" or r.recipe == run.recipe)
    ]  # fmt: skip
    return min(references, key=lambda r: (r.recipe != run.recipe, len(r.differences(run))), default=None)


def _check_file(path: Path, expected: str, max_bytes: int) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"'{path}' is missing; expected {expected}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"'{path}' is not a regular file; expected {expected}")
    if status.st_size == 0:
        raise DataError(f"'{path}' is empty; expected {expected}")
    if status.st_size > max_bytes:
        raise DataError(f"'{path}' has {status.st_size} bytes, more than {max_bytes}; expected {expected}")


def _read_line(text: str) -> tuple[str, Line] | None:
    """Kind and numbers of a line of the log, or None if it is damaged."""
    try:
        record = json.loads(text)
        kind, step = record.pop("kind"), record["step"]
        if not isinstance(kind, str) or type(step) is not int or not 0 <= step < 1 << 53:
            return None
        values: Line = {}
        for name, value in record.items():
            if value is not None and type(value) not in (int, float):
                return None
            values[name] = float(value) if value is not None and math.isfinite(value) else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return kind, values


def _codebook_size(path: Path, config: Mapping[str, Any]) -> int | None:
    """V: a tokenizer's from its configuration, a generator's from the codes or the model in its folder."""
    own = _lookup(config, ("tokenizer", "quantizer", "codebook_size"))
    if type(own) is int:
        return own if own > 1 else None
    for file, keys in (
        (path / "codes" / "train" / "meta.json", ("spec", "codebook_size")),
        (path / "model" / "config.json", ("components", "tokenizer", "config", "quantizer", "codebook_size")),
    ):
        with contextlib.suppress(ResGenError):
            size = _lookup(read_json(file), keys)
            if type(size) is int and size > 1:
                return size
    return None


def _lookup(node: Any, path: Sequence[str]) -> Any:
    """A value within nested mappings; None where there is none."""
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else f"'{value}'"
