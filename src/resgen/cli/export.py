"""`resgen export`: write the model of a training run at one of its checkpoints, or with a part of another model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from resgen.cli.common import Json, check_out_dir, option, report
from resgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the model of a finished run at its best checkpoint or at a given step, or with a part of another model.

    A run's 'model' folder holds the last step; the checkpoint with the lowest validation loss is also kept.
    For example:

        resgen export runs/digits --out runs/digits-best
        resgen export runs/digits --checkpoint 1200 --out runs/digits-1200

    A decoder or vocoder that was trained further, alone, takes the place of the model's own:

        resgen export runs/digits --replace tokenizer=runs/decoder/model --out runs/digits-sharper
    """

    path: Annotated[Positional[Path], option("RUN")]
    """Folder of a finished training run; with --replace also a model folder or a bundled name."""
    checkpoint: Annotated[str, option("best|STEP")] = "best"
    """best (lowest validation loss), or the step of a checkpoint that the run has kept."""
    replace: Annotated[tuple[str, ...], option("PART=MODEL ...")] = ()
    """Take the tokenizer or the vocoder of another model, and all else from the model in RUN: tokenizer=runs/b/model.
    A tokenizer must have the same codebooks."""
    out: Annotated[Path, option("DIR")]
    """Folder for the model."""
    as_json: Json = False

    def run(self) -> None:
        if self.checkpoint != "best" and not self.checkpoint.isdecimal():
            raise ConfigError(f"--checkpoint {self.checkpoint!r} must be best or the step of a checkpoint that is kept")
        check_out_dir(self.out, replaces=True)
        if self.replace:
            return self._replace()
        from resgen.training.export import export_checkpoint

        state = export_checkpoint(self.path, self.out, None if self.checkpoint == "best" else int(self.checkpoint))
        best = None if state.best_step is None else {"step": state.best_step, "val_loss": state.best_value}
        lowest = f"; lowest validation loss so far {best['val_loss']:.4g} at step {best['step']:,}" if best else ""
        document = {"model": self.out, "step": state.step, "best": best}
        report(document, as_json=self.as_json, text=f"model of step {state.step:,}: {self.out}{lowest}")

    def _replace(self) -> None:
        if self.checkpoint != "best":
            raise ConfigError("give --checkpoint or --replace; export the checkpoint first, then replace its part")
        parts = dict(part.partition("=")[::2] for part in self.replace)
        if len(parts) < len(self.replace):
            raise ConfigError(f"--replace {' '.join(self.replace)} names a part twice")
        if wrong := [name for name, model in parts.items() if not model]:
            raise ConfigError(f"--replace {wrong[0]!r} must be PART=MODEL, such as tokenizer=runs/decoder/model")
        from resgen.checkpoints.parts import save_with_parts

        save_with_parts(self.path, parts, self.out)
        report({"model": self.out, "replaced": parts}, as_json=self.as_json, text=f"model: {self.out}")
