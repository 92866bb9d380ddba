"""Exceptions whose message is one line: the value, what was allowed, what to do.

The command line prints the message of a `ResGenError` and exits with code 2; anything else is a defect and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any


class ResGenError(Exception):
    """Base of every error that a user can cause and fix; can be pickled whatever its arguments."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).__new__, (type(self), *self.args), self.__dict__


class ConfigError(ResGenError, ValueError):
    """A configuration value, key or combination that is not allowed."""


class WrongTypeError(ConfigError, TypeError):
    """An argument of a type that is not taken."""


class DataError(ResGenError):
    """Input data that is missing, empty, unreadable or of the wrong kind."""


class CheckpointError(ResGenError):
    """A saved model or training state that is missing, damaged or does not fit."""


class WriteError(ResGenError):
    """A file or folder that cannot be written (no permission or a full disk, for example)."""


class TrainingError(ResGenError):
    """Training cannot continue (a loss that is not finite, for example)."""


def unknown(what: str, value: object, allowed: Iterable[object], others: Mapping[str, str] | None = None) -> str:
    """One line for an unknown name: the value, the allowed names (`others` maps aliases) and the closest match, if
    possible one that begins with the value."""
    names, typed = [str(a) for a in allowed], str(value).lower()
    known = {name.lower(): name for name in names} | {name.lower(): other for name, other in (others or {}).items()}
    begun = [name for name in known if name.startswith(typed)]
    near = difflib.get_close_matches(typed, begun or known, n=1, cutoff=0.01 if begun else 0.6)
    hint = f" (did you mean '{known[near[0]]}'?)" if near else ""
    return f"unknown {what} '{value}'{hint}; allowed: {', '.join(names) or 'none'}"


def check_range(
    record: object, least: int | float, *names: str, most: int | float = math.inf, below: int | float | None = None
) -> None:
    """Reject attributes of a record below `least`, above `most` or not below `below`. A tuple must hold at least one
    number, and all its numbers are checked.

    Raises:
        ConfigError: naming the first such attribute.
    """
    for name in names:
        value = getattr(record, name)
        if isinstance(value, tuple):
            if not value or min(value) < least:
                raise ConfigError(f"{name}={value} must hold one or more numbers of at least {least}")
        elif below is not None and not least <= value < below:
            raise ConfigError(f"{name}={value} must lie in [{least}, {below})")
        elif not least <= value <= most:
            raise ConfigError(f"{name}={value} must be at {f'least {least}' if value < least else f'most {most:,}'}")
