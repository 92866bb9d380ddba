"""`resgen doctor RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from resgen.cli.common import Json, check_out_file, message, option, report

if TYPE_CHECKING:
    from resgen.experiments.doctor import ReferenceCurves, Run

EXIT_HEALTHY, EXIT_PROBLEM = 0, 1


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Diagnose a training run from its log.

    If there are reference curves for the recipe and kind, bundled or given, the run is also compared with them. The
    exit code is 0 if there is no problem, 1 if there is one, 2 if the run cannot be read.

    For example:

        resgen doctor runs/digits
        resgen doctor runs/digits --out curves.png
        resgen doctor runs/mine --reference my-reference.json --json
    """

    path: Annotated[Positional[Path], option("RUN")]
    """Run folder of `resgen train`; the run may still be in progress."""
    reference: Annotated[Path | None, option("FILE")] = None
    """Reference curves written by tools/make_reference_curves.py; by default the closest bundled ones."""
    out: Annotated[Path | None, option("FILE")] = None
    """PNG file for a plot of the curves with the reference band."""
    as_json: Json = False

    def run(self) -> int:
        if self.out is not None:
            check_out_file(self.out, (".png",))
        from resgen.experiments.doctor import diagnose, find_reference, load_reference, read_run, verdict

        run = read_run(self.path)
        reference = load_reference(self.reference) if self.reference else find_reference(run)
        findings = diagnose(run, reference)
        about = describe_reference(run, reference)
        if self.out is not None:
            draw(run, reference, self.out)
            message(f"wrote {self.out}")
        document = {
            "run": self.path,
            "healthy": all(f.level != "problem" and not f.untrained for f in findings),
            "reference": reference.name if reference else None,
            "differences": reference.differences(run) if reference else [],
            "findings": findings,
            "verdict": verdict(findings),
        }
        lines = [about, "", *(f"{f.level:8}{f.sentence()}" for f in findings), "", verdict(findings)]
        report(document, as_json=self.as_json, text="\n".join(lines))
        return EXIT_PROBLEM if any(f.level == "problem" for f in findings) else EXIT_HEALTHY


def describe_reference(run: Run, reference: ReferenceCurves | None) -> str:
    """What the run is, and what it is compared with."""
    from resgen.experiments.doctor import TOLERANCE

    about = f"{run.stage} of recipe '{run.recipe}', kind '{run.kind}', step {run.last_step:,}"
    if reference is None:
        return f"{about}; no reference curves of this recipe and kind: judged by itself"
    differences = reference.differences(run)
    seeds = f"{reference.seeds} seed{'s' * (reference.seeds > 1)}"
    compared = f"compared with '{reference.name}' ({seeds}, band widened by {TOLERANCE:.0%} and half its width)"
    return f"{about}; {compared}" + (f"; differs in: {'; '.join(differences)}" if differences else "")


def draw(run: Run, reference: ReferenceCurves | None, path: Path) -> None:
    """One panel per group of metrics (the part of a name before the slash), the reference as a shaded band.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from resgen.experiments.figures import save_figure

    groups: dict[str, list[str]] = {}
    for name in run.metrics():
        if run.curve(name) and name not in ("seconds", "learning_rate"):
            groups.setdefault(name.split("/")[0], []).append(name)
    columns = min(len(groups), 4)
    rows = -(-len(groups) // max(columns, 1))

    def fill(figure: Any) -> None:
        from matplotlib import colormaps

        for number, (group, names) in enumerate(groups.items()):
            panel = figure.add_subplot(rows, columns, number + 1)
            for position, name in enumerate(names):
                colour = colormaps["viridis"](position / max(len(names) - 1, 1) * 0.9)
                steps, values = zip(*run.curve(name), strict=True)
                panel.plot(
                    steps, values, label=name.split("/")[-1], color=colour, linewidth=1, marker=".", markersize=3
                )
                band = reference.curves.get(name) if reference else None
                if band is not None:
                    panel.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.25, linewidth=1)
            panel.set_title(group, fontsize=10)
            panel.set_xlabel("step")
            panel.grid(alpha=0.3)
            if len(names) > 1:
                panel.legend(fontsize=6, ncols=2)

    save_figure(fill, path, size=(4.2 * max(columns, 1), 3.2 * max(rows, 1)))
