"""The contract of every residual quantizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError, check_range
from resgen.ops.random import generator as make_generator
from resgen.ops.residual import consistent_codes, residual_decode, residual_encode
from resgen.types import LOCAL, CodeSpec, Reduce


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Settings of a residual quantizer.

    Attributes:
        kind: `probabilistic` (the paper's, App. A.1), `ema` (k-means start, moving averages, restart of dead codes) or
            `rfsq` (a grid per level, fitted by moving statistics).
        depth: D, number of levels.
        codebook_size: V, entries per level.
        momentum: how much of a code (probabilistic), of its average (ema) or of a level's statistics (rfsq) one update
            keeps, in [0, 1).
        variance_momentum: the same for the running variance of each level.
        kmeans_iterations: Lloyd iterations of the k-means start (ema only).
        dead_threshold: a code is restarted when its share of the positions falls below `dead_threshold / V` (ema
            only); a share, not a count, so that the batch size does not matter. In [0, 1); 0 restarts none.
        steps: steps of each dimension of a level's grid (rfsq only), 2 or more each; their product is V. Empty for
            the fewest dimensions of up to 8 steps each, such as 8 x 8 x 4 for 256.
        consistent_rounds: the most rounds in which codes give way to those of quantizing their own sum, so that a
            generator's exact prediction is quantized to them (see `ops.residual.consistent_codes`); 0 keeps the codes
            of the latents.
    """

    kind: Literal["probabilistic", "ema", "rfsq"] = "probabilistic"
    depth: int = 8
    codebook_size: int = 1024
    momentum: float = 0.999
    variance_momentum: float = 0.999
    kmeans_iterations: int = 10
    dead_threshold: float = 0.03
    steps: tuple[int, ...] = ()
    consistent_rounds: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("probabilistic", "ema", "rfsq"):
            raise ConfigError(f"quantizer kind='{self.kind}' must be 'probabilistic', 'ema' or 'rfsq'")
        check_range(self, 1, "depth", "codebook_size")
        check_range(self, 0, "kmeans_iterations", "consistent_rounds")
        check_range(self, 0, "momentum", "variance_momentum", "dead_threshold", below=1)
        if self.steps and self.kind != "rfsq":
            raise ConfigError(f"quantizer steps={list(self.steps)} must be empty: kind='{self.kind}' has no grid")

    def spec(self, code_dim: int, shape: tuple[int, ...]) -> CodeSpec:
        """The shape of the codes of latents of width `code_dim` at `shape` positions."""
        return CodeSpec(depth=self.depth, codebook_size=self.codebook_size, code_dim=code_dim, shape=shape)


@dataclass(frozen=True)
class Quantization:
    """The result of quantizing a batch.

    Attributes:
        codes: `[..., D]`; 0 at positions that are not valid.
        quantized: `[..., H]`, the decoded sum with the straight-through gradient to the latents; 0 at positions that
            are not valid.
        commitment: scalar, `sum_j |h_j|^2` averaged over H and over valid positions; every level contributes.
        residuals: `[D + 1, N, H]`, detached float32 `h_0 .. h_D` of the N valid positions: what `update` learns from.
        valid_codes: `[N, D]`, the codes of the same positions.
    """

    codes: Int[Tensor, "*batch D"]
    quantized: Float[Tensor, "*batch H"]
    commitment: Float[Tensor, ""]
    residuals: Float[Tensor, "E N H"]
    valid_codes: Int[Tensor, "N D"]


