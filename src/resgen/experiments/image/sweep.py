"""Sampling settings: a grid of them measured, and the search for good ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from resgen.checkpoints.artefacts import load_pipeline, save_pipeline
from resgen.checkpoints.locate import ASSETS, resolve_model
from resgen.config import config_to_dict, parse_overrides, replace_nested
from resgen.errors import ConfigError, unknown
from resgen.evaluation.report import markdown_table
from resgen.experiments.figures import save_figure
from resgen.experiments.image.judge import Judge, Score
from resgen.files import write_text
from resgen.kinds import AnySampling, get_kind, sampling_with
from resgen.kinds.settings import OTHER_NAMES
from resgen.pipelines.image.pipeline import ImagePipeline


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One setting of a sweep and what it gave."""

    settings: Mapping[str, Any]
    score: Score


def parse_grid(words: Sequence[str], sampling: AnySampling) -> dict[str, list[Any]]:
    """`["steps=8,16", "top_p=0.9,1"]` as lists of values by setting, in this order; each value once, and those of
    a setting that is named again join the first.

    Raises:
        ConfigError: a word of another form, a setting that the kind does not have, or a value that it does not allow.
    """
    known = [field.name for field in fields(sampling)]
    grid: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        name = key if key in known else OTHER_NAMES.get(key, key)
        if name not in known:
            others = {other: name for other, name in OTHER_NAMES.items() if name in known}
            raise ConfigError(unknown("sampling setting", key, known, others))
        if not equals or not text:
            raise ConfigError(f"--grid '{word}' must have the form setting=value,value")
        variants = (replace_nested(sampling, parse_overrides([f"{name}={value}"])) for value in text.split(","))
        grid[name] = list(dict.fromkeys([*grid.get(name, []), *(getattr(config, name) for config in variants)]))
    if not grid:
        raise ConfigError("--grid is empty; give settings such as steps=8,16,32 top_p=0.9,1")
    return grid


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the grid's values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def sweep(
    pipe: ImagePipeline,
    judge: Judge,
    grid: Mapping[str, Sequence[Any]],
    *,
    num_samples: int,
    seed: int,
    report: Callable[[int, int, SweepRow], None] | None = None,
) -> list[SweepRow]:
    """Measure every combination; the best comes first.

    Raises:
        ConfigError: a value out of range; all combinations are checked before the first is run.
    """
    settings = combinations(grid)
    samplings = [sampling_with(pipe.sampling, values) for values in settings]
    rows = []
    for number, (values, sampling) in enumerate(zip(settings, samplings, strict=True)):
        row = SweepRow(settings=values, score=judge.score_pipeline(pipe, sampling, num_samples=num_samples, seed=seed))
        rows.append(row)
        if report is not None:
            report(number + 1, len(settings), row)
    return sorted(rows, key=lambda row: row.score.distance)


def find_settings(
    measure: Callable[[AnySampling], Score],
    kind: str,
    start: AnySampling,
    *,
    depth: int,
    fixed: Mapping[str, Any] | None = None,
) -> tuple[AnySampling, list[SweepRow]]:
    """Good settings of a kind by coordinate search: each setting of `Kind.search` in turn, the others kept.

    Args:
        measure: measures one setting; the lowest distance wins. Use other seeds for the final measurement.
        kind: name of the model's kind.
        start: settings to begin with.
        depth: D; more iterations over the levels of a position are not tried.
        fixed: settings that are given and not searched, for example the number of steps.

    Returns:
        The best settings, and all tries in order; none is measured twice.
    """
    current = sampling_with(start, dict(fixed or {}))
    tries: dict[AnySampling, SweepRow] = {}
    for name, values in get_kind(kind).search.items():
        if name in (fixed or {}):
            continue
        ranking: list[tuple[float, int, AnySampling]] = []
        for value in values:
            sampling = sampling_with(current, {name: min(value, depth) if name == "num_steps" else value})
            if sampling not in tries:
                tries[sampling] = SweepRow(settings=config_to_dict(sampling), score=measure(sampling))
            ranking.append((tries[sampling].score.distance, len(ranking), sampling))
        current = min(ranking)[2]
    return current, list(tries.values())


