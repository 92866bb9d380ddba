"""What the documentation says: its commands parse, its Python runs, its links and its navigation hold."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import run_pages

import resgen
from resgen import modalities
from resgen.cli.main import COMMANDS, parse
from resgen.kinds import KINDS
from resgen.models.resgen import ResGenConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ASSETS = ROOT / "src" / "resgen" / "assets"
GUIDES = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    if not {"results", "adr"} & set(path.relative_to(ROOT).parts)
]
RUN = {"howto/own-parts.md", "quickstart.md", "tour.md"}
"""Pages whose Python is run; the README's has a test of its own, that of other codecs needs one."""


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def links() -> ModuleType:
    return tool("check_links")


@pytest.fixture
def build(links: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "check_links", links)
    return tool("build_docs")


def blocks(path: Path, *languages: str) -> list[str]:
    """Code of the given languages on a page."""
    return [text for language, text in run_pages.blocks_of(path) if language in languages]


def shell_lines(path: Path) -> list[str]:
    """The command lines of a page."""
    lines = [line for text in blocks(path, *run_pages.SHELL) for line in run_pages.lines_of(text)]
    return [line.split(" > ")[0] for line in lines]


LINES = [(path, line) for path in GUIDES for line in shell_lines(path)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(("path", "line"), LINES, ids=[f"{name_of(p)}-{n}" for n, (p, _) in enumerate(LINES)])
def test_commands_are_real(path, line):
    words = shlex.split(line)
    if "..." in words:
        assert words[0] in ("torchrun", "srun", "resgen")
        return
    if words[0] in ("torchrun", "srun"):  # what is run in several processes
        program = next(i for i, word in enumerate(words) if word.endswith("resgen"))
        words = ["resgen", *words[program + 1 :]]
    if words[0] == "resgen":
        assert callable(parse(words[1:]).run)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), line
    elif words[0] == "make":
        assert re.search(rf"^{words[-1].split('=')[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    else:
        assert words[0] in (
            "git",
            "pip",
            "npm",
            "source",
            "docker",
            "curl",
            "echo",
            "mkdir",
            "tensorboard",
        ) or line.startswith(".venv/bin/"), f"unknown program: {line}"


def test_there_are_commands_of_every_kind():
    lines = [line for _, line in LINES]
    assert sum(line.startswith("resgen ") for line in lines) > 60
    assert any(line.startswith("torchrun ") for line in lines) and any(line.startswith("python ") for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_the_help_parse(name):
    text = str(COMMANDS[name].__doc__).replace("\\\n", "")
    examples = re.findall(r"^        (?:torchrun .*)?\(?(resgen .*)$", text, re.MULTILINE)
    assert any(example.startswith(f"resgen {name}") for example in examples)
    for example in examples:
        assert callable(parse(shlex.split(re.split(r" [>|] ", example)[0])[1:]).run)


PYTHON = [(path, code) for path in GUIDES for code in blocks(path, "python")]


@pytest.mark.parametrize(("path", "code"), PYTHON, ids=[f"{name_of(p)}-{n}" for n, (p, _) in enumerate(PYTHON)])
def test_python_compiles_and_its_names_exist(path, code):
    compile(code, name_of(path), "exec")
    for module, names in re.findall(r"^from (resgen\S*) import ([\w, ]+)$", code, re.MULTILINE):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"


@pytest.mark.parametrize("page", sorted(RUN))
def test_python_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(modalities, "_registered", {})  # a page's modality is not left to other tests
    codes = blocks(DOCS / page, "python")
    assert codes
    namespace = {"__name__": "page"}
    for code in codes:
        exec(compile(code, page, "exec", dont_inherit=True), namespace)


def test_no_link_is_broken(links):
    assert links.broken() == []


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("there.md", None),
        ("there.md#second-heading", None),
        ("there.md#a_b-c", None),
        ("#here", None),
        ("https://example.org/none", None),
        ("code.py#Thing.method", None),
        ("code.py#Thing.field", None),
        ("gone.md", "does not exist"),
        ("gone.png", "does not exist"),
        ("there.md#third", "no heading"),
        ("#third", "no heading"),
        ("code.py#Thing.gone", "defines no"),
        ("/there.md", "absolute"),
        ("../../outside.md", "leads out"),
    ],
)
@pytest.mark.parametrize("form", ["[words]({})", "![picture]({})", "[`code`]({})", "[![picture]({})](there.md)"])
def test_links_are_checked(links, tmp_path, target, wrong, form):
    folder = tmp_path / "project" / "docs"
    folder.mkdir(parents=True)
    (folder / "there.md").write_text("# First\n\n## Second heading\n\n## `a_b` (c)\n\n```\n# third\n```\n")
    (folder / "code.py").write_text("class Thing:\n    field: int = 0\n\n    def method(self): ...\n")
    (folder / "page.md").write_text(
        f"# Here\n\n```\n[no link](in-code.md)\n```\n\n`[none](either.md)` {form.format(target)}\n"
    )
    matches = links.broken(tmp_path / "project")
    if wrong is None:
        assert matches == []
    else:
        assert len(matches) == 1 and matches[0].startswith("docs/page.md:7: ") and wrong in matches[0]


