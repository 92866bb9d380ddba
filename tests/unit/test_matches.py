"""Suggestions for names that nobody knows."""

from __future__ import annotations

from resgen.matches import nearest, unknown_of_many


def test_of_many_names_the_nearest_three_are_named() -> None:
    keys = [f"{stage}_training.{name}" for stage in "abc" for name in ("num_steps", *(f"x{k}y" for k in range(20)))]
    line = unknown_of_many("key", "training.num_step", keys)
    assert line == (
        "unknown key 'training.num_step' (did you mean 'a_training.num_steps' or 'b_training.num_steps' or "
        "'c_training.num_steps'?); 63 are allowed"
    )


def test_of_few_names_all_are_named() -> None:
    assert unknown_of_many("key", "stpes", ["steps", "size"]) == (
        "unknown key 'stpes' (did you mean 'steps'?); allowed: steps, size"
    )
    assert unknown_of_many("key", "zzz", ["steps"]) == "unknown key 'zzz'; allowed: steps"


def test_last_parts_count_by_themselves() -> None:
    assert nearest("num_stepz", ["data.path", "generator_training.num_steps"], 1) == ["generator_training.num_steps"]
