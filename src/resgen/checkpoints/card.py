"""Model cards, generated from a saved model's own record."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from resgen.checkpoints.format import CONFIG_NAME, Folder
from resgen.checkpoints.measured import model_index, reports
from resgen.files import write_text

CARD_NAME = "README.md"
TERMS = ("license", "license_name", "license_link", "language", "datasets")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_DATA = re.compile(r"^\*\*Data\.\*\*.*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_LINK = re.compile(r'(!?)\[([^\[\]]*)\]\(\s*([^()\s]+)(?:\s+"[^"\n]*")?\s*\)')
USE = """```python
import resgen

pipe = resgen.load("{name}")
{usage}
```
"""


def write_card(
    folder: Folder,
    path: str | Path,
    *,
    name: str,
    tag: str = "",
    usage: str = "",
    license: str = "",
    datasets: Sequence[str] = (),
    origin: Path | None = None,
) -> Path:
    """Write `README.md` into a folder: what the model is, how to use it, how it was trained and what was measured.

    Its front matter is what the Hugging Face hub reads: licence, datasets, and as `model-index` the numbers that
    `resgen evaluate --store` has kept with these weights. What is not known the card says is missing.

    Args:
        folder: the saved model.
        path: where to write.
        name: that users will give.
        tag: what the hub calls a model of this kind.
        usage: a line of Python with `pipe`, the model.
        license: an identifier of the hub, such as `mit` or `cc-by-4.0`.
        datasets: that it was trained on, by their names on the hub.
        origin: card of the model that this one was made from, if it has one: what it says of licence, language and data
            holds where nothing else is said.
    """
    terms, data = _stated(origin) if origin is not None and origin.is_file() else ({}, "")
    if license:
        terms = {key: value for key, value in terms.items() if not key.startswith("license")} | {"license": license}
    if datasets:
        terms["datasets"] = list(datasets)
    parts = [_front_matter(folder, name, tag, terms), f"# {name}\n", _about(folder)]
    if usage:
        parts.append(USE.format(name=name, usage=usage))
    parts += [_measured(folder), _training(folder), f"{data}\n" if data else ""]
    stated = {"data": data or terms.get("datasets"), "licence": terms.get("license"), "limits": ""}
    unknown = [what for what, told in stated.items() if not told]
    parts.append(f"**{', '.join(unknown).capitalize()}.** Not stated: whoever trained this model should say it here.\n")
    file = Path(path) / CARD_NAME
    write_text(file, "\n".join(part for part in parts if part))
    return file


def _stated(card: Path) -> tuple[dict[str, Any], str]:
    """What a card says of licence, language and training data: in its front matter, and in its paragraph **Data**."""
    text = card.read_text(encoding="utf-8-sig", errors="replace")
    head = _FRONT_MATTER.match(text)
    try:
        entries = yaml.load(head[1], Loader=yaml.BaseLoader) if head else None  # everything is text: `no` is Norwegian
    except (yaml.YAMLError, RecursionError):
        entries = None
    found = {key: entries[key] for key in TERMS if key in entries} if isinstance(entries, dict) else {}
    terms = {key: value for key, value in found.items() if value and _is_plain(value)}
    if "://" not in terms.get("license_link", ""):  # a file that does not come along
        terms.pop("license_link", None)
    data = _DATA.search(text)
    return terms, data[0] if data else ""


def _is_plain(value: object) -> bool:
    """Text, or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def card_of(folder: Path) -> dict[str, bytes]:
    """The card of a model by its name, if it has one, for a folder that is written from the model."""
    card = folder / CARD_NAME
    return {CARD_NAME: _without_outside_links(card).encode()} if card.is_file() else {}


def cut_outside_links(card: Path) -> None:
    """In a card, make links to files that are not in its folder plain text, and leave out images of such files. Code,
    HTML and links by reference stay as they are."""
    write_text(card, _without_outside_links(card))


def _without_outside_links(card: Path) -> str:
    def kept(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        return match[0] if not _leads_outside(target, card.parent) else "" if mark else label

    parts = _CODE.split(card.read_text(encoding="utf-8", errors="replace"))
    for number in range(0, len(parts), 2):  # between them is code
        before = None
        while before != parts[number]:  # an image may be the label of a link
            before = parts[number]
            parts[number] = _LINK.sub(kept, before)
    return "".join(parts)


def _leads_outside(target: str, folder: Path) -> bool:
    """Whether a link leads neither into the web, nor to a place in the card, nor to a file of its folder."""
    try:
        address = urlsplit(target)
        path = PurePosixPath(unquote(address.path))
        if address.scheme not in ("", "file") or address.netloc or (address.fragment and not address.path):
            return False
        return path.is_absolute() or ".." in path.parts or not (folder / path).is_file()
    except (OSError, ValueError):  # no address, or a name that no disk takes
        return True


def _front_matter(folder: Folder, name: str, tag: str, terms: Mapping[str, Any]) -> str:
    source = f"https://huggingface.co/{name}/blob/main/{CONFIG_NAME}" if "/" in name else ""
    entries = {
        "library_name": "resgen",
        "pipeline_tag": tag,
        **{key: terms[key] for key in TERMS if key in terms},
        "tags": ["resgen", "residual-vector-quantization"],
        "model-index": model_index(folder, name, source),
    }
    known = {key: value for key, value in entries.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---\n"


def _measured(folder: Folder) -> str:
    """A table of what evaluations found."""
    rows = [
        f"| {_plain(str(metric['name']))} | {metric['value']} | {_plain(str(one['dataset']['name']))}, "
        f"{_plain(str(one['dataset'].get('split', '')))} | {_plain(str(one['task'].get('name', '')))} |"
        for one in reports(folder)
        for metric in one["metrics"]
    ]
    head = "| measured by `resgen evaluate` | value | data | task |\n|---|---|---|---|"
    return "\n".join([head, *rows]) + "\n" if rows else ""


def _about(folder: Folder) -> str:
    lines = [f"A resgen `{folder.kind}` (format of resgen {folder.resgen_version}).\n"]
    for name, component in folder.components.items():
        size = component.path.stat().st_size / 1e6
        head = component.config.get("model", {}).get("head") if name == "generator" else None
        what = f"`{component.type}`, {head} head" if head else f"`{component.type}`"
        lines.append(f"- {name}: {what}, {size:.1f} MB, SHA-256 `{component.sha256[:16]}...`")
    axes = folder.extra.get("class_axes")
    named = axes if isinstance(axes, Mapping) else {}
    for axis, classes in (named or {"": folder.extra.get("class_names")}).items():
        if not isinstance(classes, list) or not classes:
            continue
        of_axis = f" of {_plain(str(axis))}" if axis else ""
        names = ", ".join(_plain(str(name)) for name in classes[:20]) + (", ..." if len(classes) > 20 else "")
        lines.append(f"- {len(classes)} classes{of_axis}: {names}")
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