def sweep_markdown(rows: Sequence[SweepRow], metric: str, model: str, num_samples: int, seed: int) -> str:
    """The table of a sweep, best first."""
    rows = sorted(rows, key=lambda row: row.score.distance)
    names, lines = list(rows[0].settings), []
    for row in rows:
        score = row.score
        recognised = "" if score.recognised is None else f"{score.recognised:.1%}"
        manifold = ["" if share is None else f"{share:.3f}" for share in (score.precision, score.recall)]
        settings = [f"{row.settings[name]}" for name in names]
        lines.append([*settings, f"{score.distance:.3f}", *manifold, recognised, f"{score.seconds:.1f}"])
    table = markdown_table([*names, metric, "precision", "recall", "recognised", "time [s]"], lines)
    return f"# Sweep of {model}\n\n{num_samples} samples per setting, seed {seed}; best first.\n\n{table}\n"


def sweep_heat_map(rows: Sequence[SweepRow], grid: Mapping[str, Sequence[Any]], metric: str, path: Path) -> None:
    """A heat map over the first two settings with several values; over the others the best counts.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    axes = [name for name, values in grid.items() if len(values) > 1][:2] or list(grid)[:1]
    first, second = axes[0], axes[1] if len(axes) > 1 else None
    columns = list(grid[second]) if second else [""]
    table = np.full((len(grid[first]), len(columns)), np.inf)
    for row in rows:
        y = list(grid[first]).index(row.settings[first])
        x = columns.index(row.settings[second]) if second else 0
        table[y, x] = min(table[y, x], row.score.distance)

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        image = axis.imshow(table, cmap="viridis_r", aspect="auto")
        axis.set_xticks(range(len(columns)), [str(value) for value in columns])
        axis.set_yticks(range(len(grid[first])), [str(value) for value in grid[first]])
        axis.set_ylabel(first)
        axis.set_xlabel(second or "")
        middle = (table.min() + table.max()) / 2
        for (y, x), value in np.ndenumerate(table):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value > middle else "black")
        axis.set_title(f"{metric}, lower is better")
        figure.colorbar(image)

    save_figure(draw, path, size=(1.5 + 1.1 * len(columns), 1.5 + 0.7 * len(grid[first])))


def own_folder(model: str | Path) -> Path:
    """The folder of a model that `store_settings` can write to.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: it comes with the package or from the hub.
    """
    folder = resolve_model(model)
    if ASSETS in folder.resolve().parents or not Path(model).is_dir():
        raise ConfigError(
            f"--store: '{model}' is not in a folder of yours; copy '{folder}' to one and give that as --model"
        )
    return folder


def store_settings(folder: Path, sampling: AnySampling) -> None:
    """Make the settings the own ones of the model in a folder.

    Raises:
        CheckpointError: the model cannot be read or written.
    """
    parts = load_pipeline(folder)
    save_pipeline(
        folder,
        parts.tokenizer,
        parts.generator,
        sampling=sampling,
        class_names=parts.class_names,
        class_axes=parts.class_axes,
        extra=parts.folder.extra,
    )


def write_table(out: Path, rows: Sequence[SweepRow], **about: Any) -> Path:
    """`sweep.md` in the folder `out`, of some rows or all; `about` is for `sweep_markdown`. Returns the file."""
    write_text(path := out / "sweep.md", sweep_markdown(rows, **about))
    (out / "sweep.png").unlink(missing_ok=True)  # of an earlier sweep
    return path


def write_sweep(
    out: Path, rows: Sequence[SweepRow], grid: Mapping[str, Sequence[Any]], *, metric: str, **about: Any
) -> None:
    """`sweep.md` and `sweep.png` in the folder `out`; see `sweep_markdown`."""
    write_table(out, rows, metric=metric, **about)
    sweep_heat_map(rows, grid, metric, out / "sweep.png")
