"""Model cards, written from what a saved model says of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resgen.checkpoints.format import Folder
from resgen.files import write_text

CARD_NAME = "README.md"
USE = """```python
import resgen

pipe = resgen.load("{name}")
{usage}
```
"""


def write_card(folder: Folder, path: str | Path, *, name: str, tag: str = "", usage: str = "") -> Path:
    """Write `README.md` into a folder: what the model is, how to use it, how it was trained and what was measured then.

    Data, licence and limits are not in the record; the card says that they are missing.

    Args:
        folder: the saved model.
        path: where to write.
        name: that users will give.
        tag: what the hub calls a model of this kind.
        usage: a line of Python with `pipe`, the model.
    """
    parts = [_front_matter(tag), f"# {name}\n", _about(folder)]
    if usage:
        parts.append(USE.format(name=name, usage=usage))
    parts.append(_training(folder))
    parts.append(
        "**Data, licence, limits.** Not stated: whoever trained this model should say here what it learned from.\n"
    )
    file = Path(path) / CARD_NAME
    write_text(file, "\n".join(part for part in parts if part))
    return file


def _front_matter(tag: str) -> str:
    line = f"pipeline_tag: {tag}\n" if tag else ""
    return f"---\nlibrary_name: resgen\n{line}tags:\n- resgen\n- residual-vector-quantization\n---\n"


def _about(folder: Folder) -> str:
    lines = [f"A resgen `{folder.kind}` (format of resgen {folder.resgen_version}).\n"]
    for name, component in folder.components.items():
        size = component.path.stat().st_size / 1e6
        head = component.config.get("model", {}).get("head") if name == "generator" else None
        what = f"`{component.type}`, {head} head" if head else f"`{component.type}`"
        lines.append(f"- {name}: {what}, {size:.1f} MB, SHA-256 `{component.sha256[:16]}...`")
    classes = folder.extra.get("class_names")
    if isinstance(classes, list) and classes:
        names = ", ".join(_plain(str(name)) for name in classes[:20]) + (", ..." if len(classes) > 20 else "")
        lines.append(f"- {len(classes)} classes: {names}")
    if isinstance(folder.extra.get("sampling"), Mapping):
        lines.append(f"- sampling settings: `{json.dumps(folder.extra['sampling'], sort_keys=True)}`")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&])", r"\\\1", " ".join(text.split()))


def _training(folder: Folder) -> str:
    """A table of the stages that left a record."""
    history = folder.extra.get("history")
    rows = []
    for stage, record in (history if isinstance(history, Mapping) else {}).items():
        if not isinstance(record, Mapping) or "steps" not in record:
            continue
        metrics = record.get("metrics")
        loss = metrics.get("val_loss") if isinstance(metrics, Mapping) else None
        rows.append(
            f"| {stage} | {record['steps']} | {_number(record.get('seconds'), 60.0, 'min')} | {_number(loss)} | "
            f"{record.get('precision', '')} on {record.get('device', '')} |"
        )
    if not rows:
        return ""
    heading = "| stage | steps | time | validation loss | arithmetic |\n|---|---|---|---|---|"
    return "\n".join([heading, *rows]) + "\n"


def _number(value: Any, unit: float = 1.0, name: str = "") -> str:
    return f"{value / unit:.4g} {name}".strip() if isinstance(value, int | float) else ""
