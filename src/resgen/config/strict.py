"""Strict conversion: an unknown key or a wrong type is an error that names the key and the nearest allowed one.

A field may hold one of several dataclasses. Each of those has a class variable `tag`, which stands under `kind` in the
dictionary.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import reprlib
from collections import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from resgen.errors import ConfigError, unknown
from resgen.matches import MOST_LISTED, unknown_of_many

T = TypeVar("T")

KIND = "kind"
MOST, MOST_TEXT, MOST_ITEMS, MOST_NAMES, MOST_LEVELS = 1 << 63, 4096, 4096, 1 << 20, 32
"""Of numbers, characters, items of a list, texts in one and levels of YAML; networks have limits of their own."""

MOST_BYTES = 1 << 20
"""Of YAML."""
_YAML = f"valid YAML (of at most {MOST_BYTES} bytes and {MOST_LEVELS} levels, without aliases)"
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries of JSON values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            tag = getattr(value, "tag", None) if value is not config else None
            fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return fields if tag is None else {KIND: tag, **fields}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return copy.deepcopy(value)

    return cast(dict[str, Any], plain(config))


def config_from_dict(cls: type[T], data: Any, *, where: str = "") -> T:
    """Build the dataclass `cls` from `data`; tuples may be given as lists, whole numbers for floats.

    Args:
        cls: its fields may be numbers, text, literals, tuples, lists and mappings of those, dataclasses, or unions of
            dataclasses with tags, each also with None.
        data: a mapping of the fields' names to values.
        where: stands before the keys in errors.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or a value that the dataclass itself refuses.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{where.rstrip('.') or cls.__name__} must be a mapping of keys to values, not {reprlib.repr(data)}"
        )
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    for key in data:
        if key not in fields:
            raise ConfigError(unknown_of_many("configuration key", f"{where}{key}", [where + name for name in fields]))
    for name, field in fields.items():
        if name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"configuration key '{where}{name}' is missing")
    return cls(**{key: _converted(hints[key], value, where + key) for key, value in data.items()})


