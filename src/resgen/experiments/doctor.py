"""Is a run healthy? Checks of its log, alone and against reference curves; every finding is a sentence with advice.

What is normal in masked modelling often looks wrong. Likelihoods of tokens start at log V and those of the finest level
stay near it: 4 % of tokens guessed right can be normal. Likelihoods of mixtures are densities: they may be negative,
and no level has to be harder than another. The training loss is a bound, with classes dropped and the weights of the
moment, the validation exact, with averaged weights: only their trends compare.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from resgen.experiments.reference_curves import (
    NOT_COMPARED,
    Points,
    ReferenceCurves,
    Run,
    find_reference,
    load_reference,
    read_run,
)
from resgen.kinds import KINDS

__all__ = ["Finding", "ReferenceCurves", "Run", "diagnose", "find_reference", "load_reference", "read_run", "verdict"]

LEVELS = ("problem", "notice", "ok")
TOLERANCE = 0.05
"""Of the reference's mean, by which the band of the seeds is widened on both sides, besides half its width."""
NATS_TOLERANCE = 0.02
"""The least widening for likelihoods, which may be near 0."""
LEAST_GAIN_DB = 0.5
"""Between the PSNR of the worst and the best number of levels; less, and the tokenizer is not trained."""
FAR = 4.0
"""Widenings outside the band from which on a deviation is a problem and no notice."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `ok`, `notice` or `problem`.
        what: what was looked at.
        value: what was found.
        normal: what is normal.
        advice: what to do; empty where there is nothing to do.
        untrained: whether it shows that next to nothing was learned so far.
    """

    level: str
    what: str
    value: str
    normal: str
    advice: str = ""
    untrained: bool = False

    def sentence(self) -> str:
        """The finding in words."""
        if self.level == "ok":
            return f"{self.what} {self.value}: normal ({self.normal})"
        return f"{self.what} {self.value} (normal: {self.normal})" + (f"; {self.advice}" if self.advice else "")


def diagnose(run: Run, reference: ReferenceCurves | None = None) -> list[Finding]:
    """Everything that can be said about a run, problems first."""
    checks: tuple[Callable[[Run], list[Finding]], ...] = (
        _damaged, _finite, _learning, _divergence, _gradients, _learning_rate, _validation, _codebooks,
        _reconstruction, _likelihood, _throughput, _end,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(run)]
    if reference is not None:
        findings += compare(run, reference)
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def verdict(findings: Sequence[Finding]) -> str:
    """One line: is the run healthy?"""
    problems, notices = (sum(f.level == level for f in findings) for level in ("problem", "notice"))
    if problems:
        return f"verdict: not healthy, {problems} problem{'s' * (problems > 1)} and {notices} to keep in mind"
    state = "not trained yet" if any(f.untrained for f in findings) else "healthy"
    return f"verdict: {state}" + (f", {notices} to keep in mind" if notices else "")


def compare(run: Run, reference: ReferenceCurves) -> list[Finding]:
    """Every metric at equal steps and, where batch sizes differ, at equal numbers of samples seen.

    With other settings than the reference's a deviation is never a problem; with another recipe only the use of the
    codebooks is compared, as everything else has another scale.
    """
    differences = reference.differences(run)
    ratio = run.training("batch_size", reference.batch_size) / reference.batch_size
    groups: dict[tuple[str, float], list[tuple[str, Finding]]] = defaultdict(list)
    for name in reference.curves:
        if name in NOT_COMPARED or (run.recipe != reference.recipe and not name.startswith("usage/")):
            continue
        for scale in dict.fromkeys((1.0, ratio)):
            placed = _place(run, reference, name, scale, soft=bool(differences))
            if placed is not None:
                groups[name.split("/")[0], scale].append((name, placed))
    if not groups:
        value = f"'{reference.name}' has no metric at any step of this run"
        return [Finding("notice", "reference", value, "a reference of the same recipe and kind")]
    result: list[Finding] = []
    for members in groups.values():
        within = [finding for _, finding in members if finding.level == "ok"]
        result += [finding for _, finding in members if finding.level != "ok"]
        if len(within) > 1 and len(within) == len(members):  # one sentence for all levels
            names = f"{members[0][0]} to {members[-1][0]}"
            result.append(replace(within[-1], what=names, value="all within", normal=f"last: {within[-1].normal}"))
        else:
            result += within
    return result


