"""Shared by several commands: option types, checks of output paths, reports, recipes with overrides."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import json
import math
import re
import reprlib
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import yaml
from tyro.conf import UseAppendAction, arg

from resgen.config import replace_nested
from resgen.errors import ConfigError
from resgen.files import nearest_path
from resgen.progress import printable, progress_bars

if TYPE_CHECKING:
    from resgen.modalities import Modality

MOST, MOST_SEED = 1_000_000, (1 << 63) - 1
"""Of the numbers of options, and of seeds."""
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Json = Annotated[bool, arg(name="json", help="Write one JSON document to standard output.", help_behavior_hint="")]
ConfigFile = Annotated[
    Path | None,
    arg(name="config", metavar="FILE", help="YAML file of settings that override the recipe.", help_behavior_hint=""),
]
Overrides = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(
        name="set",
        metavar="KEY=VALUE ...",
        help="Settings that override the recipe and --config, by dotted key: data.resize=true. Repeatable.",
        help_behavior_hint="",
    ),
]


def option(metavar: str, *, name: str | None = None) -> Any:
    """An option that may be left out, without tyro's `(default: None)` in the help."""
    return arg(name=name, metavar=metavar, help_behavior_hint="")


def message(text: str) -> None:
    """One line for the person at the terminal, on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def os_error_line(error: OSError) -> str:
    """A failed system call as one line: the file, the reason and, for a full disk, the remedy."""
    name = f"'{error.filename}': " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{name}no space left on the disk; free some space and run the command again"
    hint = f"; {nearest_path(error.filename)}" if isinstance(error, FileNotFoundError) and error.filename else ""
    return f"{name}{error.strerror or error}{hint}"


def plain(value: Any) -> Any:
    """`value` as JSON types: paths become text, arrays lists or numbers, numbers that are not finite null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if hasattr(value, "_asdict"):  # named tuples
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):  # arrays and tensors, their scalars too
        return plain(value.tolist())
    return str(value)


def report(document: Mapping[str, Any], *, as_json: bool, text: str | None = None) -> None:
    """Write a report to standard output: `document` as JSON, or `text` (without one, `document` as YAML)."""
    values = plain(document)
    if as_json:
        print(json.dumps(values, allow_nan=False))
    elif text is not None:
        print(printable(text))
    else:
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip())


