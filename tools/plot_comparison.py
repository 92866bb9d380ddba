"""Draw two figures of docs/results: comparisons.png, guided distance against training steps, one line for each kind of
generator; and equal-bits.png, distance against time per image at nearly equal bits, for many positions with few levels
and for few with many.

    python tools/plot_comparison.py

Everything is read from the measurements beside the figures. In the first, trainings are points (open where there is
only one of that length), lines join their means, and the tokenizer's floor is the distance of its own reconstructions.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (the backend must be chosen first)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
Points = dict[int, list[float]]
"""Guided distances of all trainings, by number of training steps."""
LINES = {
    "residual": ("residual head (ours)", "#1b6ca8"),
    "direct": ("direct tokens", "#2a9d4b"),
    "rq_transformer": ("RQ-Transformer", "#c77d0a"),
    "maskgit": ("MaskGIT", "#8a8a8a"),
    "fixed": ("the paper's head, fixed means in a metric, K = 256", "#b5179e"),
    "mixture": ("the paper's head as written, K = 16", "#d62828"),
}


SHAPES = {
    "7x7x5": ("7x7 positions of 5 levels, 1,960 bits", "#c77d0a"),
    "4x4x16": ("4x4 of 16, 2,048 bits", "#1b6ca8"),
    "2x2x64": ("2x2 of 64, 2,048 bits", "#d62828"),
}


def read(name: str) -> Any:
    """A JSON file of docs/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def plain(rows: list[dict[str, Any]], training: str, variant: str = "as in the recipe") -> list[float]:
    """Guided distances of a training under its recipe's own sampling settings."""
    return [
        row["guided"]
        for row in rows
        if row["training"] == training and not row["asked"] and row.get("variant", variant) == variant
    ]


def points() -> dict[str, Points]:
    """What was measured on the codes of `fashion-mnist-small`, by kind: 1,000 samples, 2.2 to 2.8M parameters."""
    found: dict[str, Points] = defaultdict(lambda: defaultdict(list))
    with open(RESULTS / "compare-fashion-mnist" / "report.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["setting"] == "guided" and row["kind"] in LINES]
    for row in rows:
        if row["budget"] == "steps":
            found[row["kind"]][int(row["steps"])].append(float(row["distance"]))
    timed = [row for row in rows if row["kind"] == "rq_transformer"]  # four minutes are these 609 to 631 steps
    average = round(sum(int(row["steps"]) for row in timed) / len(timed))
    found["rq_transformer"][average] = [float(row["distance"]) for row in timed]
    short, metric = read("heads.json")["rows"], read("mixture-head.json")["rows"]
    long = read("heads-3000-steps.json")["rows"]
    for kind in ("residual", "direct"):
        found[kind][1000] += plain(short, kind)
        found[kind][3000] += plain(long, kind)
    found["direct"][1000] += plain(metric, "direct")
    for kind in ("rq_transformer", "maskgit"):
        found[kind][3000] += read("kinds-3000-tries.json")["trainings"][kind]["guided"]
    found["mixture"][1000] += plain(short, "mixture-k16")
    found["mixture"][3000] += plain(read("heads-mixture-long.json")["rows"], "mixture-k16")
    found["fixed"][1000] += plain(metric, "tri-k256", "fixed means")
    found["fixed"][3000] += plain(metric, "long-k256", "fixed means, rows weigh D - c")
    found["fixed"][3000] += plain(read("mixture-head-3k.json")["rows"], "paper")
    found["fixed"][10000] += [
        row["distance"]
        for row in read("mixture-head-10k.json")["rows"]
        if row["sampling"] == "guidance_scale=4,num_steps=16"
    ]
    found["fixed"][30000] += plain(read("mixture-head-30k.json")["rows"], "paper")
    for kind in ("residual", "direct"):
        for length in (10, 30):
            found[kind][1000 * length] += plain(read(f"{kind}-{length}k.json")["rows"], kind)
    further = read("ten-thousand.json")["rows"]
    for kind, training in (("fixed", "paper"), ("residual", "residual"), ("direct", "direct")):
        found[kind][10000] += plain(further, training)
    found["maskgit"][10000] += [
        row["guided"] for row in read("maskgit-10k.json")["rows"] if row["asked"]["guidance_scale"] == 4.0
    ]
    found["rq_transformer"][10000] += read("rq-10k.json")["trainings"]["rq_transformer"]["guided"]
    return {kind: found[kind] for kind in LINES}


def floor() -> float:
    """Distance of the tokenizer's reconstructions of the test images from these images."""
    return float(read("evaluate-fashion-mnist-tokenizer.json")["reconstruction"]["distance"])


def draw(out: Path) -> None:
    """Write the figure."""
    figure, panel = plt.subplots(figsize=(8.4, 4.6))
    for kind, lengths in points().items():
        label, colour = LINES[kind]
        steps = sorted(lengths)
        panel.plot(steps, [sum(lengths[n]) / len(lengths[n]) for n in steps], color=colour, linewidth=1.6, label=label)
        for n in steps:
            filled = colour if len(lengths[n]) > 1 else "white"
            panel.plot([n] * len(lengths[n]), lengths[n], "o", color=colour, markerfacecolor=filled, markersize=5)
    panel.axhline(floor(), color="black", linestyle="--", linewidth=1)
    panel.text(600, floor() * 0.97, f"the tokenizer's own reconstructions: {floor():.1f}", fontsize=8, va="top")
    panel.set(xscale="log", yscale="log", xlabel="training steps of 128 images", ylabel="guided FD, lower is better")
    panel.set_xticks([600, 1000, 3000, 10000, 30000], ["600", "1,000", "3,000", "10,000", "30,000"])
    panel.set_yticks([4, 6, 8, 10, 15, 20, 30], ["4", "6", "8", "10", "15", "20", "30"])
    panel.minorticks_off()
    panel.set_ylim(3.2, 32)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, title="open: one training; filled: each of several", title_fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_bits(out: Path) -> None:
    """Write the figure of equal bits: a line for each shape of codes, a point for each number of sampling steps."""
    cases = read("equal-bits.json")["cases"]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for panel, batch, ticks in zip(panels, (1, 64), ([8, 12, 20, 30, 60], [1.2, 2, 3, 5, 8, 12]), strict=True):
        for shape, (label, colour) in SHAPES.items():
            steps = [int(case.split(", ")[1].split()[0]) for case in cases if case.startswith(f"{shape}, ")]
            rows = [cases[f"{shape}, {count} steps"] for count in steps]
            times = [1000 * row[f"seconds_{batch}"] for row in rows]
            distances = [sum(row["distances"]) / len(row["distances"]) for row in rows]
            panel.plot(times, distances, "o-", color=colour, linewidth=1.6, markersize=5, label=label)
            for count, x, y in zip(steps, times, distances, strict=True):
                panel.annotate(str(count), (x, y), (0, 5), textcoords="offset points", fontsize=7, color=colour)
        panel.set(xscale="log", yscale="log", xlabel=f"milliseconds per image, {batch} at a time")
        panel.set_xticks(ticks, map(str, ticks))
        panel.set_yticks([6, 8, 10, 12, 16], ["6", "8", "10", "12", "16"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("guided FD, lower is better")
    panels[1].legend(fontsize=8, title="numbers: sampling steps", title_fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("plot_comparison.py takes no arguments")
    draw(RESULTS / "comparisons.png")
    draw_bits(RESULTS / "equal-bits.png")
