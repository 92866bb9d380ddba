"""Strict conversion: an unknown key or a wrong type is an error that names the key and the nearest allowed one.

A field may hold one of several dataclasses. Each of those has a class variable `tag`, which stands under `kind` in the
dictionary. Without it, as older versions wrote them, the first dataclass that takes the keys is built.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import dacite
import yaml

from resgen.errors import ConfigError, unknown

T = TypeVar("T")

KIND = "kind"

_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")


def config_to_dict(config: Any, *, tagged: bool = True) -> dict[str, Any]:
    """A dataclass as nested dictionaries of JSON values (tuples become lists).

    Args:
        config: the dataclass.
        tagged: say which of several dataclasses a field holds.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            tag = getattr(value, "tag", None) if tagged and value is not config else None
            fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return fields if tag is None else {KIND: tag, **fields}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return copy.deepcopy(value)

    return cast(dict[str, Any], plain(config))


def config_from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass `cls` from `data`; tuples may be given as lists, whole numbers for floats.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or a value that the dataclass itself refuses.
    """
    data = _as_its_kind(cls, data, where)
    _check_keys(cls, data, where)
    options = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _to_float})
    try:
        return dacite.from_dict(cast(Any, cls), data, config=options)
    except ConfigError:
        raise
    except dacite.exceptions.MissingValueError as error:
        raise ConfigError(f"{cls.__name__}: key '{error.field_path}' is missing") from error
    except dacite.exceptions.WrongTypeError as error:
        expected = getattr(error.field_type, "__name__", str(error.field_type))
        raise ConfigError(f"{cls.__name__}: {error.field_path}={error.value!r} must be of type {expected}") from error
    except dacite.DaciteError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


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
            raise ConfigError(f"override '{pair}' must have the form key=value, for example optim.learning_rate=3e-4")
        try:
            result[key] = _read_numbers(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{pair}': the value is not valid YAML") from error
    return result


def replace_nested(config: T, overrides: Mapping[str, Any]) -> T:
    """A copy of the dataclass `config` with dotted keys replaced; nested mappings are accepted as well."""
    data = config_to_dict(config)
    allowed = flat_keys(config)
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = data
        for part in path:
            if not isinstance(node.get(part), dict):
                raise ConfigError(unknown("configuration key", key, allowed))
            node = node[part]
        if last not in node:
            raise ConfigError(unknown("configuration key", key, allowed))
        if isinstance(value, Mapping) and isinstance(node[last], dict):
            _merge(node[last], value, key, allowed)
        else:
            node[last] = value
    return _rebuilt(config, data)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dictionary.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        data = _read_numbers(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"configuration file '{path}' cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file '{path}' is not valid YAML") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"configuration file '{path}' must hold 'key: value' lines, not {type(data).__name__}")
    return data


def _rebuilt(config: T, data: Mapping[str, Any], where: str = "") -> T:
    """`data` as dataclasses of the types that `config` holds, field by field."""
    values = dict(data)
    for field in dataclasses.fields(cast(Any, config)):
        inner = getattr(config, field.name)
        if dataclasses.is_dataclass(inner):
            if not isinstance(values[field.name], Mapping):
                raise ConfigError(
                    f"{where}{field.name} must be a mapping of keys to values, not {values[field.name]!r}"
                )
            tag = getattr(inner, "tag", None)
            if tag is not None:
                entries = dict(values[field.name])
                if entries.pop(KIND, tag) != tag:
                    raise ConfigError(
                        f"{where}{field.name}.{KIND}={values[field.name][KIND]} is not what is configured, {tag}; "
                        "another kind of model is chosen with --kind"
                    )
                values[field.name] = entries
            values[field.name] = _rebuilt(inner, values[field.name], f"{where}{field.name}.")
    return config_from_dict(type(config), values, where=where)


def _merge(node: dict[str, Any], values: Mapping[str, Any], prefix: str, allowed: list[str]) -> None:
    for name, value in values.items():
        if name not in node:
            raise ConfigError(unknown("configuration key", f"{prefix}.{name}", allowed))
        if isinstance(value, Mapping) and isinstance(node[name], dict):
            _merge(node[name], value, f"{prefix}.{name}", allowed)
        else:
            node[name] = value


def _as_its_kind(cls: type, data: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`data` with what says its kind as the dataclass of that kind."""
    if not isinstance(data, Mapping) or not any(
        isinstance(value, Mapping) and KIND in value for value in data.values()
    ):
        return data
    hints, values = get_type_hints(cls), dict(data)
    for key, value in data.items():
        if not isinstance(value, Mapping) or KIND not in value or key not in hints:
            continue
        choices = {part.tag: part for part in (hints[key], *get_args(hints[key])) if hasattr(part, "tag")}
        if not choices:
            continue  # a key of the dataclass itself
        rest = {name: part for name, part in value.items() if name != KIND}
        if value[KIND] not in choices:
            raise ConfigError(unknown(f"{where}{key}.{KIND}", value[KIND], choices))
        values[key] = config_from_dict(choices[value[KIND]], rest, where=f"{where}{key}.")
    return values


def _check_keys(cls: type, data: Mapping[str, Any], where: str) -> None:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or cls.__name__} must be a mapping of keys to values, not {data!r}")
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cast(Any, cls))]
    for key, value in data.items():
        if key not in names:
            raise ConfigError(unknown("configuration key", f"{where}{key}", [where + n for n in names]))
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_keys(cast(type, hints[key]), value, f"{where}{key}.")


def _read_numbers(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 as text; everybody means the number."""
    if isinstance(value, dict):
        return {key: _read_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_numbers(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


def _to_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
