"""What all generators share: the tokenizer's codebooks, frozen and scaled."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.models.conditions import ClassCondition
from resgen.ops.residual import residual_decode, residual_suffix
from resgen.types import CodeSpec


class CodeModel(nn.Module):
    """Base of the generators, abstract. A generator knows codes and codebooks, never the tokenizer or the modality they
    come from.

    Attributes:
        config: of the concrete class; has at least `num_classes` and `class_dropout`.
        spec: shape of the codes.
        condition: embedding of the class.
        codebooks: float32 buffer `[D, V, H]`, the tokenizer's times `latent_scale`, so that full sums have unit
            standard deviation (a **Default** of the method, Sec. 4).
        level_std: float32 buffer `[D]`, the scaled `sigma_d` of confidence scoring.
    """

    codebooks: Tensor
    level_std: Tensor
    latent_scale: Tensor
    config: Any
    condition: ClassCondition

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("codebooks", torch.zeros(spec.depth, spec.codebook_size, spec.code_dim))
        self.register_buffer("level_std", torch.ones(spec.depth))
        self.register_buffer("latent_scale", torch.ones(()))

    @torch.no_grad()
    def set_codebooks(
        self, codebooks: Float[Tensor, "D V H"], variances: Float[Tensor, " D"], codes: Int[Tensor, "B L D"]
    ) -> None:
        """Take over a tokenizer's codebooks, scaled so that the full sums of `codes` have unit standard deviation.

        Raises:
            ConfigError: codebooks of another shape than the model's.
        """
        if codebooks.shape != self.codebooks.shape:
            raise ConfigError(
                f"codebooks of shape {tuple(codebooks.shape)} do not fit; "
                f"the model takes {tuple(self.codebooks.shape)} (D, V, H)"
            )
        std = residual_decode(codes.to(codebooks.device), codebooks.float()).double().std().clamp(min=1e-8)
        self.latent_scale.fill_(1 / std)
        self.codebooks.copy_(codebooks * self.latent_scale)
        self.level_std.copy_(variances.sqrt() * self.latent_scale)

    def known(self, codes: Int[Tensor, "*batch D"], visible: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch H"]:
        """The sum of the scaled embeddings of the visible levels; masked codes are never looked at."""
        return residual_decode(codes, self.codebooks, visible)

    def target(self, codes: Int[Tensor, "*batch D"], visible: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch H"]:
        """`z_i`: the sum of the scaled embeddings of the masked levels."""
        return residual_suffix(codes, self.codebooks, visible)