def _place(run: Run, reference: ReferenceCurves, name: str, scale: float, *, soft: bool) -> Finding | None:
    """Where the last value of a metric lies in the band, with reference steps `scale` times the run's."""
    curve = reference.curves[name]
    inside = [(step, value) for step, value in run.curve(name) if curve.at(step * scale) is not None]
    if not inside:
        return None
    step, value = inside[-1]
    low, high, mean = curve.at(step * scale) or (0.0, 0.0, 0.0)
    margin = TOLERANCE * abs(mean) + (high - low) / 2
    if run.stage == "generator":
        margin = max(margin, NATS_TOLERANCE)
    value_text = f"{value:.4g} at step {step:,}"
    if scale != 1:
        samples = step * run.training("batch_size", 0)
        value_text += f" ({samples:,.0f} samples, as many as the reference at step {step * scale:,.0f})"
    normal = f"reference {low:.4g} to {high:.4g}"
    outside = max(low - margin - value, value - high - margin, 0.0)
    if not outside:
        return Finding("ok", name, value_text, normal)
    above = value > high
    higher_is_better = name.startswith(("psnr_db", "usage", "perplexity"))
    normal = f"{normal}, widened by {margin:.2g}"
    value_text += f", {'above' if above else 'below'} the band"
    if above == higher_is_better:
        advice = "better than the reference: make sure that no held-out sample is in the training data"
        return Finding("notice", name, value_text, normal, advice)
    far = outside > (FAR - 1) * max(margin, 1e-12) and not soft
    advice = "the settings differ from the reference's, which may explain it" if soft else (
        "worse than every seed of the reference: compare config.yaml with the recipe, then the data"
    )  # fmt: skip
    return Finding("problem" if far else "notice", name, value_text, normal, advice)


def _damaged(run: Run) -> list[Finding]:
    if not run.damaged:
        return []
    total = run.damaged + sum(map(len, run.lines.values()))
    level = "problem" if run.damaged > max(1, total // 10) else "notice"
    advice = "a kill may truncate the last line; more points to a damaged disk or two runs in one folder"
    normal = "0, or 1 after a kill"
    return [Finding(level, "damaged lines", f"{run.damaged} of {total}", normal, advice)]


def _finite(run: Run) -> list[Finding]:
    watched = ("loss", "grad_norm", "val_loss", "mse", "nll_")
    bad = {
        name: int(line["step"] or 0)
        for lines in run.lines.values() for line in reversed(lines)
        for name, value in line.items() if value is None and name.startswith(watched)
    }  # fmt: skip
    advice = "lower learning_rate or set precision=fp32, and start from the last good checkpoint"
    findings = [
        Finding("problem", name, f"not finite at step {step:,}", "a number", advice) for name, step in bad.items()
    ]
    return findings or [Finding("ok", "losses", "all finite", "numbers at every step")]


def _main_curve(run: Run) -> tuple[str, Points]:
    """What must fall: of a tokenizer the error, as an adversarial loss may rise."""
    name = "mse" if run.stage == "tokenizer" and run.curve("mse") else "loss"
    return name, run.curve(name)


def _smooth(points: Points) -> list[float]:
    """Means of three neighbours."""
    values = [value for _, value in points]
    width = min(3, len(values))
    return [statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1)]


