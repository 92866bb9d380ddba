"""The result of every evaluation: a report, written as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from resgen.files import write_json, write_text


class Report(Protocol):
    """Numbers that cannot be separated from the protocol they were taken under."""

    def document(self) -> dict[str, Any]:
        """The report as JSON values."""
        ...

    def markdown(self) -> str:
        """The report for people."""
        ...


class Levels(NamedTuple):
    """The quality gained by each of a tokenizer's levels.

    Attributes:
        document: all of it, for JSON.
        rows: a table by number of levels, with its heading.
        notes: lines below the table.
    """

    document: dict[str, Any]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str]


def write_report(report: Report, path: Path) -> None:
    """Write `path` (JSON) and, beside it, the same as Markdown, each atomically.

    Raises:
        CheckpointError: writing fails.
    """
    write_text(path.with_suffix(".md"), report.markdown())
    write_json(path, report.document())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(value: object) -> str:
    """A value of a protocol for people: `a 1, b 2` for a mapping, `1, 2` for a sequence."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
