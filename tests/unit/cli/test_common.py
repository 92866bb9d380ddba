from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resgen.cli.common import (
    check_out_dir,
    check_out_file,
    count_passes,
    flatten,
    load_recipe,
    message,
    plain,
    positive,
    progress_bar,
    report,
    slug,
    table,
)
from resgen.cli.main import main
from resgen.cli.train import TrainTokenizer
from resgen.data.announce import announce
from resgen.errors import ConfigError
from resgen.modalities import Modality


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    size: int = 8
    name: str = "digits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeRecipe:
    data: Data = Data()
    rate: float = 0.1


@pytest.fixture
def recipes(monkeypatch):
    none = Modality(name="none", noun="nothing", recipes={"digits": FakeRecipe}, components=frozenset(), stages={})
    monkeypatch.setattr("resgen.modalities.of_recipe", lambda name: none)


def test_flags_win_over_the_file_and_the_file_over_the_recipe(recipes, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: {size: 16, name: mine}\nrate: 0.01\n")
    _, recipe = load_recipe("digits", file, [["data.size=32"], ["data.size=64"]])
    assert recipe == FakeRecipe(data=Data(size=64, name="mine"), rate=0.01)
    assert load_recipe("digits", None, [])[1] == FakeRecipe()


@pytest.mark.parametrize("text", ["data: {sise: 3}", "rat: 1", "rate: fast", "- a", "data: ["])
def test_wrong_file_is_a_configuration_error(text, recipes, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_recipe("digits", file, [])


def test_out_file_in_a_new_folder_is_accepted_and_leaves_no_trace(tmp_path):
    check_out_file(tmp_path / "a" / "b" / "c.PNG")
    check_out_dir(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_commands_may_check_the_same_new_folder_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_out_dir, [tmp_path / "a" / "b"] * 400))
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_left_as_it_is(tmp_path):
    file = tmp_path / "c.png"
    file.write_bytes(b"old")
    check_out_file(file)
    check_out_dir(tmp_path)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_unusable_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must end in .png"):
        check_out_file(tmp_path / "c.txt")
    with pytest.raises(ConfigError, match="is a folder"):
        (tmp_path / "d.png").mkdir()
        check_out_file(tmp_path / "d.png")
    with pytest.raises(ConfigError, match="is a file"):
        check_out_dir(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        check_out_file(tmp_path / "file" / "c.png")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_out_dir(Path("/proc/nowhere/runs"))


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        check_out_file(tmp_path / "c.png")
    tmp_path.chmod(0o700)


def test_report_is_one_json_document_of_finite_numbers(capsys):
    document = {
        "path": Path("a/b"),
        "psnr": [1.5, float("inf")],
        "codes": torch.arange(3),
        "scalar": np.float32(0.5),
        "nested": Data(),
        "none": None,
        "flag": True,
    }
    report(document, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "path": "a/b",
        "psnr": [1.5, None],
        "codes": [0, 1, 2],
        "scalar": 0.5,
        "nested": {"size": 8, "name": "digits"},
        "none": None,
        "flag": True,
    }


def test_report_as_text(capsys):
    report({"a": {"b": 1}}, as_json=False)
    report({"a": 1}, as_json=False, text="one line")
    assert capsys.readouterr().out == "a:\n  b: 1\none line\n"


def test_names_in_foreign_data_do_not_steer_the_terminal(capsys):
    message("class \x1b[2J")
    announce("class \x1b[2J")
    report({}, as_json=False, text="class \x1b[2J\nnext")
    printed = capsys.readouterr()
    assert printed.err == "class \\x1b[2J\n" * 2 and printed.out == "class \\x1b[2J\nnext\n"


def test_table_aligns_columns():
    assert table([("name", "n"), ("x", 10)]) == "name  n\nx     10"


def test_small_helpers():
    assert flatten([["a", "b"], ["c"]]) == ["a", "b", "c"]
    assert slug("T-shirt/top") == "T-shirt-top"
    assert slug("../..") == "class"
    assert plain((1, Path("x"))) == [1, "x"]
    with pytest.raises(ConfigError, match="--num 0 must be at least 1"):
        positive("--num", 0)


def test_passes_of_all_steps():
    assert count_passes([SimpleNamespace(passes=count) for count in (1, 2, 3)]) == 6


def test_the_bar_of_a_sampler_ends_at_its_last_step(monkeypatch):
    told = []
    monkeypatch.setattr(
        "resgen.cli.common.progress_bars", lambda: contextlib.nullcontext(lambda *sizes: told.append(sizes))
    )
    with progress_bar("sampling") as step_done:
        for step in (1, 2):
            step_done(SimpleNamespace(step=step, num_steps=2), None)
    assert told == [(1, 2, "sampling"), (2, 2, "sampling")]


def test_an_output_does_not_replace_its_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("a.png", str(tmp_path / "a.png"), "../" + tmp_path.name + "/a.png"):
        with pytest.raises(ConfigError, match=r"--out 'a.png' is the input; give another file"):
            check_out_file(Path("a.png"), sources=(None, Path(source)))
    check_out_file(Path("b.png"), sources=(Path("a.png"),))


@pytest.mark.parametrize(
    "command",
    [
        "generate speech --model english-small --text hi --prompt a.wav --prompt-text a --out ./a.wav",
        "edit speech --model english-small --input a.wav --input-text a --text b --out ./a.wav",
        "edit image --model avatars64 --class thumbs --input b.png --mask a.png --out ./a.png",
        "edit image --model avatars64 --class thumbs --input a.png --mask 0,0,9,9 --out ./a.png",
        "reconstruct --tokenizer avatars64 --input a.png --out ./a.png",
    ],
)
def test_no_command_replaces_what_it_reads(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert "is the input; give another file" in capsys.readouterr().err


def test_places_that_are_no_folders_to_write_into_are_told_apart(tmp_path):
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="--out .*lost' is a link to 'nowhere', which does not exist"):
        check_out_dir(tmp_path / "lost")
    with pytest.raises(ConfigError, match="--trace '-' is for sounds, which can go to standard output"):
        check_out_dir(Path("-"), name="--trace")
    for folder, saved in (("model", '{"format": "resgen"}'), ("web", '{"name": "a web project"}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(saved)
    check_out_dir(tmp_path / "web")
    with pytest.raises(ConfigError, match="model' holds a saved model; give another folder"):
        check_out_dir(tmp_path / "model")
    check_out_dir(tmp_path / "model", replaces=True)


@pytest.mark.parametrize(("out", "place"), [("runs/a-tokenizer", "runs/a-generator"), (".", "here-generator")])
def test_the_next_command_names_a_folder_beside_the_run(out, place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    modality, recipe = load_recipe("digits", None, [])
    words = TrainTokenizer(recipe="digits", out=Path(out)).next_command(modality, recipe)
    assert words[-1] == place or Path(words[-1]) == tmp_path / place
