"""Build the documentation's site in build/site: pages, model cards, examples, and the reference from docstrings.

    python tools/build_docs.py          (or `make docs`)

Links are checked first (tools/check_links.py). Then docs/ is copied to build/docs, beside generated pages: of the
reference one for every public class and one for every package, one per bundled model, the examples, and what
lies outside of docs/. Links that lead out of
docs/ are turned to these pages, so that the same text can be read in the repository and on the site. zensical builds
the site in strict mode from mkdocs.yml; a link that it does not find is an error as well. Nothing is loaded from a
network, and the site loads nothing from elsewhere: that is checked at the end.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

from check_links import FENCE, LINK, ROOT, broken
from latex2mathml.converter import convert

import resgen

BUILD = ROOT / "build"
DOCS = BUILD / "docs"
SITE = BUILD / "site"
PACKAGE = ROOT / "src" / "resgen"
COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie outside of docs/, by their names on the site."""
CLASSES = {
    "ImagePipeline": "pipelines/image/pipeline.py",
    "SpeechPipeline": "pipelines/speech/pipeline.py",
    "ImageOutput": "pipelines/image/output.py",
    "EditOutput": "pipelines/image/edit.py",
    "SpeechOutput": "pipelines/speech/utterances.py",
    "SpeechEdit": "pipelines/speech/edit.py",
    "SamplingConfig": "samplers/unmasking.py",
    "ImageTokenizer": "tokenizers/image.py",
    "ResGen": "models/resgen.py",
    "ResGenConfig": "models/resgen.py",
    "TrainerConfig": "training/interface.py",
    "CodeSpec": "types.py",
    "Modality": "modalities/__init__.py",
}
"""Classes with a page of their own in the reference, and where they are: what `resgen` exports, what its pipelines
return, and the settings and records that users fill in. The other pages of the reference leave them out."""
MATH = re.compile(r"^```math\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"<code\b.*?</code>", re.DOTALL)
TAG_OR_OPTION = re.compile(r"<[^>]*>|(?<![\w-])--?[a-z][a-z-]*")
FOREIGN = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^\s>]*", re.IGNORECASE
)


def modules(package: Path) -> list[Path]:
    """The Python files of a package and of those within it that are part of the reference."""
    return [
        path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py" and not path.name.startswith("_")
    ]


def packages() -> dict[str, list[Path]]:
    """Pages of the reference by name, with their modules; `resgen` has those that lie directly in the package."""
    folders = [path for path in sorted(PACKAGE.iterdir()) if (path / "__init__.py").is_file()]
    top = [path for path in modules(PACKAGE) if path.parent == PACKAGE]
    contents = {"resgen": top, **{path.name: modules(path) for path in folders}}
    init_only = {name: [PACKAGE / name / "__init__.py"] for name, files in contents.items() if not files}
    return contents | init_only


def module_name(path: Path) -> str:
    """`resgen.ops.masking` for src/resgen/ops/masking.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def has_anchor(path: Path, name: str) -> bool:
    """Whether the reference has an entry of this name: functions and classes, and their public methods."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        if part.startswith("_"):
            return False
        nodes = (node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == part)
        node = next(nodes, None)
        if node is None or ast.get_docstring(node) is None:
            return False
        body = node.body
    return True


def site_target(path: Path, anchor: str) -> str | None:
    """Where a file of the repository is on the site, from its root; None if nowhere."""
    inside = path.relative_to(ROOT)
    if path.is_relative_to(ROOT / "docs"):
        return str(path.relative_to(ROOT / "docs")) + (f"#{anchor}" if anchor else "")
    if path.is_relative_to(PACKAGE / "assets"):
        return f"models/{path.relative_to(PACKAGE / 'assets').parts[0]}.md"
    if path.is_relative_to(PACKAGE) and path.suffix == ".py" and not path.name.startswith("__main"):
        page = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else "resgen"
        name = anchor.split(".")[0]
        if CLASSES.get(name) == str(path.relative_to(PACKAGE)):
            entry = f"{module_name(path)}.{anchor if has_anchor(path, anchor) else name}"
            return f"api/{name}.md#{entry}"
        if path.name == "__init__.py":
            return f"api/{page}.md"
        entry = module_name(path) + (f".{anchor}" if anchor and has_anchor(path, anchor) else "")
        return f"api/{page}.md#{entry}"
    if inside.parts[0] == "examples":
        return f"examples.md#{path.stem}" if path.suffix == ".py" else "examples.md"
    if str(inside) == "README.md":
        return "index.md"
    return COPIED.get(str(inside))


def turned(text: str, source: Path, page: Path) -> str:
    """Markdown with the links of `source`, a file of the repository, turned to where `page` of the site can reach."""

    def turn(match: re.Match[str]) -> str:
        target = match.group(1)
        if re.match(r"[a-z][a-z0-9+.-]*:|#", target):
            return match.group()
        name, _, anchor = target.partition("#")
        path = (source.parent / name).resolve()
        place = site_target(path, anchor)
        if place is None:  # not on the site: the words without the link
            return re.sub(r"^!?\[(.*)\]\([^()]*\)$", r"\1", match.group())
        up = "../" * (len(page.relative_to(DOCS).parts) - 1)
        begin, end = match.span(1)
        return match.group()[: begin - match.start()] + up + place + match.group()[end - match.start() :]

    parts, last = [], 0
    for block in FENCE.finditer(text):
        parts += [LINK.sub(turn, text[last : block.start()]), block.group()]
        last = block.end()
    return "".join([*parts, LINK.sub(turn, text[last:])])