def test_links_out_of_docs_lead_to_pages_of_the_site(build):
    text = (
        "[a](../src/resgen/ops/masking.py#reveal) [b](../src/resgen/assets/cifar10-8x8/README.md) [c](words.md#x) "
        "[d](../tools/check_links.py) [e](../examples/own_predictor.py) [f](../src/resgen/ops/masking.py#SCHEDULES)\n"
        "```\n[g](../tools/check_links.py)\n```\n"
    )
    assert build.turned(text, DOCS / "page.md", build.DOCS / "page.md") == (
        "[a](api/ops.md#resgen.ops.masking.reveal) [b](models/cifar10-8x8.md) [c](words.md#x) d "
        "[e](examples.md#own_predictor) [f](api/ops.md#resgen.ops.masking)\n"
        "```\n[g](../tools/check_links.py)\n```\n"
    )


def test_classes_have_pages_of_their_own(build, tmp_path, monkeypatch):
    """`ImagePipeline` first; every class that the package exports; links and module pages follow."""
    monkeypatch.setattr(build, "DOCS", tmp_path / "docs")
    build.collect()
    pages = [page for page in build.navigation() if page.startswith("api/")]
    assert pages[:2] == ["api/index.md", "api/ImagePipeline.md"]
    exported = [name for name in resgen.__all__ if isinstance(getattr(resgen, name), type)]
    assert exported and set(exported) <= build.CLASSES.keys()
    for name, place in build.CLASSES.items():
        text = (tmp_path / "docs" / "api" / f"{name}.md").read_text()
        (home,) = re.findall(rf"^from (\S+) import {name}$", text, re.MULTILINE)
        assert isinstance(getattr(importlib.import_module(home), name), type)
        assert re.search(rf"^::: resgen\.\S+\.{name}$", text, re.MULTILINE), place
    assert '"!^ImagePipeline$"' in (tmp_path / "docs" / "api" / "pipelines.md").read_text()
    link = "[a](../src/resgen/pipelines/image/pipeline.py#ImagePipeline.edit)"
    turned = build.turned(link, DOCS / "page.md", tmp_path / "docs" / "page.md")
    assert turned == "[a](api/ImagePipeline.md#resgen.pipelines.image.pipeline.ImagePipeline.edit)"


def test_equations_become_mathml(build):
    page = (DOCS / "concepts" / "method.md").read_text(encoding="utf-8")
    assert page.count("```math\n") > 10
    text = build.with_equations(page)
    block = r'^<div class="equation" style="overflow-x: auto">(<math .*</math>)</div>$'  # a wide one scrolls by itself
    equations = re.findall(block, text, re.MULTILINE)
    assert len(equations) == page.count("```math\n") and "```math" not in text and "```text" in text
    for equation in equations:
        assert "\\" not in equation and "<mi>&</mi>" not in equation, "what the converter does not know stays LaTeX"
        ElementTree.fromstring(equation.replace("&nbsp;", " "))


def test_every_page_is_in_the_navigation(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "DOCS", tmp_path / "docs")
    build.collect()
    assert build.unlisted() == []
    (tmp_path / "docs" / "new.md").write_text("# New\n")
    (tmp_path / "docs" / "faq.md").unlink()
    assert build.unlisted() == [
        "mkdocs.yml: the navigation lacks new.md",
        "mkdocs.yml: there is no page faq.md",
    ]


SHOWN = re.compile(r"\s*(\||!\[|\[!\[|```|::: |<(img|audio|div)\b)")
"""How lines of a table, an image, a command, an equation or an entry of the reference begin."""


