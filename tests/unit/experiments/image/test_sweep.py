"""Grids of sampling settings, and the search for good ones, against a judge whose optimum is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from image_parts import save_model
from resgen.checkpoints.artefacts import load_pipeline, save_pipeline
from resgen.errors import ConfigError
from resgen.experiments.image.judge import Score
from resgen.experiments.image.sweep import (
    SweepRow,
    combinations,
    find_settings,
    parse_grid,
    store_settings,
    sweep_markdown,
    write_sweep,
)
from resgen.kinds import KINDS
from resgen.samplers.unmasking import SamplingConfig


class Bowl:
    """Distance grows with the squared distance of the settings from `best`; remembers what it was asked."""

    def __init__(self, **best) -> None:
        self.best = best
        self.asked = []

    def __call__(self, sampling) -> Score:
        self.asked.append(sampling)
        distance = sum((getattr(sampling, name) - value) ** 2 for name, value in self.best.items())
        return Score(distance=1.0 + distance, recognised=0.5, num_samples=100, seconds=0.1)


def test_stored_settings_leave_the_rest_of_the_model_as_it_is(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model", class_names=("a", "b", "c"))
    before = load_pipeline(path)
    extra = {"description": "three classes", "history": {"steps": 5}, "recipe": {"name": "mine"}}
    save_pipeline(
        path,
        before.tokenizer,
        before.generator,
        sampling=before.sampling,
        class_names=before.class_names,
        extra=extra,
    )
    store_settings(path, SamplingConfig(num_steps=3))
    after = load_pipeline(path)
    assert after.sampling == SamplingConfig(num_steps=3) and after.class_names == ("a", "b", "c")
    assert {name: after.folder.extra[name] for name in extra} == extra


def test_grids_are_read_with_short_names() -> None:
    grid = parse_grid(["steps=8,16", "top_p=0.9,1", "schedule=circle,power"], SamplingConfig())
    assert grid == {"num_steps": [8, 16], "top_p": [0.9, 1], "mask_schedule": ["circle", "power"]}
    again = parse_grid(["steps=8,16,8", "top_p=1", "num_steps=4,16"], SamplingConfig())
    assert again == {"num_steps": [8, 16, 4], "top_p": [1]}, "a setting that is named again adds its values"
    assert len(combinations(grid)) == 8 and combinations({"a": [1], "b": [2, 3]}) == [
        {"a": 1, "b": 2},
        {"a": 1, "b": 3},
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stpes=8"], "unknown sampling setting 'stpes'.*steps"),
        (["steps"], "'steps' must have the form"),
        (["steps="], "'steps=' must have the form"),
        ([], "--grid is empty"),
    ],
)
def test_bad_grids_are_refused(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_grid(words, SamplingConfig())


def test_the_search_finds_the_bottom_of_a_bowl() -> None:
    judge = Bowl(guidance_scale=4.0, choice_temperature=2.0, top_p=0.95, temperature=0.9)
    start = SamplingConfig(guidance_scale=1.0, choice_temperature=0.5, top_p=1.0, temperature=1.0)
    settings, tries = find_settings(judge, "residual", start, depth=8)
    assert (settings.guidance_scale, settings.choice_temperature, settings.top_p, settings.temperature) == (
        4.0,
        2.0,
        0.95,
        0.9,
    )
    assert len(judge.asked) == len(set(judge.asked)) == len(tries), "nothing is measured twice"
    assert settings.num_steps == start.num_steps


def test_given_settings_are_not_searched() -> None:
    judge = Bowl(guidance_scale=3.0)
    start = SamplingConfig(choice_temperature=1.0)
    settings, _ = find_settings(judge, "resgen", start, depth=8, fixed={"guidance_scale": 0.0})
    assert settings.guidance_scale == 0.0 and {s.guidance_scale for s in judge.asked} == {0.0}


def test_every_kind_is_searched_with_settings_that_it_has() -> None:
    tries = set()
    for name, kind in KINDS.items():
        _, rows = find_settings(Bowl(), name, kind.sampling(), depth=8)
        tries.add(sum(map(len, kind.search.values())))
        assert len(rows) >= 10
    assert len(tries) == 1, "the same number of tries for all"


def test_more_iterations_than_levels_are_not_tried() -> None:
    judge = Bowl()
    find_settings(judge, "ar_resgen", KINDS["ar_resgen"].sampling(), depth=2)
    assert max(sampling.num_steps for sampling in judge.asked) == 2


def rows() -> list[SweepRow]:
    grid = {"num_steps": [8, 16], "top_p": [0.9, 1.0]}
    values = torch.tensor([3.0, 1.0, 2.0, 4.0])
    best = [
        SweepRow(settings=s, score=Score(distance=float(v), recognised=None, num_samples=9, seconds=1.0, recall=0.25))
        for s, v in zip(combinations(grid), values, strict=True)
    ]
    return sorted(best, key=lambda row: row.score.distance)


def test_table_and_heat_map(tmp_path) -> None:
    text = sweep_markdown(rows(), "FD-x", "model", 9, 3)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| num_steps | top_p | FD-x | precision | recall | recognised | time [s] |"
    assert lines[2].startswith("| 8 | 1.0 | 1.000 |  | 0.250 |") and len(lines) == 6
    pytest.importorskip("matplotlib")
    grid = {"num_steps": [8, 16], "top_p": [0.9, 1.0]}
    write_sweep(tmp_path / "new", rows(), grid, metric="FD-x", model="model", num_samples=9, seed=3)
    write_sweep(tmp_path / "one", rows()[:1], {"num_steps": [8]}, metric="FD-x", model="model", num_samples=9, seed=3)
    assert (tmp_path / "new" / "sweep.png").stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["sweep.md", "sweep.png"]
