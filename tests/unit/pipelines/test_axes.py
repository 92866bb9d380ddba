"""Requests for classes on several axes, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from image_parts import save_model
from resgen.checkpoints.artefacts import load_pipeline
from resgen.checkpoints.card import write_card
from resgen.checkpoints.format import load_folder
from resgen.cli.main import main
from resgen.errors import CheckpointError, ConfigError
from resgen.ops.axes import count_ids, join_digits
from resgen.pipelines.axes import axes_id, axes_name
from resgen.pipelines.image.pipeline import ImagePipeline

AXES = {
    "style": ("Lorelei", "thumbs", "tench, fish"),
    "background": ("blue", "pink"),
    "hair": ("none", "blue", "grey"),
    "beard": ("none", "beard"),
}
SIZES = [3, 2, 3, 2]


def number(style: int = 3, background: int = 0, hair: int = 0, beard: int = 0) -> int:
    """Of digits."""
    return int(join_digits([style, background, hair, beard], SIZES))


@pytest.mark.parametrize(
    ("request_", "digits"),
    [
        ("lorelei", {"style": 0}),
        ("THUMBS", {"style": 1}),
        ("tench, fish", {"style": 2}),
        ("beard", {"beard": 2}),
        ("style=lorelei", {"style": 0}),
        ("lorelei,background=blue", {"style": 0, "background": 1}),
        (" Thumbs , hair = blue ,beard=none", {"style": 1, "hair": 2, "beard": 1}),
        ("pink, grey", {"background": 2, "hair": 3}),
        ("style=any, pink", {"background": 2}),
        ("any", {}),
        ({}, {}),
        ({"style": "thumbs", "Background": "PINK"}, {"style": 1, "background": 2}),
        ({"style": 2, "hair": 0, "beard": None, "background": "any"}, {"style": 2, "hair": 1}),
        ({"style": np.int64(1)}, {"style": 1}),
        ({"style": "tench, fish", "hair": "1"}, {"style": 2, "hair": 2}),
        ("style=2", {"style": 2}),
        (1, {"style": 1}),
        ("1", {"style": 1}),
        (number(1, 2, 3, 1), {"style": 1, "background": 2, "hair": 3, "beard": 1}),
    ],
)
def test_what_is_asked_for(request_: Any, digits: dict[str, int]) -> None:
    assert axes_id(request_, AXES) == number(**digits)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ("blue", "class 'blue' may be of background or hair; say background=blue, for example"),
        ("blu", "unknown class 'blu' (did you mean 'blue'?); allowed: style (Lorelei, thumbs, tench, fish), "),
        ("lorelei,hair:grey", "unknown class 'hair:grey' (did you mean 'hair=grey'?); allowed: style (Lorelei, "),
        ("hair=pink", "unknown hair 'pink'; allowed: none, blue, grey"),
        ("lorelei, hare=grey", "unknown axis of classes 'hare' (did you mean 'hair'?); allowed: style, "),
        ({"colour": "blue"}, "unknown axis of classes 'colour'; allowed: style, background, hair, beard"),
        ("lorelei, thumbs", "class 'lorelei, thumbs' tells style twice; give it once"),
        ({"style": "lorelei", "STYLE": "thumbs"}, "tells style twice"),
        ({"style": 3}, "unknown style '3'; allowed: Lorelei, thumbs, tench, fish"),
        ({"style": -1}, "unknown style '-1'"),
        ({"style": 1.0}, "unknown style '1.0'"),
        ({"style": ["lorelei"]}, "unknown style '['lorelei']'"),
        ("", "unknown class ''"),
        ("lorelei,", "unknown class ''"),
        (count_ids(SIZES), "unknown class '144'"),
        ("9" * 5000, "unknown class '999"),
        (-1, "unknown class '-1'"),
        (1.5, "unknown class '1.5'"),
    ],
)
def test_what_cannot_be_asked_for(request_: Any, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        axes_id(request_, AXES)
    assert error in str(caught.value) and "\n" not in str(caught.value)


@given(st.integers(0, count_ids(SIZES) - 1))
def test_names_are_requests(class_id: int) -> None:
    name = axes_name(class_id, AXES)
    if "tench" not in name or name == "tench, fish":  # a name with a comma is for mappings, where others are told, too
        assert axes_id(name, AXES) == class_id


def test_names_tell_the_axis_where_it_is_in_doubt() -> None:
    assert axes_name(number(1, 1, 3, 1), AXES) == "thumbs, background=blue, grey, beard=none"
    assert axes_name(number(), AXES) == "any" and axes_name(0, AXES) == "Lorelei"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(
        tmp_path_factory.mktemp("axes") / "faces", class_axes={axis: AXES[axis] for axis in list(AXES)[:2]}
    )


def test_a_pipeline_draws_what_is_said_on_each_axis(faces: Path, tmp_path: Path) -> None:
    pipe = ImagePipeline.from_pretrained(faces, device="cpu", dtype="float32")
    assert (pipe.num_classes, pipe.class_names, dict(pipe.class_axes)) == (3, AXES["style"], load_axes(faces))
    assert "classes by style (3), background (2)" in repr(pipe)
    result = pipe(["thumbs", {"style": "thumbs", "background": "pink"}, "pink", {}], seed=4)
    assert result.class_names == ["thumbs", "thumbs, pink", "pink", "any"] and result.class_ids == [1, 9, 11, 3]
    assert torch.equal(pipe(result.class_ids, seed=4).codes, result.codes)
    single = pipe({"style": "thumbs", "background": "pink"}, num_samples=2, seed=4)
    assert single.class_ids == [9, 9] and not torch.equal(single.codes[1], result.codes[0])
    assert pipe(num_steps=1).class_ids == [0, 1, 2], "every class of the first axis"
    edited = pipe.edit(result.images[0], keep_levels=1, class_id="thumbs,background=pink")
    assert edited.class_names == ["thumbs, pink"]
    pipe.save_pretrained(tmp_path / "again")
    again = ImagePipeline.from_pretrained(tmp_path / "again", device="cpu", dtype="float32")
    assert again.class_axes == pipe.class_axes and torch.equal(again("thumbs, pink").codes, pipe("thumbs, pink").codes)


def load_axes(path: Path) -> dict[str, tuple[str, ...]]:
    return dict(load_pipeline(path).class_axes)


def test_another_axis_changes_what_is_drawn(faces: Path) -> None:
    pipe = ImagePipeline.from_pretrained(faces, device="cpu", dtype="float32")
    ids = [pipe.class_id(name) for name in ("thumbs", "thumbs, blue", "thumbs, pink", "any")]
    hidden = pipe.generator(
        torch.zeros(4, 16, 3, dtype=torch.int64), torch.zeros(4, 16, dtype=torch.int64), torch.tensor(ids)
    )
    assert all(not torch.equal(hidden[0], other) for other in hidden[1:])


@pytest.mark.parametrize(
    "axes",
    [
        {"style": ["a", "b", "c"]},
        {"style": ["a", "b", "c"], "background": ["x"]},
        {"background": ["x", "y"], "style": ["a", "b", "c"]},
        {"style": ["a", "b", "c"], "background": ["x", 5]},
        {"style": "abc", "background": ["x", "y"]},
        ["style"],
        5,
    ],
)
def test_folders_whose_axes_do_not_fit(axes: Any, tmp_path: Path) -> None:
    path = save_model(tmp_path / "faces", class_axes={"style": ("a", "b", "c"), "background": ("x", "y")}, extra=axes)
    with pytest.raises(CheckpointError, match=r"class_axes must name \[3, 2\] classes, the first as class_names does"):
        load_pipeline(path)


def test_axes_without_names_are_told_by_numbers(tmp_path: Path) -> None:
    path = save_model(tmp_path / "faces", other_axes=(2,))
    pipe = ImagePipeline.from_pretrained(path, device="cpu", dtype="float32")
    assert pipe([11, 3], num_steps=1).class_ids == [11, 3]
    with pytest.raises(ConfigError, match=r"unknown class '12'; allowed: 0\.\.11"):
        pipe(12)


def test_inspect_and_cards_name_the_axes(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(faces)]) == 0
    assert "style: 3 (Lorelei, thumbs, tench, fish)\nbackground: 2 (blue, pink)\n" in capsys.readouterr().out
    card = write_card(load_folder(faces), tmp_path, name="faces").read_text()
    assert "- 3 classes of style: Lorelei, thumbs, tench, fish\n- 2 classes of background: blue, pink\n" in card


def test_the_command_line_takes_axes(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "image", "--model", str(faces), "--device", "cpu"]
    out = ["--out", str(tmp_path / "pictures/")]
    assert main([*argv, "--class", "style=thumbs,background=pink", "lorelei", *out]) == 0
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["Lorelei_0001_0.png", "thumbs-pink_0000_0.png"]
    capsys.readouterr()
    assert main([*argv, "--class", "background=green", *out]) == 2
    assert "unknown background 'green'; allowed: blue, pink" in capsys.readouterr().err
