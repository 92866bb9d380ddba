"""A mixture in a metric of its own: an affine map of the targets for each number of visible levels, and the head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from resgen.errors import ConfigError, unknown
from resgen.models.heads import CHUNK_ELEMENTS, LatentHead, MixtureHead
from resgen.models.resgen import METRICS
from resgen.ops.mixture import MixtureBound, at_least_float32
from resgen.ops.shared_means import shared_squared_distance
from resgen.types import CodeSpec, NoiseSize, ProposalNoise

MAX_SHAPES = 16
FLAG_ALIGNMENT = 8
SHRINKAGE = 1e-4
"""Of a covariance's largest eigenvalue, added to all of them."""


class TargetMetric(nn.Module):
    """y = T_c (z - m_c) for the target z of a position with c visible levels; log p(z) = log p(y) + log det T_c.

    The targets of a trained tokenizer are 35 times as large with nothing visible as with all but one level, and their
    covariance is far from round. A mixture of isotropic components with one scale fits the few large directions and
    drowns the others. T_c = S_g / s_c has one scale for each c and a lower triangular matrix of positive diagonal,
    shared by neighbouring c where there are more c than matrices; S starts at the inverse root of the covariance
    within clusters of the targets and is learned. Deviation: the paper's mixture takes z as it is (`none`).

    Args:
        depth: D; c lies in 0..D-1.
        code_dim: H.
        form: the form of S, `scale` (S is a number, not learned), `diagonal` or `triangular`.
        max_shapes: most matrices S there are.

    Raises:
        ConfigError: another form.
    """

    keeps_float32 = True
    centre: Tensor
    log_scale: Tensor
    shape_of: Tensor

    def __init__(self, depth: int, code_dim: int, form: str, max_shapes: int = MAX_SHAPES) -> None:
        super().__init__()
        if form not in METRICS[1:]:
            raise ConfigError(unknown("metric", form, METRICS))
        self.form, self.depth, self.code_dim = form, depth, code_dim
        self.num_shapes = shapes = min(depth, max_shapes)
        self.register_buffer("centre", torch.zeros(depth, code_dim))
        self.register_buffer("log_scale", torch.zeros(depth))
        self.register_buffer("shape_of", torch.arange(depth) * shapes // depth, persistent=False)
        # Flat, as everything that is not to decay.
        below = code_dim * (code_dim - 1) // 2 if form == "triangular" else 0
        self.log_diagonal = nn.Parameter(torch.zeros(shapes * code_dim), requires_grad=form != "scale")
        self.below = nn.Parameter(torch.zeros(shapes * below), requires_grad=below > 0)

    @property
    def diagonals(self) -> Float[Tensor, "G H"]:
        """Logarithms of the diagonals of S."""
        return at_least_float32(self.log_diagonal).view(self.num_shapes, self.code_dim)

    @property
    def factors(self) -> Float[Tensor, "G H H"]:
        """S, lower triangular."""
        diagonal = torch.diag_embed(self.diagonals.exp())
        if self.form != "triangular":
            return diagonal
        row, column = torch.tril_indices(self.code_dim, self.code_dim, -1, device=diagonal.device)
        below = torch.zeros_like(diagonal)
        below[:, row, column] = at_least_float32(self.below).view(self.num_shapes, -1)
        return diagonal + below

    def forward(self, z: Float[Tensor, "N H"], visible: Int[Tensor, " N"]) -> Float[Tensor, "N H"]:
        """y of each target; float32, or float64 for float64."""
        scaled = (at_least_float32(z) - self.centre[visible]) * torch.exp(-self.log_scale[visible])[:, None]
        return self._each(scaled, self.factors, visible)

    def inverse(self, y: Float[Tensor, "N H"], visible: Int[Tensor, " N"]) -> Float[Tensor, "N H"]:
        """The target of each y."""
        factors = self.factors
        identity = torch.eye(self.code_dim, dtype=factors.dtype, device=factors.device).expand_as(factors)
        inverses = torch.linalg.solve_triangular(factors, identity, upper=False)
        scaled = self._each(at_least_float32(y), inverses, visible)
        return scaled * torch.exp(self.log_scale[visible])[:, None] + self.centre[visible]

    def log_det(self, visible: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """log det T_c of each row: what the map adds to a log-density."""
        return self.diagonals.sum(1)[self.shape_of[visible]] - self.code_dim * self.log_scale[visible]

    def _each(
        self, rows: Float[Tensor, "N H"], factors: Float[Tensor, "G H H"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, "N H"]:
        """Each row times its own matrix. All G products of a row are taken: next to the network they are nothing, and
        no row waits for the device to say which matrix is its own."""
        with torch.autocast(device_type=rows.device.type, enabled=False):
            products = torch.einsum("nh,gkh->ngk", rows, factors)
        index = self.shape_of[visible][:, None, None].expand(-1, 1, self.code_dim)
        return products.gather(1, index).squeeze(1)

    @torch.no_grad()
    def standardize(self, z: Float[Tensor, "M H"], visible: int) -> Float[Tensor, "M H"]:
        """Take over mean and scale of the targets with `visible` levels visible; returns them without both, float64."""
        rows = z.double()
        mean = rows.mean(0)
        scale = (rows - mean).square().mean().sqrt().clamp(min=1e-12)
        self.centre[visible], self.log_scale[visible] = mean, scale.log()
        return (rows - mean) / scale

    @torch.no_grad()
    def fit_shape(self, shape: int, within: Float[Tensor, "H H"]) -> Float[Tensor, "H H"]:
        """Start S number `shape` at the inverse root of a covariance within clusters; returns it, float64.

        Args:
            shape: 0..G-1.
            within: float64, of the standardised targets around their clusters' centres.
        """
        if self.form == "scale":
            root = within.diagonal().mean().clamp(min=1e-12).rsqrt() * torch.eye(self.code_dim).to(within)
        else:
            matrix = torch.diag(within.diagonal()) if self.form == "diagonal" else within
            largest = torch.linalg.eigvalsh(matrix)[-1].clamp(min=1e-12)
            identity = torch.eye(self.code_dim).to(within)
            lower = torch.linalg.cholesky(matrix + SHRINKAGE * largest * identity)
            root = torch.linalg.solve_triangular(lower, identity, upper=False)
        self.log_diagonal.view(self.num_shapes, -1)[shape] = root.diagonal().log().to(self.log_diagonal)
        if self.form == "triangular":
            row, column = torch.tril_indices(self.code_dim, self.code_dim, -1, device=root.device)
            self.below.view(self.num_shapes, -1)[shape] = root[row, column].to(self.below)
        return root


class _FixedMeans(MixtureHead):
    """A mixture whose means depend on the flags alone, the input's last columns: no row has means of its own."""

    def squared_distance(self, hidden: Float[Tensor, "N O"], z: Float[Tensor, "N H"]) -> Float[Tensor, "N K"]:
        """See `MixtureHead`; float32 throughout."""
        tables = at_least_float32(self.means.weight.T + self.means.bias).unflatten(1, (self.num_components, -1))
        if self.basis is not None and self.offset is not None:
            with torch.autocast(device_type=z.device.type, enabled=False):
                tables = torch.einsum("khr,gkr->gkh", self.basis, tables) + self.offset
        return shared_squared_distance(z, tables.contiguous(), hidden[:, -self.mean_width :].argmax(1))

    @property
    def rows_per_chunk(self) -> int:
        """See `MixtureHead`: nothing of a row is larger than K."""
        return max(1, CHUNK_ELEMENTS // self.num_components)

    @property
    def rounded(self) -> frozenset[str]:
        """See `losses.mixture.BoundHead`."""
        return frozenset()


class MetricHead(LatentHead):
    """A mixture of T_c (z - m_c), whose logits, scale, shift and means have a bias for each c.

    Those biases are weights of as many inputs of the mixture, of which one is 1, so that every product stays one
    product. Their number is rounded up to the alignment of the grouped product.

    With `fixed_means` the means have nothing but that bias: the input chooses among K points of its c, shifts and
    scales them. Guidance, which extrapolates the head's input, then extrapolates no mean. Deviation, as the metric is.

    Args:
        config: a configuration with ResGen's fields.
        spec: shape of the codes.

    Raises:
        ConfigError: see `MixtureHead` and `TargetMetric`.
    """

    def __init__(self, config: Any, spec: CodeSpec) -> None:
        super().__init__()
        self.width = config.width
        self.num_flags = -(-spec.depth // FLAG_ALIGNMENT) * FLAG_ALIGNMENT
        sizes = {"num_components": config.num_components, "code_dim": spec.code_dim, "rank": config.mean_rank}
        mean_width = self.num_flags if config.fixed_means else None
        kind = _FixedMeans if config.fixed_means else MixtureHead
        self.mixture = kind(width=config.width + self.num_flags, mean_width=mean_width, **sizes)
        # One offset per component, as means of low rank have it, can start right in one metric only.
        max_shapes = MAX_SHAPES if config.mean_rank is None else 1
        self.metric = TargetMetric(spec.depth, spec.code_dim, config.metric, max_shapes)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the mixture does, with biases of 0."""
        self.mixture.reset_parameters(generator)
        with torch.no_grad():
            for part in (self.mixture.affine, self.mixture.means):
                part.weight[:, -self.num_flags :] = 0

    def flagged(self, hidden: Float[Tensor, "N O"], visible: Int[Tensor, " N"]) -> Float[Tensor, "N F"]:
        """The mixture's input: `hidden`, and which c it is."""
        return torch.cat([hidden, one_hot(visible, self.num_flags).to(hidden.dtype)], dim=1)

    def forward(
        self,
        hidden: Float[Tensor, "N O"],
        target: Float[Tensor, "N H"],
        visible: Int[Tensor, " N"],
        smoothing: float,
    ) -> MixtureBound:
        """Training bound on the negative log-likelihood of z (Eq. 1)."""
        bound = self.mixture(self.flagged(hidden, visible), self.metric(target, visible), visible, smoothing)
        log_det = self.metric.log_det(visible)
        return replace(bound, total=bound.total - log_det, regression=bound.regression - log_det)

    def log_prob(
        self, hidden: Float[Tensor, "N O"], target: Float[Tensor, "N H"], visible: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Exact log-likelihood of each target z in nats; see `losses.mixture.target_log_prob`."""
        mapped = self.mixture.log_prob(self.flagged(hidden, visible), self.metric(target, visible), visible)
        return mapped + self.metric.log_det(visible)

    @property
    def rows_per_chunk(self) -> int:
        """See `MixtureHead`."""
        return self.mixture.rows_per_chunk

    @property
    def rounded(self) -> frozenset[str]:
        """See `losses.mixture.BoundHead`."""
        return frozenset(f"mixture.{name}" for name in self.mixture.rounded)

    @property
    def noise(self) -> NoiseSize:
        """See `MixtureHead`."""
        return self.mixture.noise

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
        """Draw z; arguments as for `MixtureHead.sample`, whose noise is that of the metric."""
        inputs = self.flagged(hidden, visible)
        latents, log_weights = self.mixture.sample(inputs, visible, noise, top_p=top_p, temperature=temperature)
        return self.metric.inverse(latents, visible), log_weights
