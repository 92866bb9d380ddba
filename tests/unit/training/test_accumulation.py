"""One gradient, however a batch is divided over micro-batches and processes: of every kind, part and modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from processes import run_threads
from resgen.ops.random import generator
from resgen.types import LOCAL, Reduce
from steps import losses
from task_parts import BATCH, MAKERS


def step(task: Any, parts: int, reduce: Reduce = LOCAL) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients by group and sums of losses and metrics of this process's parts of a step."""
    groups, sums = task.optimizer_groups(), {}
    task.module.zero_grad()
    for group, loss, metrics in losses(task, torch.arange(BATCH).flip(0), 3, generator("step"), parts, reduce):
        loss.backward(inputs=groups[group])
        for name, value in {group: loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    empty = torch.zeros(())
    gradients = {
        name: torch.cat([empty[None] if p.grad is None else p.grad.flatten() for p in parameters])
        for name, parameters in groups.items()
    }
    return gradients, sums


@pytest.mark.parametrize("name", MAKERS)
def test_one_gradient_however_a_batch_is_divided(name: str, tmp_path: Path) -> None:
    make = MAKERS[name]
    expected, values = step(make(tmp_path / "whole"), 1)
    assert all(gradient.norm() > 0 for gradient in expected.values()) and len(values) >= len(expected)
    for parts in (2, 4, 8):
        check(*step(make(tmp_path / str(parts)), parts), expected, values)
    tasks = [make(tmp_path / f"rank{rank}") for rank in range(2)]
    for parts in (1, 4):
        shares = run_threads(2, lambda reduce, parts=parts: step(tasks[reduce.rank], parts, reduce))
        gradients = {group: shares[0][0][group] + shares[1][0][group] for group in expected}
        check(gradients, {key: shares[0][1][key] + shares[1][1][key] for key in values}, expected, values)


def check(
    gradients: dict[str, Tensor],
    sums: dict[str, float],
    expected: dict[str, Tensor],
    values: dict[str, float],
) -> None:
    for group, gradient in gradients.items():
        assert float((gradient - expected[group]).norm() / expected[group].norm()) < 1e-5, group
    assert sums == pytest.approx(values, rel=1e-5, abs=1e-7)
