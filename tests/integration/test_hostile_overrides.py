"""`--set` with values that do not belong there: one line and exit code 2, soon and in little memory, or a report.

A seeded sample of the cases runs by default, all of them under `slow`. `inspect --recipe` and `train` share what reads
and checks a recipe; `train` builds a network as well. Keys that several recipes have are tried in one of them.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hostile import check
from resgen.config import flat_keys
from resgen.recipes import images, speech

HOSTILE = [
    "null", "true", "-1", "0", "5", "1e19", "1e400", ".nan", "9" * 30, "9" * 5000, "1000000000", "99999999", "nine", "",
    "[]", "[5]", "[[1]]", "[1000000000]", "{a: 1}", "{", "[" * 5000, "2020-01-01", "x" * 100_000,
    "0x" + "f" * 5000,
]  # fmt: skip
NAMED = [
    "tokenizer_training.loggers=5", "tokenizer_training.betas=null", "tokenizer.quantizer.steps=5",
    "tokenizer.multipliers=5", "tokenizer_training.num_steps=1e19", "tokenizer_training.batch_size=99999999",
    f"tokenizer.width={'9' * 30}", "tokenizer.width=1000000000", "tokenizer.num_res_blocks=1000000000",
]  # fmt: skip
SAMPLE = 250


def cases() -> list[tuple[str, str]]:
    """All cases of all recipes, in an order that is random and always the same."""
    recipes = [recipe() for recipe in (*images.RECIPES.values(), *speech.RECIPES.values())]
    order = random.Random(0)
    order.shuffle(recipes)
    owners = {key: recipe.name for recipe in recipes for key in flat_keys(recipe)}
    every = [(name, f"{key}={value}") for key, name in owners.items() for value in HOSTILE]
    order.shuffle(every)
    return every


def test_a_sample_of_hostile_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, pair in cases()[:SAMPLE]:
        check(["inspect", "--recipe", recipe, "--set", pair], capsys)


@pytest.mark.slow
def test_all_hostile_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, pair in cases()[SAMPLE:]:
        check(["inspect", "--recipe", recipe, "--set", pair], capsys)


@pytest.mark.parametrize("pair", NAMED)
def test_trainings_do_not_begin(pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(["train", "tokenizer", "--recipe", "digits", "--out", str(tmp_path / "run"), "--set", pair], capsys, (2,))


@pytest.mark.parametrize("value", ["1e999", "nan", "-1", "1e300"])
def test_limits_of_uploads(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(["serve", "--model", "fashion-mnist-small", "--max-upload-mb", value], capsys, (2,))
