"""Measures of generated pictures: shares with their uncertainty, nearest neighbours."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from resgen.errors import DataError
from resgen.evaluation.image.metrics import Z_95


class Neighbours(NamedTuple):
    """The most similar reference pictures of every picture.

    Attributes:
        indices: into the reference, nearest first.
        distances: root mean square difference per pixel and channel, 0..255.
    """

    indices: Int[Tensor, "N k"]
    distances: Float[Tensor, "N k"]


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share; 95 % by default.

    Raises:
        DataError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"{successes} successes of {trials} trials: an interval needs 0 <= successes <= trials >= 1")
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def nearest_neighbours(
    pictures: UInt8[Tensor, "N C S S"],
    reference: UInt8[Tensor, "M C2 S2 S2"],
    count: int = 2,
    *,
    chunk_size: int = 4096,
) -> Neighbours:
    """The `count` reference pictures nearest to every picture in pixels, by exhaustive search.

    Args:
        pictures: 0..255.
        reference: at least `count` pictures of the same shape.
        count: neighbours per picture.
        chunk_size: reference pictures compared at one time.

    Raises:
        DataError: pictures of different shapes, or fewer references than `count`.
    """
    if pictures.shape[1:] != reference.shape[1:] or len(reference) < count:
        raise DataError(
            f"{len(reference)} references of shape {tuple(reference.shape[1:])} do not do for {count} neighbours of "
            f"pictures of shape {tuple(pictures.shape[1:])}"
        )
    rows = pictures.flatten(1).float() - 127.5
    norms = rows.square().sum(1, keepdim=True)
    best = torch.full((len(rows), 0), 0.0)
    indices = torch.zeros(len(rows), 0, dtype=torch.int64)
    for begin in range(0, len(reference), chunk_size):
        part = reference[begin : begin + chunk_size].flatten(1).float() - 127.5
        squares = torch.addmm(norms, rows, part.T, alpha=-2) + part.square().sum(1)
        number = torch.arange(begin, begin + len(part)).expand(len(rows), -1)
        best, indices = torch.cat([best, squares], 1), torch.cat([indices, number], 1)
        best, order = best.topk(min(count, best.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
    # The expansion above rounds; the distances of the chosen ones are computed directly.
    nearest = reference[indices].flatten(2).float() - 127.5
    distances = (nearest - rows[:, None]).square().mean(2).sqrt()
    distances, order = distances.sort(dim=1, stable=True)
    return Neighbours(indices.gather(1, order), distances)
