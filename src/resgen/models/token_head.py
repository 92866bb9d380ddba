"""Heads that predict the codes themselves: each level on its own (Eq. 2; the paper's ablation), or each given the ones
above it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from resgen.errors import ConfigError
from resgen.ops.mixture import at_least_float32
from resgen.ops.sampling import nucleus_choice

CHUNK_ELEMENTS = 1 << 22
INIT_STD = 0.02


class TokenHead(nn.Module):
    """D x V logits per position. Projections may run in bfloat16; logits are returned as float32.

    Without `code_dim` the levels of a position are independent given the hidden state h (direct tokens). With it,
    residual quantization is built in. With e the normalized codebooks and s the sum of the embeddings of the masked
    levels above j, which the quantizer subtracts before it looks at level j:

        p(x_j = v | h, s) = softmax_v( e(v; j) . (P_j h - Q_j s) + w_jv . h + b_jv ),  s = sum over visible <= i < j

    If the sum z of the masked embeddings were N(m(h), C), quantizing it by chance would take code v of level j with a
    probability proportional to exp(-|m(h) - s - e(v; j)|^2 / 2), in the metric of C: just this form, where P_j h stands
    for the predicted sum, Q_j for the metric, and w and b (which start at 0 and at the frequencies) for what a Gaussian
    lacks. The network thus still predicts the sum of all masked levels, codes that lie close together share what is
    learned, and all levels of a position are drawn from one network evaluation at the cost of quantizing a latent.

    **Deviation** from the paper, which draws z from a mixture of Gaussians and then quantizes it (`MixtureHead`).
    docs/adr/0004 says why, docs/results what either gives.

    Args:
        width: O, width of the input.
        depth: D.
        codebook_size: V.
        code_dim: H, to build in residual quantization; None for independent levels.

    Raises:
        ConfigError: if a size is below 1.
    """

    latent: nn.Linear | None
    metric: nn.Parameter | None

    def __init__(self, width: int, depth: int, codebook_size: int, code_dim: int | None = None) -> None:
        super().__init__()
        for name, size in (("width", width), ("depth", depth), ("codebook_size", codebook_size)):
            if size < 1:
                raise ConfigError(f"{name}={size} must be at least 1")
        self.depth = depth
        self.codebook_size = codebook_size
        self.logits = nn.Linear(width, depth * codebook_size)
        nn.init.zeros_(self.logits.bias)
        if code_dim is None:
            nn.init.normal_(self.logits.weight, std=INIT_STD)
            self.latent = None
            self.register_parameter("metric", None)
        else:
            nn.init.zeros_(self.logits.weight)
            self.latent = nn.Linear(width, depth * code_dim)
            nn.init.normal_(self.latent.weight, std=INIT_STD)
            nn.init.zeros_(self.latent.bias)
            self.metric = nn.Parameter(torch.zeros(depth, code_dim, code_dim))

    def forward(
        self, hidden: Float[Tensor, "N O"], codebooks: Float[Tensor, "D V H"], above: Float[Tensor, "N D H"]
    ) -> Float[Tensor, "N D V"]:
        """Logits of every level, for training.

        Args:
            hidden: input of the head.
            codebooks: embeddings of the codes.
            above: s of every level, see `ops.residual.residual_above`.
        """
        logits = at_least_float32(self.logits(hidden).unflatten(-1, (self.depth, self.codebook_size)))
        if self.latent is None or self.metric is None:
            return logits
        latent = self.latent(hidden).unflatten(-1, (self.depth, -1)).transpose(0, 1)
        latent = latent - torch.bmm(above.transpose(0, 1).to(self.metric.dtype), self.metric)
        near = torch.bmm(latent, normalized(codebooks).to(latent.dtype).transpose(1, 2))
        return logits + at_least_float32(near).transpose(0, 1)

    @property
    def rows_per_chunk(self) -> int:
        """Rows whose logits of one level exist at one time in `propose`."""
        return max(1, CHUNK_ELEMENTS // self.codebook_size)

    @torch.no_grad()
    def propose(
        self,
        hidden: Float[Tensor, "N O"],
        visible: Int[Tensor, " N"],
        uniform: Float[Tensor, "N D"],
        codebooks: Float[Tensor, "D V H"],
        *,
        top_p: float = 1.0,
        temperature: float = 1.0,
    ) -> tuple[Int[Tensor, "N D"], Float[Tensor, "N D"]]:
        """Draw the masked levels of every row, coarse to fine.

        Only masked levels are projected, level by level, at most `rows_per_chunk` rows at a time.

        Args:
            hidden: input of the head.
            visible: first level to draw, 0..D per row.
            uniform: one number in [0, 1) per token, best in float64; chooses the code.
            codebooks: embeddings of the codes.
            top_p: mass of the nucleus of codes, in (0, 1].
            temperature: divides the logits before the draw, > 0.

        Returns:
            Codes and their log-probabilities (float32) under the head's own distribution, that is before temperature
            and nucleus: a confidence whose unit no sampling setting changes. Both are 0 at visible levels.

        Raises:
            ConfigError: if `top_p` or `temperature` is out of range.
        """
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature} must be greater than 0")
        codes = torch.zeros(len(hidden), self.depth, dtype=torch.int64, device=hidden.device)
        log_probs = torch.zeros(len(hidden), self.depth, device=hidden.device)
        # Rows sorted by their first level: at level d the active ones are a prefix.
        order = visible.argsort(stable=True)
        active = torch.bincount(visible, minlength=self.depth + 1).cumsum(0).tolist()
        weights = self.logits.weight.unflatten(0, (self.depth, -1))
        biases = self.logits.bias.unflatten(0, (self.depth, -1))
        above = codebooks.new_zeros(len(hidden), codebooks.shape[-1])
        latents = None if self.latent is None else self.latent(hidden.to(weights.dtype)).unflatten(-1, (self.depth, -1))
        books = normalized(codebooks).to(weights.dtype)
        for level in range(self.depth):
            for rows in order[: active[level]].split(self.rows_per_chunk):
                if not len(rows):
                    continue
                logits = functional.linear(hidden[rows].to(weights.dtype), weights[level], biases[level])
                logits = logits.float()
                if latents is not None and self.metric is not None:
                    latent = latents[rows, level] - above[rows].to(weights.dtype) @ self.metric[level]
                    logits = logits + (latent @ books[level].T).float()
                log_prob = logits.log_softmax(-1)
                drawn = nucleus_choice(log_prob / temperature, uniform[rows, level], top_p)
                codes[rows, level] = drawn
                log_probs[rows, level] = log_prob.gather(1, drawn[:, None]).squeeze(1)
                above[rows] += codebooks[level][drawn]
        return codes, log_probs


def normalized(codebooks: Float[Tensor, "D V H"]) -> Float[Tensor, "D V H"]:
    """Each level's codebook with mean 0 and unit root mean square: deep levels are small, but no less to be learned."""
    centred = codebooks - codebooks.mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)
