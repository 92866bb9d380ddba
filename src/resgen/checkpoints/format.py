"""The published format: a folder with one `config.json` and one safetensors file per component.

```
config.json   {"format": "resgen", "format_version": 1, "resgen_version": ..., "kind": "pipeline",
               "components": {NAME: {"type", "config", "file": "NAME.safetensors", "sha256"}}, ...}
NAME.safetensors
```

A component with `"from": FOLDER` has its file in that folder beside this one: two bundled voices share a tokenizer.

Files are read as if they were hostile: sizes, depth, names, hashes and shapes are checked before anything is used, and
nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import resgen
from resgen.checkpoints.tensors import read_tensors, sha256_file, write_tensors
from resgen.config import is_text
from resgen.errors import CheckpointError, unknown
from resgen.files import atomic_folder, json_text

FORMAT = "resgen"
FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
MAX_JSON_BYTES = 1 << 20
MAX_JSON_DEPTH = 32
MAX_COMPONENTS = 64

PARTS = {
    "tokenizer": ("tokenizer",),
    "pipeline": ("tokenizer", "generator"),
    "speech-pipeline": ("tokenizer", "generator", "text", "vocoder"),
    "text-model": ("text",),
    "vocoder": ("vocoder",),
}
"""Components that a kind of artefact may have; of the kinds that are not here, any."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESERVED = ("format", "format_version", "resgen_version", "kind", "components")


@dataclass(frozen=True, kw_only=True)
class Component:
    """One part of an artefact, to be saved.

    Attributes:
        type: name of the class that the configuration belongs to.
        config: JSON values that rebuild it.
        tensors: parameters and buffers by name.
    """

    type: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SavedComponent:
    """One part of an artefact on disk; `load_tensors` reads its file."""

    name: str
    type: str
    config: dict[str, Any]
    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An artefact on disk.

    Attributes:
        path: the folder.
        kind: a key of `PARTS`, or another, such as `classifier`.
        components: by name.
        extra: every other key of `config.json`.
        resgen_version: version of the library that wrote it.
    """

    path: Path
    kind: str
    components: dict[str, SavedComponent]
    extra: dict[str, Any] = field(default_factory=dict)
    resgen_version: str = ""

    def record(self, stage: str) -> dict[str, Any]:
        """What the training of a stage ("tokenizer", "generator", ...) noted in the history; empty without a note."""
        history = self.extra.get("history")
        record = history.get(stage) if isinstance(history, dict) else None
        return dict(record) if isinstance(record, dict) else {}

    def component(self, name: str) -> SavedComponent:
        """The component called `name`.

        Raises:
            CheckpointError: there is none; the message lists those present.
        """
        if name not in self.components:
            raise CheckpointError(
                f"'{self.path}' is a {self.kind} without a {name}; it holds: {', '.join(self.components)}"
            )
        return self.components[name]


def resgen_version() -> str:
    """Version of the installed library."""
    return resgen.__version__


def save_folder(
    path: str | Path,
    *,
    kind: str,
    components: Mapping[str, Component],
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write an artefact atomically, and `files` beside its parts: a reader sees the old folder or the new one, never a
    part.

    An artefact of the same kind at `path` is replaced as a whole; any other non-empty folder is left alone.

    Raises:
        CheckpointError: `path` holds something else, a name is not allowed, or writing fails (disk full, for example).
    """
    path = Path(path)
    extra = dict(extra or {})
    for key in _RESERVED:
        if key in extra:
            raise CheckpointError(f"extra key '{key}' is reserved by the format")
    for name in components:
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"component name '{name}' may hold letters, digits, '_' and '-' only")
    check_replaceable(path, kind)
    with atomic_folder(path) as temporary:
        entries = {}
        for name, component in components.items():
            file = f"{name}.safetensors"
            write_tensors(temporary / file, component.tensors)
            entries[name] = {
                "type": component.type,
                "config": dict(component.config),
                "file": file,
                "sha256": sha256_file(temporary / file),
            }
        config = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "resgen_version": resgen_version(),
            "kind": kind,
            "components": entries,
            **extra,
        }
        text = json_text(config, path)
        if len(text.encode()) > MAX_JSON_BYTES or _depth(config) > MAX_JSON_DEPTH:
            raise CheckpointError(f"the configuration for '{path}' is larger or deeper than the format allows")
        (temporary / CONFIG_NAME).write_text(text, encoding="utf-8")
        for file, content in (files or {}).items():
            (temporary / file).write_bytes(content)


def check_replaceable(path: Path, kind: str | None = None) -> None:
    """Whether nothing is lost if `path` becomes an artefact, of this kind if it is known.

    Raises:
        CheckpointError: `path` holds something else.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"'{path}' exists and is not a folder")
    if not path.exists() or not any(path.iterdir()):
        return
    there = saved_kind(path)
    if there is None:
        raise CheckpointError(f"'{path}' is not empty and holds no saved model; choose another folder")
    if kind is not None and there != kind:
        raise CheckpointError(f"'{path}' holds a saved {there}, not a {kind}; choose another folder")


def saved_kind(path: Path) -> str | None:
    """The kind of a folder's artefact, of whatever version of this format; None if it holds none."""
    try:
        config = read_json(path / CONFIG_NAME)
    except CheckpointError:
        return None
    return str(config.get("kind") or "model of unknown kind") if config.get("format") == FORMAT else None


