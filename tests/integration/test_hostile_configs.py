"""Every value of `config.json` replaced by what does not belong there: one line and exit code 2, or a model as before.

A seeded sample of the cases runs by default, all of them under `slow`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import check
from image_parts import save_model
from speech_parts import save_parts

LONG = "x" * 100_000
HOSTILE = [
    None, True, -1, 0, 1, 3, 10**9, 10**19, 10**400, 1e30, -0.5, float("inf"), float("nan"), "", "nine", "\ud800", LONG,
    [], [5], [[1]], [10**9] * 3, list(range(10_000)), {}, {"kind": 7}, {"a": {"b": []}},
]  # fmt: skip
SAMPLE = 160


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands in JSON, of mappings and lists themselves too."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "pictures": save_model(folder / "pictures", class_names=("a", "b", "c")),
        "voice": save_parts(folder / "voice"),
    }


def cases(models: dict[str, Path]) -> list[tuple[str, tuple[Any, ...], Any]]:
    """All cases, in an order that is random and always the same."""
    documents = {name: json.loads((path / "config.json").read_text()) for name, path in models.items()}
    every = [(name, at, value) for name, data in documents.items() for at in places(data) for value in HOSTILE]
    random.Random(0).shuffle(every)
    return every


def load(path: Path, at: tuple[Any, ...], value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Load a model with one changed value."""
    config = path / "config.json"
    good = config.read_text()
    data = node = json.loads(good)
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    config.write_text(json.dumps(data))
    if "vocoder" in good:
        sample = ["speech", "--text", "abc", "--out", str(path / "a.wav")]
    else:
        sample = ["image", "--out", str(path / "a.png")]
    steps = [] if at[0] == "sampling" else ["--steps", "1"]
    try:
        for words in (["inspect", str(path)], ["generate", *sample, "--model", str(path), *steps]):
            check(words, capsys)
    except AssertionError as error:
        raise AssertionError(f"{'.'.join(map(str, at))} = {str(value)[:80]}: {error}") from error
    finally:
        config.write_text(good)


def test_a_sample_of_hostile_values(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, at, value in cases(models)[:SAMPLE]:
        load(models[name], at, value, capsys)


@pytest.mark.slow
def test_all_hostile_values(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, at, value in cases(models)[SAMPLE:]:
        load(models[name], at, value, capsys)
