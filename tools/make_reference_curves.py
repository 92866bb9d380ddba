"""Write reference curves for `resgen doctor` from the run folders of one training with several seeds.

For example:

    python tools/make_reference_curves.py --runs runs/digits-0 runs/digits-1 runs/digits-2 \
        --out src/resgen/assets/reference-curves/digits-resgen.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from resgen.config import config_to_dict
from resgen.errors import ConfigError, ResGenError
from resgen.experiments.reference_curves import (
    FORMAT,
    FORMAT_VERSION,
    NOT_COMPARED,
    Curve,
    ReferenceCurves,
    Run,
    read_run,
)
from resgen.files import write_json


@dataclass(frozen=True, kw_only=True)
class MakeReferenceCurves:
    """Per metric the lowest, highest and mean value over the seeds, at about 60 steps."""

    runs: tuple[Path, ...]
    """Run folders that differ in nothing but the seed."""
    out: Path
    """JSON file to write; the reference is called by its stem."""
    max_points: int = 60
    """Steps kept per metric."""

    def make(self) -> int:
        try:
            runs = [read_run(path) for path in self.runs]
            for run in runs:
                if not run.finished:
                    print(f"'{run.path}' is not finished; its curve ends at step {run.last_step}", file=sys.stderr)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            save_reference(reference_from_runs(runs, self.out.stem, max_points=self.max_points), self.out)
        except ResGenError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0


def reference_from_runs(runs: Sequence[Run], name: str, *, max_points: int = 60) -> ReferenceCurves:
    """Join the runs of several seeds; steps are thinned to `max_points`, half of them evenly, half denser at first.

    Raises:
        ConfigError: there is no run, or they differ in more than the seed.
    """
    if not runs:
        raise ConfigError("reference curves need at least one run")
    first = runs[0]
    curves = {}
    for metric in first.metrics():
        points = [run.curve(metric) for run in runs]
        if metric in NOT_COMPARED or metric.startswith("grad_norm") or not all(points):
            continue
        begin, end = max(p[0][0] for p in points), min(p[-1][0] for p in points)
        steps = [step for step, _ in points[0] if begin <= step <= end]
        if not steps:
            continue
        steps = [steps[i] for i in _thin(len(steps), max_points)]
        values = np.stack([np.interp(steps, [step for step, _ in p], [value for _, value in p]) for p in points])
        low, high, mean = values.min(0), values.max(0), values.mean(0)
        curves[metric] = Curve(
            steps=tuple(steps), low=tuple(low.tolist()), high=tuple(high.tolist()), mean=tuple(mean.tolist())
        )
    reference = ReferenceCurves(
        name=name,
        stage=first.stage,
        kind=first.kind,
        head=first.head,
        recipe=first.recipe,
        batch_size=int(first.training("batch_size", 1)),
        learning_rate=first.training("learning_rate", 0.0),
        num_steps=int(first.training("num_steps", 1)),
        seeds=len(runs),
        data_sha256=first.data_sha256,
        curves=curves,
    )
    for run in runs:
        others = reference.differences(run)
        if others:
            raise ConfigError(f"'{run.path}' differs from '{first.path}' in more than the seed: {'; '.join(others)}")
    return reference


def save_reference(reference: ReferenceCurves, path: str | Path) -> None:
    """Write strict JSON, atomically.

    Raises:
        WriteError: writing fails.
    """
    write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, **config_to_dict(reference)})


def _thin(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, the first and the last among them."""
    if count <= most:
        return list(range(count))
    half = max(most // 2, 1)
    return sorted(
        {round(i) for i in np.linspace(0, count - 1, half)} | {round(i) - 1 for i in np.geomspace(1, count, half)}
    )


if __name__ == "__main__":
    raise SystemExit(tyro.cli(MakeReferenceCurves).make())
