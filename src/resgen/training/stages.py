"""The work around the task of every training stage: opening data, the run's folder and record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from resgen.config import config_to_dict
from resgen.errors import ConfigError, DataError, unknown
from resgen.kinds import KINDS, Kind, for_kind
from resgen.training.agreement import check_agreement
from resgen.training.interface import Task
from resgen.training.parallel import initialise
from resgen.training.state import check_run_folder
from resgen.training.trainer import Trainer

R = TypeVar("R")
CODE_FOLDERS = ("train", "held_out")
"""Where encoded data lies in its folder."""


class Recipe(Protocol):
    """A recipe as the stages see it; it also has a `TrainerConfig` called STAGE_training for each of its stages."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> Any:
        """Settings of the data, among them `path`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of one stage: where it goes and what it builds on.

    Attributes:
        out: run folder.
        data: what to learn from; the recipe's own path by default.
        max_minutes: budget of wall time.
        resume: continue the run in `out`.
        init: start from the weights of this model, of the same shape (fine-tuning).
        models: folders of other models that the stage needs, by name: `tokenizer`, `text`, `vocoder`.
        evaluate_on: data to compare samples with during the training.
        extractor: network whose features are compared then; by default the bundled classifier of the same classes.
    """

    out: str | Path
    data: str | None = None
    max_minutes: float | None = None
    resume: bool = False
    init: str | Path | None = None
    models: Mapping[str, str | Path] = field(default_factory=dict)
    evaluate_on: str | None = None
    extractor: str | None = None

    def data_path(self, recipe: Recipe) -> str:
        """`data`, or the recipe's own path.

        Raises:
            DataError: neither is given.
        """
        path = self.data or recipe.data.path
        if path is None:
            raise DataError(f"recipe '{recipe.name}' has no data of its own; give it with --data PATH")
        return path


def with_kind(recipe: R, kind: str, kinds: Mapping[str, Kind] = KINDS) -> R:
    """The recipe for another kind of generator: as many parameters, the same training, the kind's own sampling.

    Raises:
        ConfigError: there is no such kind, or the recipe's generator has another network than ResGen's.
    """
    if kind not in kinds:
        raise ConfigError(unknown("kind", kind, kinds))
    parts: Any = recipe
    generator, loss, sampling = for_kind(
        kinds[kind], parts.generator, parts.generator_loss, parts.sampling, parts.tokenizer.spec
    )
    return replace(parts, generator=generator, generator_loss=loss, sampling=sampling)


class Job(NamedTuple):
    """A stage's task, with the data and settings to record.

    Attributes:
        task: what is trained.
        about: the data.
        configs: all settings but the trainer's, by name; a run is resumed with the same ones only.
        kind: kind of a generator.
    """

    task: Task
    about: Mapping[str, Any]
    configs: Mapping[str, Any]
    kind: str | None = None


def run_stage(stage: str, recipe: Recipe, run: Run, prepare: Callable[[], Job]) -> dict[str, float]:
    """Train a stage and write `out/model`; returns the final metrics.

    Args:
        stage: its name.
        recipe: all settings.
        run: where it goes and what it builds on.
        prepare: reads data and models, and makes the task; called when processes and folder are known to be in order.

    Raises:
        ConfigError: processes were started differently, or the run's folder cannot be used.
    """
    reduce = initialise()
    arguments = {"recipe": config_to_dict(recipe), "max_minutes": run.max_minutes, "resume": run.resume}
    check_agreement(arguments, reduce)
    if reduce.rank == 0:
        check_run_folder(Path(run.out), run.resume)
    job, training = prepare(), getattr(recipe, f"{stage}_training")
    config = {
        "stage": stage,
        **({"kind": job.kind} if job.kind else {}),
        **({"init": str(run.init)} if run.init else {}),
        "recipe": recipe.name,
        "data": dict(job.about),
        **{name: config_to_dict(part) for name, part in job.configs.items()},
        "training": config_to_dict(training),
    }
    trainer = Trainer(
        job.task,
        training,
        run.out,
        max_minutes=run.max_minutes,
        resume=run.resume,
        start_from_data=run.init is None,
        reduce=reduce,
        run_config=config,
    )
    return trainer.run()
