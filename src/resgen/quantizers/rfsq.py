"""Residual finite scalar quantization: a grid per level, fitted by running statistics.

Finite scalar quantization (FSQ, arXiv:2309.15505) rounds each of a few dimensions to a few equally spaced steps. The
codebook is implicit, the product of the steps, so there is nothing in it that could collapse. Here every level of a
residual chain has such a grid, laid into the latent space:

`e(v; j) = c_j + sum_k s_jk g_k(v) u_jk`

with centre `c_j`, K orthonormal axes `u_jk`, spacings `s_jk` and the grid's digits `g_k(v)`, which are whole numbers or
halves, symmetric about 0. All of them belong to the level and are learned by `update`; the rows `e(v; j)` are the
codebooks that generator, loss and sampler know. The nearest row is found by rounding every axis on its own, and what
the axes do not reach is left for the next level.

Deviations from the paper: it has one level, whose few dimensions are made by a learned linear layer and bounded by
tanh. A residual of several levels needs the quantizer's own space to be the latents': the axes are the leading
directions of the residual's covariance in place of a layer's weights (codebooks learn without gradients here), and what
lies beyond the grid takes its outermost step (clamping, as in nearest neighbour search) in place of tanh.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from resgen.errors import ConfigError
from resgen.ops.random import generator as make_generator
from resgen.ops.residual import residual_encode
from resgen.quantizers.base import Quantization, Quantizer, QuantizerConfig, track_variances
from resgen.types import LOCAL, Reduce


class RFSQuantizer(Quantizer):
    """Grids that follow the residuals' mean, leading directions and spread.

    The spacing of an axis makes its n steps span a uniform distribution of the running variance `l`:
    `s = sqrt(12 l) / n`. Every step is then used equally often where the residual is uniform, and the outermost are
    used wherever it reaches 1.7 standard deviations.

    Raises:
        ConfigError: see `grid_of`, or more steps than the latents have dimensions.
    """

    centres: Tensor
    axes: Tensor
    spreads: Tensor

    def __init__(self, config: QuantizerConfig, code_dim: int) -> None:
        super().__init__(config, code_dim)
        self.grid = grid_of(config)
        depth, count = config.depth, len(self.grid)
        if count > code_dim:
            raise ConfigError(
                f"quantizer steps={list(self.grid)} are for {count} dimensions, but the latents have {code_dim}; "
                f"use fewer or a wider code_dim"
            )
        stream = make_generator("rfsq axes", depth, count, code_dim)
        axes = _orthonormal(torch.randn(depth, code_dim, count, generator=stream))
        self.register_buffer("centres", torch.zeros(depth, code_dim))
        self.register_buffer("axes", axes)
        # As the start of the other kinds: all of unit size, level j scaled by (D - j) / D.
        scale = (depth - torch.arange(depth)) / depth
        self.register_buffer("spreads", scale.square()[:, None].expand(depth, count) / count)
        self._lay_grids()

    @torch.no_grad()
    def initialize(self, latents: Float[Tensor, "N H"], generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Principal directions of the residuals, level by level, on the latents of all processes together."""
        residual = latents.detach().float()
        size = self.codebooks.shape[-1]
        with torch.autocast(device_type=residual.device.type, enabled=False):
            for level in range(self.depth):
                total, mean = _mean(residual, reduce)
                if total == 0:
                    return
                centred = residual - mean
                covariance = reduce.sum(centred.T @ centred) / total
                values, vectors = torch.linalg.eigh(covariance.double())
                order = torch.arange(size - 1, size - 1 - len(self.grid), -1, device=values.device)
                self.centres[level] = mean
                self.axes[level] = _orthonormal(vectors[:, order].float())
                self.spreads[level] = values[order].float().clamp(min=1e-12)
                self._lay_grids(level)
                codes = residual_encode(residual, self.codebooks[level : level + 1]).codes[:, 0]
                residual = residual - self.codebooks[level][codes]
                left = reduce.sum(residual.square().sum()) / (total * size)
                self.variances[level] = left.clamp(min=1e-12)

    @torch.no_grad()
    def update(self, result: Quantization, generator: torch.Generator, reduce: Reduce = LOCAL) -> dict[str, Tensor]:
        """Fold the batch into centres, axes and spreads, then lay out the grids again; see `Quantizer.update`.

        The axes take one step of orthogonal iteration on the running covariance, which is known through the axes and
        spreads only: `U <- orth(m U diag(l) + (1 - m) C U)` with the batch's covariance `C` and the momentum `m`.
        """
        batch_variance = track_variances(self, result, reduce)
        rate = 1 - self.config.momentum
        with torch.autocast(device_type=result.residuals.device.type, enabled=False):
            for level in range(self.depth):
                h = result.residuals[level]  # h_{j-1}
                total, mean = _mean(h, reduce)
                if total == 0:
                    break
                axes, spreads = self.axes[level], self.spreads[level]
                centred = h - self.centres[level]
                turned = reduce.sum(centred.T @ (centred @ axes)) / total
                shares = (axes * turned).sum(0)  # the batch's variance along each axis
                mixed = torch.lerp(axes * spreads, turned, rate)
                self.axes[level] = _orthonormal(mixed / mixed.norm(dim=0).clamp(min=1e-30))
                self.spreads[level] = spreads.lerp(shares, rate).clamp(min=1e-12)
                self.centres[level].lerp_(mean, rate)
            else:
                self._lay_grids()
        return {"variance": batch_variance}

    def _lay_grids(self, level: int | None = None) -> None:
        """Codebooks of one level, or of all, from centres, axes and spreads."""
        part = slice(None) if level is None else slice(level, level + 1)
        steps = self.spreads.new_tensor(self.grid)
        spacings = (12 * self.spreads[part]).sqrt() / steps
        digits = grid_digits(self.grid).to(self.codebooks)
        points = torch.einsum("vk,dk,dhk->dvh", digits, spacings, self.axes[part])
        self.codebooks[part] = points + self.centres[part, None]


