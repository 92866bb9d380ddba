"""Write reference curves for `resgen doctor` from the run folders of one training with several seeds.

For example:

    python tools/make_reference_curves.py --runs runs/digits-0 runs/digits-1 runs/digits-2 \
        --out src/resgen/assets/reference-curves/digits-resgen.json
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from resgen.errors import ResGenError
from resgen.experiments.reference_curves import read_run, reference_from_runs, save_reference


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


if __name__ == "__main__":
    raise SystemExit(tyro.cli(MakeReferenceCurves).make())
