"""The package itself: light imports, lazy names, typed, layers."""

from __future__ import annotations

import importlib.resources
import re
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

import resgen
from resgen.errors import ConfigError, MissingExtraError, ResGenError
from resgen.training import Interrupted

SOURCE = Path(resgen.__file__).parent


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_import_loads_no_torch_and_lists_the_public_names():
    assert run_python("import sys, resgen; dir(resgen); print('torch' in sys.modules)") == "False"
    assert set(resgen.__all__) <= set(dir(resgen))


@pytest.mark.parametrize("name", [n for n in resgen.__all__ if n != "__version__"])
def test_public_name_is_imported_on_first_use(name):
    assert run_python(f"import resgen; print(resgen.{name}.__name__, '{name}' in vars(resgen))") == f"{name} True"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'resgen' has no attribute 'ResGenn'"):
        resgen.ResGenn  # noqa: B018


def test_version_is_that_of_the_metadata():
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", resgen.__version__)


def test_package_is_marked_as_typed():
    assert importlib.resources.files("resgen").joinpath("py.typed").is_file()


def test_no_source_file_is_longer_than_500_lines():
    long = {str(p): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_processes_are_known_to_two_modules_only_and_nothing_is_pickled():
    allowed = {SOURCE / "training" / name for name in ("parallel.py", "sharding.py")}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        if path not in allowed:
            assert "torch.distributed" not in text, path
        assert not re.search(r"\btorch\.(load|save)\(|^import pickle|allow_pickle=True", text, flags=re.M), path


@pytest.mark.parametrize(
    "error", [ConfigError("a=1 must be 2"), MissingExtraError("matplotlib", "train"), Interrupted(7, Path("runs/x"))]
)
def test_errors_travel_between_processes(error: ResGenError) -> None:
    """Workers raise them; the way goes through pickle, which calls constructors with the message alone."""
    again = ForkingPickler.loads(bytes(ForkingPickler.dumps(error)))
    assert type(again) is type(error) and str(again) == str(error) and again.__dict__ == error.__dict__
