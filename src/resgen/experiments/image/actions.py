"""The parts of a comparison: a training, a search for settings, an evaluation, each in a process of its own.

Arguments and results are plain values (and a recipe), so that they travel between processes and into JSON files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.checkpoints.format import load_folder
from resgen.config import config_from_dict, config_to_dict
from resgen.evaluation.report import write_report
from resgen.experiments.image.judge import Judge, Score
from resgen.experiments.image.sweep import find_settings
from resgen.kinds import AnySampling, count_parameters, get_kind, without_guidance
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.training.image.recipe import Recipe
from resgen.training.image.runs import train_generator
from resgen.training.stages import Run, with_kind
from resgen.training.stop import Interrupted

SEARCH_SEED, FINAL_SEED = 1000, 2000


def kind_of_run(run: str) -> str:
    """The kind in the name of a run."""
    return run.split("-")[0]


def start_worker(free: Any, threads: int) -> None:
    """Give the worker cores of its own, and let it stop, with a checkpoint, if its parent is gone.

    Threads of several trainings on the same core would wait for each other.
    """
    torch.set_num_threads(threads)
    cores = free.get()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    threading.Thread(target=_watch, daemon=True).start()


_orphaned, _stopped, _busy = threading.Event(), threading.Event(), threading.Event()


def _stop(number: int, frame: FrameType | None) -> None:
    """End what is being done, but not the worker: its pool would take that for a crash and kill the others."""
    first = not _stopped.is_set()
    _stopped.set()
    if _busy.is_set():
        if first:
            raise KeyboardInterrupt
    elif _orphaned.is_set():
        os._exit(1)


def _watch() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)


def do(action: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one of the actions below in a worker; after an interruption none, though the pool has handed out the next."""
    if _orphaned.is_set():
        os._exit(1)  # nobody waits for the result
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "train": train,
        "search": search,
        "evaluate": evaluate,
        "score": score,
    }
    try:
        _busy.set()
        if _stopped.is_set():
            raise KeyboardInterrupt
        return actions[action](**arguments)
    except (Interrupted, KeyboardInterrupt):
        _stopped.set()
        raise
    finally:
        _busy.clear()
        if _orphaned.is_set():
            os._exit(1)


def train(
    out: str,
    data: str,
    recipe: Recipe,
    kind: str,
    seed: int,
    run: str,
    depth: int,
    max_minutes: float | None,
    num_steps: int | None,
) -> dict[str, Any]:
    """Train one model, or go on with it."""
    folder = Path(out) / "runs" / run
    tokenizer, _ = load_tokenizer(Path(out) / "tokenizers" / str(depth))
    recipe = replace(recipe, tokenizer=tokenizer.config)
    recipe = with_kind(recipe, kind)
    training = replace(recipe.generator_training, seed=seed)
    if num_steps is not None:
        training = replace(training, num_steps=num_steps)
    if not (folder / "model" / "config.json").exists():
        train_generator(
            replace(recipe, generator_training=training),
            Run(
                out=folder,
                data=str(Path(out) / "codes" / str(depth)),
                max_minutes=max_minutes,
                resume=folder.exists(),
                models={"tokenizer": Path(out) / "tokenizers" / str(depth)},
            ),
        )
    history = load_folder(folder / "model").extra["history"]["generator"]
    return {
        "kind": kind,
        "seed": seed,
        "depth": depth,
        "steps": history["steps"],
        "seconds": history["seconds"],
        "val_loss": history["metrics"]["val_loss"],
        "parameters": count_parameters(recipe.generator, tokenizer.spec),
    }


def open_judge(out: str, data: str, recipe: Recipe, extractor: str | None) -> Judge:
    """The one evaluator of a comparison; features of the reference are kept in its folder."""
    return Judge(
        data,
        image_size=recipe.tokenizer.image_size,
        channels=recipe.tokenizer.channels,
        extractor=extractor,
        cache_dir=Path(out) / "evaluation-cache",
        resize=recipe.data.resize,
        skip_unreadable=recipe.data.skip_unreadable,
    )


def search(
    out: str, data: str, recipe: Recipe, kind: str, run: str, num_samples: int, extractor: str | None
) -> dict[str, Any]:
    """Find sampling settings for a kind."""
    pipe = ImagePipeline.from_pretrained(Path(out) / "runs" / run / "model")
    judge = open_judge(out, data, recipe, extractor)

    def measure(settings: AnySampling) -> Score:
        return judge.score_pipeline(pipe, settings, num_samples=num_samples, seed=SEARCH_SEED)

    sampling, tries = find_settings(
        measure,
        kind,
        with_kind(recipe, kind).sampling,
        depth=pipe.generator.spec.depth,
        fixed=None if pipe.num_classes else {"guidance_scale": 0.0},
    )
    return {
        "kind": kind,
        "metric": judge.metric,
        "num_samples": num_samples,
        "sampling": config_to_dict(sampling),
        "tries": [{**row.settings, **config_to_dict(row.score)} for row in tries],
    }


def evaluate(
    out: str,
    data: str,
    recipe: Recipe,
    run: str,
    extractor: str | None,
    num_samples: int,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """The full evaluation of one trained model."""
    pipe, settings = _open(out, run, sampling)
    judge = open_judge(out, data, recipe, extractor)
    report = judge.report(
        Path(out) / "runs" / run / "model", pipe, settings, num_samples=num_samples, seeds=(FINAL_SEED,), name=run
    )
    path = Path(out) / "evaluations" / f"{run}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(report, path)
    return {"run": run, "report": path.name}


def score(
    out: str,
    data: str,
    recipe: Recipe,
    run: str,
    extractor: str | None,
    num_samples: int,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """One point of a curve, unguided and, where the settings have guidance, guided."""
    pipe, settings = _open(out, run, sampling)
    judge = open_judge(out, data, recipe, extractor)
    variants = {"guided": settings} if settings.guidance_scale > 0 else {}
    variants["unguided"] = without_guidance(settings)
    scores = {
        name: config_to_dict(judge.score_pipeline(pipe, variant, num_samples=num_samples, seed=FINAL_SEED))
        for name, variant in variants.items()
    }
    return {"run": run, "num_steps": sampling.get("num_steps"), **scores}


def _open(out: str, run: str, sampling: dict[str, Any]) -> tuple[ImagePipeline, Any]:
    pipe = ImagePipeline.from_pretrained(Path(out) / "runs" / run / "model")
    return pipe, config_from_dict(get_kind(kind_of_run(run)).sampling, sampling, where="sampling.")


def timing(models: Mapping[str, str], sampling: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Seconds per guided image, one at a time and 64 at a time; repetitions of the kinds take turns."""
    pipes = {
        kind: (
            ImagePipeline.from_pretrained(model),
            config_from_dict(get_kind(kind).sampling, sampling[kind], where="sampling."),
        )
        for kind, model in models.items()
    }
    seconds: dict[str, dict[str, list[float]]] = {kind: {"1": [], "64": []} for kind in models}
    for repetition in range(4):
        for kind, (pipe, settings) in pipes.items():
            for batch in (1, 64):
                class_ids = [index % max(pipe.num_classes, 1) for index in range(batch)]
                begin = time.perf_counter()
                pipe.generate_pixels(class_ids, first_index=0, seed=0, batch_size=batch, sampling=settings)
                if repetition:  # the first one warms up
                    seconds[kind][str(batch)].append((time.perf_counter() - begin) / batch)
    return {"threads": torch.get_num_threads(), "seconds_per_picture": seconds}
