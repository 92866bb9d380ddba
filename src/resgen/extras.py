"""Optional packages: how they are imported, what installs them, and how they bring modalities."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Any

from resgen.errors import ResGenError

DISTRIBUTION = "resgen-rvq"
"""Name in package indexes; `resgen` belongs to another project there."""
MODALITIES = "resgen.modalities"
"""Group of the entry points by which other packages bring modalities; each names a `Modality`."""


class MissingExtraError(ResGenError, ImportError):
    """An optional package is needed; the message says how to install it: by an extra, if one has it."""

    def __init__(self, package: str, extra: str | None) -> None:
        command = f"pip install {package}" if extra is None else install_command(extra)
        super().__init__(f"'{package}' is not installed; install it with: {command}")


def import_extra(module: str, extra: str | None, package: str | None = None) -> Any:
    """An optional module by its full name; `package`, by default the name's first part, is installed by `extra`.

    Raises:
        MissingExtraError: it is not installed, or a library that it wraps is not.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingExtraError(package or module.partition(".")[0], extra) from error


def install_command(extra: str) -> str:
    """What installs an extra: from the clone that this package lies in, or as the installed distribution."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / "pyproject.toml").is_file():
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    folder = "." if clone == Path.cwd() else str(clone)
    return f"pip install -e {shlex.quote(f'{folder}[{extra}]')}"