def prose_before_something_to_see(text: str) -> int:
    """Lines of 120 characters of prose before the first table, image or command; 99 where there is none."""
    count = 0
    for paragraph in re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).split("\n\n"):
        words: list[str] = []
        for line in paragraph.splitlines():
            item = re.match(r"\s*([-*]|\d+\.) ", line)
            if SHOWN.match(line) or item:
                count += len(textwrap.wrap(" ".join(words), 120))
                words = []
            if SHOWN.match(line):
                return count
            words += [] if line.startswith("#") else [line.strip()]
        count += len(textwrap.wrap(" ".join(words), 120))
    return 99


def test_every_page_opens_with_something_to_see(build, tmp_path, monkeypatch):
    """At most five lines of prose before a table, an image or a command, on every page of the navigation."""
    monkeypatch.setattr(build, "DOCS", tmp_path / "docs")
    build.collect()
    pages = [tmp_path / "docs" / page for page in build.navigation()]
    assert len(pages) > 50
    lines = {str(page.relative_to(tmp_path)): prose_before_something_to_see(page.read_text()) for page in pages}
    assert {page: count for page, count in lines.items() if count > 5} == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("# A\n\nOne.\n\n| a |\n|---|\n", 1),
        ("---\na: b\n---\n# A\n\n```\nls\n```\n", 0),
        ("# A\n\n" + "word " * 60 + "\n- one\n- two\n\n![b](c.png)\n", 5),
        ("# A\n\nOne\ntwo\n", 99),
    ],
)
def test_prose_is_counted(text, count):
    assert prose_before_something_to_see(text) == count


def test_options_are_marked_in_code_alone(build):
    page = '<p>--no</p><code class="a--b">run <a href="#x--y">--num-samples</a> 4 -o a-b --out=c</code><p>-n</p>'
    whole = build.with_whole_options(page)
    assert re.findall(r'<span class="option">(.*?)</span>', whole) == ["--num-samples", "-o", "--out"]
    assert re.sub(r'<span class="option">|</span>', "", whole) == page


def test_foreign_assets_are_found(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SITE", tmp_path)
    (tmp_path / "a.html").write_text(
        '<a href="https://example.org">x</a><script src="assets/a.js"></script><img src=b.png>'
    )
    assert build.foreign_assets() == []
    (tmp_path / "b.html").write_text(
        '<link rel=stylesheet href="https://example.org/a.css"><script src=//cdn/x.js></script>'
    )
    assert len(build.foreign_assets()) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_site_is_built():
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings")
    result = subprocess.run([sys.executable, "tools/build_docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (ROOT / "build" / "site" / "api" / "ops.html").read_text(encoding="utf-8")
    assert "resgen.ops.masking.reveal" in page and "B L D" in page


def test_the_table_of_models_says_which_head_each_has() -> None:
    """`docs/models.md` against the bundled folders, and their kinds against their heads."""
    page = (ROOT / "docs" / "models.md").read_text()
    rows = {name: cells for name, cells in re.findall(r"^\| \[([\w-]+)\]\(.*?\) \|(.*)\|$", page, flags=re.M)}
    assert set(rows) == {path.parent.name for path in ASSETS.glob("*/config.json")}
    owners = {"mixture": "the paper's", "residual": "ours", "tokens": "the paper's ablation"}
    for name, cells in rows.items():
        components = json.loads((ASSETS / name / "config.json").read_text())["components"]
        expected = ""
        if "generator" in components:
            head = components["generator"]["config"]["model"]["head"]
            kind = components["generator"]["type"]
            assert KINDS[kind].config is ResGenConfig and KINDS[kind].head == head
            expected = f"`{kind}`, `{head}` ({owners[head]})"
        assert cells.split("|")[1].strip() == expected, name


def test_the_map_has_the_floors_that_are_enforced() -> None:
    """The table of docs/architecture.md against import-linter's contract; links of the page are checked with all."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    enforced = [set(re.findall(r"resgen\.(\w+)", floor)) for floor in contract["layers"]]
    page = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## Data flow")[0]
    drawn = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in page.splitlines() if row.startswith("| `")]
    assert drawn == enforced
    there = {
        path.stem
        for path in (ROOT / "src" / "resgen").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set().union(*enforced) == there - {"__init__", "__main__"}
