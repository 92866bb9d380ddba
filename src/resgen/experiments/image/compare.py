"""All kinds of generator on the same codes, with the same time and the same steps, under one evaluator (Sec. 5.2).

A comparison is a list of parts: trainings, searches for settings, evaluations. Each finished part is a JSON file (or a
model folder) in the output folder and is never computed again; an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resgen.checkpoints.artefacts import load_tokenizer, save_tokenizer
from resgen.checkpoints.format import read_json
from resgen.config import config_to_dict
from resgen.errors import CheckpointError, ConfigError, TrainingError
from resgen.evaluation.image.report import load_report
from resgen.experiments.claim import claim
from resgen.experiments.image.actions import do, kind_of_run, open_judge, start_worker, timing
from resgen.experiments.image.depth import truncate_tokenizer
from resgen.files import write_json
from resgen.kinds import KINDS, get_kind, kind_of
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.image.recipe import Recipe
from resgen.training.image.runs import encode_data

STEPS_TOLERANCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        tokenizer: folder or bundled name; all kinds share its codes.
        data: images.
        kinds: names of kinds.
        seeds: seeds of the trainings.
        max_minutes: budget of each training.
        num_samples: images of each evaluation.
        search_samples: images of each try of the search for settings, and of the curves.
        depths: numbers of levels at which the recipe's own kind is trained besides all of them, for as many steps.
        equal_steps_seeds: for how many of the seeds every kind is also trained for as many steps as the slowest one.
        extractor: extractor of the evaluator; the bundled classifier of the same classes by default.
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
        name: the name of its folder or file.
        action: name of a function of `experiments.image.actions`.
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
        ConfigError: there are depths, but the recipe's kind is not compared.
    """

    def __init__(self, out: str | Path, recipe: Recipe, comparison: Comparison) -> None:
        self.out = Path(out)
        self.recipe, self.comparison, self.own_kind = recipe, comparison, kind_of(recipe.generator)
        if comparison.depths and self.own_kind.name not in comparison.kinds:
            raise ConfigError(
                f"depths={comparison.depths} are trained with the recipe's kind; kinds={comparison.kinds} must hold "
                f"'{self.own_kind.name}'"
            )

    def claimed(self, *, resume: bool) -> AbstractContextManager[None]:
        """See `experiments.claim`; the number of jobs may change."""
        settings = config_to_dict(self.comparison)
        del settings["jobs"]
        return claim(self.out, self.recipe, settings, resume=resume)

    def result(self, name: str) -> dict[str, Any]:
        """The result of a finished part.

        Raises:
            CheckpointError: its file is damaged.
        """
        try:
            return read_json(self._path(name))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete it and continue with --resume") from error

    def is_done(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._path(name).exists()

    def run(self, parts: Sequence[Part], say: Callable[[str], None]) -> None:
        """Do the parts that are not finished, `jobs` at a time. If this is interrupted or a part fails, the others are
        told to stop; trainings write a checkpoint first.

        Raises:
            TrainingError: a process was killed.
        """
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
        free, others = context.Queue(), set(multiprocessing.active_children())
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
                    elapsed = (time.monotonic() - begin) / 60
                    left_minutes = elapsed * (total - minutes) / max(minutes, 1e-9)
                    say(f"{part.name}: done; about {left_minutes:.0f} minutes left in this stage")
            except BrokenExecutor as error:
                raise TrainingError(
                    "a process of the comparison was killed, often for lack of memory; continue with --resume and "
                    "fewer --jobs"
                ) from error
            except BaseException:
                for future in running:
                    future.cancel()
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise

    def record(self, name: str, result: Mapping[str, Any]) -> None:
        """Note that a part is finished."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(result))

    def _path(self, name: str) -> Path:
        return self.out / "parts" / f"{name}.json"


def compare(study: Study, say: Callable[[str], None]) -> None:
    """Do all that is not done yet. The report is written by `experiments.image.report`."""
    comparison = study.comparison
    tokenizer, _ = load_tokenizer(comparison.tokenizer)
    plan = _Plan(study, tokenizer)
    plan.encode(tokenizer)
    say(f"training {len(comparison.kinds) * len(comparison.seeds)} models, {comparison.max_minutes:g} minutes each")
    study.run(plan.for_equal_time(), say)
    say(f"training for {equal_steps(study)} steps, as many as the slowest kind took in its time")
    study.run(plan.for_equal_steps() + plan.of_depths(), say)
    say("tuning sampling settings, with the same number of trials for every kind")
    study.run(plan.searches(), say)
    say("evaluating")
    study.run(plan.evaluations(), say)
    say("quality against sampling steps")
    study.run(plan.curves(), say)
    say("timing, one kind after the other on all cores")
    if not study.is_done("timing"):
        models = {kind: str(study.out / "runs" / plan.first(kind) / "model") for kind in comparison.kinds}
        study.record("timing", timing(models, {kind: plan.sampling(kind) for kind in comparison.kinds}))


class _Plan:
    """The parts of a comparison, stage by stage; the later ones depend on results of the earlier.

    Raises:
        ConfigError: a depth that the tokenizer does not have.
    """

    def __init__(self, study: Study, tokenizer: ImageTokenizer) -> None:
        self.study, self.comparison, self.out = study, study.comparison, study.out
        self.full, self.own = tokenizer.spec.depth, study.own_kind.name
        if not all(1 <= depth < self.full for depth in self.comparison.depths):
            raise ConfigError(
                f"depths={self.comparison.depths} must lie in 1..{self.full - 1}, below the tokenizer's {self.full} "
                "levels"
            )
        # Parameters are matched at the shape of these codes, whatever the recipe would train.
        self.recipe = replace(study.recipe, tokenizer=tokenizer.config)

    def encode(self, tokenizer: ImageTokenizer) -> None:
        """Tokenizers and codes of every depth, and the reference's features and their neighbours, once."""
        data, settings = self.comparison.data, self.recipe.data
        for depth in (self.full, *self.comparison.depths):
            folder = self.out / "tokenizers" / str(depth)
            if not (folder / "config.json").exists():
                save_tokenizer(folder, tokenizer if depth == self.full else truncate_tokenizer(tokenizer, depth))
            codes = self.out / "codes" / str(depth)
            encode_data(
                str(folder),
                data,
                codes,
                flip=settings.flip,
                resize=settings.resize,
                skip_unreadable=settings.skip_unreadable,
            )
        open_judge(str(self.out), data, self.recipe, self.comparison.extractor).prepare()

    def first(self, kind: str) -> str:
        """The run of a kind with which settings are searched and curves are drawn."""
        return f"{kind}-time-{self.comparison.seeds[0]}"

    def sampling(self, kind: str) -> dict[str, Any]:
        """The settings that were searched for a kind."""
        return dict(self.study.result(f"search-{kind}")["sampling"])

    def steps(self, kind: str, seed: int) -> int:
        """Steps of a kind in its time."""
        return int(self.study.result(f"train-{kind}-time-{seed}")["steps"])

    def for_equal_time(self) -> list[Part]:
        """Trainings for the same time."""
        minutes = self.comparison.max_minutes
        return [
            self._training(kind, "time", seed, max_minutes=minutes, minutes=minutes)
            for seed in self.comparison.seeds
            for kind in self.comparison.kinds
        ]

    def for_equal_steps(self) -> list[Part]:
        """Trainings for as many steps as the slowest kind took, where the kind took more."""
        steps, parts = equal_steps(self.study), []
        for kind in self.comparison.kinds:
            for seed in self.comparison.seeds[: self.comparison.equal_steps_seeds]:
                share = steps / self.steps(kind, seed)
                if share < STEPS_TOLERANCE:
                    minutes = self.comparison.max_minutes * share
                    parts.append(self._training(kind, "steps", seed, num_steps=steps, minutes=minutes))
        return parts

    def of_depths(self) -> list[Part]:
        """Trainings of the recipe's own kind on the first levels only, for as many steps as on all."""
        seed, minutes = self.comparison.seeds[0], self.comparison.max_minutes
        return [
            self._training(
                self.own, f"depth{depth}", seed, depth=depth, num_steps=self.steps(self.own, seed), minutes=minutes
            )
            for depth in self.comparison.depths
        ]

    def searches(self) -> list[Part]:
        """The search for settings of every kind."""
        return [
            self._measurement(f"search-{kind}", "search", self.first(kind), self.comparison.search_samples, kind=kind)
            for kind in self.comparison.kinds
        ]

    def evaluations(self) -> list[Part]:
        """The full evaluation of every model."""
        folders = sorted(path.parent.parent.name for path in self.out.glob("runs/*/model/config.json"))
        runs = [run for run in folders if self.study.is_done(f"train-{run}")]  # others were put there by hand
        return [
            self._measurement(
                f"evaluate-{run}",
                "evaluate",
                run,
                self.comparison.num_samples,
                sampling=self.sampling(kind_of_run(run)),
            )
            for run in runs
        ]

    def curves(self) -> list[Part]:
        """Scores at other numbers of steps, of the kinds that can choose them."""
        return [
            self._measurement(
                f"steps-{kind}-{count}",
                "score",
                self.first(kind),
                self.comparison.search_samples,
                sampling={**self.sampling(kind), "num_steps": count},
            )
            for kind in self.comparison.kinds
            for count in KINDS[kind].step_counts(self.full)
        ]

    def _training(
        self,
        kind: str,
        what: str,
        seed: int,
        *,
        minutes: float,
        depth: int | None = None,
        max_minutes: float | None = None,
        num_steps: int | None = None,
    ) -> Part:
        run = f"{kind}-{what}-{seed}"
        budget = {"max_minutes": max_minutes, "num_steps": num_steps}
        model = {"kind": kind, "seed": seed, "run": run, "depth": depth or self.full}
        return Part(name=f"train-{run}", action="train", arguments=self._common() | model | budget, minutes=minutes)

    def _measurement(self, name: str, action: str, run: str, num_samples: int, **more: Any) -> Part:
        settings = {"run": run, "num_samples": num_samples, "extractor": self.comparison.extractor}
        return Part(name=name, action=action, arguments=self._common() | settings | more)

    def _common(self) -> dict[str, Any]:
        return {"out": str(self.out), "data": self.comparison.data, "recipe": self.recipe}


def equal_steps(study: Study) -> int:
    """Steps that every kind reached in its time."""
    comparison = study.comparison
    return min(
        study.result(f"train-{kind}-time-{seed}")["steps"] for kind in comparison.kinds for seed in comparison.seeds
    )


def reports(study: Study) -> dict[str, Any]:
    """Finished evaluations by run."""
    folder = study.out / "evaluations"
    return {path.stem: load_report(path) for path in sorted(folder.glob("*.json"))}
