"""The mixture head: a Gaussian mixture over a position's latent from one linear projection (Sec. 3.3, App. A.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from resgen.errors import ConfigError, check_range
from resgen.models.base import INIT_STD
from resgen.ops.blocks import rows_per_block
from resgen.ops.linear import linear
from resgen.ops.mixture import (
    MixtureBound,
    at_least_float32,
    bound_from_distance,
    log_prob_from_distance,
    low_rank_squared_distance,
    squared_distance,
    standardize,
)
from resgen.ops.residual import Codebooks, residual_encode
from resgen.ops.sampling import nucleus_choice
from resgen.types import CodeSpec, LevelWalk, NoiseSize, ProposalNoise

LOG_SCALES = (-4.0, 10.0)
"""Limits of log a: the lower one keeps the density of degenerate targets finite."""
CHUNK_ELEMENTS = 1 << 22
MIN_CHUNK_ROWS = 1024
GATHER_BYTES = 32 << 20
GROUPED_TYPES = (torch.float32, torch.bfloat16)


class Head(Protocol):
    """A head for all masked levels of a position, as generator and sampler see it.

    Attributes:
        is_density: whether it predicts the sum of the masked embeddings, or else the codes themselves.
        noise: what a proposal takes.
        propose: `(hidden, visible, codebooks, noise, walk, **settings) -> codes, scores` of N positions; see
            `types.Distribution`.
    """

    is_density: ClassVar[bool]

    @property
    def noise(self) -> NoiseSize: ...

    @property
    def propose(self) -> Callable[..., tuple[Int[Tensor, "N D"], Float[Tensor, "N D"]]]: ...


class LatentHead(nn.Module):
    """Base of the heads that predict the sum of a position's masked embeddings: `sample` draws it."""

    is_density: ClassVar[bool] = True
    sample: Callable[..., tuple[Float[Tensor, "N H"], Float[Tensor, " N"]]]

    def propose(
        self,
        hidden: Float[Tensor, "N O"],
        visible: Int[Tensor, " N"],
        codebooks: Codebooks,
        noise: ProposalNoise,
        walk: LevelWalk,
        *,
        by_component: bool = False,
        **settings: Any,
    ) -> tuple[Int[Tensor, "N D"], Float[Tensor, "N D"]]:
        """Draw latents and quantize them into the masked levels (Algorithm 2, steps 1 and 2); see `types.Distribution`.

        A score is -|residual after the level|^2 / (2 sigma_d^2), see `confidence_unit`: how near the latent lies to its
        codes. With `by_component` it is how likely the latent was: log pi of its component, all at the first level.
        """
        latents, log_weights = self.sample(hidden, visible, noise, **settings)
        vectors, norms, unit = codebooks
        if not by_component:
            return residual_encode(latents, vectors, visible, walk=walk, norms=norms, unit=unit)
        scores = (torch.arange(len(vectors), device=visible.device) == visible[:, None]) * log_weights[:, None]
        draws = residual_encode(latents, vectors, visible, walk=lambda _, n: walk(scores, n), norms=norms, unit=unit)
        return draws.codes, torch.where(draws.errors.isinf(), draws.errors, scores)


