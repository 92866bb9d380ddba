"""A comparison of kinds on images: damaged images, interruptions, processes that are killed."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

import worker_parts
from image_parts import save_model
from processes import FORKS
from resgen.checkpoints.artefacts import load_tokenizer
from resgen.errors import CheckpointError, ConfigError, TrainingError
from resgen.experiments.image import actions, compare, judge
from resgen.modalities import load_recipe
from resgen.training.encoding import open_encoded
from resgen.training.state import lock_folder
from resgen.training.stop import Interrupted
from tars import png


def test_damaged_pictures_are_left_out_of_codes_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 5), ("test", 3)):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(png(number))
        (tmp_path / "data" / split / "a" / "0.png").write_bytes(b"no image")
    tokenizer, _ = load_tokenizer(save_model(tmp_path / "model"))
    _, recipe = load_recipe("digits", None, ["data.resize=true", "data.skip_unreadable=true"])
    comparison = compare.Comparison(tokenizer=str(tmp_path / "model"), data=str(tmp_path / "data"), extractor="x")
    references = []
    monkeypatch.setattr(judge, "load_extractor", lambda name, device: name)
    monkeypatch.setattr(judge, "reference_features", lambda reference, *_, **__: references.append(reference))
    monkeypatch.setattr(judge.Judge, "prepare", lambda self: None)
    study = compare.Study(tmp_path / "out", replace(recipe, tokenizer=tokenizer.config), comparison)
    compare._Plan(study, tokenizer).encode(tokenizer)
    train, held_out = open_encoded(tmp_path / "out" / "codes" / str(tokenizer.spec.depth))
    assert [len(train) // train.plan.versions, len(held_out)] == [9, 5]
    assert [len(reference) for reference in references] == [9]


def small_study(out: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> compare.Study:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    comparison = replace(compare.Comparison(tokenizer="t", data="digits"), **settings)  # type: ignore[arg-type]
    return compare.Study(out, load_recipe("digits", None, [])[1], comparison)


def test_a_killed_process_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(tmp_path, monkeypatch)
    monkeypatch.setattr(compare, "do", worker_parts.kill)
    with pytest.raises(TrainingError, match=r"a process .* was killed, .*; continue with --resume and fewer --jobs"):
        study.run([compare.Part(name="a", action="train", arguments={})], lambda line: None)
    assert not study.is_done("a")


def test_an_interruption_stops_the_part_at_work_and_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, log = small_study(tmp_path, monkeypatch), tmp_path / "log"
    monkeypatch.setattr(compare, "do", worker_parts.hold)
    parts = [
        compare.Part(name=name, action="train", arguments={"name": name, "seconds": seconds, "log": str(log)})
        for name, seconds in (("a", 0), ("b", 60), ("c", 60))
    ]

    def interrupt(line: str) -> None:
        until = time.monotonic() + 60
        while "begin b" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(parts, interrupt)  # when the first is done and the second begins
    assert log.read_text().splitlines() == ["begin a", "begin b", "stop b"]
    assert [study.is_done(name) for name in "abc"] == [True, False, False]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(3)])
def test_a_worker_that_was_interrupted_does_nothing_more(stop: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def train(**arguments: object) -> None:
        calls.append(arguments)
        raise stop

    monkeypatch.setattr(actions, "train", train)
    try:
        for _ in range(2):
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                actions.do("train", {"seed": 0})
    finally:
        actions._stopped.clear()
    assert calls == [{"seed": 0}]


def test_a_folder_of_a_comparison_is_for_one_process_and_one_set_of_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path, monkeypatch)
    with study.claimed(resume=False), pytest.raises(TrainingError, match="another process is comparing in"):
        lock_folder(tmp_path, "comparing").__enter__()
    with small_study(tmp_path, monkeypatch, jobs=2).claimed(resume=True):
        pass
    other = small_study(tmp_path, monkeypatch, num_samples=200)
    with pytest.raises(ConfigError, match="holds a comparison with comparison.num_samples=5000, this one has"):
        other.claimed(resume=True).__enter__()


def test_a_damaged_part_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(tmp_path, monkeypatch)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "train-resgen-time-0.json").write_text("{")
    says = "train-resgen-time-0.json' is not valid JSON.*; delete it and continue with --resume"
    with pytest.raises(CheckpointError, match=says):
        study.result("train-resgen-time-0")


def test_models_that_the_comparison_did_not_train_are_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path, monkeypatch)
    for run in ("resgen-time-0", "mine", "resgen-older"):
        (tmp_path / "runs" / run / "model").mkdir(parents=True)
        (tmp_path / "runs" / run / "model" / "config.json").write_text("{}")
    for name in ("train-resgen-time-0", "search-resgen"):
        study.record(name, {"sampling": {}})
    plan = compare._Plan(study, load_tokenizer(save_model(tmp_path / "model"))[0])
    assert [part.name for part in plan.evaluations()] == ["evaluate-resgen-time-0"]
