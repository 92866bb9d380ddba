"""Training checkpoints: folders `step_00001000` of safetensors files and one `state.json`, written atomically."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from resgen.checkpoints.format import (
    FORMAT_VERSION,
    check_file_name,
    check_hash,
    check_replaceable,
    check_sha256,
    check_version,
    read_json,
    resgen_version,
)
from resgen.checkpoints.tensors import read_tensors, sha256_file, write_tensors
from resgen.config import config_from_dict, flatten
from resgen.errors import CheckpointError, ConfigError, TrainingError
from resgen.files import atomic_folder, remove_leftovers, writing
from resgen.matches import nearest
from resgen.training.log import METRICS_NAME
from resgen.training.optim import Plan
from resgen.training.sharding import read_parts, wait_for_all, write_parts

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

STATE_NAME = "state.json"
MAX_STATE_BYTES = 1 << 26
VOLATILE = (
    "num_steps",
    "max_minutes",
    "log_every",
    "validate_every",
    "sample_every",
    "evaluate_every",
    "checkpoint_every",
    "keep_last",
    "device",
    "shard",
    "recompute",
    "loggers",
)
"""Configuration keys (last part of the dotted name) that a resumed run may change."""

_STEP = re.compile(r"step_(\d{8,})")
_NAME = re.compile(r"[a-z]+")


@dataclass(kw_only=True)
class TrainingState:
    """Everything about a run, besides tensors, that exact continuation needs; the trainer's own moves with its steps.

    Attributes:
        step: optimizer steps done; also the position in the data.
        elapsed_s: seconds of training so far, over all its sessions.
        plan: see `Plan`.
        best_step: where the validation loss was lowest, if it was ever computed.
        best_value: the validation loss there.
        pending: metrics since the last line of the log.
        last_means: metrics of that line.
        started: date of the first session, ISO 8601, UTC.
        seed: seed of all random streams.
        world_size: processes that wrote the checkpoint.
        precision: arithmetic of the losses.
        config: the resolved configuration.
        versions: versions of the libraries.
    """

    step: int
    elapsed_s: float
    plan: Plan
    best_step: int | None = None
    best_value: float | None = None
    pending: dict[str, list[float]] = field(default_factory=dict)
    last_means: dict[str, float] = field(default_factory=dict)
    started: str = ""
    seed: int = 0
    world_size: int = 1
    precision: str = "fp32"
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def save_checkpoint(folder: Path, state: TrainingState, files: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write `folder/step_NNNNNNNN` with one safetensors file per entry of `files`.

    Raises:
        WriteError: writing fails; earlier checkpoints are untouched.
    """
    path = _step_folder(folder, state)
    with atomic_folder(path) as temporary:
        hashes = {}
        for name, tensors in files.items():
            file = f"{name}.safetensors"
            write_tensors(temporary / file, tensors)
            hashes[name] = {"file": file, "sha256": sha256_file(temporary / file)}
        _write_state(temporary, state, hashes)
    return path


def save_parts(folder: Path, state: TrainingState, files: Mapping[str, Mapping[str, Tensor]], rank: int) -> Path:
    """The same for divided tensors: a folder per entry, to which every process writes its own part.

    All processes must call this together; the first one looks after the rest.

    Raises:
        WriteError: a process cannot write; earlier checkpoints are untouched.
    """
    path = _step_folder(folder, state)
    temporary = path.parent / f".{path.name}.tmp"
    with atomic_folder(path, temporary=temporary) if rank == 0 else contextlib.nullcontext():
        wait_for_all()
        for name, tensors in files.items():
            write_parts(temporary / name, tensors)
        wait_for_all()
        if rank == 0:
            names = {name: sorted(file.name for file in (temporary / name).iterdir()) for name in files}
            hashes = {
                name: {"parts": {part: sha256_file(temporary / name / part) for part in parts}}
                for name, parts in names.items()
            }
            _write_state(temporary, state, hashes)
    wait_for_all()
    return path


def _step_folder(folder: Path, state: TrainingState) -> Path:
    return folder / f"step_{state.step:08d}"


def _write_state(folder: Path, state: TrainingState, hashes: Mapping[str, Any]) -> None:
    data = {
        "format": "resgen-training",
        "format_version": FORMAT_VERSION,
        "resgen_version": resgen_version(),
        "files": hashes,
        "state": asdict(state),
    }
    (folder / STATE_NAME).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(path: Path) -> tuple[TrainingState, dict[str, Path]]:
    """Read and verify one checkpoint; the tensors stay on disk, each group of them in a file or a folder of parts.

    Raises:
        CheckpointError: a file is missing, damaged or of a newer format version.
    """
    where = path / STATE_NAME
    data = read_json(where, max_bytes=MAX_STATE_BYTES)
    if data.get("format") != "resgen-training":
        raise CheckpointError(f"'{where}': format={data.get('format')!r} must be 'resgen-training'")
    check_version(data.get("format_version"), data.get("resgen_version"), where)
    entries = data.get("files")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise CheckpointError(f"'{where}': 'files' must be a mapping of names to files")
    files = {}
    for name, entry in entries.items():
        parts = entry.get("parts")
        if isinstance(parts, dict) and parts:
            if not _NAME.fullmatch(name):
                raise CheckpointError(f"'{where}': {name!r} cannot be the name of a folder of parts")
            files[name] = path / name
            for part, sha256 in parts.items():
                check_hash(files[name] / check_file_name(part, where), check_sha256(sha256, where))
        else:
            files[name] = path / check_file_name(entry.get("file"), where)
            check_hash(files[name], check_sha256(entry.get("sha256"), where))
    saved = data.get("state", {})
    if isinstance(saved, dict):
        saved.pop("config_sha256", None)  # of older checkpoints
    try:
        state = config_from_dict(TrainingState, saved, where=f"{where}: ")
    except ConfigError as error:
        raise CheckpointError(f"'{where}': {error}") from error
    return state, files


