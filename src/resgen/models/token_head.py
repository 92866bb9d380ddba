"""Heads that predict the codes themselves: each level on its own (Eq. 2; the paper's ablation), or each given the ones
above it."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.models.base import INIT_STD
from resgen.ops.linear import linear
from resgen.ops.mixture import at_least_float32
from resgen.ops.residual import Codebooks
from resgen.ops.sampling import LEAST_TEMPERATURE, nucleus_choice
from resgen.types import LevelWalk, NoiseSize, ProposalNoise


class TokenHead(nn.Module):
    """D x V logits per position from one projection. It may run in bfloat16; logits are returned as float32.

    Without `code_dim` the levels of a position are independent given the hidden state h (direct tokens). With it, each
    level also sees s, the sum of the embeddings of the masked levels above it:

        p(x_j = v | h, s) = softmax_v( w_jv . h + a_jv . s + b_jv ),    s = sum of e(x_i; i) over visible <= i < j

    This is residual quantization of a predicted sum, with chance in place of the argmin: if the sum z of the masked
    embeddings were N(m(h), C), quantizing it by chance would take code v of level j with a probability proportional to
    exp(-|m(h) - s - e(v; j)|^2 / 2), in the metric of C, whose exponent is linear in h and in s but for terms that all
    codes share. Here the coefficients are free; `steering` (a) starts at 0 and the bias at the frequencies. All levels
    of a position are drawn from one network evaluation, at the cost of quantizing one latent (H x V per level).

    **Deviation** from the paper, which draws z from a mixture of Gaussians and then quantizes it (`MixtureHead`):
    docs/adr/0004 says why, docs/results what either gives.

    Args:
        width: O, width of the input.
        depth: D.
        codebook_size: V.
        code_dim: H, to let every level see the ones above; None for independent levels.

    Raises:
        ConfigError: if a size is below 1.
    """

    is_density: ClassVar[bool] = False
    steering: nn.Parameter | None

    def __init__(self, width: int, depth: int, codebook_size: int, code_dim: int | None = None) -> None:
        super().__init__()
        for name, size in (("width", width), ("depth", depth), ("codebook_size", codebook_size)):
            if size < 1:
                raise ConfigError(f"{name}={size} must be at least 1")
        self.depth = depth
        self.codebook_size = codebook_size
        self.logits = nn.Linear(width, depth * codebook_size)
        nn.init.normal_(self.logits.weight, std=INIT_STD)
        nn.init.zeros_(self.logits.bias)
        if code_dim is None:
            self.register_parameter("steering", None)
        else:
            self.steering = nn.Parameter(torch.zeros(depth, code_dim, codebook_size))

    @property
    def noise(self) -> NoiseSize:
        """What a proposal takes: a uniform number per level."""
        return NoiseSize(self.depth, 0)

    @property
    def levels(self) -> tuple[Float[Tensor, "D V O"], Float[Tensor, "D V"]]:
        """Weight and bias of every level's linear map."""
        sizes = (self.depth, self.codebook_size)
        return self.logits.weight.unflatten(0, sizes), self.logits.bias.unflatten(0, sizes)

    def forward(
        self, hidden: Float[Tensor, "N O"], above: Float[Tensor, "N D H"] | None = None
    ) -> Float[Tensor, "N D V"]:
        """Logits of every level, for training.

        Args:
            hidden: input of the head.
            above: s of every level, see `losses.tokens.residual_above`; independent levels do not read it.
        """
        logits = at_least_float32(self.logits(hidden).unflatten(-1, (self.depth, self.codebook_size)))
        if self.steering is None:
            return logits
        assert above is not None
        steered = torch.bmm(above.transpose(0, 1).to(self.steering.dtype), self.steering)
        return logits + at_least_float32(steered).transpose(0, 1)

    @torch.no_grad()
    def propose(
        self,
        hidden: Float[Tensor, "N O"],
        visible: Int[Tensor, " N"],
        codebooks: Codebooks,
        noise: ProposalNoise,
        walk: LevelWalk,
        *,
        top_p: float = 1.0,
        temperature: float = 1.0,
        by_component: bool = False,
    ) -> tuple[Int[Tensor, "N D"], Float[Tensor, "N D"]]:
        """Draw the masked levels of every row, coarse to fine; see `types.Distribution`.

        Only the levels that are drawn are projected, level by level, a block of rows at a time. The scores are
        log-probabilities (float32) under the head's own distribution, that is before temperature and nucleus: a
        confidence whose unit no sampling setting changes.

        Args:
            hidden: input of the head.
            visible: first level to draw, 0..D per row.
            codebooks: embeddings of the codes, for the sums of the levels above.
            noise: chooses the codes.
            walk: which of the masked levels to draw.
            top_p: mass of the nucleus of codes, in (0, 1].
            temperature: divides the logits before the draw, > 0.
            by_component: not used: codes have no components.

        Raises:
            ConfigError: if `top_p` or `temperature` is out of range.
        """
        if not temperature >= LEAST_TEMPERATURE:
            raise ConfigError(f"temperature={temperature} must be at least {LEAST_TEMPERATURE}")
        masked = torch.arange(self.depth, device=visible.device) >= visible[:, None]
        codes = torch.zeros_like(masked, dtype=torch.int64)
        log_probs = torch.zeros_like(masked, dtype=torch.float32).masked_fill_(masked, -torch.inf)
        above = codebooks.vectors.new_zeros(len(hidden), codebooks.vectors.shape[-1])
        hidden, (weights, biases) = hidden.to(self.logits.weight.dtype), self.levels
        for level, rows in walk(log_probs, self.codebook_size):
            logits = linear(hidden[rows], weights[level], biases[level]).float()
            if self.steering is not None:
                steering = self.steering[level]
                logits = logits + (above[rows].to(steering.dtype) @ steering).float()
            log_prob = logits.log_softmax(-1)
            draws = nucleus_choice(log_prob / temperature, noise.uniform[rows, level], top_p)
            codes[rows, level] = draws
            log_probs[rows, level] = log_prob.gather(1, draws[:, None]).squeeze(1)
            above[rows] += codebooks.vectors[level][draws]
        return codes, log_probs
