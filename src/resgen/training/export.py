"""A model as it was at a checkpoint of its training; training itself publishes the model of its last step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from resgen.checkpoints.format import load_folder, load_tensors
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.parts import save_again
from resgen.checkpoints.tensors import check_match
from resgen.errors import ConfigError
from resgen.files import nearest_path
from resgen.training.state import TrainingState, list_checkpoints, load_checkpoint, read_group


def export_checkpoint(run: str | Path, out: str | Path, step: int | None = None) -> TrainingState:
    """Write the model of a training with the weights of a checkpoint, averaged ones where the training averages.

    All else is that of `run/model`: other parts, settings, voices. The record says which step it is; what was measured
    of the last weights is left out, and so is a card.

    Args:
        run: folder of a training that has ended.
        out: folder for the model.
        step: of the checkpoint; that of the lowest validation loss by default.

    Returns:
        The metrics of the training at this step.

    Raises:
        ConfigError: there is no such checkpoint, or the folder is not that of a training.
        CheckpointError: there is no model yet, the checkpoint or the model is damaged, or they are of different
            trainings.
    """
    run = Path(run)
    kept = {int(path.name.removeprefix("step_")): path for path in list_checkpoints(run / "checkpoints")}
    if not run.exists():
        raise ConfigError(f"there is no run '{run}'; {nearest_path(run)}")
    resolve_model(run)  # refuses a training that has not ended
    if not kept or not (run / "model").is_dir():
        raise ConfigError(f"'{run}' must be the folder of a training that has ended, with checkpoints/ and model/")
    best = load_checkpoint(kept[max(kept)])[0].best_step
    if (chosen := best if step is None else step) not in kept:
        what = "best checkpoint (the training was not validated)" if chosen is None else f"checkpoint of step {chosen}"
        raise ConfigError(f"'{run}' keeps no {what}; kept: {', '.join(map(str, kept))}")
    state, files = load_checkpoint(kept[chosen])
    stage, folder = str(state.config.get("stage")), load_folder(run / "model")
    published = load_tensors(folder.component(stage))
    latest, averages = (read_group(files[name]) if name in files else {} for name in ("model", "ema"))
    found = {name.removeprefix(f"{stage}."): tensor for name, tensor in latest.items()} | averages
    tensors = {name: tensor for name, tensor in found.items() if name in published or name in averages}
    check_match(published, tensors, str(kept[chosen]))
    tensors = {name: tensors[name].to(old.dtype) for name, old in published.items()}
    loss = {"val_loss": state.best_value} if chosen == state.best_step else {}
    record = {"steps": chosen, "seconds": state.elapsed_s, "metrics": {**state.last_means, **loss}}
    history = {**folder.extra.get("history", {}), stage: folder.record(stage) | record}
    save_again(replace(folder, extra=folder.extra | {"history": history}), out, {stage: tensors})
    return state
