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
    """Base of every error that a user can cause and mend; travels between processes whatever its arguments."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[ResGenError], args: tuple[Any, ...], state: dict[str, Any]) -> ResGenError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(ResGenError, ValueError):
    """A configuration value, key or combination that is not allowed."""


class DataError(ResGenError):
    """Input data that is missing, empty, unreadable or of the wrong kind."""


class CheckpointError(ResGenError):
    """A saved model or training state that is missing, damaged or does not fit."""


class WriteError(ResGenError):
    """A file or folder that cannot be written (no permission or a full disk, for example)."""


class TrainingError(ResGenError):
    """Training cannot go on (a loss that is not finite, for example)."""


MOST_LISTED = 40
"""Of names in a message; of more the nearest are named."""
_ALIKE = 0.6


def nearest(value: str, names: Iterable[str], count: int) -> list[str]:
    """The names most like `value`, the best first; the last parts of dotted names are compared by themselves, too."""

    def alike(name: str) -> tuple[float, float]:
        ratios = [
            difflib.SequenceMatcher(None, ours.lower(), theirs.lower()).ratio()
            for ours, theirs in ((value, name), (value.rpartition(".")[2], name.rpartition(".")[2]))
        ]
        return max(ratios), sum(ratios)

    scores = {name: alike(name) for name in names}
    return sorted((name for name in scores if scores[name][0] >= _ALIKE), key=lambda name: scores[name], reverse=True)[
        :count
    ]


def unknown(what: str, value: object, allowed: Iterable[object], others: Mapping[str, str] | None = None) -> str:
    """One line for an unknown name: value, the nearest name, or what a name in `others` stands for, and all allowed
    ones; of more than `MOST_LISTED` the nearest three and their number."""
    names, others = [str(a) for a in allowed], others or {}
    few = len(names) <= MOST_LISTED
    matches = [others.get(name, name) for name in nearest(str(value), [*names, *others], 1 if few else 3)]
    choices = " or ".join(f"'{name}'" for name in matches)
    hint = f" (did you mean {choices}?)" if matches else ""
    known = f"allowed: {', '.join(names) or 'none'}" if few else f"{len(names)} are allowed"
    return f"unknown {what} '{value}'{hint}; {known}"


def check_least(record: object, least: int, *names: str, most: int | float = math.inf) -> None:
    """Refuse attributes of a record below `least` or above `most`; of one that holds several numbers each counts, and
    none is refused.

    Raises:
        ConfigError: naming the first such attribute.
    """
    for name in names:
        value = getattr(record, name)
        if isinstance(value, tuple):
            if not value or min(value) < least:
                raise ConfigError(f"{name}={value} must hold one or more numbers of at least {least}")
        elif not least <= value <= most:
            raise ConfigError(f"{name}={value} must be at {f'least {least}' if value < least else f'most {most:,}'}")
