"""What processes have in common: settings that must agree, metrics that are averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from processes import ThreadReduce, run_threads
from resgen.errors import ConfigError, TrainingError
from resgen.training.agreement import check_agreement
from resgen.training.log import Pending
from resgen.types import LOCAL

SETTINGS = {"training": {"learning_rate": 0.1, "device": "cuda:0", "betas": [0.9, 0.95]}, "data": "abc", "ä": None}


def test_processes_that_agree() -> None:
    check_agreement({"alone": 1}, LOCAL)

    def own_device(reduce: ThreadReduce) -> None:
        check_agreement({**SETTINGS, "training": {**SETTINGS["training"], "device": f"cuda:{reduce.rank}"}}, reduce)

    assert run_threads(3, own_device) == [None] * 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": "abd"}, "process 0 has data=abc, process 2 has data=abd"),
        (
            {"training": {"learning_rate": 0.2}},
            "process 0 has training.betas=[0.9, 0.95], process 2 has ",
        ),
        ({"more": True}, "process 0 has more=<absent>, process 2 has more=True"),
        ({"ä": "ö"}, "process 0 has ä=None, process 2 has ä=ö"),
    ],
)
def test_all_are_refused_if_one_differs(change: dict[str, Any], named: str) -> None:
    errors = run_threads(3, lambda reduce: check_agreement(SETTINGS | (change if reduce.rank == 2 else {}), reduce))
    assert all(isinstance(error, ConfigError) and named in str(error) for error in errors), errors
    assert len(set(map(str, errors))) == 1 and "start all with the same command" in str(errors[0])


def test_metrics_are_means_over_processes() -> None:
    def work(reduce: ThreadReduce) -> dict[str, list[float]]:
        pending = Pending()
        for value in (1.0, 2.0):
            pending.add("mse", torch.tensor(value + 10 * reduce.rank))
        pending.add("loss", torch.tensor(0.1))
        pending.average(reduce)
        first = pending.values()
        pending.average(reduce)
        assert pending.values() == first, "what is averaged stays as it is"
        restored = Pending(first)
        for part in (pending, restored):
            part.add("mse", float(reduce.rank))
            part.average(reduce)
        assert restored.values() == pending.values(), "after a checkpoint as without one"
        pending.clear()
        pending.add("mse", 3.0 * reduce.rank)
        pending.average(reduce)
        assert pending.means() == {"mse": 3.0}
        return restored.values()

    errors = run_threads(3, work)
    assert errors == [{"mse": [11.0, 12.0, 1.0], "loss": [float(torch.tensor(0.1))]}] * 3


@pytest.mark.parametrize("name", ["other", "mse"])
def test_different_metrics_are_refused(name: str) -> None:
    def work(reduce: ThreadReduce) -> None:
        pending = Pending()
        pending.add("mse", 1.0)
        if reduce.rank:
            pending.add(name, 2.0)
        pending.average(reduce)

    errors = run_threads(2, work)
    assert all(isinstance(error, TrainingError) and "noted different metrics" in str(error) for error in errors)


def test_alone_nothing_is_averaged() -> None:
    pending = Pending()
    pending.add("mse", 1.0)
    pending.average(LOCAL)
    assert pending.values() == {"mse": [1.0]}
