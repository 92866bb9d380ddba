"""The package itself: light imports, lazy names, typed, layers."""

from __future__ import annotations

import ast
import graphlib
import importlib.resources
import importlib.util
import re
import shutil
import subprocess
import symtable
import sys
import tomllib
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

import resgen
from resgen.errors import ConfigError, ResGenError, unknown
from resgen.extras import DISTRIBUTION, MissingExtraError, install_command
from resgen.training import Interrupted

SOURCE = Path(resgen.__file__).parent
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_import_loads_no_torch_and_lists_the_public_names():
    assert run_python("import sys, resgen; dir(resgen); print('torch' in sys.modules)") == "False"
    assert set(resgen.__all__) <= set(dir(resgen))


def test_public_names_are_imported_on_first_use():
    names = [name for name in resgen.__all__ if name != "__version__"]
    code = """
import resgen
for name in set(resgen.__all__) - {"__version__"}:
    assert name not in vars(resgen), name
    assert getattr(resgen, name).__name__ == name
    assert name in vars(resgen), name
    print(name)
"""
    assert set(run_python(code).split()) == set(names)


def test_the_package_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "resgen", "--version"], capture_output=True, text=True, check=True)
    assert resgen.__version__ in result.stdout


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'resgen' has no attribute 'ResGenn'"):
        resgen.ResGenn  # noqa: B018


def test_version_is_that_of_the_metadata():
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", resgen.__version__)


def test_an_extra_is_installed_from_where_the_package_came_from(monkeypatch, tmp_path):
    assert PROJECT["name"] == DISTRIBUTION
    monkeypatch.chdir(ROOT)
    assert install_command("fid") == "pip install -e '.[fid]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("fid") == f"pip install -e '{ROOT}[fid]'"
    copy = tmp_path / "lib" / "python3.11" / "site-packages" / "resgen" / "extras.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(SOURCE / "extras.py", copy)
    spec = importlib.util.spec_from_file_location("installed_extras", copy)
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    assert installed.install_command("fid") == f"pip install '{DISTRIBUTION}[fid]'"


def test_extras_that_messages_name_exist():
    text = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    calls = r"""(?:MissingExtraError|import_extra)\([^,)]*, "([\w-]+)"|install_command\(["']([\w-]+)["']\)"""
    names = {first or second for first, second in re.findall(calls, text)}
    assert {"fid", "moonshine", "train", "speech-eval"} <= names <= PROJECT["optional-dependencies"].keys()
    assert str(MissingExtraError("resemblyzer", None)).endswith("pip install resemblyzer")


def test_nobody_is_sent_to_the_stranger_of_the_same_name():
    """`resgen` in package indexes is a tool for responsive images."""
    stranger = re.compile(r"install\b[^\n`#]*?[ '\"](resgen)(?![\w./-])|\b(resgen)\[[a-z]")
    for wrong in ("pip install {}", "uv pip install -U '{}[fid]'", 'python -m pip install "{}==1"'):
        assert stranger.search(wrong.format("resgen"))
    for right in (f"pip install '{DISTRIBUTION}[fid]'", "pip install -e '.[fid]'", "pip install -e /src/resgen"):
        assert not stranger.search(right)
    suffixes = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg", ".js", ".html", ".json", ""}
    folders = ("src", "docs", "tools", "examples", "benchmarks", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    files += [path for path in ROOT.iterdir() if path.suffix in suffixes]
    for path in files:
        if path.is_file() and (path.suffix or path.stat().st_size < 10_000):
            match = stranger.search(path.read_text(errors="replace"))
            assert not match, f"{path}: {match}"


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


@pytest.mark.parametrize(
    ("value", "meant"), [("t-shirt", "T-shirt/top"), ("shrt", "Shirt"), ("t", "Trouser"), ("", None), ("hat", None)]
)
def test_names_that_begin_with_what_was_typed_are_suggested_first(value: str, meant: str | None) -> None:
    line = unknown("class", value, ("Shirt", "T-shirt/top", "Trouser"))
    assert re.findall("did you mean '(.*)'", line) == ([] if meant is None else [meant])


def imports(tree: ast.AST, *, inner: bool) -> Iterator[tuple[str, str]]:
    """Module and name of every import of the package, those within functions only if `inner`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif inner or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports(node, inner=inner)


def modules() -> dict[str, Path]:
    """The modules of the package and their files."""
    return {
        ".".join(p.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): p
        for p in SOURCE.rglob("*.py")
    }


def import_graph(*, inner: bool) -> dict[str, set[str]]:
    """The modules of the package that each imports."""
    graph, files = {}, modules()
    for module, path in files.items():
        names = imports(ast.parse(path.read_text()), inner=inner)
        targets = {full if (full := f"{source}.{name}") in files else source for source, name in names}
        graph[module] = targets & files.keys() - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """The modules of an import circle, or None."""
    order = graphlib.TopologicalSorter(graph)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("inner", [False, True], ids=["modules", "and within functions"])
def test_no_modules_import_each_other_in_a_circle(inner):
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None
    assert circle(import_graph(inner=inner)) is None


def names_in(path: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    symbols = symtable.symtable(path.read_text(), path.name, "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tools", "tests"])
def test_scripts_import_only_names_that_exist(folder: str) -> None:
    files = modules()
    names = {module: {"", *names_in(path)} for module, path in files.items()}
    names["resgen"] |= set(resgen.__all__)
    scripts = sorted((ROOT / folder).rglob("*.py"))
    assert scripts
    for path in scripts:
        for source, name in imports(ast.parse(path.read_text()), inner=True):
            if source.partition(".")[0] == "resgen" and f"{source}.{name}" not in files:
                assert name in names.get(source, ()), f"{folder}/{path.name}: there is no {source}.{name}"


CORE = "ops.masking ops.mixture quantizers.probabilistic models.resgen samplers.unmasking tokenizers.image".split()
MAX_CORE_LINES = 2_800


def test_shapes_of_tensors_are_quoted():
    """An expression such as `B * shape` is a valid annotation for Python and no shape for jaxtyping."""
    bare = re.compile(
        r"""\b(?:Float|Int|UInt|Bool|Shaped|Num|Complex)\d*\[\s*(?:Tensor|np\.ndarray)[\w.| ]*,\s*+(?!f?["'])"""
    )
    assert not [name for name, path in modules().items() if bare.search(path.read_text())]


def test_the_core_and_all_that_it_imports_stay_small():
    """What a reader of the paper's method has to open at most."""
    files, graph = modules(), import_graph(inner=True)
    reached: set[str] = set()
    new = {f"resgen.{name}" for name in CORE}
    while new:
        reached |= new
        new = {target for module in new for target in graph[module]} - reached
    lines = {module: len(files[module].read_text().splitlines()) for module in reached}
    assert sum(lines.values()) <= MAX_CORE_LINES, lines
