"""The checker of signatures in tests: beartype."""

from __future__ import annotations

from typing import TypeVar

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

F = TypeVar("F")


def check(target: F) -> F:
    """Check calls of `target`, unless it names a protocol that is not `runtime_checkable` and so cannot be checked."""
    try:
        return beartype(target)  # type: ignore[call-overload, no-any-return]
    except BeartypeDecorHintPep3119Exception:
        return target