class Quantizer(nn.Module, ABC):
    """A residual quantizer: frozen-in-the-graph float32 codebooks that learn by `update`, never by gradients.

    Nothing depends on train or eval mode: `quantize` never changes the codebooks and `update` always does.
    """

    codebooks: Tensor
    variances: Tensor

    def __init__(self, config: QuantizerConfig, code_dim: int) -> None:
        super().__init__()
        self.config, self.depth = config, config.depth
        self.register_buffer("codebooks", initial_codebooks(config.depth, config.codebook_size, code_dim))
        self.register_buffer("variances", torch.ones(config.depth))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """Codebooks and statistics keep their type when the network around them is converted to another."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def encode(self, latents: Float[Tensor, "*batch H"]) -> Int[Tensor, "*batch D"]:
        """Codes of the latents, coarse to fine; consistent ones if the configuration asks for them."""
        codes = residual_encode(latents.reshape(-1, latents.shape[-1]), self.codebooks).codes
        codes = consistent_codes(codes, self.codebooks, self.config.consistent_rounds)
        return codes.reshape(*latents.shape[:-1], self.depth)

    def decode(
        self, codes: Int[Tensor, "*batch D"], num_levels: Int[Tensor, "*batch"] | int | None = None
    ) -> Float[Tensor, "*batch H"]:
        """Sum of the embeddings of the first `num_levels` levels (all by default); one number, or one per position."""
        return residual_decode(codes, self.codebooks, num_levels)

    def quantize(self, latents: Float[Tensor, "*batch H"], valid: Bool[Tensor, "*batch"] | None = None) -> Quantization:
        """Codes, straight-through latents and the commitment loss; changes nothing.

        Args:
            latents: encoder outputs in any floating type; arithmetic is float32.
            valid: True where a position is not padding; all by default.
        """
        flat = latents.reshape(-1, latents.shape[-1]).float()
        keep = None if valid is None else valid.reshape(-1).nonzero().squeeze(1)
        rows = flat if keep is None else flat[keep]
        codes = self.encode(rows)
        residuals, commitment = [rows], rows.new_zeros(())
        for level in range(self.depth):
            residuals.append(residuals[-1] - self.codebooks[level][codes[:, level]])
            commitment = commitment + residuals[-1].square().sum()
        commitment = commitment / max(rows.numel(), 1)
        quantized = rows + (rows - residuals[-1] - rows).detach()
        if keep is not None:
            quantized = torch.zeros_like(flat).index_copy(0, keep, quantized)
        all_codes = codes if keep is None else codes.new_zeros(flat.shape[0], self.depth).index_copy(0, keep, codes)
        return Quantization(
            codes=all_codes.reshape(*latents.shape[:-1], self.depth),
            quantized=quantized.reshape(latents.shape),
            commitment=commitment,
            residuals=torch.stack([r.detach() for r in residuals]),
            valid_codes=codes,
        )

    def initialize(self, latents: Float[Tensor, "N H"], generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Start the codebooks from encoder outputs, where the kind does so; called once before training."""

    @abstractmethod
    def update(self, result: Quantization, generator: torch.Generator, reduce: Reduce = LOCAL) -> dict[str, Tensor]:
        """Move the codebooks towards the latents of `result`; statistics are combined over processes by `reduce`.

        With N processes the codebooks become those of one process on the joint batch, up to rounding.

        Returns:
            Per-level statistics for the log, each `[D]`.
        """


def initial_codebooks(depth: int, codebook_size: int, code_dim: int) -> Float[Tensor, "D V H"]:
    """Unit-norm random rows, level j scaled by (D - j) / D (App. A.1)."""
    stream = make_generator("codebooks", depth, codebook_size, code_dim)
    rows = torch.randn(depth, codebook_size, code_dim, generator=stream)
    scale = (depth - torch.arange(depth)) / depth
    return nn.functional.normalize(rows, dim=-1) * scale[:, None, None]


@torch.no_grad()
def track_variances(quantizer: Quantizer, result: Quantization, reduce: Reduce) -> Float[Tensor, " D"]:
    """`s2_j = mean of h_j^2` over elements and processes, also folded into the running variances (step 2 of App.
    A.1)."""
    residuals = result.residuals[1:]
    sums = torch.cat([residuals.square().sum((1, 2)), residuals.new_tensor([float(residuals[0].numel())])])
    sums = reduce.sum(sums)
    batch = (sums[:-1] / sums[-1].clamp(min=1)).clamp(min=1e-12)
    if sums[-1] > 0:
        quantizer.variances.lerp_(batch, 1 - quantizer.config.variance_momentum)
    return batch