def grid_of(config: QuantizerConfig) -> tuple[int, ...]:
    """`steps`, or the default: V's greatest divisor up to 8, and so on with the rest; most steps first.

    Raises:
        ConfigError: steps below 2, or of another product than V.
    """
    sizes, rest = list(config.steps), 1 if config.steps else config.codebook_size
    while rest > 1:
        sizes.append(max((n for n in range(2, 9) if rest % n == 0), default=rest))
        rest //= sizes[-1]
    if math.prod(sizes) != config.codebook_size or min(sizes, default=1) < 2:
        raise ConfigError(
            f"quantizer steps={sizes} must be 2 or more each, and their product codebook_size={config.codebook_size}"
        )
    return tuple(sizes if config.steps else sorted(sizes, reverse=True))


def grid_digits(steps: tuple[int, ...]) -> Float[Tensor, "V K"]:
    """All combinations of steps, the last dimension running fastest: whole numbers or halves, symmetric about 0."""
    places = torch.cartesian_prod(*(torch.arange(count) for count in steps)).reshape(-1, len(steps))
    return places - (torch.tensor(steps) - 1) / 2


def _mean(rows: Float[Tensor, "N H"], reduce: Reduce) -> tuple[Float[Tensor, ""], Float[Tensor, " H"]]:
    """Number and mean of the rows of all processes."""
    sums = reduce.sum(torch.cat([rows.sum(0), rows.new_tensor([float(len(rows))])]))
    return sums[-1], sums[:-1] / sums[-1].clamp(min=1)


def _orthonormal(columns: Float[Tensor, "*levels H K"]) -> Float[Tensor, "*levels H K"]:
    """Gram-Schmidt of the columns, in order; the signs are the columns' own, so that small changes stay small."""
    basis, triangle = torch.linalg.qr(columns)
    signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return basis * signs.unsqueeze(-2)
