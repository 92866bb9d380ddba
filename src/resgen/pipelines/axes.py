"""Classes on several named axes: what a request such as `{"style": "lorelei", "background": "blue"}` means."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from resgen.errors import ConfigError, WrongTypeError, unknown
from resgen.models.conditions import class_digits
from resgen.ops.axes import count_ids, join_digits

ANY = "any"
"""Says nothing, of one axis or of all; a class of this name comes first."""
Axes = Mapping[str, tuple[str, ...]]


def axes_id(request: Any, axes: Axes) -> int:
    """The class id that a request means.

    Args:
        request: a mapping of axes to classes, by name or number (`None` and `any` say nothing, and so does what is left
            out); such pairs as text, `style=lorelei, background=blue`, where a name that only one axis has may stand
            alone; or a class id.
        axes: names on each axis.

    Raises:
        ConfigError: an unknown axis or class, a name that several axes have, or an axis that is told twice.
    """
    sizes = [len(names) for names in axes.values()]
    if isinstance(request, Mapping):
        pairs = [(_axis(str(axis), axes), value) for axis, value in request.items()]
    elif isinstance(request, str) and _with(request, axes):
        pairs = [_named(request, axes)]
    elif isinstance(request, str) and not request.strip().isdecimal():
        pairs = list(_pairs(request, axes))
    else:
        return _number(request, count_ids(sizes), "class", axes)
    digits: dict[str, int] = {}
    for axis, value in pairs:
        if axis in digits:
            raise ConfigError(f"class '{request}' tells {axis} twice; give it once")
        digits[axis] = _digit(axis, value, axes)
    nothing = dict(zip(axes, class_digits(sizes[0], sizes), strict=True))
    return int(join_digits([digits.get(axis, nothing[axis]) for axis in axes], sizes))


def axes_name(class_id: int, axes: Axes) -> str:
    """What a class id says, as text that `axes_id` takes: a name, with its axis where others have the name, too."""
    sizes = [len(names) for names in axes.values()]
    told = zip(axes, class_digits(class_id, sizes), class_digits(sizes[0], sizes), strict=True)
    first, parts = next(iter(axes)), []
    for axis, digit, nothing in told:
        if digit != nothing:
            name = axes[axis][digit if axis == first else digit - 1]
            parts.append(name if _with(name, axes) == [axis] else f"{axis}={name}")
    return ", ".join(parts) or ANY


def _pairs(text: str, axes: Axes) -> Iterator[tuple[str, Any]]:
    """Axes and classes of a text."""
    if text.strip().lower() == ANY:
        return
    for part in map(str.strip, text.split(",")):
        axis, equals, name = part.partition("=")
        if equals and not _with(part, axes):
            yield _axis(axis.strip(), axes), name.strip()
        else:
            yield _named(part, axes)


def _with(name: str, axes: Axes) -> list[str]:
    """The axes that have a class of this name; case does not matter."""
    return [axis for axis, names in axes.items() if name.strip().lower() in map(str.lower, names)]


def _named(name: str, axes: Axes) -> tuple[str, str]:
    """The one axis that has a class of this name, and the name."""
    found = _with(name, axes)
    if len(found) > 1:
        raise ConfigError(f"class '{name}' may be of {' or '.join(found)}; say {found[0]}={name.strip()}, for example")
    if not found:
        raise ConfigError(_unknown(name, axes))
    return found[0], name


def _axis(name: str, axes: Axes) -> str:
    lowered = {axis.lower(): axis for axis in axes}
    if name.lower() not in lowered:
        raise ConfigError(unknown("axis of classes", name, axes))
    return lowered[name.lower()]


def _digit(axis: str, value: Any, axes: Axes) -> int:
    """What a class by name or number is in a class id."""
    names, later = axes[axis], axis != next(iter(axes))
    lowered = [name.lower() for name in names]
    text = str(value).strip().lower()
    if isinstance(value, str) and text in lowered:
        return lowered.index(text) + later
    if value is None or text == ANY:
        return 0 if later else len(names)
    return _number(value, len(names), axis, axes) + later


def _number(value: Any, count: int, what: str, axes: Axes) -> int:
    """A number below `count`, also as digits."""
    text, error = str(value).strip(), ConfigError
    if isinstance(value, str) and text.isdecimal() and len(text) < 10:  # int refuses thousands of digits
        value = int(text)
    try:
        number = operator.index(value)
    except TypeError:
        number, error = -1, ConfigError if isinstance(value, str) else WrongTypeError
    if not 0 <= number < count:
        raise error(unknown(what, value, axes[what]) if what in axes else _unknown(value, axes))
    return number


def _unknown(value: Any, axes: Axes) -> str:
    """The error for a class that there is not."""
    pairs = [(axis, name) for axis, names in axes.items() for name in names]
    others = {f"{axis}:{name}": f"{axis}={name}" for axis, name in pairs}
    error, allowed, _ = unknown("class", value, [name for _, name in pairs], others).partition("allowed: ")
    return error + allowed + ", ".join(f"{axis} ({', '.join(names)})" for axis, names in axes.items())
