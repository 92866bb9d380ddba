"""Which column of a table, or key of a JSON object, names the class."""

from __future__ import annotations

from collections.abc import Sequence

from resgen.errors import DataError

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
            f"{where} has {' and '.join(matches.values())}, which may all be the class; call the right one 'label'"
        )
    return next(iter(matches.values()), None)
