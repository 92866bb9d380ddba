"""Run every command of some pages, in the order given, and say which fail and how long each takes.

For example, in a fresh clone after `make setup` (what the commands write goes into that folder):

    python tools/run_pages.py --pages README.md docs/quickstart.md --out docs/results/pages.md
    python tools/run_pages.py --pages docs/tour.md --replace "fsdd PATH=fsdd data/fsdd" "PATH=data/fashion_mnist" \\
        --most-minutes 0.3

Blocks of Python run too, those with no command between them as one. `resgen serve` runs until its page ends, so that
the requests after it are answered. Passed over, and named: what needs other programs or machines (PROGRAMS), and what
is a part of a command (`...`). Rows are printed, and written to `--out`, as they come.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from resgen.errors import ConfigError, ResGenError
from resgen.files import write_text

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "sh")
PROGRAMS = "docker git npm pip source srun tensorboard torchrun".split()
"""These need other machines, a shell of one's own or a network."""
TIMES = {"resgen train ": "--max-minutes", "resgen compare ": "--max-minutes-per-model"}
"""Commands that train, and which of their options says for how long."""
SIMPLE = re.compile(r"""(?:"[^"]*"|'[^']*'|\\.|(?!\s*\d*[<>])[^|&;"'\\])+""")
"""One command of a line, up to a pipe, `&&`, `;` or the redirection of its output."""
HEALTH = "http://127.0.0.1:8000/readyz"
SERVER_S = 60.0


class Step(NamedTuple):
    """A command line or a block of Python, and the page that has it."""

    page: str
    code: str
    is_python: bool = False

    @property
    def title(self) -> str:
        """On one line, for tables."""
        return "Python: " + self.code.strip().splitlines()[-1] if self.is_python else self.code


class Outcome(NamedTuple):
    """What came of a step: `said` is empty if it went well."""

    step: Step
    seconds: float
    said: str = ""
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class RunPages:
    """Run the commands of pages; exit code 1 if one of them fails."""

    pages: tuple[Path, ...]
    """Markdown files."""
    replace: tuple[str, ...] = ()
    """OLD=NEW pairs, applied to every command in this order: placeholders such as PATH, by files of yours."""
    most_minutes: float | None = None
    """Time of every training, in place of what its command says, to run long ones shortly."""
    timeout_minutes: float = 60.0
    """The longest that a command may take."""
    only: str = ""
    """Run those commands alone that match this regular expression."""
    out: Path | None = None
    """Markdown file for the table."""

    def run(self) -> int:
        if missing := [str(page) for page in self.pages if not page.is_file()]:
            raise ConfigError(f"no such file: '{missing[0]}'; --pages takes Markdown files")
        try:
            re.compile(self.only)
        except re.error as error:
            raise ConfigError(f"only {self.only!r} is no regular expression: {error}") from error
        outcomes: list[Outcome] = []
        lines = ["| page | command | seconds |", "|---|---|---|"]
        print("\n".join(lines), flush=True)
        for page in self.pages:
            for outcome in self._page(page):
                outcomes.append(outcome)
                lines.append(_row(outcome))
                print(lines[-1], flush=True)
                if self.out is not None:  # as it comes: what has run stays known if this is interrupted
                    write_text(self.out, "\n".join(lines) + "\n")
        failed = sum(bool(one.said) and not one.skipped for one in outcomes)
        ran = sum(not one.skipped for one in outcomes)
        print(f"\n{ran} ran, {failed} failed, {len(outcomes) - ran} were passed over")
        return 1 if failed else 0

    def _page(self, page: Path) -> Iterator[Outcome]:
        server: subprocess.Popen[bytes] | None = None
        try:
            for step in steps_of(page):
                step = step._replace(code=self._prepared(step))
                if reason := why_not(step, self.only):
                    yield Outcome(step, 0.0, reason, True)
                    continue
                print(f"{step.page}: {step.title}", file=sys.stderr, flush=True)
                begin = time.monotonic()
                if step.code.startswith("resgen serve"):
                    _end(server)
                    server = None
                    if _is_up():
                        said = f"another server answers at {HEALTH}; end it first"
                    else:
                        server = subprocess.Popen(step.code, shell=True, start_new_session=True)
                        said = "" if _answers(server) else "the server did not answer"
                else:
                    said = _said(step, 60 * self.timeout_minutes)
                yield Outcome(step, time.monotonic() - begin, said)
        finally:
            _end(server)

    def _prepared(self, step: Step) -> str:
        code = step.code
        for pair in self.replace:
            old, equals, new = pair.partition("=")
            if not (old and equals):
                raise ConfigError(f"replace {pair!r} must be OLD=NEW")
            code = code.replace(old, new)
        if self.most_minutes is not None and not step.is_python:
            code = re.sub(r"(--max-minutes(?:-per-model)?) [\d.]+", rf"\1 {self.most_minutes:g}", code)
            code = SIMPLE.sub(self._timed, code)
        return code

    def _timed(self, match: re.Match[str]) -> str:
        code = match[0]
        for command, option in TIMES.items():
            if code.lstrip().startswith(command) and option not in code:
                said = code.rstrip()
                code = f"{said} {option} {self.most_minutes:g}{code[len(said) :]}"
        return code


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of a page, without the indentation of lists."""
    matches = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)) for indent, language, text in matches]


def lines_of(text: str) -> list[str]:
    """The command lines of a block, each on one line, without comments."""
    lines = re.sub(r" *\\\n *", " ", text).splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and line[0] not in "# "]


def steps_of(page: Path) -> Iterator[Step]:
    """What a page says to run, in its order; blocks of Python with no command between them are one step."""
    python = ""
    for language, text in blocks_of(page):
        if language == "python":
            python += text
        elif language in SHELL:
            if python:
                yield Step(str(page), python, True)
            python = ""
            yield from (Step(str(page), line) for line in lines_of(text))
    if python:
        yield Step(str(page), python, True)


def why_not(step: Step, only: str = "") -> str:
    """Why a step is passed over; empty if it is not."""
    if only and not re.search(only, step.code):
        return "not asked for"
    if step.is_python:
        return ""
    program = step.code.split()[0]
    if program in PROGRAMS:
        return f"needs {program}"
    if re.search(r"(?<![\w.'\"])\.\.\.", step.code):
        return "a part of a command"
    return ""


def _said(step: Step, timeout_s: float) -> str:
    """The last line that a failed step said."""
    code = step.code.replace("| aplay", "> sound.wav")
    command = [sys.executable, "-c", code] if step.is_python else ["bash", "-o", "pipefail", "-c", code]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"took longer than {timeout_s / 60:g} minutes"
    finally:
        _end(process)
    lines = (err or out).strip().splitlines() or ["nothing"]
    return "" if process.returncode == 0 else f"exit code {process.returncode}: {lines[-1]}"


def _answers(server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + SERVER_S
    while time.monotonic() < end and server.poll() is None:
        if _is_up():
            return True
        time.sleep(0.2)
    return False


def _is_up() -> bool:
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(HEALTH, timeout=2):
        return True
    return False


def _end(process: subprocess.Popen[Any] | None) -> None:
    """End a process and all that it started."""
    if process is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _row(one: Outcome) -> str:
    code = one.step.title.replace("|", "\\|")
    end = one.said if one.skipped else f"**{one.said}**" if one.said else f"{one.seconds:.1f}"
    return f"| {one.step.page} | `{code}` | {end} |"


def main(command: RunPages) -> int:
    """Run the pages."""
    try:
        return command.run()
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends, too
    raise SystemExit(main(tyro.cli(RunPages)))
