"""Install the lowest versions that pyproject.toml allows, in a fresh environment, and run the fast tests with them.

    python tools/lowest_versions.py                     (about ten minutes)
    python tools/lowest_versions.py --tests tests/unit/data --keep lowest

A range is a promise: whoever has an older version installed gets no newer one from pip. What breaks at its lower bound
has its bound raised. PyTorch comes in the version of constraints.txt, for older ones bring a GPU's packages; so do the
tools that only run the tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
LOWER = re.compile(r"([A-Za-z0-9._-]+)(\[[^\]]*\])?>=([0-9][^,; ]*)")
RUNNERS = ("pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "beartype", "scipy", "httpx")
AS_TESTED = ("torch",)


def lowest(requirements: Iterable[str]) -> list[str]:
    """`name==version` for every `name>=version`.

    Raises:
        ValueError: a requirement without a lower bound, which promises what nobody has tried.
    """
    pins = []
    for requirement in requirements:
        match = LOWER.match(requirement)
        if match is None:
            raise ValueError(f"'{requirement}' has no lower bound; write name>=version")
        if match[1] not in AS_TESTED:
            pins.append(f"{match[1]}=={match[3]}")
    return pins


def constrained(names: Iterable[str]) -> list[str]:
    """`name==version` as constraints.txt has it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = {line.split("==")[0].lower(): line for line in lines if "==" in line}
    return [versions.get(name, name) for name in names]


def main(
    tests: tuple[str, ...] = ("tests/unit", "tests/contracts", "tests/reference"), keep: Path | None = None
) -> int:
    """Build the environment, then run the tests; returns their status.

    Args:
        tests: what to run.
        keep: folder to keep the environment in, for another look; a temporary one by default.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = re.findall(r"[\w-]+", extras["all"][0].partition("[")[2])
    pins = lowest([*project["dependencies"], *(line for name in names for line in extras[name])])
    folder = keep or Path(tempfile.mkdtemp(prefix="lowest-"))
    try:
        venv.create(folder, with_pip=True)
        python = str(folder / "bin" / "python")
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        print("lowest versions: " + " ".join(pins), flush=True)
        for packages in ([*constrained(AS_TESTED), *constrained(RUNNERS), *pins], ["--no-deps", str(ROOT)]):
            status = subprocess.run([*pip, *packages]).returncode
            if status:
                return status
        return subprocess.run([python, "-m", "pytest", "-q", "-n", "2", *tests], cwd=ROOT).returncode
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
