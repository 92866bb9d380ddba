"""Loggers of a run besides `metrics.jsonl`: TensorBoard, Weights & Biases.

Each receives metrics and sample images (of speech: spectrograms) with their sounds. Where they keep things and
under which account is left to their own environment variables. The identifiers of runs are kept in the run folder, so
that a resumed training goes on in the same run.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import threading
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from resgen.checkpoints.format import read_json
from resgen.errors import CheckpointError, ConfigError, unknown
from resgen.extras import MissingExtraError, import_extra
from resgen.files import write_json

RUNS_NAME = "loggers.json"
PROJECT = "resgen"


class RunInfo(NamedTuple):
    """The run that a logger is opened for.

    Attributes:
        folder: folder of the run.
        step: steps already done.
        config: the resolved configuration.
        run_id: what the logger called it in an earlier session; None for a new run.
    """

    folder: Path
    step: int
    config: Mapping[str, Any]
    run_id: str | None


class Logger(Protocol):
    """One place for a training's record; it may raise what it likes, see `Loggers`."""

    run_id: str | None
    """The run's name there, if it has to be found again."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, such as `train/loss`."""
        ...

    def samples(self, step: int, picture: Path, sounds: Mapping[str, Path]) -> None:
        """A sample sheet, and WAV files by name."""
        ...

    def close(self, finished: bool) -> None:
        """The session ends; `finished` if the training has come to its end."""
        ...


class TensorBoardLogger:
    """Event files in `tb/` of the run folder."""

    run_id = None

    def __init__(self, run: RunInfo) -> None:
        tensorboard = import_extra("torch.utils.tensorboard", "train", "tensorboard")
        self._tell_of_threads = threading.excepthook
        threading.excepthook = self._tell_of_thread
        purge_step = run.step + 1 if run.step else None
        self._writer: Any = tensorboard.SummaryWriter(str(run.folder / "tb"), purge_step=purge_step)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, picture: Path, sounds: Mapping[str, Path]) -> None:
        with Image.open(picture) as image:
            self._writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        for name, path in sounds.items():
            with wave.open(str(path)) as file:
                values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
                self._writer.add_audio(f"samples/{name}", values[None] / 32768, step, file.getframerate())

    def close(self, finished: bool) -> None:
        try:
            self._writer.close()
        finally:
            if threading.excepthook == self._tell_of_thread:
                threading.excepthook = self._tell_of_threads

    def _tell_of_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Not of TensorBoard's own thread: what it fails with is also raised by the next call, and told then."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._tell_of_threads(failure)


class WandbLogger:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it in the run folder, `WANDB_PROJECT` names the project."""

    def __init__(self, run: RunInfo) -> None:
        import wandb

        self._wandb: Any = wandb
        self.run_id: str | None = run.run_id or secrets.token_hex(4)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.resolve().name,
            dir=str(run.folder),
            id=self.run_id,
            resume="allow",
            config=dict(run.config),
            settings=wandb.Settings(console="off", quiet=True),
        )
        # With a step of our own, what is trained again after a crash is not thrown away as too old.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def samples(self, step: int, picture: Path, sounds: Mapping[str, Path]) -> None:
        audio = {f"samples/{name}": self._wandb.Audio(str(path)) for name, path in sounds.items()}
        self._run.log({"step": step, "samples": self._wandb.Image(str(picture)), **audio})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


LOGGERS: dict[str, Callable[[RunInfo], Any]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}


class Loggers:
    """All loggers of a run. One that fails is named in a message and is off for the rest of the session; it stops no
    training.

    Args:
        names: names in `LOGGERS`.
        folder: folder of the run.
        step: steps already done.
        config: the resolved configuration.
        say: shows a line to the person at the terminal.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, *, step: int, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._open: dict[str, Logger] = {}
        ids = _read_ids(folder / RUNS_NAME)
        for name in names:
            try:
                self._open[name] = LOGGERS[name](RunInfo(folder, step, config, ids.get(name)))
            except Exception as error:  # of a network, an account, another version of the package, ...
                self._failed(name, error)
        now = ids | {name: logger.run_id for name, logger in self._open.items() if logger.run_id is not None}
        if now != ids:
            write_json(folder / RUNS_NAME, now)

    def tell(self, act: Callable[[Logger], None]) -> None:
        """Have every logger do something."""
        for name, logger in list(self._open.items()):
            try:
                act(logger)
            except Exception as error:
                del self._open[name]
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        self._say(f"logger '{name}' is off, training goes on without it: {reason}")


def check_loggers(names: Sequence[str]) -> None:
    """Reject invalid and repeated names.

    Raises:
        ConfigError: naming it and what is allowed.
    """
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(unknown("logger", name, LOGGERS))
    if len(set(names)) < len(names):
        raise ConfigError(f"loggers={list(names)} must name each logger once")


def check_packages(names: Sequence[str]) -> None:
    """Reject loggers whose package is missing; TensorBoard, the default, may be.

    Raises:
        MissingExtraError: naming the extra.
    """
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("wandb", "wandb")


def _read_ids(path: Path) -> dict[str, str]:
    """Identifiers of an earlier session; none if they cannot be read."""
    try:
        return {name: value for name, value in read_json(path).items() if isinstance(value, str)}
    except CheckpointError:
        return {}
