"""What a generator is asked for: classes on one axis and on several."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from resgen.errors import ConfigError
from resgen.kinds import KINDS, build
from resgen.models.conditions import ClassCondition, class_digits
from resgen.models.resgen import ResGenConfig
from resgen.nn.seeding import seeded
from resgen.ops.axes import count_ids, join_digits
from resgen.types import CodeSpec

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(SIZES, st.data())
def test_ids_are_their_digits(sizes: list[int], data: st.DataObject) -> None:
    class_id = data.draw(st.integers(0, count_ids(sizes) - 1))
    digits = class_digits(class_id, sizes)
    assert len(digits) == len(sizes) and all(0 <= digit <= size for digit, size in zip(digits, sizes, strict=True))
    assert join_digits(digits, sizes) == class_id
    arrays = [np.array([digit, 0]) for digit in digits]
    assert join_digits(arrays, sizes).tolist() == [class_id, 0]
    tensors = class_digits(torch.tensor([class_id, 0]), sizes)
    assert [int(one[0]) for one in tensors] == digits and int(join_digits(tensors, sizes)[0]) == class_id


@given(SIZES)
def test_every_combination_has_an_id_of_its_own_and_the_first_are_those_of_the_first_axis(sizes: list[int]) -> None:
    count = min(count_ids(sizes), 3000)
    assert len({tuple(class_digits(class_id, sizes)) for class_id in range(count)}) == count
    for class_id in range(sizes[0] + 1):  # the last says nothing: `null_id`
        assert class_digits(class_id, sizes) == [class_id, *[0] * (len(sizes) - 1)]
    assert count_ids(sizes) == math.prod(size + 1 for size in sizes)


@pytest.mark.parametrize("num_classes", [0, 1, 7])
def test_one_axis_is_a_plain_embedding(num_classes: int) -> None:
    with seeded("condition"):
        condition = ClassCondition(num_classes, 6)
    with seeded("condition"):
        embedding = nn.Embedding(num_classes + 1, 6)
        nn.init.normal_(embedding.weight, std=0.02)
    assert list(condition.state_dict()) == ["embedding.weight"] and condition.null_id == num_classes
    assert torch.equal(condition.embedding.weight, embedding.weight)
    ids = torch.arange(num_classes + 1).repeat(3)
    assert torch.equal(condition(ids), embedding(ids))
    torch.manual_seed(0)
    weights = torch.randn(len(ids), 6)
    (condition(ids) * weights).sum().backward()
    (embedding(ids) * weights).sum().backward()
    assert torch.equal(condition.embedding.weight.grad, embedding.weight.grad)
    with pytest.raises(IndexError):
        condition(torch.tensor([num_classes + 1]))


def test_vectors_of_the_axes_are_summed() -> None:
    condition = ClassCondition(3, 4, (2, 5))
    rows = condition.embedding.weight
    assert rows.shape == (3 + 1 + 2 + 1 + 5 + 1, 4)
    ids = join_digits([torch.tensor([2, 3, 0]), torch.tensor([0, 0, 2]), torch.tensor([5, 0, 1])], condition.sizes)
    expected = torch.stack([rows[2] + rows[4] + rows[7 + 5], rows[3] + rows[4] + rows[7], rows[0] + rows[6] + rows[8]])
    assert torch.allclose(condition(ids), expected) and int(ids[1]) == condition.null_id == 3
    with pytest.raises(IndexError):
        condition(torch.tensor([count_ids(condition.sizes)]))


@pytest.mark.parametrize("axes", [(0,), (3, -1)])
def test_axes_without_classes(axes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="other_axes="):
        ResGenConfig(num_classes=2, other_axes=axes)
    with pytest.raises(ConfigError, match="num_classes=0 must be at least 1"):
        ResGenConfig(num_classes=0, other_axes=(2,))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_takes_axes(kind: str) -> None:
    base = ResGenConfig(
        width=16, num_layers=1, num_heads=2, mlp_width=16, condition_width=16, num_components=2,
        num_classes=3, other_axes=(2, 4),
    )  # fmt: skip
    config = KINDS[kind].sized(base, 1)
    assert (config.num_classes, config.other_axes) == (3, (2, 4))
    model = build(config, CodeSpec(depth=2, codebook_size=8, code_dim=4, shape=(2, 2)))
    assert model.condition.sizes == (3, 2, 4) and len(model.condition.embedding.weight) == 4 + 3 + 5