def flat_keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key that `--set` accepts for a dataclass or an instance of one.

    A field that may hold one of several dataclasses is followed into the one that the instance holds.
    """
    keys = []
    hints = get_type_hints(config if isinstance(config, type) else type(config))
    for field in dataclasses.fields(config):
        inner = hints[field.name] if isinstance(config, type) else getattr(config, field.name)
        if dataclasses.is_dataclass(inner):
            keys += flat_keys(inner, f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; sequences become lists."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, (list, tuple)) else value
    return flat


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["optim.learning_rate=3e-4", ...]` as a dictionary of dotted keys; values are read as YAML scalars or lists."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"override '{pair[:80]}' must have the form key=value, for example optim.learning_rate=3e-4"
            )
        try:
            result[key] = _load_yaml(text)
        except (yaml.YAMLError, ValueError) as error:  # also of numbers with thousands of digits
            raise ConfigError(f"override '{pair[:80]}': the value is not {_YAML}") from error
    return result


def replace_nested(config: T, overrides: Mapping[str, Any]) -> T:
    """A copy of the dataclass `config` with dotted keys replaced; nested mappings are accepted as well.

    Raises:
        ConfigError: as in `config_from_dict`, or another kind of a field that may hold several.
    """
    data, allowed = config_to_dict(config), flat_keys(config)
    for key, value in overrides.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(config, data, value, "", allowed)
    return config_from_dict(type(config), data)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dictionary.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        with Path(path).open("rb") as file:
            data = _load_yaml(file.read(MOST_BYTES + 1).decode())
    except OSError as error:
        raise ConfigError(f"configuration file '{path}' cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"configuration file '{path}' is not {_YAML}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"configuration file '{path}' must hold 'key: value' lines, not {type(data).__name__}")
    return data


def _merge(config: Any, node: dict[str, Any], values: Mapping[str, Any], prefix: str, allowed: list[str]) -> None:
    """Put `values` into `node`, the dictionary of `config`."""
    for name, value in values.items():
        inner, tag = getattr(config, name, None), getattr(config, "tag", None)
        if name not in node:
            hint = "; `resgen inspect --recipe NAME` shows all of a recipe" if len(allowed) > MOST_LISTED else ""
            raise ConfigError(unknown_of_many("configuration key", prefix + name, allowed) + hint)
        if name == KIND and tag is not None and value != tag:
            raise ConfigError(
                f"{prefix}{KIND}={value} is not what is configured, {tag}; another kind of model is chosen with --kind"
            )
        if isinstance(value, Mapping) and isinstance(node[name], dict):
            _merge(inner, node[name], value, f"{prefix}{name}.", allowed)
        else:
            node[name] = value


def _converted(field_type: Any, value: Any, where: str) -> Any:
    """`value` as what a field of type `field_type` holds."""
    origin, args = get_origin(field_type), get_args(field_type)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        options = [part for part in args if part is not NoneType]
        return _converted(options[0], value, where) if len(options) == 1 else _tagged(options, value, where)
    if dataclasses.is_dataclass(field_type):
        if hasattr(field_type, "tag"):
            return _tagged([field_type], value, where)
        return config_from_dict(cast(type, field_type), value, where=f"{where}.")
    if origin is Literal:
        if value not in args:
            raise ConfigError(unknown(where, value, args))
        return value
    if origin in (tuple, list) and isinstance(value, (tuple, list)):
        parts = args if origin is tuple and args[-1] is not ... else args[:1] * len(value)
        if len(parts) == len(value) <= (MOST_NAMES if str in args else MOST_ITEMS):
            return origin(_converted(part, item, where) for part, item in zip(parts, value, strict=True))
    elif origin in (dict, abc.Mapping) and isinstance(value, Mapping):
        return {_converted(args[0], k, where): _converted(args[1], item, f"{where}.{k}") for k, item in value.items()}
    elif field_type is Any:
        return value
    elif type(value) is field_type:
        return _bounded(value, where)
    elif field_type is float and type(value) is int:
        return float(_bounded(value, where))
    raise ConfigError(
        f"{where}={reprlib.repr(value)} must be of type {field_type.__name__ if origin is None else field_type}"
    )


def _bounded(value: Any, where: str) -> Any:
    """A number or text that is not absurd, or an error before anything is made of it."""
    if isinstance(value, int) and abs(value) >= MOST:
        raise ConfigError(f"{where} must lie in {-MOST + 1}..{MOST - 1}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}={value} must be finite")
    if isinstance(value, str) and (len(value) > MOST_TEXT or not is_text(value)):
        raise ConfigError(f"{where}={ascii(value[:40])} must be text of at most {MOST_TEXT} characters")
    return value


def is_text(value: object) -> bool:
    """Text that can be written in UTF-8: with no half of a surrogate pair in it."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def _tagged(options: Sequence[Any], value: Any, where: str) -> Any:
    """One of several dataclasses, by its tag."""
    choices = {option.tag: option for option in options}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys to values, not {reprlib.repr(value)}")
    if KIND not in value:
        raise ConfigError(f"configuration key '{where}.{KIND}' is missing; allowed: {', '.join(choices)}")
    if not isinstance(value[KIND], str) or value[KIND] not in choices:
        raise ConfigError(unknown(f"{where}.{KIND}", value[KIND], choices))
    rest = {name: item for name, item in value.items() if name != KIND}
    return config_from_dict(choices[value[KIND]], rest, where=f"{where}.")


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a line may stand for more than memory holds, and of few levels."""

    level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.level == MOST_LEVELS or self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


def _load_yaml(text: str) -> Any:
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError
    return _read_numbers(yaml.load(text, _Loader))


def _read_numbers(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 and 1.5e3 as text; they are numbers here. Hexadecimal ones of any length are refused."""
    if isinstance(value, dict):
        return {key: _read_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_numbers(item) for item in value]
    if isinstance(value, int) and value.bit_length() > MOST_TEXT:
        raise yaml.YAMLError
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value
