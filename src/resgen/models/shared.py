"""Fields common to the configurations of all generators."""

from __future__ import annotations

from typing import Any

SHARED_FIELDS = tuple(
    "width num_heads mlp_width condition_width num_classes other_axes class_dropout feature_width "
    "feature_stride".split()
)


def shared_fields(config: Any) -> dict[str, Any]:
    """The shared fields of a generator's configuration, by name, for one of another generator."""
    return {name: getattr(config, name) for name in SHARED_FIELDS}
