"""The log of a run: `metrics.jsonl`, loggers such as TensorBoard, and progress on standard error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resgen.errors import TrainingError
from resgen.files import write_text, writing
from resgen.progress import Advance, progress_bars
from resgen.training.loggers import Loggers
from resgen.types import Reduce

METRICS_NAME = "metrics.jsonl"


class Pending:
    """Metrics since the last line of the log; tensors stay on their device until `values` is called."""

    def __init__(self, values: Mapping[str, list[float]] | None = None) -> None:
        self._values: dict[str, list[float | Tensor]] = {name: list(v) for name, v in (values or {}).items()}
        self._common = {name: len(v) for name, v in self._values.items()}  # how many are the same in all processes

    def add(self, name: str, value: float | Tensor) -> None:
        """Note one value of the metric `name`."""
        self._values.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else float(value))

    def values(self) -> dict[str, list[float]]:
        """All values as numbers; waits for the device once per metric."""
        for name, values in self._values.items():
            tensors = [v for v in values if isinstance(v, Tensor)]
            if tensors:
                numbers = iter(torch.stack([t.reshape(()).double() for t in tensors]).tolist())
                self._values[name] = [next(numbers) if isinstance(v, Tensor) else v for v in values]
        return {name: [float(v) for v in values] for name, values in self._values.items()}

    def average(self, reduce: Reduce) -> None:
        """Replace what every process has noted since the last call by the means over processes.

        All processes call this together. What is averaged once stays as it is, bit for bit.

        Raises:
            TrainingError: the processes have noted different metrics.
        """
        if reduce.world_size == 1:
            return
        values = self.values()
        new = {name: values[name][self._common.get(name, 0) :] for name in sorted(values)}
        noted = json.dumps({name: len(numbers) for name, numbers in new.items()}).encode()
        mark = int.from_bytes(hashlib.sha256(noted).digest()[:7], "big")
        highest, lowest = reduce.max(torch.tensor([mark, -mark])).tolist()
        if highest != -lowest:
            raise TrainingError(f"the processes have noted different metrics; this one has {noted.decode()}")
        means = reduce.sum(torch.tensor([v for part in new.values() for v in part], dtype=torch.float64))
        numbers = iter((means / reduce.world_size).tolist())
        for name, part in new.items():
            self._values[name][self._common.get(name, 0) :] = [next(numbers) for _ in part]
            self._common[name] = len(self._values[name])

    def means(self) -> dict[str, float]:
        """Mean of each metric."""
        return {name: _mean(values) for name, values in self.values().items()}

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._common.clear()


class Log:
    """Writes one run's records.

    Args:
        out_dir: the run folder.
        step: steps already done; later lines of an earlier session are dropped from `metrics.jsonl`.
        loggers: names of `loggers.LOGGERS`.
        config: the resolved configuration, for loggers.
        quiet: no files, no loggers and no progress (processes other than the first).
    """

    def __init__(
        self,
        out_dir: Path,
        *,
        step: int,
        loggers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        self._path = out_dir / METRICS_NAME
        self._loggers: Loggers | None = None
        self._finished = False
        self._bars = contextlib.ExitStack()
        self._advance: Advance | None = None
        self._quiet = quiet
        if quiet:
            return
        rewind_metrics(self._path, step)
        self._loggers = Loggers(loggers, out_dir, step=step, config=config or {}, say=self.message)

    def message(self, text: str) -> None:
        """One line for the person at the terminal."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def write(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Append a line to `metrics.jsonl`, and tell the loggers; numbers that are not finite become null.

        Raises:
            WriteError: the file cannot be written.
        """
        if self._quiet:
            return
        line = {"kind": phase, "step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._finished = phase == "final"
        if self._loggers is not None:
            scalars = {f"{phase}/{name}": value for name, value in values.items()}
            self._loggers.tell(lambda logger: logger.metrics(step, scalars))

    def samples(self, step: int, picture: Path) -> None:
        """Tell the loggers of a sample image and of the sounds `<its name>_*.wav` beside it."""
        if self._loggers is None or not picture.is_file():
            return
        begin = len(picture.stem) + 1
        sounds = {path.stem[begin:]: path for path in sorted(picture.parent.glob(f"{picture.stem}_*.wav"))}
        self._loggers.tell(lambda logger: logger.samples(step, picture, sounds))

    def start(self) -> None:
        """From now on progress is shown."""
        if not self._quiet:
            self._advance = self._bars.enter_context(progress_bars())

    def progress(self, step: int, *, loss: float | None, steps_per_s: float, left_s: float) -> None:
        """Say how far the training is."""
        if self._advance is not None:
            note = "" if loss is None else f"loss {loss:.4g}, "
            self._advance(step, step + max(0.0, left_s) * steps_per_s, "training", f"{note}{steps_per_s:.3g} steps/s")

    def close(self) -> None:
        """Stop the progress and close the files."""
        self._bars.close()
        self._advance = None
        if self._loggers is not None:
            self._loggers.tell(lambda logger: logger.close(self._finished))
            self._loggers = None


def check_finite(values: Mapping[str, list[float]], step: int, *, saved_step: int, remedy: str) -> None:
    """Reject losses and norms of gradients that are not finite.

    Args:
        values: values of metrics.
        step: at which they were looked at.
        saved_step: step of the last checkpoint.
        remedy: what to try.

    Raises:
        TrainingError: naming the first such metric.
    """
    for name, numbers in values.items():
        if name.startswith(("loss", "grad_norm")) and not all(math.isfinite(v) for v in numbers):
            bad = next(v for v in numbers if not math.isfinite(v))
            last = f"the last good checkpoint is of step {saved_step}"
            saved = last if saved_step > 0 else "no checkpoint was written yet"
            raise TrainingError(f"{name} is {bad} at or before step {step}; {saved}; {remedy}")


def rewind_metrics(path: Path, step: int) -> None:
    """Drop lines after `step`, lines of the end of training, and a last line that was cut off.

    Raises:
        WriteError: the file cannot be written.
    """
    if not path.exists():
        return
    lines_before = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            keep = record["kind"] != "final" and record["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            keep = False
        if keep:
            lines_before.append(line + "\n")
    write_text(path, "".join(lines_before))


def _mean(values: list[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):
        return math.nan
