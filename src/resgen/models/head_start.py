"""The mixture head's start from data: components at the centres of clusters of the targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from resgen.errors import ConfigError
from resgen.models.heads import MixtureHead
from resgen.models.metric import MetricHead
from resgen.ops.residual import residual_encode

MAX_ROWS = 16_384
ITERATIONS = 5
MIN_SCALE = 0.05
MAX_SPREAD = 8.0
"""Of the components, root mean square, in a metric. As many components as there are different targets leave nothing
within the clusters, and far components are a burden: the scale a moves them all."""

Targets = Callable[[int], Float[Tensor, "M H"]]


@torch.no_grad()
def start_mixture(head: MixtureHead | MetricHead, targets: Targets, generator: torch.Generator) -> None:
    """Make the untrained head a mixture fitted to the targets, nearly the same for every input.

    Deviation: the paper does not state an initialisation. From a random start all components are far from the data and
    nearly equal, and they part slowly. Here the means mu_v are the centres of clusters of the targets, in the unit of
    the root mean square distance to them, and the weights pi_v the clusters' shares. Without a metric that is done for
    c = 0 visible levels alone. With one it is done for every c, in the metric of the clusters; means of low rank, whose
    offset knows no c, share the clusters of all c.

    Args:
        head: to be started.
        targets: z of the positions of a data set with c levels visible, by c. More than 16,384 are subsampled; fewer
            than there are components are repeated with a little noise.
        generator: source of randomness; its device may differ from that of the targets.

    Raises:
        ConfigError: if there are no targets or they are of another width.
    """
    first = targets(0)
    code_dim = (head.mixture if isinstance(head, MetricHead) else head).code_dim
    if first.ndim != 2 or first.shape[0] == 0 or first.shape[1] != code_dim:
        raise ConfigError(f"targets of shape {tuple(first.shape)}; needed: one or more rows of {code_dim}")
    head.reset_parameters(generator)
    if isinstance(head, MetricHead):
        _start_metric(head, targets, generator)
        return
    clusters = _cluster(_sample(first.float(), MAX_ROWS, generator), head.num_components, generator)
    scale = clusters.within.square().mean().sqrt().clamp(MIN_SCALE, 1.0)
    means = head.means.bias.unflatten(0, (head.num_components, -1)) if head.offset is None else head.offset
    means.copy_(clusters.centres / scale)
    head.affine.bias[: head.num_components] = _log_shares(clusters.nearest, head.num_components)
    head.affine.bias[head.num_components] = scale.log()


def _start_metric(head: MetricHead, targets: Targets, generator: torch.Generator) -> None:
    """The start in a metric; scale and shift stay at 1 and 0, as the metric makes them."""
    mixture, metric = head.mixture, head.metric
    for shape in range(metric.num_shapes):
        counts = (metric.shape_of == shape).nonzero().flatten().tolist()
        rows = [metric.standardize(_sample(targets(c), MAX_ROWS // len(counts), generator), c).float() for c in counts]
        groups = [torch.cat(rows)] if mixture.offset is not None else rows
        clusters = [_cluster(group, mixture.num_components, generator) for group in groups]
        within = torch.cat([each.within for each in clusters]).double()
        covariance, centres = within.T @ within / len(within), torch.cat([each.centres for each in clusters])
        root = metric.fit_shape(shape, covariance).float()
        if (centres @ root.T).square().mean().sqrt() > MAX_SPREAD:
            between = torch.cov(centres.double().T, correction=0) / MAX_SPREAD**2
            root = metric.fit_shape(shape, covariance + between).float()
        nearest = torch.cat([each.nearest for each in clusters]).split([len(part) for part in rows])
        for c, part in zip(counts, nearest, strict=True):
            mixture.affine.weight[: mixture.num_components, head.width + c] = _log_shares(part, mixture.num_components)
        if mixture.offset is not None:
            mixture.offset.copy_(clusters[0].centres @ root.T)
            continue
        mixture.means.bias.zero_()
        for c, each in zip(counts, clusters, strict=True):
            mixture.means.weight[:, c - head.num_flags] = (each.centres @ root.T).flatten()


class _Clusters(NamedTuple):
    """K-means: the centres, the nearest one to each row, and each row without it."""

    centres: Float[Tensor, "K H"]
    nearest: Tensor
    within: Float[Tensor, "M H"]


def _sample(rows: Float[Tensor, "M H"], count: int, generator: torch.Generator) -> Float[Tensor, "N H"]:
    """`count` rows, or all if there are no more, in random order."""
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order[:count].to(rows.device)]


def _cluster(rows: Float[Tensor, "M H"], num_centres: int, generator: torch.Generator) -> _Clusters:
    """K-means from the first rows, which must be in random order."""
    repeats = -(-num_centres // len(rows))
    centres = rows.repeat(repeats, 1)[:num_centres].clone()
    if repeats > 1:
        noise = torch.randn(centres.shape, generator=generator, device=generator.device)
        centres += MIN_SCALE * noise.to(rows.device)
    nearest = residual_encode(rows, centres[None]).codes[:, 0]
    for _ in range(ITERATIONS):
        counts = torch.bincount(nearest, minlength=num_centres)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        nearest = residual_encode(rows, centres[None]).codes[:, 0]
    return _Clusters(centres, nearest, rows - centres[nearest])


def _log_shares(nearest: Tensor, num_centres: int) -> Float[Tensor, " K"]:
    """Logarithm of every centre's share of the rows, each counted once more."""
    counts = torch.bincount(nearest, minlength=num_centres).float() + 1
    return (counts / counts.sum()).log()
