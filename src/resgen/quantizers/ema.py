"""The field's standard quantizer: k-means start, exponential moving averages, restart of dead codes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.ops.residual import residual_encode
from resgen.quantizers.base import Quantization, Quantizer, QuantizerConfig, track_variances
from resgen.types import LOCAL, Reduce


class EMAQuantizer(Quantizer):
    """Each code is the moving average of the residuals that chose it.

    All averages are *shares* of a batch (they sum to 1 over a level; restarts add to them), so momentum and the
    threshold for dead codes mean the same at every batch size and number of processes.
    """

    shares: Tensor
    sums: Tensor

    def __init__(self, config: QuantizerConfig, code_dim: int) -> None:
        super().__init__(config, code_dim)
        size = config.codebook_size
        self.register_buffer("shares", torch.full((config.depth, size), 1 / size))
        self.register_buffer("sums", self.codebooks / size)

    @torch.no_grad()
    def initialize(self, latents: Float[Tensor, "N H"], generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """k-means of the residuals, level by level, on the latents of all processes together."""
        residual = latents.detach().float()
        if reduce.sum(residual.new_tensor(float(len(residual)))) == 0:
            return
        for level in range(self.depth):
            centres = _pick_rows(residual, self.config.codebook_size, generator, reduce)
            for _ in range(self.config.kmeans_iterations):
                counts, sums = _assign(residual, centres, reduce)
                centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
            codes = residual_encode(residual, centres[None]).codes[:, 0]
            counts, _ = _accumulate(residual, codes, len(centres), reduce)
            self.codebooks[level] = centres
            self.shares[level] = counts / counts.sum()
            self.sums[level] = centres * self.shares[level][:, None]
            residual = residual - centres[codes]
            total = reduce.sum(torch.stack([residual.square().sum(), residual.new_tensor(float(residual.numel()))]))
            self.variances[level] = (total[0] / total[1]).clamp(min=1e-12)

    @torch.no_grad()
    def update(self, result: Quantization, generator: torch.Generator, reduce: Reduce = LOCAL) -> dict[str, Tensor]:
        """Fold the batch into the averages, then restart codes that hardly anybody uses; see `Quantizer.update`."""
        batch_variance = track_variances(self, result, reduce)
        restarted = torch.zeros(self.depth)
        for level in range(self.depth):
            h = result.residuals[level]
            counts, sums = _accumulate(h, result.valid_codes[:, level], self.config.codebook_size, reduce)
            total = counts.sum()
            candidates = _pick_rows(h, self.config.codebook_size, generator, reduce)
            if total == 0:
                continue
            keep = self.config.momentum
            self.shares[level].lerp_(counts / total, 1 - keep)
            self.sums[level].lerp_(sums / total, 1 - keep)
            dead = self.shares[level] < self.config.dead_threshold / self.config.codebook_size
            # A restarted code gets a fresh average too; otherwise the stale one would overwrite it at the next update.
            fresh = 1 / self.config.codebook_size
            self.shares[level] = torch.where(dead, fresh, self.shares[level])
            self.sums[level] = torch.where(dead[:, None], candidates * fresh, self.sums[level])
            share = self.shares[level][:, None]
            # Without restarts a share may fall to 0; the code then stays where it is.
            self.codebooks[level] = torch.where(share > 1e-30, self.sums[level] / share, self.codebooks[level])
            restarted[level] = dead.sum()
        return {"variance": batch_variance, "restarted": restarted}


def _accumulate(
    rows: Float[Tensor, "N H"], codes: Int[Tensor, " N"], size: int, reduce: Reduce
) -> tuple[Float[Tensor, " V"], Float[Tensor, "V H"]]:
    """Counts and sums of the rows of each code over all processes."""
    sums = rows.new_zeros(size, rows.shape[1]).index_add_(0, codes, rows)
    counts = torch.bincount(codes, minlength=size).to(rows.dtype)
    both = reduce.sum(torch.cat([sums, counts[:, None]], dim=1))
    return both[:, -1], both[:, :-1]


def _assign(
    rows: Float[Tensor, "N H"], centres: Float[Tensor, "V H"], reduce: Reduce
) -> tuple[Float[Tensor, " V"], Float[Tensor, "V H"]]:
    return _accumulate(rows, residual_encode(rows, centres[None]).codes[:, 0], len(centres), reduce)


def _pick_rows(
    rows: Float[Tensor, "N H"], size: int, generator: torch.Generator, reduce: Reduce
) -> Float[Tensor, "V H"]:
    """`size` random rows of the joint batch, the same on every process (distinct where there are enough).

    Every process draws the same indices into the concatenation of all batches and contributes the rows that it owns.
    """
    counts = torch.zeros(reduce.world_size, dtype=torch.int64, device=rows.device)
    counts[reduce.rank] = len(rows)
    counts = reduce.sum(counts)
    total, before = int(counts.sum()), int(counts[: reduce.rank].sum())
    if total == 0:
        return rows.new_zeros(size, rows.shape[1])
    order = torch.randperm(total, generator=generator)
    index = order.repeat(-(-size // total))[:size].to(rows.device) - before
    mine = (index >= 0) & (index < len(rows))
    values = rows.new_zeros(size, rows.shape[1])
    values[mine] = rows[index[mine]]
    return reduce.sum(values)