def with_equations(text: str) -> str:
    """Markdown whose `math` blocks, LaTeX that code hosts render, are MathML, which browsers show by themselves."""

    def render(match: re.Match[str]) -> str:
        equation = convert(" ".join(match[1].split()), display="block")
        aligned = re.sub(
            r'columnalign="(\w+)"', r'style="text-align: \1"', equation
        )  # MathML Core has the latter alone
        return f'<div class="equation" style="overflow-x: auto">{aligned}</div>\n'

    return MATH.sub(render, text)


def write(page: str, text: str) -> None:
    """A page of the site."""
    path = DOCS / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def first_line(path: Path) -> str:
    """What a module says of itself, in one line."""
    return " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())


def collect() -> None:
    """Put everything that the site is built from into build/docs."""
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.copytree(ROOT / "docs", DOCS)
    for source in (ROOT / "docs").rglob("*.md"):
        page = DOCS / source.relative_to(ROOT / "docs")
        page.write_text(with_equations(turned(source.read_text(encoding="utf-8"), source, page)), encoding="utf-8")
    cards = {f"models/{card.parent.name}.md": card for card in (PACKAGE / "assets").glob("*/README.md")}
    for page, source in {**cards, **{new: ROOT / old for old, new in COPIED.items()}}.items():
        write(page, turned(source.read_text(encoding="utf-8"), source, DOCS / page))
    scripts = sorted((ROOT / "examples").glob("*.py"))
    blocks = [f"## {path.stem}\n\n{first_line(path)}\n\n```python\n{path.read_text()}```\n" for path in scripts]
    write("examples.md", "# Examples\n\nShort scripts, each run by the tests.\n\n" + "\n".join(blocks))
    rows = []
    for name, files in packages().items():
        entries = [f"::: {module_name(path)}\n{without_classes(path)}" for path in files]
        about = first_line(PACKAGE / ("" if name == "resgen" else name) / "__init__.py")
        title = name if name == "resgen" else f"resgen.{name}"
        write(f"api/{name}.md", f"# {title}\n\n{about}\n\n" + "\n".join(entries))
        for path in files:
            what = first_line(path).replace("|", "\\|")
            rows.append(f"| [`{module_name(path)}`]({name}.md#{module_name(path)}) | {what} |")
    head = "# Reference\n\nMade from the docstrings. Letters in shapes: [words](../words.md).\n\n"
    table = "\n".join(write_class(name, PACKAGE / place) for name, place in CLASSES.items())
    write(
        "api/index.md",
        f"{head}| class | what |\n|---|---|\n{table}\n\n## Modules\n\n| module | what |\n|---|---|\n"
        + "\n".join(rows)
        + "\n",
    )


def without_classes(path: Path) -> str:
    """Options of a module's entry that leave out the classes with pages of their own."""
    names = [name for name, place in CLASSES.items() if PACKAGE / place == path]
    filters = ", ".join(f'"!^{name}$"' for name in names)
    return f'    options:\n      filters: ["!^_", {filters}]\n' if names else ""


def write_class(name: str, path: Path) -> str:
    """Write the page of a class; returns its row of the overview."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    node = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    about = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    module = module_name(path)
    home = "resgen" if name in resgen.__all__ else module
    entry = f'::: {module}.{name}\n    options:\n      inherited_members: true\n      filters: ["!^_(?!_call__$)"]\n'
    write(f"api/{name}.md", f"# {name}\n\n```python\nfrom {home} import {name}\n```\n\n{entry}")
    return f"| [`{name}`]({name}.md) | {about.replace('|', chr(92) + '|')} |"


def navigation() -> list[str]:
    """The pages that mkdocs.yml lists, in its order."""
    return re.findall(r"^ +- .*?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def unlisted() -> list[str]:
    """Pages of build/docs that the navigation lacks, and entries without a page; pages below results/ are linked from
    its own."""
    entries = set(navigation())
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    own = {page for page in there if not page.startswith("results/")}
    return [
        *(f"mkdocs.yml: the navigation lacks {page}" for page in sorted(own - entries)),
        *(f"mkdocs.yml: there is no page {page}" for page in sorted(entries - there)),
    ]


def with_whole_options(html: str) -> str:
    """A page whose options, such as `--num-samples`, do not break at their hyphens (`option` in docs/site/site.css)."""

    def mark(code: re.Match[str]) -> str:
        return TAG_OR_OPTION.sub(
            lambda part: part[0] if part[0][0] == "<" else f'<span class="option">{part[0]}</span>', code[0]
        )

    return CODE.sub(mark, html)


def foreign_assets() -> list[str]:
    """What pages of the site would load from elsewhere."""
    return [
        f"{page.relative_to(SITE)}: {asset}"
        for page in SITE.rglob("*.html")
        for asset in FOREIGN.findall(page.read_text(encoding="utf-8"))
        if 'rel="canonical"' not in asset
    ]


def main() -> int:
    """Check, collect, build, check again."""
    problems = broken()
    if problems:
        print("\n".join(problems))
        return 1
    collect()
    problems = unlisted()
    if problems:
        print("\n".join(problems))
        return 1
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(ROOT / "mkdocs.yml")]
    result = subprocess.run(command, cwd=ROOT)
    if result.returncode:
        return result.returncode
    for page in SITE.rglob("*.html"):
        page.write_text(with_whole_options(page.read_text(encoding="utf-8")), encoding="utf-8")
    problems = foreign_assets()
    print(
        "\n".join(problems)
        or f"the site is in {SITE.relative_to(ROOT)}/index.html, {len(list(SITE.rglob('*.html')))} pages"
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
