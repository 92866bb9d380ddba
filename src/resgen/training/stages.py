"""What every stage of a training does around its task: where the data is, the run's folder and record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resgen.config import config_to_dict
from resgen.errors import DataError
from resgen.training.agreement import check_agreement
from resgen.training.image.recipe import Recipe
from resgen.training.interface import Task, TrainerConfig
from resgen.training.parallel import initialise
from resgen.training.speech.recipe import SpeechRecipe
from resgen.training.state import check_run_folder
from resgen.training.trainer import Trainer

CODE_FOLDERS = ("train", "held_out")
"""Where encoded data lies in its folder."""


def data_path(recipe: Recipe | SpeechRecipe, data: str | None) -> str:
    """`data`, or the recipe's own path.

    Raises:
        DataError: neither is given.
    """
    path = data or recipe.data.path
    if path is None:
        raise DataError(f"recipe '{recipe.name}' has no data of its own; give it with --data PATH")
    return path


def check_start(recipe: Recipe | SpeechRecipe, out: str | Path, *, max_minutes: float | None, resume: bool) -> None:
    """Before any data is read, refuse processes with different settings, and a run's folder that cannot be used.

    Raises:
        ConfigError: see `check_agreement` and `check_run_folder`.
    """
    reduce = initialise()
    check_agreement({"recipe": config_to_dict(recipe), "max_minutes": max_minutes, "resume": resume}, reduce)
    if reduce.rank == 0:
        check_run_folder(Path(out), resume)


def run_stage(
    task: Task,
    recipe: Recipe | SpeechRecipe,
    stage: str,
    training: TrainerConfig,
    out: str | Path,
    *,
    max_minutes: float | None,
    resume: bool,
    init: str | Path | None,
    about: Mapping[str, Any],
    configs: Mapping[str, Any],
    kind: str | None = None,
) -> dict[str, float]:
    """Train a task; returns the final metrics.

    Args:
        task: what is trained.
        recipe: whose stage it is.
        stage: its name.
        training: settings of the trainer.
        out: run folder.
        max_minutes: budget of wall time.
        resume: continue the run in `out`.
        init: the model whose weights the task has already; without one it starts from data, where it does so.
        about: the data.
        configs: all other settings by name; a run is resumed with the same ones only.
        kind: of a generator.
    """
    config = {
        "stage": stage,
        **({"kind": kind} if kind else {}),
        **({"init": str(init)} if init else {}),
        "recipe": recipe.name,
        "data": dict(about),
        **{name: config_to_dict(part) for name, part in configs.items()},
        "training": config_to_dict(training),
    }
    trainer = Trainer(
        task,
        training,
        out,
        max_minutes=max_minutes,
        resume=resume,
        start_from_data=init is None,
        reduce=initialise(),
        run_config=config,
    )
    return trainer.run()
