"""Check every link of the project's Markdown: files, folders, images, headings, and names in Python files.

    python tools/check_links.py

A link to Python may name what it means, `../src/resgen/ops/masking.py#reveal`; the name has to be defined there. Links
to other sites are not looked at: nothing here needs a network. The exit code is 1 if a link is broken.
"""

from __future__ import annotations

import ast
import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*([^()\s]+(?:\([^()]*\)[^()\s]*)?)(?:\s+\"[^\"]*\")?\s*\)")
FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")


def pages(root: Path = ROOT) -> list[Path]:
    """The Markdown files whose links are checked."""
    return [*sorted(root.glob("*.md")), *sorted(root.glob("docs/**/*.md")), *sorted(root.glob("src/**/*.md"))]


def prose(text: str) -> str:
    """Markdown without its code blocks; lines keep their numbers."""
    return FENCE.sub(lambda block: "\n" * block.group().count("\n"), text)


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line number and target of every link and image."""
    for number, line in enumerate(prose(text).splitlines(), start=1):
        # Text of a link may be code; a link within code is none.
        bare = CODE.sub(lambda code: "c" * len(code.group()) if "](" in code.group() else code.group(), line)
        for match in LINK.finditer(bare):
            yield number, match.group(1)
            inner = match.group(0)[1:]  # an image may be the text of a link
            yield from ((number, nested.group(1)) for nested in LINK.finditer(inner))


def slug(heading: str) -> str:
    """The anchor that the documentation's builder makes of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a page's headings; those of equal headings are numbered."""
    counts: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", prose(path.read_text(encoding="utf-8")), re.MULTILINE):
        name = slug(heading)
        count = counts[name] = counts.get(name, -1) + 1
        if count:
            counts[f"{name}_{count}"] = 0
    return frozenset(counts)


@cache
def names(path: Path) -> frozenset[str]:
    """What a Python file defines: functions, classes with their methods and fields, module variables."""

    def collect(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    return frozenset(collect(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def problem(page: Path, target: str, root: Path = ROOT) -> str | None:
    """What is wrong with a link, or None."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    name, _, anchor = target.partition("#")
    if name.startswith("/"):
        return "is an absolute path"
    path = (page.parent / name).resolve() if name else page
    if not path.is_relative_to(root):
        return "leads out of the project"
    if not path.exists():
        return "does not exist"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"has no heading with the anchor '{anchor}'"
    if anchor and path.suffix == ".py" and anchor not in names(path):
        return f"defines no '{anchor}'"
    return None


def broken(root: Path = ROOT) -> list[str]:
    """One line per broken link: page, line, target, what is wrong."""
    lines = []
    for page in pages(root):
        for number, target in links(page.read_text(encoding="utf-8")):
            wrong = problem(page, target, root)
            if wrong:
                lines.append(f"{page.relative_to(root)}:{number}: {target} {wrong}")
    return lines


if __name__ == "__main__":
    problems = broken()
    print("\n".join(problems) or f"{len(pages())} pages, no broken link")
    sys.exit(bool(problems))