class MixtureHead(LatentHead):
    """K Gaussian components with one scalar scale a and one shift b per position.

    z = b + a (mu_v + noise) with probability pi_v. The component means are the only large projection; it may run in
    bfloat16. Logits, log-scale, shift, distances and all sums over components are float32.

    Args:
        width: O, width of the input.
        num_components: K.
        code_dim: H, width of the latent.
        rank: h, or None for full means. With a rank the projection gives mu~_v in R^h, and mu_v = M_v mu~_v + s_v with
            trainable `basis` M and `offset` s.
        mean_width: how many of the input's last columns the means are projected from; all of them if left out.

    Raises:
        ConfigError: if a size is below 1 or `rank` exceeds `code_dim`.
    """

    basis: nn.Parameter | None
    offset: nn.Parameter | None

    def __init__(
        self,
        *,
        width: int,
        num_components: int,
        code_dim: int,
        rank: int | None = None,
        mean_width: int | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.mean_width = width if mean_width is None else mean_width
        self.num_components = num_components
        self.code_dim = code_dim
        check_range(self, 1, "width", "num_components", "code_dim")
        if rank is not None and not 1 <= rank <= code_dim:
            raise ConfigError(f"rank={rank} must lie in 1..code_dim={code_dim}, or be null for full means")
        self.rank = rank
        self.affine = nn.Linear(width, num_components + 1 + code_dim)
        self.means = nn.Linear(self.mean_width, num_components * (rank or code_dim))
        self.basis = None if rank is None else nn.Parameter(torch.empty(num_components, code_dim, rank))
        self.offset = None if rank is None else nn.Parameter(torch.empty(num_components, code_dim))
        self.reset_parameters()

    @classmethod
    def of(cls, config: Any, spec: CodeSpec) -> MixtureHead:
        """The head of a configuration with ResGen's fields."""
        return cls(
            width=config.width, num_components=config.num_components, code_dim=spec.code_dim, rank=config.mean_rank
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start from unit-normal means, nearly equal weights, scale 1 and shift 0 everywhere."""
        drawn = [(self.affine.weight[: self.num_components], INIT_STD), (self.means.weight, INIT_STD)]
        if self.basis is None or self.offset is None:
            drawn.append((self.means.bias, 1.0))
        else:
            drawn += [(self.basis, 1.0 / math.sqrt(self.basis.shape[-1])), (self.offset, 1.0)]
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for target, std in drawn:  # where the generator is, whatever the device of the parameters
                fresh = torch.empty(target.shape, dtype=target.dtype, device=(generator or target).device)
                target.copy_(fresh.normal_(std=std, generator=generator))

    def affine_parameters(
        self, hidden: Float[Tensor, "N O"]
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"], Float[Tensor, "N H"]]:
        """Logits of pi, log a (clamped) and b as float32.

        Computed in the type of the weights: in float32 whatever surrounds the head in training; a network converted to
        bfloat16 for sampling rounds them once.
        """
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            out = linear(hidden.to(self.affine.weight.dtype), self.affine.weight, self.affine.bias)
        out = at_least_float32(out)
        logits, log_scale, shift = out.split([self.num_components, 1, self.code_dim], dim=-1)
        return logits, log_scale.squeeze(-1).clamp(*LOG_SCALES), shift

    def squared_distance(self, hidden: Float[Tensor, "N O"], z: Float[Tensor, "N H"]) -> Float[Tensor, "N K"]:
        """|z - mu_v|^2 to the means of every component, for a standardized target z."""
        projected = self.means(hidden[:, -self.mean_width :]).unflatten(-1, (self.num_components, -1))
        if self.basis is None or self.offset is None:
            return squared_distance(z, projected, overwrite=projected.grad_fn is not None)
        return low_rank_squared_distance(z, projected, self.basis, self.offset)

    def forward(
        self,
        hidden: Float[Tensor, "N O"],
        target: Float[Tensor, "N H"],
        visible: Int[Tensor, " N"],
        smoothing: float,
    ) -> MixtureBound:
        """Training bound on the negative log-likelihood (Eq. 1), whatever is visible; holds N x K x H at once, see
        `mixture_loss`."""
        distance, logits, log_scale = self._distance(hidden, target)
        return bound_from_distance(distance, logits, log_scale, self.code_dim, smoothing)

    def _distance(
        self, hidden: Float[Tensor, "N O"], target: Float[Tensor, "N H"]
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"], Float[Tensor, " N"]]:
        """Squared distances of the standardized targets, logits and log a."""
        logits, log_scale, shift = self.affine_parameters(hidden)
        return self.squared_distance(hidden, standardize(target, log_scale, shift)), logits, log_scale

    @property
    def rows_per_chunk(self) -> int:
        """Rows to compute at once: `CHUNK_ELEMENTS` projected numbers, but enough to outweigh one weight gradient."""
        return max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // (self.num_components * (self.rank or self.code_dim)))

    @property
    def rounded(self) -> frozenset[str]:
        """See `losses.mixture.BoundHead`: the projection to the means; all else is float32 throughout."""
        return frozenset({"means.weight", "means.bias"})

    def log_prob(
        self, hidden: Float[Tensor, "N O"], target: Float[Tensor, "N H"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Exact log-likelihood of each target in nats, whatever is visible; see `losses.mixture.target_log_prob`."""
        distance, logits, log_scale = self._distance(hidden, target)
        return log_prob_from_distance(distance, logits, log_scale, self.code_dim)

    @property
    def noise(self) -> NoiseSize:
        """What a proposal takes: a uniform number for the component, and the Gaussian within it."""
        return NoiseSize(1, self.code_dim)

    @torch.no_grad()
    def sample(
        self,
        hidden: Float[Tensor, "N O"],
        visible: Int[Tensor, " N"],
        noise: ProposalNoise,
        *,
        top_p: float = 1.0,
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "N H"], Float[Tensor, " N"]]:
        """Draw latents (Algorithm 2, step 1): component, Gaussian, affine map; and log pi of the components, float32.

        The component comes first, so that only its mean is projected: never K means per position. Logits exist for a
        block of rows at a time.

        Args:
            hidden: input of the head.
            visible: not used by the plain mixture.
            noise: one uniform number per row, which chooses the component, and the Gaussian.
            top_p: mass of the nucleus of components, in (0, 1].
            temperature: scale of the Gaussian noise, >= 0.

        Raises:
            ConfigError: if `top_p` or `temperature` is out of range.
        """
        if temperature < 0.0:
            raise ConfigError(f"temperature={temperature} must be at least 0")
        size = rows_per_block(self.num_components, hidden.device)
        components, log_weights, scales, shifts = [], [], [], []
        for rows, numbers in zip(hidden.split(size), noise.uniform[:, 0].split(size), strict=True):
            logits, log_scale, shift = self.affine_parameters(rows)
            components.append(nucleus_choice(logits, numbers, top_p))
            log_weights.append(logits.gather(1, components[-1][:, None]).squeeze(1) - logits.logsumexp(1))
            scales.append(torch.exp(log_scale))
            shifts.append(shift.clone())  # without the logits that it is a part of
        mean = self.component_mean(hidden, torch.cat(components))
        latents = torch.cat(shifts) + torch.cat(scales)[:, None] * (mean + temperature * noise.normal)
        return latents, torch.cat(log_weights)

    def component_mean(self, hidden: Float[Tensor, "N O"], component: Int[Tensor, " N"]) -> Float[Tensor, "N H"]:
        """mu_v of one given component per row, in float32; rows of the same component are multiplied together."""
        order = component.argsort()
        component_ids, inputs = component[order], hidden[order, -self.mean_width :]
        weight = self.means.weight.unflatten(0, (self.num_components, -1))
        bias = self.means.bias.unflatten(0, (self.num_components, -1))
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            value = _product_per_component(inputs.to(weight.dtype), weight, component_ids)
            value = at_least_float32(value) + bias[component_ids]
            if self.basis is not None and self.offset is not None:
                value = _product_per_component(value.to(self.basis.dtype), self.basis, component_ids)
                value = at_least_float32(value) + self.offset[component_ids]
        return torch.empty_like(value).index_copy_(0, order, value)


def _product_per_component(
    rows: Float[Tensor, "N A"], weight: Float[Tensor, "K C A"], component: Int[Tensor, " N"]
) -> Float[Tensor, "N C"]:
    """Each row times its component's matrix; `component` is sorted."""
    if rows.device.type == "cpu" and len(rows) < len(weight) // 4:  # most components have no row
        present, counts = component.unique_consecutive(return_counts=True)
        parts = rows.split(counts.tolist())
        products = [part @ weight[index].T for part, index in zip(parts, present.tolist(), strict=True)]
        return torch.cat([rows.new_zeros(0, weight.shape[1]), *products])
    if rows.dtype in GROUPED_TYPES and weight.shape[2] * rows.element_size() % 16 == 0:
        ends = torch.searchsorted(component, torch.arange(len(weight), device=component.device), right=True)
        return functional.grouped_mm(rows, weight.transpose(1, 2), offs=ends.int())
    # The grouped product wants aligned rows; small and odd shapes take their matrices one by one, in pieces.
    size = max(1, GATHER_BYTES // (weight[0].numel() * weight.element_size()))
    parts = [rows.new_zeros(0, weight.shape[1])]
    for part, component_ids in zip(rows.split(size), component.split(size), strict=True):
        parts.append(torch.bmm(weight[component_ids], part[..., None]).squeeze(-1))
    return torch.cat(parts)
