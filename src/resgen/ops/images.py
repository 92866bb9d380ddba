"""Images in 8 bits and in [-1, 1], and distances between them."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_SIDE = 64


def at_once(size: int, most: int) -> int:
    """How many images of `size` pixels a side go through a network at a time without gradients, at least 1.

    `most` up to 64 pixels; of larger ones as many as have no more pixels than those, which bounds the memory.
    """
    return max(1, min(most, most * _SIDE**2 // size**2))


def from_uint8(pictures: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0..255 to [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_uint8(pictures: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """[-1, 1] to 0..255, rounded to the nearest and clamped."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def psnr_db(first: UInt8[Tensor, "B C Y X"], second: UInt8[Tensor, "B C Y X"]) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio of each pair of 8-bit images in decibels; at most 100 (equal images)."""
    error = (first.double() - second.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / error.clamp(min=255.0**2 * 1e-10))
