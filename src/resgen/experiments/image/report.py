"""The report of a comparison: `report.md`, `report.csv`, `report.json` and figures, from the finished parts."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resgen.evaluation.image.protocol import check_comparable
from resgen.evaluation.image.report import EvaluationReport
from resgen.evaluation.report import markdown_table
from resgen.experiments.figures import save_figure
from resgen.experiments.image.compare import Study, equal_steps, reports
from resgen.files import write_json, write_text
from resgen.kinds import KINDS

# Two-sided 97.5 % quantiles of Student's t by degrees of freedom, for means over few seeds.
T_975 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
SETTINGS = ("guided", "unguided")


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of a few seeds, by Student's t; the value itself, twice, for a single one."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean
    quantile = T_975[min(len(values) - 1, len(T_975) - 1)]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def rows_of(study: Study) -> list[dict[str, Any]]:
    """One row per trained model and setting: what it took and what came out."""
    by_run = reports(study)
    evaluations: list[EvaluationReport] = list(by_run.values())
    for other in evaluations[1:]:  # one evaluator for all; the samplers' settings are what each kind was best with
        check_comparable(evaluations[0].protocol, other.protocol, any_sampling=True)
    rows = []
    for run, report in by_run.items():
        kind, budget, seed = run.split("-")
        training = study.result(f"train-{run}")
        for result in report.generation:
            rows.append(
                {
                    "run": run,
                    "kind": kind,
                    "budget": budget,
                    "seed": int(seed),
                    "depth": training["depth"],
                    "parameters": training["parameters"],
                    "steps": training["steps"],
                    "train_seconds": training["seconds"],
                    "setting": result.setting,
                    "distance": result.distance,
                    "distance_low": result.distance_interval[0],
                    "distance_high": result.distance_interval[1],
                    "kernel_distance": result.kernel_distance,
                    "precision": result.precision,
                    "recall": result.recall,
                    "recognised": result.recognised,
                    "sampling_seconds": result.seconds,
                }
            )
    return rows


def summary(study: Study, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per kind and budget: mean over seeds, with the 95 % interval, of each setting's distance; means of its shares.

    Where a kind took (nearly) as many steps in its time as the slowest one, its run of equal time counts for both.
    """
    common = equal_steps(study)
    lines = []
    for kind in study.comparison.kinds:
        for budget in ("time", "steps"):
            members = [row for row in rows if row["kind"] == kind and row["budget"] == budget]
            if budget == "steps" and not members:
                seeds = study.comparison.seeds[: study.comparison.equal_steps_seeds]
                members = [
                    row for row in rows if row["kind"] == kind and row["budget"] == "time" and row["seed"] in seeds
                ]
                if any(row["steps"] > 1.1 * common for row in members):
                    continue
            if not members:
                continue
            line: dict[str, Any] = {
                "kind": kind,
                "budget": budget,
                "seeds": len({row["seed"] for row in members}),
                "steps": statistics.fmean(row["steps"] for row in members),
                "parameters": members[0]["parameters"],
            }
            for setting in SETTINGS:
                values = [row["distance"] for row in members if row["setting"] == setting]
                if not values:
                    continue
                line[setting] = statistics.fmean(values)
                line[f"{setting}_interval"] = t_interval(values)
                for name in ("precision", "recall", "recognised"):
                    shares = [row[name] for row in members if row["setting"] == setting]
                    line[f"{setting}_{name}"] = None if None in shares else statistics.fmean(shares)
            lines.append(line)
    return lines