def read_group(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, or of a folder of parts, that `load_checkpoint` has verified."""
    return (read_parts if path.is_dir() else read_tensors)(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    folders = [(int(match[1]), p) for p in folder.iterdir() if (match := _STEP.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(folders)]


Checkpoint = tuple[TrainingState, dict[str, dict[str, Tensor]], Path]
"""State, tensors by file and name, and the folder."""


def load_newest(folder: Path, message: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint, or None if there is none at all. Damaged ones are reported and passed over.

    Raises:
        CheckpointError: there are checkpoints but none can be read, or the newest is of a newer format version.
    """
    paths = list_checkpoints(folder)
    reasons = []
    for path in reversed(paths):
        try:
            state, files = load_checkpoint(path)
            return state, {name: read_group(file) for name, file in files.items()}, path
        except CheckpointError as error:
            if "upgrade resgen" in str(error):
                raise
            message(f"checkpoint passed over: {error}")
            reasons.append(str(error))
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in '{folder}' can be read ({reasons[0]}); train in a new folder"
        )
    return None


def no_checkpoint(out_dir: Path) -> str:
    """The message for a run that should resume but does not exist: a mistyped folder would be trained from scratch."""
    runs = (place.parent.name for place in out_dir.parent.glob("*/checkpoints"))
    hint = "".join(f" (did you mean '{out_dir.parent / name}'?)" for name in nearest(out_dir.name, runs, 1))
    return f"no checkpoint in '{out_dir}'{hint}; starting from the beginning"


def clean_checkpoints(folder: Path, *, newest_step: int, keep_last: int, best_step: int | None) -> None:
    """Delete what is no longer needed: all but the last `keep_last` and the best; and any beyond `newest_step`.

    The latter are left over from before a return to an earlier checkpoint.
    """
    remove_leftovers(folder)
    steps = {int(path.name.removeprefix("step_")): path for path in list_checkpoints(folder)}
    current = sorted(step for step in steps if step <= newest_step)
    steps_to_keep = set(current[-keep_last:]) | {best_step}
    for step, path in steps.items():
        if step not in steps_to_keep:
            shutil.rmtree(path, ignore_errors=True)


def compare_configs(saved: Mapping[str, Any], current: Mapping[str, Any], where: str) -> list[str]:
    """Check that a run may be resumed; returns lines about keys that changed and may change.

    Raises:
        CheckpointError: another key differs; the message names the first one with both values.
    """
    old, new = flatten(saved), flatten(current)
    changes = []
    for key in [*new, *(key for key in old if key not in new)]:
        before, now = old.get(key, "<absent>"), new.get(key, "<absent>")
        if before == now:
            continue
        if key.rpartition(".")[2] not in VOLATILE:
            raise CheckpointError(
                f"'{where}' was trained with {key}={before} but this run has {key}={now}; "
                f"use the same configuration or another output folder"
            )
        changes.append(f"{key}: {before} -> {now}")
    return changes


def check_resumable(
    state: TrainingState, path: Path, *, config: Mapping[str, Any], precision: str, world_size: int
) -> list[str]:
    """Check that a run may continue from a checkpoint; returns what is to be said about it.

    Raises:
        CheckpointError: see `compare_configs`.
    """
    messages = []
    if changes := compare_configs(state.config, config, str(path)):
        messages.append(f"changed since the checkpoint: {'; '.join(changes)}; losses may differ from here on")
    for what, before, now in (
        ("precision", state.precision, precision),
        ("number of processes", state.world_size, world_size),
        ("torch version", state.versions.get("torch"), torch.__version__),
    ):
        if before != now:
            messages.append(f"{what} was {before} and is now {now}: losses may differ in their last digits")
    return messages


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON values.

    Raises:
        ConfigError: a value is none.
    """
    try:
        return cast(dict[str, Any], json.loads(json.dumps(config)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the configuration of the run is not plain data: {error}") from error


def check_run_folder(out_dir: Path, resume: bool) -> None:
    """Reject a path that is not a folder, or that holds a run unless it is to be resumed.

    Raises:
        ConfigError: naming the folder and the remedy.
        CheckpointError: the folder `model` of a new run holds something else than a model.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"'{out_dir}' is not a folder; choose another --out")
    if resume:
        return
    check_replaceable(out_dir / "model")
    if any((out_dir / name).exists() for name in (METRICS_NAME, "checkpoints", "config.yaml")):
        raise ConfigError(f"'{out_dir}' already holds a run; continue it with --resume or choose another --out")


@contextlib.contextmanager
def lock_folder(folder: Path, doing: str = "training") -> Iterator[None]:
    """Create a folder and hold it for this process; the lock dies with the process.

    Args:
        folder: folder of a run, or of caches.
        doing: what for, as a message to others says it.

    Raises:
        TrainingError: another process holds it.
        WriteError: the folder cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TrainingError(f"another process is {doing} in '{folder}'; wait for it or stop it") from error
            except OSError:  # a file system without locks
                pass
        yield


def versions() -> dict[str, str]:
    """Versions of what determines the numbers."""
    return {
        "resgen": resgen_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run computes, for its record."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
