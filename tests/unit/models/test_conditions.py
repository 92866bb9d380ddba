"""What a generator is asked for: classes on one axis and on several."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resgen.errors import ConfigError
from resgen.kinds import KINDS, build
from resgen.models.conditions import ClassCondition
from resgen.models.resgen import ResGenConfig
from resgen.nn.seeding import seeded
from resgen.ops.axes import count_ids, join_digits
from resgen.types import CodeSpec


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
