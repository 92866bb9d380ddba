"""Class ids and their digits on several axes."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from resgen.models.conditions import class_digits
from resgen.ops.axes import count_ids, join_digits

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
