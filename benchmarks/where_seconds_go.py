"""What a command's time goes to, from its start to its end: a fresh process each time.

python benchmarks/where_seconds_go.py --data PATH [--repetitions 5] [--out FILE.json]
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

PHASES = ("imports", "loading", "sampling", "decoding", "measuring", "writing", "other")
"""`other` is the start and the end of Python, the command line, and what is in no other phase."""
PARTS = {
    "loading": (
        "resgen.pipelines.classes:ClassPipeline.from_pretrained",
        "resgen.pipelines.speech.pipeline:SpeechPipeline.from_pretrained",
        "resgen.checkpoints.artefacts:load_tokenizer",
        "resgen.evaluation.image.extractors:load_extractor",
    ),
    "sampling": ("resgen.kinds.registry:sample",),
    "decoding": ("resgen.tokenizers.image:ImageTokenizer.decode", "resgen.tokenizers.sound:SoundCodec.decode"),
    "measuring": ("resgen.evaluation.image.extractors:Extractor.__call__",),
    "writing": (
        "resgen.data.pictures.grid:save_picture",
        "resgen.data.sound.decode:write_sound",
        "resgen.evaluation.report:write_report",
    ),
}
TORCH = "import torch, no command"


class Phases:
    """Seconds of each phase, without those of the phases within; on the clock and of the processor.

    Attributes:
        seconds: by phase, `[wall, processor]`.
    """

    def __init__(self, begin: float) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._stack, self._last = ["other"], (begin, 0.0)
        self._wrapped: set[str] = set()

    def settle(self) -> None:
        """Charge what has passed to the phase that is on."""
        now = (time.monotonic(), time.process_time())
        for k in range(2):
            self.seconds[self._stack[-1]][k] += now[k] - self._last[k]
        self._last = now

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Charge this block to a phase."""
        self.settle()
        self._stack.append(phase)
        try:
            yield
        finally:
            self.settle()
            self._stack.pop()

    def charged(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is charged to a phase."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.inside(phase):
                return function(*args, **kwargs)

        return run

    def watch_imports(self) -> None:
        """Charge imports, wherever they happen, and every part of `PARTS` as soon as its module is there."""
        for module, name in ((builtins, "__import__"), (importlib, "import_module")):
            setattr(module, name, self._importing(getattr(module, name)))

    def _importing(self, load: Callable[..., Any]) -> Callable[..., Any]:
        charged = self.charged("imports", load)

        def run(*args: Any, **kwargs: Any) -> Any:
            module = charged(*args, **kwargs)
            self._wrap_parts()
            return module

        return run

    def _wrap_parts(self) -> None:
        for phase, parts in PARTS.items():
            for part in parts:
                module, _, path = part.partition(":")
                owner, _, name = path.rpartition(".")
                holder = sys.modules.get(module)
                holder = getattr(holder, owner, None) if owner else holder
                raw = None if holder is None else vars(holder).get(name)
                if raw is None or part in self._wrapped:
                    continue
                self._wrapped.add(part)
                inner = raw.__func__ if isinstance(raw, classmethod) else raw
                run = self.charged(phase, inner)
                setattr(holder, name, classmethod(run) if isinstance(raw, classmethod) else run)


def child(begin: str, report: str, *argv: str) -> int:
    """Run a command, and write the seconds of its phases into the file `report`."""
    phases = Phases(float(begin))
    phases.watch_imports()
    if argv:
        from resgen.cli.main import main as command

        code = command(argv)
    else:
        import torch  # noqa: F401

        code = 0
    phases.settle()
    Path(report).write_text(json.dumps(phases.seconds))
    return code


def measured(argv: Sequence[str], folder: Path) -> dict[str, list[float]]:
    """Seconds of the phases of one command in a process of its own, with `whole`.

    Raises:
        SystemExit: the command fails.
    """
    report, before, begin = folder / "phases.json", os.times(), time.monotonic()
    code = [sys.executable, __file__, "--child", repr(begin), str(report), *argv]
    done = subprocess.run(code, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wall, after = time.monotonic() - begin, os.times()
    if done.returncode:
        raise SystemExit(f"'resgen {' '.join(argv)}' failed: {done.stderr.strip()}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    seconds: dict[str, list[float]] = {name: [0.0, 0.0] for name in PHASES}
    seconds |= json.loads(report.read_text())
    for k, whole in enumerate((wall, processor)):  # the end of Python is after the child's last word
        seconds["other"][k] += whole - sum(seconds[name][k] for name in PHASES)
    return {**seconds, "whole": [wall, processor]}


def commands(data: str, folder: Path) -> dict[str, list[str]]:
    """The commands, in an order in which each finds what it reads."""
    face, sound, levels = (str(folder / name) for name in ("face.png", "hello.wav", "levels.png"))
    image = ["generate", "image", "--model", "avatars64", "--class", "lorelei", "--out", face]
    text = "Few positions, many levels."
    speech = ["generate", "speech", "--model", "english-small", "--voice", "emma", "--text", text, "--out", sound]
    levels_of = ["reconstruct", "--tokenizer", "avatars64", "--input", face, "--out", levels]
    evaluate = ["evaluate", "--model", "fashion-mnist-small", "--data", data, "--num-samples", "50"]
    rows = {TORCH: [], "generate image": image, "generate speech": speech, "reconstruct": levels_of}
    return rows | {"evaluate": [*evaluate, "--out", str(folder / "report.json")]}


def table(runs: dict[str, list[dict[str, list[float]]]], clock: int) -> str:
    """The first run and the median of the others, as a Markdown table of seconds; `clock` is 0 for wall time."""
    lines = [f"| command | run | whole | {' | '.join(PHASES)} | neither sampling nor decoding |"]
    lines.append("|---" * (len(PHASES) + 4) + "|")
    for name, all_runs in runs.items():
        for which, some in (("first", all_runs[:1]), ("later", all_runs[1:])):
            if some:
                of = {phase: median(run[phase][clock] for run in some) for phase in ("whole", *PHASES)}
                rest = 1 - (of["sampling"] + of["decoding"]) / of["whole"]
                values = " | ".join(f"{of[phase]:.2f}" for phase in PHASES)
                lines.append(f"| {name} | {which} | **{of['whole']:.2f}** | {values} | {rest:.0%} |")
    return "\n".join(lines)


def main(data: str, repetitions: int = 5, out: Path | None = None) -> None:
    """Print the seconds of some commands by phase, on the clock and of the processor.

    Args:
        data: the Fashion-MNIST images, for `evaluate`.
        repetitions: of every command, all of them in turns; the first is shown apart.
        out: JSON file with the seconds of every run.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = commands(data, folder)
        runs: dict[str, list[dict[str, list[float]]]] = {name: [] for name in rows}
        for _ in range(repetitions):
            for name, argv in rows.items():
                with tempfile.TemporaryDirectory() as cache:  # nothing that an earlier run has kept is found
                    extra = ["--cache", cache] if name == "evaluate" else []
                    runs[name].append(measured([*argv, *extra], folder))
                print(f"{name}: {runs[name][-1]['whole'][0]:.1f} s", file=sys.stderr, flush=True)
    for clock, title in enumerate(("On the clock", "Of the processor")):
        print(f"\n{title}, seconds (load {os.getloadavg()[0]:.1f}):\n\n{table(runs, clock)}")
    if out is not None:
        out.write_text(json.dumps({"phases": PHASES, "runs": runs}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(*sys.argv[2:]))
    import tyro

    tyro.cli(main)
