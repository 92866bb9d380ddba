"""Gradients of several processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from processes import run_threads
from resgen.training import parallel
from resgen.types import LOCAL, Reduce


@pytest.mark.parametrize("bucket", [1, 5, 1 << 20])
def test_the_mean_of_gradients(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that one process lacks counts as zero there; one that all lack stays away."""
    monkeypatch.setattr(parallel, "_BUCKET_NUMBERS", bucket)

    def work(reduce: Reduce) -> list[Tensor | None]:
        parameters = [nn.Parameter(torch.zeros(size)) for size in (2, 3, 4)]
        parameters[0].grad = torch.full((2,), 1.0 + 2.0 * reduce.rank)
        if reduce.rank == 1:
            parameters[1].grad = torch.full((3,), 6.0)
        parallel.average_gradients(iter(parameters), reduce)
        return [parameter.grad for parameter in parameters]

    for first, second, third in run_threads(2, work):
        assert first is not None and first.tolist() == [2.0, 2.0]
        assert second is not None and second.tolist() == [3.0, 3.0, 3.0]
        assert third is None


def test_a_single_process_keeps_its_gradients() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = gradient = torch.ones(2)
    parallel.average_gradients([parameter], LOCAL)
    assert parameter.grad is gradient


def test_what_is_there_is_asked_once_and_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question to the device would wait for its backward pass; one for each bucket would hold up the next."""
    monkeypatch.setattr(parallel, "_BUCKET_NUMBERS", 1)
    asked: list[torch.device] = []

    class TwoOfMeta:
        rank, world_size = 0, 2

        def sum(self, value: Tensor) -> Tensor:
            return value

        def max(self, value: Tensor) -> Tensor:
            asked.append(value.device)
            return value

    parameters = [nn.Parameter(torch.zeros(2, device="meta")) for _ in range(3)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter, requires_grad=False)
    parallel.average_gradients(parameters, TwoOfMeta())
    assert asked == [torch.device("cpu")]
