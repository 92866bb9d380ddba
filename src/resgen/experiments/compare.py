"""All kinds of generator on the same codes, with the same time and the same steps, under one evaluator (Sec. 5.2).

A comparison is a list of parts: trainings, searches for settings, evaluations. Each finished part is a JSON file (or a
model folder) in the output folder and is never computed again; an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resgen.checkpoints.artefacts import load_tokenizer, save_tokenizer
from resgen.checkpoints.format import read_json
from resgen.config import config_to_dict
from resgen.errors import ConfigError
from resgen.evaluation.image.report import load_report
from resgen.experiments.actions import do, kind_of_run, open_judge, start_worker, timing
from resgen.experiments.depth import truncate_tokenizer
from resgen.files import write_json
from resgen.kinds import KINDS, get_kind, kind_of
from resgen.training.image.recipe import Recipe
from resgen.training.image.runs import encode_data

SETTINGS_NAME = "comparison.json"
STEPS_TOLERANCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        tokenizer: folder or bundled name; all kinds share its codes.
        data: pictures.
        kinds: names of kinds.
        seeds: of the trainings.
        max_minutes: budget of each training.
        num_samples: pictures of each evaluation.
        search_samples: pictures of each try of the search for settings, and of the curves.
        depths: numbers of levels at which the recipe's own kind is trained besides all of them, for as many steps.
        equal_steps_seeds: for how many of the seeds every kind is also trained for as many steps as the slowest one.
        extractor: of the evaluator; the bundled classifier of the same classes by default.
        jobs: trainings and evaluations at one time, each with its share of the processor's cores.
    """

    tokenizer: str
    data: str
    kinds: tuple[str, ...] = tuple(KINDS)
    seeds: tuple[int, ...] = (0, 1, 2)
    max_minutes: float = 10.0
    num_samples: int = 5000
    search_samples: int = 1000
    depths: tuple[int, ...] = ()
    equal_steps_seeds: int = 1
    extractor: str | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        for kind in self.kinds:
            get_kind(kind)
        if not self.kinds or not self.seeds:
            raise ConfigError(f"kinds={self.kinds} and seeds={self.seeds} must both hold at least one entry")
        if not self.max_minutes > 0:
            raise ConfigError(f"max_minutes={self.max_minutes} must be above 0")
        for name in ("num_samples", "search_samples"):
            if getattr(self, name) < 100:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 100")
        if self.jobs < 1:
            raise ConfigError(f"jobs={self.jobs} must be at least 1")
        if not 0 <= self.equal_steps_seeds <= len(self.seeds):
            raise ConfigError(f"equal_steps_seeds={self.equal_steps_seeds} must lie in 0..{len(self.seeds)}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One training or measurement, done in a process of its own.

    Attributes:
        name: of its folder or file.
        action: name of a function of `experiments.actions`.
        arguments: its keyword arguments, plain values.
        minutes: how long it may take, for the estimate of the time left.
    """

    name: str
    action: str
    arguments: Mapping[str, Any]
    minutes: float = 1.0


class Study:
    """The folder of a comparison and what is finished in it.

    Raises:
        ConfigError: the folder holds another comparison, or one and `resume` is False; or there are depths, but the
            recipe's kind is not compared.
    """

    def __init__(self, out: str | Path, recipe: Recipe, comparison: Comparison, *, resume: bool) -> None:
        self.out = Path(out)
        self.recipe, self.comparison, self.own_kind = recipe, comparison, kind_of(recipe.generator)
        if comparison.depths and self.own_kind.name not in comparison.kinds:
            raise ConfigError(
                f"depths={comparison.depths} are trained with the recipe's kind; kinds={comparison.kinds} must hold "
                f"'{self.own_kind.name}'"
            )
        settings = {
            "recipe": config_to_dict(recipe),
            "comparison": {key: value for key, value in config_to_dict(comparison).items() if key != "jobs"},
        }
        path = self.out / SETTINGS_NAME
        if path.exists():
            before = read_json(path)
            if not resume:
                raise ConfigError(
                    f"'{out}' already holds a comparison; continue it with --resume or choose another --out"
                )
            if before != settings:
                changed = [key for key in settings if before.get(key) != settings[key]]
                raise ConfigError(
                    f"'{out}' holds a comparison with other settings ({', '.join(changed)}); choose another --out"
                )
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)

    def result(self, name: str) -> dict[str, Any]:
        """The result of a finished part."""
        return read_json(self._path(name))

    def is_done(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._path(name).exists()

    def run(self, parts: Sequence[Part], say: Callable[[str], None]) -> None:
        """Do the parts that are not finished, `jobs` at a time."""
        left = [part for part in parts if not self.is_done(part.name)]
        if not left:
            return
        jobs = min(self.comparison.jobs, len(left))
        begin = time.monotonic()
        total = sum(part.minutes for part in left)
        threads = max(1, torch.get_num_threads() // jobs)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        shares = [cores[k * threads : (k + 1) * threads] for k in range(jobs)]
        context = multiprocessing.get_context("spawn")
        free = context.Queue()
        for share in shares:
            free.put(share)
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=start_worker, initargs=(free, threads)) as pool:
            running = {pool.submit(do, part.action, dict(part.arguments)): part for part in left}
            minutes = 0.0
            try:
                for future in as_completed(running):
                    part = running[future]
                    self.record(part.name, future.result())
                    minutes += part.minutes
                    spent = (time.monotonic() - begin) / 60
                    left_minutes = spent * (total - minutes) / max(minutes, 1e-9)
                    say(f"{part.name}: done; about {left_minutes:.0f} minutes left in this stage")
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def record(self, name: str, result: Mapping[str, Any]) -> None:
        """Note that a part is finished."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(result))

    def _path(self, name: str) -> Path:
        return self.out / "parts" / f"{name}.json"


def compare(study: Study, say: Callable[[str], None]) -> None:
    """Do all that is not done yet. The report is written by `experiments.report`."""
    comparison, out = study.comparison, study.out
    tokenizer, _ = load_tokenizer(comparison.tokenizer)
    # Parameters are matched at the shape of these codes, whatever the recipe would train.
    recipe = replace(study.recipe, tokenizer=tokenizer.config)
    common = {"out": str(out), "data": comparison.data, "recipe": recipe}
    full, first, own = tokenizer.spec.depth, comparison.seeds[0], study.own_kind.name
    for depth in comparison.depths:
        if not 1 <= depth < full:
            raise ConfigError(
                f"depths={comparison.depths} must lie in 1..{full - 1}, below the tokenizer's {full} levels"
            )
    for depth in (full, *comparison.depths):
        folder = out / "tokenizers" / str(depth)
        if not (folder / "config.json").exists():
            save_tokenizer(folder, tokenizer if depth == full else truncate_tokenizer(tokenizer, depth))
        encode_data(
            str(folder), comparison.data, out / "codes" / str(depth), flip=recipe.data.flip, resize=recipe.data.resize
        )
    open_judge(str(out), comparison.data, recipe, comparison.extractor)  # the reference's features, once

    say(f"training {len(comparison.kinds) * len(comparison.seeds)} models, {comparison.max_minutes:g} minutes each")
    study.run(
        [
            Part(
                name=f"train-{kind}-time-{seed}",
                action="train",
                arguments={
                    **common,
                    "kind": kind,
                    "seed": seed,
                    "run": f"{kind}-time-{seed}",
                    "depth": full,
                    "max_minutes": comparison.max_minutes,
                    "num_steps": None,
                },
                minutes=comparison.max_minutes,
            )
            for seed in comparison.seeds
            for kind in comparison.kinds
        ],
        say,
    )
    steps = equal_steps(study)
    seeds = comparison.seeds[: comparison.equal_steps_seeds]
    say(f"training for {steps} steps, as many as the slowest kind took in its time")
    parts = []
    for kind in comparison.kinds:
        for seed in seeds:
            result = study.result(f"train-{kind}-time-{seed}")
            share = steps / result["steps"]
            if share < STEPS_TOLERANCE:
                parts.append(
                    Part(
                        name=f"train-{kind}-steps-{seed}",
                        action="train",
                        arguments={
                            **common,
                            "kind": kind,
                            "seed": seed,
                            "run": f"{kind}-steps-{seed}",
                            "depth": full,
                            "max_minutes": None,
                            "num_steps": steps,
                        },
                        minutes=comparison.max_minutes * share,
                    )
                )
    for depth in comparison.depths:
        parts.append(
            Part(
                name=f"train-{own}-depth{depth}-{first}",
                action="train",
                arguments={
                    **common,
                    "kind": own,
                    "seed": first,
                    "run": f"{own}-depth{depth}-{first}",
                    "depth": depth,
                    "max_minutes": None,
                    "num_steps": study.result(f"train-{own}-time-{first}")["steps"],
                },
                minutes=comparison.max_minutes,
            )
        )
    study.run(parts, say)

    say("searching sampling settings, the same number of tries for every kind")
    study.run(
        [
            Part(
                name=f"search-{kind}",
                action="search",
                arguments={
                    **common,
                    "kind": kind,
                    "run": f"{kind}-time-{first}",
                    "num_samples": comparison.search_samples,
                    "extractor": comparison.extractor,
                },
            )
            for kind in comparison.kinds
        ],
        say,
    )
    say("evaluating")
    runs = [path.name for path in sorted((out / "runs").iterdir()) if (path / "model" / "config.json").exists()]
    study.run(
        [
            Part(
                name=f"evaluate-{run}",
                action="evaluate",
                arguments={
                    **common,
                    "run": run,
                    "extractor": comparison.extractor,
                    "num_samples": comparison.num_samples,
                    "sampling": study.result(f"search-{kind_of_run(run)}")["sampling"],
                },
            )
            for run in runs
        ],
        say,
    )
    say("quality against sampling steps")
    study.run(
        [
            Part(
                name=f"steps-{kind}-{count}",
                action="score",
                arguments={
                    **common,
                    "run": f"{kind}-time-{first}",
                    "extractor": comparison.extractor,
                    "num_samples": comparison.search_samples,
                    "sampling": {**study.result(f"search-{kind}")["sampling"], "num_steps": count},
                },
            )
            for kind, count in _step_counts(comparison.kinds, full)
        ],
        say,
    )
    say("timing, one kind after the other on all cores")
    if not study.is_done("timing"):
        models = {kind: str(out / "runs" / f"{kind}-time-{first}" / "model") for kind in comparison.kinds}
        sampling = {kind: study.result(f"search-{kind}")["sampling"] for kind in comparison.kinds}
        study.record("timing", timing(models, sampling))


def equal_steps(study: Study) -> int:
    """Steps that every kind reached in its time."""
    comparison = study.comparison
    return min(
        study.result(f"train-{kind}-time-{seed}")["steps"] for kind in comparison.kinds for seed in comparison.seeds
    )


def _step_counts(kinds: Sequence[str], depth: int) -> list[tuple[str, int]]:
    """Steps at which the kinds whose steps can be chosen are measured."""
    return [(kind, count) for kind in kinds for count in KINDS[kind].step_counts(depth)]


def reports(study: Study) -> dict[str, Any]:
    """Finished evaluations by run."""
    folder = study.out / "evaluations"
    return {path.stem: load_report(path) for path in sorted(folder.glob("*.json"))}