def _learning(run: Run) -> list[Finding]:
    name, points = _main_curve(run)
    warmup = run.training("warmup_steps", 0)
    after = [point for point in points if point[0] > warmup]
    if len(after) < 4:
        normal = f"at least 4 lines of the log after the warm-up of {warmup:.0f} steps"
        return [Finding("notice", name, "too early to judge", normal, "check again later", untrained=True)]
    part = max(len(points) // 10, 1)
    start = statistics.fmean(value for _, value in points[:part])
    end = statistics.fmean(value for _, value in points[-part:])
    value = f"{start:.4g} at first, {end:.4g} at step {points[-1][0]:,}"
    if start - end >= 0.01 * max(abs(start), 1e-6):
        return [Finding("ok", name, value, "it falls")]
    advice = "try another learning_rate (config.yaml), and check some images and labels of the data"
    return [Finding("problem", name, value, "it falls after the warm-up", advice)]


def _divergence(run: Run) -> list[Finding]:
    name, points = _main_curve(run)
    smooth = _smooth(points)
    if len(smooth) < 4:
        return []
    best, last = min(smooth), smooth[-1]
    # An error has a zero to measure from; likelihoods have none, so what was gained is the measure.
    unit = best if name == "mse" else max(max(smooth[: smooth.index(best) + 1]) - best, 0.1 * abs(best))
    rise = (last - best) / max(unit, 1e-9)
    drop = f"{max(rise, 0):.0%} of {'the best' if name == 'mse' else 'the gain'} lost"
    value = f"{last:.4g} at step {points[-1][0]:,}, {drop}"
    normal = f"best {best:.4g}"
    if rise <= 0.25:
        return [Finding("ok", f"{name} against its best", value, normal)]
    level = "problem" if rise > 0.5 else "notice"
    advice = "it diverges: go back to the best checkpoint and lower learning_rate"
    return [Finding(level, f"{name} against its best", value, normal, advice)]


def _gradients(run: Run) -> list[Finding]:
    warmup = run.training("warmup_steps", 0)
    norms = [(step, value) for step, value in run.curve("grad_norm") if step > warmup]
    if len(norms) < 8:
        return []
    findings = []
    middle = statistics.median(value for _, value in norms)
    spikes = [step for step, value in norms if value > 10 * middle]
    if spikes:
        level = "problem" if len(spikes) > max(2, len(norms) // 20) else "notice"
        value = f"above 10 times its median {len(spikes)} times, last at step {spikes[-1]:,}"
        advice = "a few are harmless with clip_norm; if the loss jumps there, lower learning_rate"
        findings.append(Finding(level, "grad_norm", value, f"median {middle:.3g}", advice))
    clip = run.training("clip_norm", 0)
    share = sum(value > clip for _, value in norms) / len(norms)
    if clip > 0 and share > 0.9:
        value = f"above clip_norm={clip:g} in {share:.0%} of the lines, median {middle:.3g}"
        advice = (
            "nearly all steps are clipped: raise clip_norm if learning is slow, lower learning_rate if it is unstable"
        )
        findings.append(Finding("notice", "grad_norm", value, "now and then", advice))
    return findings or [Finding("ok", "grad_norm", f"median {middle:.3g}", "no spikes, clipped rarely")]


def _learning_rate(run: Run) -> list[Finding]:
    rates, peak = run.curve("learning_rate"), run.training("learning_rate", 0)
    if not rates or peak <= 0 or not run.finished:
        return []
    last = rates[-1][1] / peak
    what, value = "learning rate", f"ended at {last:.0%} of its peak"
    if run.last_step < run.training("warmup_steps", 0):
        warmup = run.training("warmup_steps", 0)
        value = f"still in its warm-up of {warmup:.0f} steps at the end, step {run.last_step:,}"
        advice = "train longer, or set warmup_steps to a tenth of the steps"
        return [Finding("notice", what, value, "full after the warm-up", advice)]
    if run.training("decay_fraction", 0) <= 0 or last <= 0.2:
        return [Finding("ok", what, value, "near 0 at the end, if it falls at all")]
    advice = "the last gain comes with the decay: choose num_steps or --max-minutes so that the run reaches its end"
    level = "problem" if last > 0.9 else "notice"
    return [Finding(level, what, value, "near 0: it should fall before the end", advice)]


def _validation(run: Run) -> list[Finding]:
    points = run.curve("val_loss")
    if len(points) < 3:
        return []
    (best_step, best), (last_step, last) = min(points, key=lambda point: point[1]), points[-1]
    before = max(value for step, value in points if step <= best_step)
    unit = max(before - best, 0.02 * abs(best), 1e-9)
    rise = (last - best) / unit
    value = f"{last:.4g} at step {last_step:,}"
    normal = f"best {best:.4g} at step {best_step:,}"
    if rise <= 0.1:
        return [Finding("ok", "val_loss", value, normal)]
    name, training = _main_curve(run)
    near = [value for step, value in training if step <= best_step][-3:]
    end = [value for _, value in training][-3:]
    overfits = bool(near and end) and statistics.fmean(end) < statistics.fmean(near)
    what = f"val_loss (rises while {name} falls: overfitting)" if overfits else "val_loss (rises)"
    note = "`resgen export` publishes the best checkpoint"
    advice = f"more data, data.flip or a smaller model; {note}" if overfits else f"lower learning_rate; {note}"
    return [Finding("problem" if rise > 0.3 else "notice", what, value, normal, advice)]


def _codebooks(run: Run) -> list[Finding]:
    findings, size = [], run.codebook_size
    levels = _numbered(run, "perplexity")
    for level, points in levels:
        step, perplexity = points[-1]
        usage = dict(run.curve(f"usage/{level}")).get(step)
        best = max(value for _, value in points)
        what = f"codebook of level {level}" + (" (the last)" if level == levels[-1][0] and level > 1 else "")
        share = "" if usage is None else f"usage {usage:.0%}, "
        value = f"{share}perplexity {perplexity:.1f}{f' of {size}' if size else ''} at step {step:,}"
        if perplexity < max(2.0, 0.05 * (size or 0)) or (usage is not None and usage < 0.1):
            normal = "usage near 100 %, perplexity above a quarter of the codes"
            advice = "collapsed: raise quantizer.dead_threshold, lower learning_rate, or use fewer or smaller codebooks"
            findings.append(Finding("problem", what, value, normal, advice))
        elif perplexity < 0.25 * (size or 0) or (usage is not None and usage < 0.5) or perplexity < best / 2:
            normal = f"perplexity above a quarter of the codes and near its best, {best:.1f}"
            advice = "many codes are unused: use fewer codes, or watch whether it keeps falling"
            findings.append(Finding("notice", what, value, normal, advice))
    if findings or not levels:
        return findings
    low = min(points[-1][1] for _, points in levels)
    value = f"{len(levels)} levels, lowest perplexity {low:.1f}{f' of {size}' if size else ''}"
    return [Finding("ok", "codebooks", value, "all levels in use")]


def _reconstruction(run: Run) -> list[Finding]:
    levels = _numbered(run, "psnr_db")
    if len(levels) < 2:
        return []
    values = [points[-1][1] for _, points in levels]
    value = " ".join(f"{v:.1f}" for v in values) + " dB"
    what, normal = "PSNR by number of levels", "every level adds something"
    idle = [level for (level, _), a, b in zip(levels[1:], values, values[1:], strict=False) if b <= a]
    if max(values) - min(values) < LEAST_GAIN_DB:
        advice = "the levels after the first add almost nothing: train longer, or use fewer levels"
        return [Finding("notice", what, value, normal, advice, untrained=True)]
    if not idle:
        return [Finding("ok", what, value, normal)]
    advice = f"level {', '.join(map(str, idle))} adds nothing or makes it worse; if that stays, use fewer levels"
    level = "problem" if values[-1] < values[0] else "notice"
    return [Finding(level, what, value, normal, advice)]


def _likelihood(run: Run) -> list[Finding]:
    """Likelihoods by level and progress: against guessing, and each against its own past."""
    if run.stage != "generator" or not (validations := run.curve("val_loss")):
        return []
    findings = []
    step, value = validations[-1]
    if run.codebook_size and not run.is_density:
        guess = math.log(run.codebook_size)
        text, normal = f"{value:.4g} at step {step:,}", f"log {run.codebook_size} = {guess:.3g} is guessing"
        late = step > max(2 * run.training("warmup_steps", 0), run.training("num_steps", 0) / 2)
        untrained = value > 0.98 * guess
        if value > 1.02 * guess and step > run.training("warmup_steps", 0):
            advice = "worse than guessing: codes and model do not fit together, or learning_rate is too high"
            findings.append(Finding("problem", "val_loss", text, normal, advice))
        elif untrained and late:
            advice = "little has been learned so far; train longer, or check whether the codes carry information"
            findings.append(Finding("notice", "val_loss", text, normal, advice, untrained=True))
        else:
            normal += "; runs start there, and the finest levels stay near it: 4 % token accuracy can be normal"
            findings.append(Finding("ok", "val_loss", text, normal, untrained=untrained))
        findings += _shape(run)
    curves = {name: run.curve(name) for name in run.metrics() if name.startswith("nll_")}
    worse = [name for name, points in curves.items() if len(points) > 2 and points[-1][1] > points[0][1]]
    if worse and value < validations[0][1]:
        advice = "the mean improves at their expense; check generator_loss.mask_schedule and the codes of these levels"
        text, normal = f"worse than at the first validation ({', '.join(worse)})", "all improve together"
        findings.append(Finding("notice", "likelihood by level", text, normal, advice))
    return findings


def _shape(run: Run) -> list[Finding]:
    """Of token kinds: coarse levels are easier than fine ones, and a level gets easier as more positions are known."""
    findings = []
    for group in ("nll_level", "nll_visible"):
        levels = _numbered(run, group)
        if len(levels) > 1:
            first, last = levels[0][1][-1][1], levels[-1][1][-1][1]
            value, normal = f"{first:.3g} for the coarsest, {last:.3g} for the finest", "no fall from coarse to fine"
            advice = "usual only if the finest codebook is hardly used; else check that levels are not in reverse"
            bad = first > 1.05 * last
            findings.append(Finding("notice" if bad else "ok", group, value, normal, advice * bad))
    early, late = run.curve("nll_progress/0.05"), run.curve("nll_progress/0.95")
    if run.kind in KINDS and KINDS[run.kind].gains_with_progress and early and late:
        a, b = early[-1][1], late[-1][1]
        bad = b > 1.02 * a
        value, normal = f"{a:.3g} with all positions masked, {b:.3g} with few", "falls as more positions are known"
        advice = "the network makes nothing of the known positions: check the masks" * bad
        findings.append(Finding("notice" if bad else "ok", "nll_progress", value, normal, advice))
    return findings


def _throughput(run: Run) -> list[Finding]:
    speeds = [value for _, value in run.curve("samples_per_second")][1:]  # the first has compilation in it
    if len(speeds) < 8:
        return []
    quarter = len(speeds) // 4
    before, now = statistics.median(speeds[:quarter]), statistics.median(speeds[-quarter:])
    value, normal = f"{now:.4g} samples per second", f"{before:.4g} at first"
    if now >= 0.7 * before:
        return [Finding("ok", "speed", value, normal)]
    advice = "look for other programs on the machine, heat, or memory that swaps"
    return [Finding("notice", "speed", value, normal, advice)]


def _end(run: Run) -> list[Finding]:
    what, again = "end of training", "the same command with --resume"
    planned = f"step {run.last_step:,} of {run.training('num_steps', 0):,.0f}"
    if run.finished and run.has_model:
        return [Finding("ok", what, f"reached at step {run.last_step:,}", "a 'final' line")]
    if run.finished:
        return [Finding("notice", what, "reached, but no model/", "model/", f"{again} writes it")]
    advice = f"if it is not running any more, {again} goes on"
    advice += " from the last checkpoint" if run.has_checkpoint else ", from the beginning: there is no checkpoint yet"
    return [Finding("notice", what, f"not reached: {planned}", "a 'final' line", advice)]


def _numbered(run: Run, group: str) -> list[tuple[int, Points]]:
    """Curves of the metrics GROUP/NUMBER, by number."""
    names = [name for name in run.metrics() if name.startswith(group + "/") and name.rsplit("/", 1)[1].isdecimal()]
    curves = [(int(name.rsplit("/", 1)[1]), run.curve(name)) for name in names]
    return sorted((number, points) for number, points in curves if points)
