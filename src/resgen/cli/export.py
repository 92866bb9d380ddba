"""`resgen export`: write the model of a training run at one of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from resgen.cli.common import Json, check_out_dir, option, report
from resgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the model of a finished run at its best checkpoint or at a given step.

    A run's 'model' folder holds the last step; the checkpoint with the lowest validation loss is also kept.
    For example:

        resgen export runs/digits --out runs/digits-best
        resgen export runs/digits --checkpoint 1200 --out runs/digits-1200
    """

    path: Annotated[Positional[Path], option("RUN")]
    """Folder of a finished training run."""
    checkpoint: Annotated[str, option("best|STEP")] = "best"
    """best (lowest validation loss), or the step of a checkpoint that the run has kept."""
    out: Annotated[Path, option("DIR")]
    """Folder for the model."""
    as_json: Json = False

    def run(self) -> None:
        if self.checkpoint != "best" and not self.checkpoint.isdecimal():
            raise ConfigError(f"--checkpoint {self.checkpoint!r} must be best or the step of a checkpoint that is kept")
        check_out_dir(self.out)
        from resgen.training.export import export_checkpoint

        state = export_checkpoint(self.path, self.out, None if self.checkpoint == "best" else int(self.checkpoint))
        best = None if state.best_step is None else {"step": state.best_step, "val_loss": state.best_value}
        lowest = f"; lowest validation loss so far {best['val_loss']:.4g} at step {best['step']:,}" if best else ""
        document = {"model": self.out, "step": state.step, "best": best}
        report(document, as_json=self.as_json, text=f"model of step {state.step:,}: {self.out}{lowest}")