def load_folder(path: str | Path, *, verify: bool = True) -> Folder:
    """Read and check an artefact's `config.json`; tensors stay on disk.

    Args:
        path: the folder.
        verify: compare every file with its SHA-256 first.

    Raises:
        CheckpointError: the folder or a file is missing, not of this format, of a newer version, or damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"'{path}' is not a folder with a saved model")
    config_path = path / CONFIG_NAME
    data = read_json(config_path)
    if data.get("format") != FORMAT:
        raise CheckpointError(f"'{config_path}': format={data.get('format')!r} must be '{FORMAT}'")
    check_version(data.get("format_version"), data.get("resgen_version"), config_path)
    kind, entries = data.get("kind"), data.get("components")
    if not isinstance(kind, str):
        raise CheckpointError(f"'{config_path}': kind={kind!r} must be text")
    if not isinstance(entries, dict) or len(entries) > MAX_COMPONENTS:
        raise CheckpointError(f"'{config_path}': 'components' must be a mapping of at most {MAX_COMPONENTS} entries")
    for name in entries:
        if name not in PARTS.get(kind, entries):
            raise CheckpointError(f"'{config_path}': {unknown(f'component of a {kind}', name, PARTS[kind])}")
    for name, type_ in (("history", dict), ("class_names", list)):
        if not isinstance(data.get(name, type_()), type_):
            expected = "mapping" if type_ is dict else "list"
            raise CheckpointError(f"'{config_path}': {name}={reprlib.repr(data[name])} must be a {expected}")
    if bad := [name for name in data.get("class_names", []) if not is_text(name)]:
        raise CheckpointError(f"'{config_path}': class_names holds {ascii(bad[0])[:80]}, which is no name of a class")
    components = {name: _saved_component(path, name, entry) for name, entry in entries.items()}
    if verify:
        for component in components.values():
            check_hash(component.path, component.sha256)
    return Folder(
        path=path,
        kind=kind,
        components=components,
        extra={key: value for key, value in data.items() if key not in _RESERVED},
        resgen_version=str(data.get("resgen_version", "")),
    )


def load_tensors(component: SavedComponent) -> dict[str, Tensor]:
    """The tensors of a component; see `load_state` for putting them into a module."""
    return read_tensors(component.path)


def read_json(path: str | Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A small JSON object from an untrusted file.

    Raises:
        CheckpointError: missing, not a regular file, too large, too deep, or not a JSON object.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"'{path}' is not a regular file")
        if status.st_size > max_bytes:
            raise CheckpointError(f"'{path}' has {status.st_size} bytes; at most {max_bytes} are allowed")
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"'{path}' is missing") from error
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not valid JSON") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object, not {type(data).__name__}")
    if _depth(data) > MAX_JSON_DEPTH:
        raise CheckpointError(f"'{path}' is nested deeper than {MAX_JSON_DEPTH} levels")
    return data


def check_version(version: object, writer: object, where: Path) -> None:
    """Reject a format version that this library cannot read.

    Raises:
        CheckpointError: the version is newer than this library's, or no version at all.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"'{where}': format_version={version!r} must be a number from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"'{where}' has format version {version}, written by resgen {writer}; "
            f"this resgen {resgen_version()} reads up to version {FORMAT_VERSION}: upgrade resgen"
        )


def check_hash(path: Path, expected: str) -> None:
    """Compare a file with its recorded SHA-256.

    Raises:
        CheckpointError: it is missing or differs.
    """
    actual = sha256_file(path)
    if actual != expected:
        raise CheckpointError(f"'{path}' is damaged: its SHA-256 is {actual[:12]}..., recorded is {expected[:12]}...")


def check_file_name(name: object, where: Path) -> str:
    """A bare safetensors file name, or an error.

    Raises:
        CheckpointError: the name holds a folder, another suffix or unusual characters.
    """
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise CheckpointError(f"'{where}': file={name!r} must be a bare name such as 'model.safetensors'")
    return name


def check_sha256(value: object, where: Path) -> str:
    """A SHA-256 in hexadecimal, or an error.

    Raises:
        CheckpointError: it is anything else.
    """
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise CheckpointError(f"'{where}': sha256={value!r} must be 64 hexadecimal digits")
    return value


def _saved_component(folder: Path, name: str, entry: object) -> SavedComponent:
    where = folder / CONFIG_NAME
    if not isinstance(entry, dict):
        raise CheckpointError(f"'{where}': component '{name}' must be a mapping")
    type_, config = entry.get("type"), entry.get("config")
    if not isinstance(type_, str) or not isinstance(config, dict):
        raise CheckpointError(f"'{where}': component '{name}' needs a 'type' (text) and a 'config' (mapping)")
    path = folder / check_file_name(entry.get("file"), where)
    if (beside := entry.get("from")) is not None:
        if not isinstance(beside, str) or not _NAME.fullmatch(beside):
            raise CheckpointError(f"'{where}': from={beside!r:.80} must be the name of a folder beside it")
        path = folder.parent / beside / path.name
    digest = check_sha256(entry.get("sha256"), where)
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing")
    return SavedComponent(name=name, type=type_, config=config, path=path, sha256=digest)


def _depth(data: object) -> int:
    depth, level = 0, [data]
    while level:
        depth += 1
        inner: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                inner += value.values()
            elif isinstance(value, (list, tuple)):
                inner += value
        level = inner
    return depth - 1
