"""Configurations: strict, with errors that name the key and the nearest allowed one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from resgen.config import config_from_dict, config_to_dict, flat_keys, load_yaml, parse_overrides, replace_nested
from resgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    span: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Circle:
    tag: ClassVar[str] = "circle"
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ConfigError(f"radius={self.radius} must be positive")


@dataclass(frozen=True, kw_only=True)
class Square:
    tag: ClassVar[str] = "square"
    side: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    count: int = 3
    exact: bool = False
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    shape: Circle | Square = field(default_factory=Circle)
    nested: tuple[tuple[int, ...], ...] = ()
    table: dict[str, list[float]] = field(default_factory=dict)
    parts: Mapping[str, Inner] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)


FULL = Outer(
    name="a",
    exact=True,
    mode="slow",
    inner=Inner(span=(0.0, 1.0)),
    extra=Inner(),
    shape=Square(side=2),
    nested=((1,), (2, 3)),
    table={"x": [1.0]},
    parts={"p": Inner(rate=2.0)},
    anything={"deep": [1, {"k": None}]},
)


def test_there_and_back() -> None:
    document = config_to_dict(FULL)
    assert document["shape"] == {"kind": "square", "side": 2} and "kind" not in document
    assert config_from_dict(Outer, document) == FULL
    assert config_from_dict(Outer, {"name": "a"}) == Outer(name="a")


def test_lists_are_tuples_and_whole_numbers_are_floats() -> None:
    built = config_from_dict(Inner, {"rate": 1, "sizes": [3], "span": [0, 2]})
    assert built == Inner(rate=1.0, sizes=(3,), span=(0.0, 2.0)) and isinstance(built.rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuont": 1}, r"unknown configuration key 'cuont' \(did you mean 'count'\?\); allowed: name, count, "),
        ({"inner": {"rat": 1}}, r"unknown configuration key 'inner.rat' \(did you mean 'inner.rate'\?\)"),
        ({"extra": {"rat": 1}}, r"unknown configuration key 'extra.rat' \(did you mean 'extra.rate'\?\)"),
        ({"parts": {"p": {"rat": 1}}}, r"unknown configuration key 'parts.p.rat'"),
        ({"count": "3"}, "^count='3' must be of type int$"),
        ({"count": True}, "^count=True must be of type int$"),
        ({"count": 3.0}, "^count=3.0 must be of type int$"),
        ({"exact": 1}, "^exact=1 must be of type bool$"),
        ({"inner": {"rate": "x"}}, "^inner.rate='x' must be of type float$"),
        ({"inner": {"sizes": 3}}, r"^inner.sizes=3 must be of type tuple\[int, ...\]$"),
        ({"inner": {"sizes": [1, "2"]}}, "^inner.sizes='2' must be of type int$"),
        ({"inner": {"span": [1.0]}}, r"^inner.span=\[1.0\] must be of type tuple\[float, float\]$"),
        ({"inner": None}, "^inner must be a mapping of keys to values, not None$"),
        ({"inner": 3}, "^inner must be a mapping of keys to values, not 3$"),
        ({"table": {"x": [None]}}, "^table.x=None must be of type float$"),
        ({"mode": "fats"}, r"^unknown mode 'fats' \(did you mean 'fast'\?\); allowed: fast, slow$"),
        ({"shape": {"side": 2}}, "^configuration key 'shape.kind' is missing; allowed: circle, square$"),
        ({"shape": {"kind": "sqare"}}, r"^unknown shape.kind 'sqare' \(did you mean 'square'\?\)"),
        ({"shape": {"kind": "square"}}, "^configuration key 'shape.side' is missing$"),
        ({"shape": {"kind": "square", "radius": 1}}, "^unknown configuration key 'shape.radius'"),
        ({"shape": 1}, "^shape must be a mapping of keys to values, not 1$"),
        ({"shape": {"kind": "circle", "radius": -1}}, "^radius=-1.0 must be positive$"),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(Outer, {"name": "a"} | change)


def test_errors_say_where() -> None:
    with pytest.raises(ConfigError, match="^configuration key 'here.name' is missing$"):
        config_from_dict(Outer, {}, where="here.")
    with pytest.raises(ConfigError, match="^here must be a mapping"):
        config_from_dict(Outer, [], where="here.")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="^Outer must be a mapping"):
        config_from_dict(Outer, 3)  # type: ignore[arg-type]


def test_overrides_replace_nested_values() -> None:
    changed = replace_nested(FULL, {"shape.side": 5, "inner": {"rate": 2}, "extra.sizes": [7], "count": 4})
    assert (changed.shape, changed.inner.rate, changed.count) == (Square(side=5), 2.0, 4)
    assert changed.extra == Inner(sizes=(7,)) and changed.inner.span == (0.0, 1.0)
    assert replace_nested(FULL, {"extra": None}).extra is None
    assert replace_nested(Outer(name="a"), {"extra": {"rate": 1}}).extra == Inner(rate=1.0)
    assert replace_nested(FULL, {"shape": {"kind": "square", "side": 1}}).shape == Square(side=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"inner.rat": 1}, r"unknown configuration key 'inner.rat' \(did you mean 'inner.rate'\?\)"),
        ({"inner": {"rat": 1}}, "unknown configuration key 'inner.rat'"),
        ({"shape.radius": 1}, "unknown configuration key 'shape.radius'"),
        ({"shape.kind": "circle"}, "shape.kind=circle is not what is configured, square; .* --kind"),
        ({"count.x": 1}, "^count={'x': 1} must be of type int$"),
        ({"inner": 1}, "^inner must be a mapping"),
    ],
)
def test_wrong_overrides(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace_nested(FULL, overrides)


def test_keys_follow_what_is_held() -> None:
    assert {"shape.side", "extra.rate", "inner.sizes"} <= set(flat_keys(FULL))
    assert "shape.radius" not in flat_keys(FULL)


def test_text_of_overrides_and_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pairs = ["a.b=3e-4", "c=[1, x]", "d=null", "e=1.5e3", "f=.5e3"]
    assert parse_overrides(pairs) == {"a.b": 3e-4, "c": [1, "x"], "d": None, "e": 1500.0, "f": 500.0}
    with pytest.raises(ConfigError, match="override 'a' must have the form key=value"):
        parse_overrides(["a"])
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-3\n")
    assert load_yaml(path) == {"a": 1e-3}
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold 'key: value' lines, not list"):
        load_yaml(path)


def many_times_more() -> str:
    """A short line that stands for 8^12 numbers."""
    lines = ["&a0 [1]", *(f"&a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 13))]
    return f"[{', '.join(lines)}]"


@pytest.mark.parametrize(
    "text", ["[", "0x" + "f" * 5000, "[" * 50_000, "{" * 50_000, "9" * 5000, "&a [*a]", many_times_more(), "a: b: c"]
)
def test_yaml_that_is_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"key: {text}")
    began = time.process_time()
    with pytest.raises(ConfigError, match="the value is not valid YAML"):
        parse_overrides([f"key={text}"])
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_yaml(tmp_path / "a.yaml")
    assert time.process_time() - began < 2


def test_large_files_are_not_read() -> None:
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        load_yaml("/dev/zero")
    with pytest.raises(ConfigError) as error:
        parse_overrides(["x" * 10_000])
    assert len(str(error.value)) < 200
