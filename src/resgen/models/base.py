"""What all generators share: the tokenizer's codebooks, frozen and scaled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError, check_range
from resgen.models.conditions import ClassCondition, FeatureInput
from resgen.nn.positions import Positions
from resgen.nn.transformer import SharedModulation, Transformer
from resgen.ops.residual import residual_decode, residual_suffix
from resgen.types import CodeSpec, SequenceCondition

INIT_STD = 0.02


def check_config(config: Any, sizes: Iterable[str]) -> None:
    """Validate what the configurations of all generators have in common.

    Raises:
        ConfigError: one of the fields `sizes` is below 1, the heads do not divide the width, or the settings of the
            condition are out of range.
    """
    check_range(config, 1, *sizes, "feature_stride")
    check_range(config, 0, "num_classes", "feature_width")
    if config.width % config.num_heads:
        raise ConfigError(f"width={config.width} must be a multiple of num_heads={config.num_heads}")
    check_range(config, 0, "class_dropout", below=1)
    if config.other_axes:
        check_range(config, 1, "num_classes", "other_axes")


class CodeModel(nn.Module):
    """Base of the generators, abstract. A generator knows codes and codebooks, never the tokenizer or the modality they
    come from.

    Attributes:
        config: configuration of the concrete class; has at least `num_classes`, `class_dropout`, `feature_width` and
            `feature_stride`.
        spec: shape of the codes.
        condition: embedding of the class.
        modulation: modulation of the transformer, from the condition.
        transformer: over positions.
        positions: where each one is.
        features: input of the features of every position; None for a model without.
        codebooks: float32 buffer `[D, V, H]`, the tokenizer's times `latent_scale`, so that full sums have unit
            standard deviation (a **Default** of the method, Sec. 4).
        level_std: float32 buffer `[D]`, the scaled `sigma_d` of confidence scoring.
    """

    codebooks: Tensor
    level_std: Tensor
    latent_scale: Tensor
    config: Any
    input: nn.Linear
    condition: ClassCondition
    modulation: SharedModulation
    transformer: Transformer
    positions: Positions
    features: FeatureInput | None

    def __init__(self, config: Any, spec: CodeSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        width = config.feature_width
        self.features = FeatureInput(width, config.feature_stride, config.width) if width else None
        self.register_buffer("codebooks", torch.zeros(spec.depth, spec.codebook_size, spec.code_dim))
        self.register_buffer("level_std", torch.ones(spec.depth))
        self.register_buffer("latent_scale", torch.ones(()))

    def feature_vectors(self, sequence: SequenceCondition | None) -> Float[Tensor, "B L O"] | None:
        """The features of a batch as one vector per position; None where there are none.

        Raises:
            ConfigError: features for a model that takes none, or none for one that does.
        """
        if self.features is not None and sequence is not None:
            return self.features(sequence)
        if self.features is not None or (sequence is not None and sequence.features is not None):
            state = "features are" if self.features is None else "no features are"
            raise ConfigError(f"feature_width={self.config.feature_width}, but {state} given")
        return None

    def branches(
        self, sequence: SequenceCondition | None, prompt_guidance: float = 0.0
    ) -> tuple[Float[Tensor, "C L O"] | None, Bool[Tensor, "C L"] | None]:
        """Feature vectors and attended positions of the branches of guidance, one branch after the other.

        The first is the request. The next is unconditional; it is omitted with a `prompt_guidance` of 1. The last, with
        one above 0, is the request without its prompt, or unconditional for samples that have none.
        """
        if sequence is None:
            return self.feature_vectors(None), None
        prompted = sequence.prompt.any(1)
        nothing = replace(sequence, keep=torch.zeros_like(prompted))
        requests, attended = [sequence], [sequence.attended]
        if prompt_guidance < 1:
            requests.append(nothing)
        if prompt_guidance > 0:
            requests.append(replace(sequence, keep=prompted))
        attended += [nothing.attended] * (len(requests) - 1)
        parts = [vectors for vectors in map(self.feature_vectors, requests) if vectors is not None]
        return torch.cat(parts) if parts else None, torch.cat(attended)

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