def verdicts(lines: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """One row for each kind that has a verdict and every other, at equal time: the result of each setting."""
    by_kind = {line["kind"]: line for line in lines if line["budget"] == "time"}
    rows = []
    for ours in (by_kind.pop(name) for name, kind in KINDS.items() if kind.has_verdict and name in by_kind):
        for line in by_kind.values():
            words = {
                setting: _verdict(setting, ours, line) for setting in SETTINGS if setting in ours and setting in line
            }
            rows.append({"kind": ours["kind"], "against": line["kind"], **words})
    return rows


def _verdict(setting: str, ours: dict[str, Any], other: dict[str, Any]) -> str:
    (low, high), (other_low, other_high) = ours[f"{setting}_interval"], other[f"{setting}_interval"]
    if ours["seeds"] < 2 or other["seeds"] < 2:
        return ("lower" if ours[setting] < other[setting] else "higher") + " distance (one seed)"
    if high < other_low:
        return "better"
    return "worse" if other_high < low else "no significant difference"


def write_comparison(study: Study, command: str = "") -> list[Path]:
    """Write everything; returns the files."""
    out, comparison = study.out, study.comparison
    rows = rows_of(study)
    lines = summary(study, rows)
    by_run = reports(study)
    metric = next(iter(by_run.values())).protocol.metric_name
    timing = study.result("timing")["seconds_per_picture"] if study.is_done("timing") else {}
    speed = {
        kind: {batch: statistics.median(values) for batch, values in by_batch.items()}
        for kind, by_batch in timing.items()
    }
    curves = _curves(study)
    document = {
        "metric": metric,
        "command": command,
        "rows": rows,
        "summary": lines,
        "verdicts": verdicts(lines),
        "seconds_per_picture": speed,
        "curves": curves,
        "sampling": {kind: study.result(f"search-{kind}")["sampling"] for kind in comparison.kinds},
    }
    write_json(out / "report.json", document)
    write_text(out / "report.csv", _csv(rows))
    _draw_time(out / "distance-against-seconds.png", lines, speed, metric)
    _draw_steps(out / "distance-against-steps.png", curves, metric)
    pictures = ["distance-against-seconds.png", "distance-against-steps.png"]
    if comparison.depths:
        _draw_depth(out / "distance-against-depth.png", rows, study, metric)
        pictures.append("distance-against-depth.png")
    write_text(out / "report.md", _markdown(study, document, next(iter(by_run.values())), pictures))
    return [out / name for name in ("report.md", "report.csv", "report.json", *pictures)]


def _curves(study: Study) -> list[dict[str, Any]]:
    paths = sorted((study.out / "parts").glob("steps-*.json"))
    return [{"kind": path.stem.split("-")[1], **study.result(path.stem)} for path in paths]


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _markdown(study: Study, document: dict[str, Any], sample: EvaluationReport, pictures: Sequence[str]) -> str:
    comparison = study.comparison
    protocol = sample.protocol
    metric = document["metric"]
    text = [
        f"# Comparison of {len(comparison.kinds)} kinds of generator on the same codes",
        "",
        f"{metric} against {protocol.num_reference:,} images of {protocol.reference} ({protocol.reference_split}); "
        f"lower is better. {protocol.num_samples:,} samples per model; mean over training seeds, with its 95 % "
        "confidence interval (Student's t). The distance between two halves of the real images is "
        f"{sample.floor.halves_distance:.3f}. Recipe `{study.recipe.name}`, {comparison.max_minutes:g} minutes "
        f"per model, seeds "
        f"{', '.join(map(str, comparison.seeds))}.",
        "",
        "| kind | trained for | seeds | steps | parameters | guided | precision, recall | recognised | unguided "
        "| precision, recall | recognised |",
        "|---" * 11 + "|",
    ]
    for line in document["summary"]:
        trained = f"{comparison.max_minutes:g} minutes" if line["budget"] == "time" else "equal steps"
        cells = [KINDS[line["kind"]].title, trained, str(line["seeds"]), f"{line['steps']:.0f}"]
        cells.append(f"{line['parameters'] / 1e6:.2f}M")
        for setting in SETTINGS:
            if setting in line:
                low, high = line[f"{setting}_interval"]
                spread = f" ({low:.2f} to {high:.2f})" if line["seeds"] > 1 else ""
                share = line[f"{setting}_recognised"]
                manifold = f"{line[f'{setting}_precision']:.2f}, {line[f'{setting}_recall']:.2f}"
                cells += [f"{line[setting]:.2f}{spread}", manifold, "" if share is None else f"{share:.1%}"]
            else:
                cells += ["", "", ""]
        text.append("| " + " | ".join(cells) + " |")
    text.append("")
    if document["verdicts"]:
        text += ["## Pairwise results", ""]
        if {"better", "worse"} & {row.get(name) for row in document["verdicts"] for name in SETTINGS}:
            text += ["Better or worse: the 95 % intervals do not overlap.", ""]
        results = [
            [KINDS[row["kind"]].title, KINDS[row["against"]].title, *(row.get(name, "") for name in SETTINGS)]
            for row in document["verdicts"]
        ]
        text += [markdown_table(["kind", "against", *SETTINGS], results), ""]
    depth_rows = [row for row in document["rows"] if row["budget"].startswith("depth")]
    if depth_rows:
        text += ["## Depth", "", f"{study.own_kind.title}, equal steps, on the first levels of the same tokenizer:", ""]
        text += ["| levels | guided | unguided |", "|---|---|---|"]
        for depth, values in sorted(_by_depth(document["rows"], study).items()):
            text.append(f"| {depth} | {values.get('guided', math.nan):.2f} | {values.get('unguided', math.nan):.2f} |")
        text.append("")
    if document["curves"]:
        text += ["## Sampling steps", "", f"{comparison.search_samples} samples per setting, first seed.", ""]
        text += ["| kind | steps | guided | unguided |", "|---|---|---|---|"]
        for point in sorted(document["curves"], key=lambda p: (p["kind"], p["num_steps"])):
            cells = [f"{point[name]['distance']:.2f}" if name in point else "" for name in SETTINGS]
            text.append(f"| {KINDS[point['kind']].title} | {point['num_steps']} | {' | '.join(cells)} |")
        text.append("")
    if document["seconds_per_picture"]:
        text += ["## Seconds per guided image", "", "| kind | one at a time | 64 at a time |", "|---|---|---|"]
        for kind, values in document["seconds_per_picture"].items():
            text.append(f"| {KINDS[kind].title} | {values['1']:.4f} | {values['64']:.4f} |")
        text.append("")
    text += ["## Sampling settings", "", "Tuned with the same number of trials for every kind, with another seed:", ""]
    for kind, settings in document["sampling"].items():
        text.append(f"- {KINDS[kind].title}: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    text += ["", *(f"![{Path(name).stem.replace('-', ' ')}]({name})" for name in pictures)]
    text += [
        "",
        f"Protocol {protocol.protocol_id} except for the sampling settings; the evaluations are in `evaluations/`.",
    ]
    text += ["", *(f"- Warning: {warning}." for warning in sample.warnings)] if sample.warnings else []
    if document["command"]:
        text += ["", "```", document["command"], "```"]
    return "\n".join(text) + "\n"


def _by_depth(rows: Sequence[dict[str, Any]], study: Study) -> dict[int, dict[str, float]]:
    distances: dict[int, dict[str, float]] = {}
    first = study.comparison.seeds[0]
    for row in rows:
        full = row["kind"] == study.own_kind.name and row["budget"] == "time" and row["seed"] == first
        if full or row["budget"].startswith("depth"):
            distances.setdefault(row["depth"], {})[row["setting"]] = row["distance"]
    return distances


def _draw_time(path: Path, lines: Sequence[dict[str, Any]], speed: dict[str, dict[str, float]], metric: str) -> None:
    setting = next(name for name in SETTINGS if any(name in line for line in lines))

    def draw(figure: Any) -> None:
        for number, batch in enumerate(("1", "64")):
            axis = figure.add_subplot(1, 2, number + 1)
            for line in lines:
                if line["budget"] == "time" and line["kind"] in speed and setting in line:
                    value, (low, high) = line[setting], line[f"{setting}_interval"]
                    error = [[value - low], [high - value]]
                    seconds = speed[line["kind"]][batch]
                    axis.errorbar(seconds, value, yerr=error, fmt="o", label=KINDS[line["kind"]].title)
            axis.set_xscale("log")
            axis.set_xlabel(f"seconds per image, {'one' if batch == '1' else batch} at a time")
            axis.set_ylabel(f"{metric}, {setting}")
            axis.grid(alpha=0.3)
        axis.legend(fontsize=8)

    save_figure(draw, path, size=(9.0, 4.0))


def _draw_steps(path: Path, curves: Sequence[dict[str, Any]], metric: str) -> None:
    def draw(figure: Any) -> None:
        for number, setting in enumerate(SETTINGS):
            axis = figure.add_subplot(1, 2, number + 1)
            for kind in dict.fromkeys(point["kind"] for point in curves):
                points = sorted(
                    (p["num_steps"], p[setting]["distance"]) for p in curves if p["kind"] == kind and setting in p
                )
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", label=KINDS[kind].title)
            axis.set_xscale("log", base=2)
            axis.set_xlabel("sampling steps (AR-ResGen: iterations per position)")
            axis.set_ylabel(f"{metric}, {setting}")
            axis.grid(alpha=0.3)
        if curves:
            axis.legend(fontsize=8)

    save_figure(draw, path, size=(9.0, 4.0))


def _draw_depth(path: Path, rows: Sequence[dict[str, Any]], study: Study, metric: str) -> None:
    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        depths = sorted(_by_depth(rows, study).items())
        for setting in SETTINGS:
            points = [(depth, values[setting]) for depth, values in depths if setting in values]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=setting)
        axis.set_xlabel(f"levels ({study.own_kind.title}, equal steps)")
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
        axis.legend()

    save_figure(draw, path, size=(5.0, 4.0))
