"""What a model says of its quality: its card first, then its record."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from resgen.checkpoints import list_bundled, load_folder, resolve_model
from resgen.checkpoints.format import Component, Folder, save_folder
from resgen.checkpoints.measured import keep
from resgen.checkpoints.quality import MAX_CARD_BYTES, MAX_LINE, MAX_LINES, measured, quality

GENERATORS = [name for name in list_bundled() if "generator" in load_folder(resolve_model(name)).components]
HISTORY = {
    "tokenizer": {"metrics": {"psnr_db/1": 20.0, "psnr_db/8": 25.31, "mse": 0.1}},
    "generator": {"metrics": {"val_loss": 4.5}},
    "vocoder": {"metrics": {}},
    "odd": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    save_folder(
        tmp_path / "model",
        kind="pipeline",
        components={"tokenizer": Component(type="t", config={}, tensors={})},
        extra={"history": HISTORY},
    )
    return load_folder(tmp_path / "model")


TABLE = """# m

| measured | |
|---|---|
| style **recognised**, `a` and [b](c.md) | 97.3 % (95 to 98) |
| the same without | 93.7 % |

| limits | |
|---|---|
| x | y |
"""
WIDE = (
    "| measured, here | errors | nearest of 58 |\n|---|---|---|\n| eight voices | 2.9 % | 87.5 % |\n| one voice | | 1 |"
)


@pytest.mark.parametrize(
    ("card", "lines"),
    [
        (TABLE, ["style recognised, a and b: 97.3 % (95 to 98)", "the same without: 93.7 %"]),
        (WIDE, ["here, eight voices: errors 2.9 %; nearest of 58 87.5 %", "here, one voice: nearest of 58 1"]),
        (
            "# m\n\n**Data.** x\n\n**Measured.** 91.0 % of\nthe `pictures`.\n\n**Limits.** y\n",
            ["91.0 % of the pictures."],
        ),
    ],
)
def test_the_card_is_quoted_without_its_marks(folder: Folder, card: str, lines: list[str]) -> None:
    (folder.path / "README.md").write_text(card)
    assert measured(folder) == lines


@pytest.mark.parametrize("card", [None, "# no table\n\nMeasured: much", "**Measured** " + "x" * MAX_CARD_BYTES])
def test_without_it_the_record_speaks(folder: Folder, card: str | None) -> None:
    if card is not None:
        (folder.path / "README.md").write_text(card)
    assert measured(folder) == ["tokenizer: PSNR 25.31 dB", "generator: validation loss 4.5000"]


def test_a_card_or_record_from_elsewhere_is_read_at_once(folder: Folder) -> None:
    for text in ("[" * 100_000, "[](" * 40_000):
        (folder.path / "README.md").write_text("**Measured.** " + text)
        begin = time.process_time()
        assert len(measured(folder)) == 1
        assert time.process_time() - begin < 1.0
    assert quality({"psnr_db/1": 20.0, "psnr_db/" + "9" * 5000: 21.0, "val_loss": 10**400}) == "PSNR 20.00 dB"


def test_an_evaluation_that_was_kept_comes_before_the_trainings(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    shutil.copytree(resolve_model("fashion-mnist-small"), tmp_path / "model")
    (tmp_path / "model" / "README.md").unlink()
    keep(
        load_folder(tmp_path / "model"),
        json.loads((root / "docs/results/evaluate-fashion-mnist-small.json").read_text()),
    )
    (line,) = measured(load_folder(tmp_path / "model"))
    assert line.startswith("generation (fashion_mnist): FD-fashion-mnist-classifier, ") and "guided 4.7179" in line


def test_much_is_cut(folder: Folder) -> None:
    rows = f"| {'word ' * MAX_LINE} | 1 |\n" * (MAX_LINES + 1)
    (folder.path / "README.md").write_text("| measured | |\n|---|---|\n" + rows)
    lines = measured(folder)
    assert len(lines) == MAX_LINES and all(MAX_LINE - 10 < len(one) < MAX_LINE + 5 for one in lines)
    assert lines[0].endswith(" word ...")


@pytest.mark.parametrize("name", GENERATORS)
def test_bundled_models_say_how_good_they_are(name: str) -> None:
    lines = measured(load_folder(resolve_model(name)))
    assert any("%" in line for line in lines) and not any("loss" in line for line in lines)
    assert not any(mark in line for line in lines for mark in "`|*")
