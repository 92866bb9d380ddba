"""Frozen dataclasses converted to and from plain dictionaries, JSON and YAML, strictly."""

from resgen.config.strict import (
    config_from_dict,
    config_to_dict,
    flat_keys,
    flatten,
    is_text,
    load_yaml,
    parse_overrides,
    replace_nested,
)

__all__ = [
    "config_from_dict",
    "config_to_dict",
    "flat_keys",
    "flatten",
    "is_text",
    "load_yaml",
    "parse_overrides",
    "replace_nested",
]
