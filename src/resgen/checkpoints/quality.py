"""A saved model's quality in a few readable lines: from its card, its evaluations or its training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from resgen.checkpoints.card import CARD_NAME
from resgen.checkpoints.format import Folder
from resgen.checkpoints.measured import is_number, reports

MAX_CARD_BYTES = 1 << 18
MAX_LINES, MAX_LINE = 6, 400
"""Of what a card says, that is quoted; a longer line is cut after a word."""
_TABLE = re.compile(r"^\|[ ]*measured\b[^\n]*\|[ ]*\n\|[-:| ]+\|[ ]*\n(?:\|[^\n]*\|[ ]*(?:\n|\Z))+", re.MULTILINE)
_PARAGRAPH = re.compile(r"^\*\*Measured\b[.:]?\*\*[.:]?[ \t]*(?P<text>.+?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\[\]]*)\]\([^()\s]*\)")
_FORMATS = {
    "psnr_db": "PSNR {:.2f} dB",
    "mel_l1": "mel distance {:.3f} nat",
    "length_error_percent": "length error {:.1f} %",
    "val_loss": "validation loss {:.4f}",
    "test_accuracy": "test accuracy {:.4f}",
}


def measured(folder: Folder) -> list[str]:
    """What a model's card has in its table `measured` (or a paragraph **Measured**), a line for each row, as plain
    text; otherwise what `resgen evaluate --store` kept, or the quality of its trainings; nothing if there is none."""
    if lines := _quoted(folder) or [_line(report) for report in reports(folder)]:
        return [_cut(line) for line in lines[:MAX_LINES]]
    history = folder.extra.get("history", {})
    records = history.items() if isinstance(history, dict) else ()
    stages = {name: record.get("metrics") for name, record in records if isinstance(record, dict)}
    texts = {name: quality(metrics) for name, metrics in stages.items() if isinstance(metrics, dict)}
    return [f"{name}: {text}" for name, text in texts.items() if text]


def quality(metrics: Mapping[str, Any]) -> str:
    """The few metrics of a training that say how good the model is; of those by level, that of the deepest."""
    deepest: dict[str, tuple[int, float]] = {}
    for name, value in metrics.items():
        family, _, level = name.partition("/")
        if family in _FORMATS and is_number(value):
            depth = int(level) if level.isdecimal() and len(level) < 5 else 0
            deepest[family] = max(deepest.get(family, (0, value)), (depth, value))
    return ", ".join(text.format(deepest[name][1]) for name, text in _FORMATS.items() if name in deepest)


def _quoted(folder: Folder) -> list[str]:
    path = folder.path / CARD_NAME
    if not path.is_file() or path.stat().st_size > MAX_CARD_BYTES:
        return []
    card = path.read_text(encoding="utf-8", errors="replace")
    if table := _TABLE.search(card):
        heads, _, *rows = [[_plain(cell) for cell in row.strip("| ").split("|")] for row in table[0].splitlines()]
        of = heads[0].removeprefix("measured").lstrip(", ")  # "words misheard", or nothing: the rows say it
        return [_row(heads[1:], f"{of}, {name}" if of else name, *values) for name, *values in rows]
    paragraph = _PARAGRAPH.search(card)
    return [_plain(paragraph["text"])] if paragraph else []


def _row(heads: list[str], name: str, *values: str) -> str:
    """A row of a table as a line: what it is of, and its values with the heads of their columns."""
    named = (
        [f"{head} {value}" for head, value in zip(heads, values, strict=False) if value] if len(values) > 1 else values
    )
    return f"{name}: {'; '.join(named)}"


def _line(report: Mapping[str, Any]) -> str:
    metrics = ", ".join(f"{metric['name']} {metric['value']:g}" for metric in report["metrics"])
    return f"{report['task']['name']} ({report['dataset']['name']}): {metrics}"


def _plain(text: str) -> str:
    """Markdown without its marks."""
    return " ".join(_LINK.sub(r"\1", text).replace("`", "").replace("**", "").split())


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE else line[:MAX_LINE].rpartition(" ")[0] + " ..."
