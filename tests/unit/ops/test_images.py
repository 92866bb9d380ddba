"""Images between 8-bit and [-1, 1]."""

from __future__ import annotations

import math

import pytest
import torch

from resgen.ops.images import at_once, from_uint8, psnr_db, to_uint8


def test_every_grey_value_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    floats = from_uint8(values)
    assert floats.dtype == torch.float32
    assert floats.min() == -1 and floats.max() == 1
    assert (floats.flatten().diff() > 0).all()
    assert torch.equal(to_uint8(floats), values)


def test_to_uint8_rounds_and_clamps() -> None:
    numbers = torch.tensor([-5.0, -1.0, 0.0, 0.003, 0.0051, 1.0, 1.01, torch.inf, -torch.inf])
    assert to_uint8(numbers).tolist() == [0, 0, 128, 128, 128, 255, 255, 255, 0]
    assert to_uint8(torch.tensor([100.4 / 127.5 - 1, 100.6 / 127.5 - 1])).tolist() == [100, 101]


def test_to_uint8_takes_bfloat16() -> None:
    numbers = torch.linspace(-1, 1, 50).bfloat16()
    assert torch.equal(to_uint8(numbers), to_uint8(numbers.float()))


def test_psnr_known_answers() -> None:
    black = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    other = black.clone()
    other[1, 0, 0, 0] = 2  # mean square 1
    other[2] = 255
    other[3, 0, 1, 1] = 200  # mean square 10000
    expected = [100.0, 20 * math.log10(255), 0.0, 20 * math.log10(2.55)]
    assert psnr_db(black, other).tolist() == pytest.approx(expected, abs=1e-9)
    assert psnr_db(other, black).tolist() == pytest.approx(expected, abs=1e-9), "8-bit differences must not wrap around"


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [(8, 256, 256), (64, 256, 256), (65, 256, 248), (128, 256, 64), (256, 512, 32), (2048, 256, 1)],
)
def test_larger_pictures_go_through_in_smaller_parts(size: int, most: int, expected: int) -> None:
    assert at_once(size, most) == expected
