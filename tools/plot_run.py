"""Draw the curves of a run's metrics.jsonl: losses, and whatever was validated by level or by progress.

For example:

    python tools/plot_run.py --run runs/fashion --out docs/results/fashion-mnist-generator.png
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (the backend must be chosen first)

Curve = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class PlotRun:
    """One panel per group of metrics; a group is the part of a name before the slash."""

    run: Path
    """Run folder."""
    out: Path
    """Image to write."""

    def draw(self) -> None:
        groups = read_metrics(self.run / "metrics.jsonl")
        figure, panels = plt.subplots(1, len(groups), figsize=(4.2 * len(groups), 3.4), squeeze=False)
        for panel, (group, curves) in zip(panels[0], groups.items(), strict=True):
            colours = plt.get_cmap("viridis")
            for number, (name, points) in enumerate(curves.items()):
                colour = colours(number / max(len(curves) - 1, 1) * 0.9)
                panel.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1, marker=".", markersize=3)
            panel.set_title(group, fontsize=10)
            panel.set_xlabel("step")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=6, ncols=2)
        figure.suptitle(self.run.name, fontsize=11)
        figure.tight_layout()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.out, dpi=100)


def read_metrics(path: Path) -> dict[str, dict[str, Curve]]:
    """Curves by group and name; training and validation losses share a panel."""
    groups: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name in ("loss", "val_loss"):
                groups["loss"]["training" if name == "loss" else "validation"].append((record["step"], value))
            elif "/" in name:
                group, label = name.split("/", 1)
                groups[group][label].append((record["step"], value))
    return groups


if __name__ == "__main__":
    tyro.cli(PlotRun).draw()
