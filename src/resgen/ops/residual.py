"""Residual vector quantization as pure functions (Sec. 2).

`x_j = argmin_v |h_{j-1} - e(v;j)|^2`, `h_j = h_{j-1} - e(x_j;j)`, and the decoded vector is `z = sum_j e(x_j;j)`.
Codebooks are one float32 tensor `[D, V, H]`. Everything here runs in float32 whatever the surrounding precision: a
code is an argmin over small differences of distances, which bfloat16 does not resolve.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.ops.blocks import rows_per_block, walk_levels
from resgen.types import LevelWalk


class ResidualCodes(NamedTuple):
    """Codes and what they leave over.

    Attributes:
        codes: `[N, D]`; levels before a row's `start` are 0.
        errors: `[N, D]`, squared norm of the residual after each level, `|h_j|^2`, times the level's `unit`; 0 before a
            row's `start`.
    """

    codes: Int[Tensor, "N D"]
    errors: Float[Tensor, "N D"]


class Codebooks(NamedTuple):
    """Codebooks prepared for the sampler.

    Attributes:
        vectors: one codebook per level.
        norms: squared norms of all codes, float32.
        unit: `confidence_unit` of the levels.
    """

    vectors: Float[Tensor, "D V H"]
    norms: Float[Tensor, "D V"]
    unit: Float[Tensor, " D"]

    @classmethod
    def of(cls, vectors: Float[Tensor, "D V H"], level_std: Float[Tensor, " D"]) -> Codebooks:
        """Codebooks with `sigma_d`, the root mean square of the residual after each level."""
        return cls(vectors, codebook_norms(vectors), confidence_unit(level_std))


def confidence_unit(level_std: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """Factors that turn the squared error of each level into a score: -1 / (2 sigma_d^2) (App. B.1).

    The confidence of a token is the sum of log N(residual before d; e(x_d; d), sigma_d^2 I) over the masked levels d
    down to its own. Deviation: the Gaussian's constant is dropped, which leaves -|residual after d|^2 / (2 sigma_d^2),
    so that confidence never grows with depth and the order stays coarse-first.
    """
    return -0.5 / level_std.square().clamp(min=torch.finfo(level_std.dtype).tiny)


def residual_encode(
    latents: Float[Tensor, "N H"],
    codebooks: Float[Tensor, "D V H"],
    start: Int[Tensor, " N"] | None = None,
    *,
    walk: LevelWalk | None = None,
    norms: Float[Tensor, "D V"] | None = None,
    unit: Float[Tensor, " D"] | None = None,
) -> ResidualCodes:
    """Quantize each row into the levels `start[n]..D-1`, coarse to fine (Sec. 2; step 2 of Algorithm 2).

    With `start` a row is the residual that the levels from `start` on have to express: the sum of the *masked* levels'
    embeddings, which is what ResGen predicts. Ties take the lower code. The distances to a codebook exist for a block
    of rows at one time.

    Args:
        latents: rows to quantize, any floating type.
        codebooks: one codebook per level.
        start: first level of each row in 0..D (D: nothing to do); None means 0 for all.
        walk: with `start`, which of these levels to quantize into; all of them by default. What is left out has code 0
            and an infinite error (with the sign of the unit).
        norms: `codebook_norms`, if they are known.
        unit: what the squared errors of each level are multiplied by; 1 by default.
    """
    (depth, size, _), rows = codebooks.shape, latents.shape[0]
    codes = torch.zeros(rows, depth, dtype=torch.int64, device=latents.device)
    errors = torch.zeros(rows, depth, dtype=torch.float32, device=latents.device)
    block = rows_per_block(size, latents.device)
    blocks: Iterable[tuple[int, slice | Tensor]]
    if start is None:
        blocks = ((level, slice(begin, begin + block)) for begin in range(0, rows, block) for level in range(depth))
    else:
        masked = torch.arange(depth, device=start.device) >= start[:, None]
        errors = torch.where(masked, torch.inf if unit is None else torch.inf * unit, errors)
        walk = walk or walk_levels(start, torch.full_like(start, depth))
        blocks = walk(errors, size)
    with torch.no_grad(), torch.autocast(device_type=latents.device.type, enabled=False):
        books = codebooks.float()
        norms = codebook_norms(books) if norms is None else norms
        residual = latents.detach().to(torch.float32, copy=True)
        room = residual.new_empty(min(rows, block), size)
        for level, part in blocks:
            left = residual[part]
            distance = torch.addmm(norms[level], left, books[level].T, alpha=-2, out=room[: len(left)])
            codes[part, level] = index = first_least(distance)
            residual[part] = left = left - books[level][index]
            errors[part, level] = left.square().sum(-1) * (1 if unit is None else unit[level])
    return ResidualCodes(codes, errors)


def first_least(distance: Float[Tensor, "M V"], group: int = 64) -> Int[Tensor, " M"]:
    """`distance.min(1).indices`; many on a CPU in two stages, as `amin` is vectorised there and `min` is not: the least
    of each group of neighbours, then the first of them within the first group that holds it."""
    rows, size = distance.shape
    if distance.device.type != "cpu" or rows < group or size < 8 * group or size % group:
        return distance.min(1).indices
    groups = distance.view(rows, -1, group)
    first = groups.amin(2).min(1).indices
    return first * group + groups[torch.arange(rows), first].min(1).indices


def codebook_norms(codebooks: Float[Tensor, "D V H"]) -> Float[Tensor, "D V"]:
    """Squared norms of all codes, float32."""
    return codebooks.float().square().sum(-1)


def residual_decode(
    codes: Int[Tensor, "*batch D"],
    codebooks: Float[Tensor, "E V H"],
    visible: Int[Tensor, "*batch"] | int | None = None,
) -> Float[Tensor, "*batch H"]:
    """Sum of the embeddings of the first `visible` levels (all by default): `sum_{j <= visible} e(x_j;j)`."""
    if isinstance(visible, int):
        codes, visible = codes[..., :visible], None
    total = codebooks.new_zeros(*codes.shape[:-1], codebooks.shape[-1])
    for level in range(codes.shape[-1]):
        embedded = torch.nn.functional.embedding(codes[..., level], codebooks[level])
        total = total + (embedded if visible is None else embedded * (visible > level).unsqueeze(-1))
    return total


def consistent_codes(codes: Int[Tensor, "N D"], codebooks: Float[Tensor, "D V H"], rounds: int) -> Int[Tensor, "N D"]:
    """Codes that belong to their sum: each row gives way to the codes of quantizing its own sum until it stays.

    Codes of an encoder's output do not, for many rows: the nearest code to `h_{j-1}` need not be the nearest to the sum
    of what the levels from j on express. For consistent codes, quantizing the exact `z` of any number of visible levels
    gives the masked codes back. Deviation: the paper does not ask for it.

    Args:
        codes: codes of every row.
        codebooks: one codebook per level.
        rounds: the most there are; rows that have not settled by then keep the last codes.
    """
    codes, rows = codes.clone(), torch.arange(len(codes), device=codes.device)
    for _ in range(rounds):
        again = residual_encode(residual_decode(codes[rows], codebooks.float()), codebooks).codes
        differs = (again != codes[rows]).any(dim=1)
        rows = rows[differs]
        codes[rows] = again[differs]
    return codes


def residual_suffix(
    codes: Int[Tensor, "*batch D"], codebooks: Float[Tensor, "D V H"], visible: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch H"]:
    """Sum of the embeddings of the *masked* levels, `z_i` of Sec. 3: what ResGen is trained to predict."""
    total = codebooks.new_zeros(*codes.shape[:-1], codebooks.shape[-1])
    for level in range(codes.shape[-1]):
        embedded = torch.nn.functional.embedding(codes[..., level], codebooks[level])
        total = total + embedded * (visible <= level).unsqueeze(-1)
    return total
