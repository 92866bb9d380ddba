"""Which column of a table, or key of a JSON object, names the class, and which columns are axes of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from resgen.errors import ConfigError, DataError
from resgen.ops.axes import MOST_IDS, count_ids, join_digits

PREFERRED = ("label", "labels", "fine_label")
NAMES = tuple("class class_id class_name class_label cls category category_id target targets coarse_label".split())


def label_name(names: Sequence[str], where: str) -> str | None:
    """The one that names the class; None if none does. Upper and lower case are alike, `class_id` gives way to `class`.

    Raises:
        DataError: several may be meant.
    """
    for name in PREFERRED:
        if name in names:
            return name
    matches = {name.lower(): name for name in names if name.lower() in (*PREFERRED, *NAMES)}
    matches = {low: name for low, name in matches.items() if low.removesuffix("_id") == low or low[:-3] not in matches}
    if len(matches) > 1:
        raise DataError(
            f"{where} has {' and '.join(matches.values())}, which may all be the class; name the right one 'label'"
        )
    return next(iter(matches.values()), None)


def axis_columns(class_columns: Sequence[str]) -> dict[str, str]:
    """Columns by the name of their axis, from `column` or `axis=column`.

    Raises:
        ConfigError: an axis without a name, or with a comma or `=` in it, or two of one name.
    """
    axes: dict[str, str] = {}
    for text in class_columns:
        axis, _, column = text.rpartition("=")
        axis = axis or column
        if not column.strip() or not axis.strip() or set(axis) & set(",=") or axis in axes:
            allowed = "columns with names of their own, or name=column, without commas"
            raise ConfigError(f"class_columns={list(class_columns)} must hold {allowed}, not '{text}'")
        axes[axis] = column
    return axes


def class_ids(axes: Mapping[str, tuple[Sequence[str], Int64[np.ndarray, " N"]]], where: str) -> Int64[np.ndarray, " N"]:
    """Class ids from the names and labels of every axis, where -1 says nothing.

    Raises:
        DataError: an axis without classes, or more combinations than there can be ids.
    """
    sizes = [len(names) for names, _ in axes.values()]
    if 0 in sizes:
        raise DataError(f"no row of '{where}' says anything of {list(axes)[sizes.index(0)]}; leave it out")
    if count_ids(sizes) > MOST_IDS:
        listed = " x ".join(f"{size} of {axis}" for axis, size in zip(axes, sizes, strict=True))
        raise DataError(f"'{where}' has {listed} classes, more than {MOST_IDS:,} combinations; leave an axis out")
    first, *others = (labels for _, labels in axes.values())
    return np.asarray(join_digits([np.where(first < 0, sizes[0], first), *(labels + 1 for labels in others)], sizes))