def table(rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, left-aligned; the first row is the heading."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def flatten(groups: Iterable[Iterable[str]]) -> list[str]:
    """The values of an option that may be repeated and may take several values each time."""
    return [value for group in groups for value in group]


def option_name(command: type[Any], field: str) -> str:
    """What a field of a command is called on the command line."""
    hint = get_type_hints(command, include_extras=True)[field]
    own = next((name for part in getattr(hint, "__metadata__", ()) if (name := getattr(part, "name", None))), field)
    return f"--{own.replace('_', '-')}"


def check_numbers(command: Any) -> None:
    """Reject numbers that are not finite, or larger than any run can bear, before any work.

    Args:
        command: has the options as attributes; some hold several numbers, some are dataclasses of options themselves.

    Raises:
        ConfigError: naming the option and its value.
    """
    for field in dataclasses.fields(command):
        value, most = getattr(command, field.name), MOST_SEED if field.name == "seed" else MOST
        if dataclasses.is_dataclass(value):
            check_numbers(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not -most <= number <= most:
                name = option_name(type(command), field.name)
                raise ConfigError(f"{name} {reprlib.repr(number)} must lie in {-most:,}..{most:,}")


def positive(name: str, value: int) -> None:
    """Reject a count below 1.

    Raises:
        ConfigError: naming the option and its value.
    """
    if value < 1:
        raise ConfigError(f"{name} {value} must be at least 1")


def load_recipe(
    name: str, config: Path | None, overrides: Iterable[Iterable[str]], kind: str | None = None
) -> tuple[Modality, Any]:
    """See `modalities.load_recipe`, which is not imported before a command runs."""
    from resgen import modalities

    return modalities.load_recipe(name, config, flatten(overrides), kind)


def with_data_options(recipe: Any, command: Any, subject: str) -> Any:
    """The recipe with those options of a command that are settings of its data, --resize and --skip-unreadable.

    Raises:
        ConfigError: one of them was given, and the data has no such setting; `subject` is said then.
    """
    flags = [name for name in ("resize", "skip_unreadable") if getattr(command, name, False)]
    _refuse(command, [name for name in flags if not hasattr(recipe.data, name)], subject)
    return replace_nested(recipe, {f"data.{name}": True for name in flags})


def ask(
    modality: Modality, action: str, command: Any, subject: str, /, *, handled: Collection[str] = (), **values: Any
) -> Any:
    """What a modality does for a command, called with those of the given options that it takes.

    Args:
        modality: has it as an attribute, a function or a class.
        action: name of the attribute.
        command: a dataclass of options.
        subject: what is of this modality, for messages.
        handled: options that the command deals with itself.
        values: replace options, or are given besides; passed on if they are taken.

    Raises:
        ConfigError: the modality does not do it, or an option was given that it does not take.
    """
    act = modality.has(action)
    takes = inspect.signature(act).parameters
    others = {*handled, "as_json"}
    defaults = {field.name: field.default for field in dataclasses.fields(command) if field.name not in others}
    changes = {name: getattr(command, name) for name, value in defaults.items() if getattr(command, name) != value}
    _refuse(command, [name for name in changes if name not in takes], f"{subject} is for {modality.noun}")
    return act(**{name: value for name, value in (changes | values).items() if name in takes})


def command_line() -> str:
    """The command as it was typed, for reports."""
    return shlex.join(["resgen", *sys.argv[1:]])


def refuse_options(command: Any, names: Iterable[str], why: str) -> None:
    """Reject options that make no sense here.

    Args:
        command: has the options as attributes; what is None, False or empty was not given.
        names: names of these options.
        why: said after their names.

    Raises:
        ConfigError: naming those that were given.
    """
    values = {name: getattr(command, name) for name in names}
    options = [name for name, value in values.items() if value is not None and value is not False and value != ()]
    _refuse(command, options, why)


def _refuse(command: Any, names: Sequence[str], why: str) -> None:
    if names:
        options = " and ".join(option_name(type(command), name) for name in names)
        raise ConfigError(f"{options} must be left out: {why}")


def bundled_models() -> list[dict[str, Any]]:
    """Name, kind, size and description of every model that comes with the package."""
    from resgen.checkpoints.format import load_folder
    from resgen.checkpoints.locate import list_bundled, resolve_model

    models = []
    for name in list_bundled():
        folder = load_folder(resolve_model(name), verify=False)
        models.append(
            {
                "name": name,
                "kind": folder.kind,
                "size_bytes": sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()),
                "description": str(folder.extra.get("description", "")),
            }
        )
    return models


def check_out_file(
    path: Path, suffixes: Sequence[str] = PICTURE_SUFFIXES, *, name: str = "--out", sources: Sequence[Path | None] = ()
) -> None:
    """Reject an output file that could not be written, or would replace one of its `sources`, before any heavy work;
    `name` is that of the option.

    Raises:
        ConfigError: unknown suffix, a folder of that name, a source, or a place that cannot be written to.
    """
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{name} '{path}' must end in {', '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{name} '{path}' is a folder; give the name of a file")
    if any(source is not None and path.resolve() == source.resolve() for source in sources):
        raise ConfigError(f"{name} '{path}' is the input; give another file")
    _check_writable(path, path.parent, name)


def check_out_dir(path: Path, *, name: str = "--out", replaces: bool = False) -> None:
    """Reject an output folder that could not be made or written to, before any heavy work; `name` is that of the
    option. A saved model is only for what `replaces` it.

    Raises:
        ConfigError: a file of that name, a saved model, or a place that cannot be written to.
    """
    if str(path) == "-":
        raise ConfigError(f"{name} '-' is for sounds, which can go to standard output; give the name of a folder")
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{name} '{path}' is a link to '{path.readlink()}', which does not exist; make that folder")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{name} '{path}' is a file; give the name of a folder")
    if not replaces and (path / "config.json").is_file():
        from resgen.checkpoints.format import saved_kind

        if saved_kind(path) is not None:
            raise ConfigError(f"{name} '{path}' holds a saved model; give another folder")
    _check_writable(path, path, name)


def _check_writable(path: Path, folder: Path, name: str) -> None:
    """Try for real (permission bits say little for root or on read-only disks), and leave no trace.

    What is missing is made in a folder of its own, beside its place: other commands may be making the same.
    """
    there = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".resgen-") as trial:
            (Path(trial) / folder.relative_to(there)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{name} '{path}' cannot be written: {error.strerror}; choose another place") from None


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM is what Ctrl-C is: KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def slug(name: str) -> str:
    """`name` as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "class"


def count_passes(steps: Iterable[Any]) -> int:
    """Network passes of a sampling run: two or three for a step with guidance, else one."""
    return sum(step.passes for step in steps)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[..., None]]:
    """A bar of steps; yields the callback of a sampler."""
    with progress_bars() as advance:
        yield lambda record, *_: advance(record.step, record.num_steps, title)
