"""Suggestions for mistyped names, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from resgen.errors import unknown

MOST_LISTED = 40
"""Of names in a message; of more the nearest are named."""
_ALIKE = 0.6


def nearest(value: str, names: Iterable[str], count: int) -> list[str]:
    """The names most like `value`, the best first; the last parts of dotted names are compared by themselves, too."""

    def alike(name: str) -> tuple[float, float]:
        pairs = (value, name), (value.rpartition(".")[2], name.rpartition(".")[2])
        ratios = [SequenceMatcher(None, ours.lower(), theirs.lower()).ratio() for ours, theirs in pairs]
        return max(ratios), sum(ratios)

    scores = {name: alike(name) for name in names}
    matches = [name for name in scores if scores[name][0] >= _ALIKE]
    return sorted(matches, key=lambda name: scores[name], reverse=True)[:count]


def unknown_of_many(what: str, value: str, allowed: Iterable[str]) -> str:
    """`errors.unknown`; of more than `MOST_LISTED` names the nearest three and their number."""
    names = list(allowed)
    if len(names) <= MOST_LISTED:
        return unknown(what, value, names)
    choices = " or ".join(f"'{name}'" for name in nearest(value, names, 3))
    hint = f" (did you mean {choices}?)" if choices else ""
    return f"unknown {what} '{value}'{hint}; {len(names)} are allowed"
