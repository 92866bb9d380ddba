"""Values are known where they follow from known ones; bytes and operations are those of the block."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from resgen.training.tracing import CPU, EvenDraws, KnownValues, StepCost


@pytest.fixture
def known() -> Iterator[KnownValues]:
    with FakeTensorMode(allow_non_fake_inputs=True), KnownValues() as values:
        yield values


def test_what_follows_from_known_values_is_known(known: KnownValues) -> None:
    numbers = known.place(torch.tensor([3, 0, 2]), CPU)
    rows = (numbers > 0).nonzero().squeeze(1)
    assert rows.shape == (2,) and rows.tolist() == [0, 2]
    assert int(numbers.sum()) == 5 and known.of(torch.arange(3) * numbers).tolist() == [0, 0, 4]  # type: ignore[union-attr]
    stream = torch.Generator().manual_seed(0)
    drawn = known.of(torch.rand(3, generator=stream))
    assert drawn is not None and torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_what_follows_from_unknown_values_is_not() -> None:
    with FakeTensorMode():
        weight = torch.empty(3)
        with KnownValues() as known:
            assert known.of(weight) is None and known.of(weight + torch.ones(3)) is None
            with pytest.raises(DynamicOutputShapeException):
                weight.nonzero()
            buffer = torch.zeros(3)
            part = buffer[:2]
            assert known.of(part) is not None
            buffer += weight
            assert known.of(buffer) is None and known.of(part) is None, "views of what is overwritten, too"


def test_draws_of_samples_are_evenly_spaced() -> None:
    with FakeTensorMode(), EvenDraws() as known:
        values = known.of(torch.rand(4, generator=torch.Generator()))
        assert values is not None and values.tolist() == [0.125, 0.375, 0.625, 0.875]


def test_bytes_and_operations_of_a_block() -> None:
    with FakeTensorMode():
        module = nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU())
        cost = StepCost(module, {module[0]: "linear"})
        with cost:
            x = torch.empty(4, 8)
            y = module(x)
            assert cost.by_item() == {"loss": 4 * (4 * 8 + 4 * 16), "linear": 4 * 4 * 16}
            assert cost.operations == 2 * 4 * 8 * 16
            y.sum().backward()
            assert cost.operations == 2 * 2 * 4 * 8 * 16  # the input needs no gradient
            most = cost.largest
            del x, y
            assert sum(cost.by_item().values()) == 4 * 8 * 16  # the gradient of the weight
            cost.restart()
            assert most > cost.largest == 4 * 8 * 16
