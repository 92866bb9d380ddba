"""The metric of a mixture's targets: against torch.distributions in float64, its inverse, its start."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from resgen.devices import cast_parameters
from resgen.errors import ConfigError
from resgen.losses.mixture import target_log_prob
from resgen.models.head_start import MAX_SPREAD, start_mixture
from resgen.models.heads import MixtureHead
from resgen.models.metric import MAX_SHAPES, MetricHead, TargetMetric
from resgen.models.resgen import METRICS, ResGenConfig
from resgen.types import CodeSpec, ProposalNoise

DEPTH, DIM, WIDTH, COMPONENTS = 3, 4, 10, 6
kinds = pytest.mark.parametrize("kind", METRICS[1:])


def _metric(kind: str, depth: int = DEPTH, max_shapes: int = MAX_SHAPES) -> TargetMetric:
    torch.manual_seed(0)
    metric = TargetMetric(depth, DIM, kind, max_shapes)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        metric.centre.normal_()
        metric.log_scale.normal_()
    return metric


def _new(
    kind: str, rank: int | None = None, depth: int = DEPTH, components: int = COMPONENTS, fixed: bool = False
) -> MetricHead:
    head = {"num_components": components, "mean_rank": rank, "metric": kind, "fixed_means": fixed}
    spec = CodeSpec(depth=depth, codebook_size=9, code_dim=DIM, shape=(2,))
    return MetricHead(ResGenConfig(width=WIDTH, num_heads=1, **head), spec)


def _head(kind: str, rank: int | None = None, components: int = COMPONENTS, fixed: bool = False) -> MetricHead:
    torch.manual_seed(1)
    head = _new(kind, rank, components=components, fixed=fixed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        head.metric.centre.normal_()
        head.metric.log_scale.normal_()
    return head


@kinds
@pytest.mark.parametrize("depth", [DEPTH, 2 * MAX_SHAPES + 5])
def test_maps_and_maps_back(kind: str, depth: int) -> None:
    metric = _metric(kind, depth).double()
    z, visible = torch.randn(60, DIM).double(), torch.arange(60) % depth
    y = metric(z, visible)
    torch.testing.assert_close(metric.inverse(y, visible), z)
    for row in range(0, 60, 7):
        c = int(visible[row])
        matrix = metric.factors[metric.shape_of[c]] / metric.log_scale[c].exp()
        torch.testing.assert_close(y[row], matrix @ (z[row] - metric.centre[c]))
        torch.testing.assert_close(metric.log_det(visible)[row], torch.linalg.slogdet(matrix).logabsdet)
        assert torch.equal(matrix, matrix.tril()) and (matrix.diagonal() > 0).all()
    assert metric.num_shapes == min(depth, MAX_SHAPES)


@kinds
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("fixed", [False, True])
def test_density_is_that_of_the_mixture(kind: str, rank: int | None, fixed: bool) -> None:
    """log p(z) in float64: a mixture of Gaussians with means m + T^-1 (b + a mu_v) and covariance a^2 (T'T)^-1."""
    head = _head(kind, rank, fixed=fixed).double()
    hidden, target, visible = torch.randn(9, WIDTH).double(), torch.randn(9, DIM).double(), torch.arange(9) % DEPTH
    inputs = head.flagged(hidden, visible)
    logits, log_scale, shift = head.mixture.affine_parameters(inputs)
    means = head.mixture.means(inputs[:, -head.mixture.mean_width :]).unflatten(-1, (COMPONENTS, -1))
    if head.mixture.basis is not None and head.mixture.offset is not None:
        means = torch.einsum("khr,nkr->nkh", head.mixture.basis, means) + head.mixture.offset
    expected = []
    for row, c in enumerate(visible.tolist()):
        matrix = head.metric.factors[head.metric.shape_of[c]] / head.metric.log_scale[c].exp()
        inverse = torch.linalg.inv(matrix)
        centres = head.metric.centre[c] + (shift[row] + log_scale[row].exp() * means[row]) @ inverse.T
        parts = MultivariateNormal(centres, scale_tril=log_scale[row].exp() * inverse)
        expected.append(MixtureSameFamily(Categorical(logits=logits[row]), parts).log_prob(target[row]))
    exact = head.log_prob(hidden, target, visible)
    torch.testing.assert_close(exact, torch.stack(expected))
    torch.testing.assert_close(target_log_prob(head, hidden, target, visible, chunk_size=2), exact)
    assert (head(hidden, target, visible, 0.01).total >= -exact - 1e-9).all()


def test_samples_have_the_density(kind: str = "triangular") -> None:
    """Mean and covariance of many draws are those of the mixture."""
    head = _head(kind, components=2)
    count = 40_000
    hidden, visible = torch.randn(1, WIDTH).expand(count, -1), torch.full((count,), 1)
    stream = torch.Generator().manual_seed(0)
    noise = ProposalNoise(torch.rand(count, 1, generator=stream), torch.randn(count, DIM, generator=stream))
    drawn = head.sample(hidden, visible, noise)[0].double()
    inputs = head.flagged(hidden[:1], visible[:1])
    logits, log_scale, shift = (part.double()[0] for part in head.mixture.affine_parameters(inputs))
    means = head.mixture.means(inputs).view(2, DIM).double()
    inverse = torch.linalg.inv(head.metric.factors[1].double() / head.metric.log_scale[1].exp())
    shares = logits.softmax(0)
    centres = head.metric.centre[1] + (shift + log_scale.exp() * means) @ inverse.T
    mean = shares @ centres
    between = torch.einsum("k,kh,kj->hj", shares, centres - mean, centres - mean)
    covariance = between + log_scale.exp() ** 2 * inverse @ inverse.T
    scale = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - mean).abs() < 5 * scale / count**0.5).all()
    torch.testing.assert_close(
        torch.cov(drawn.T) / scale.outer(scale), covariance / scale.outer(scale), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("depth", [DEPTH, 20])
@pytest.mark.parametrize("fixed", [False, True])
def test_start_from_targets_of_many_scales(rank: int | None, depth: int, fixed: bool) -> None:
    """Targets whose size falls with c and whose covariance is far from round: the start fits every c."""
    stream = torch.Generator().manual_seed(0)
    axes = torch.tensor([1.0, 0.3, 0.1, 0.01])
    labels = torch.randint(5, (2000,), generator=stream)
    centres = torch.randn(5, DIM, generator=stream) * torch.tensor([1.0, 1.0, 0.0, 0.0])

    def targets(c: int) -> torch.Tensor:
        noise = torch.randn(2000, DIM, generator=torch.Generator().manual_seed(c))
        return (centres[labels] + 0.3 * noise * axes) * 0.7**c + c

    plain = MixtureHead(width=WIDTH, num_components=8, code_dim=DIM, rank=rank)
    start_mixture(plain, targets, torch.Generator().manual_seed(0))
    head = _new("triangular", rank, depth, components=8, fixed=fixed)
    start_mixture(head, targets, torch.Generator().manual_seed(0))
    hidden = torch.zeros(2000, WIDTH)
    for c in range(0, depth, 5):
        visible = torch.full((2000,), c)
        value, before = (target_log_prob(each, hidden, targets(c), visible).mean() for each in (head, plain))
        # The truth: -entropy of the noise and, at most, of the five labels.
        entropy = DIM * (1.4189 + torch.log(torch.tensor(0.3 * 0.7**c))) + axes.log().sum()
        assert value > -entropy - 2.3 and value > before + 1, (c, float(value), float(-entropy))
    assert head.metric.num_shapes == (1 if rank else min(depth, MAX_SHAPES))


@kinds
def test_degenerate_targets_stay_finite(kind: str) -> None:
    """One row, and rows in a plane: no scale of 0, no singular covariance."""
    for rows in (torch.ones(1, DIM), torch.randn(50, DIM) * torch.tensor([1.0, 1.0, 0.0, 0.0])):
        head = _new(kind, depth=2, components=3)
        start_mixture(head, lambda _, rows=rows: rows, torch.Generator().manual_seed(0))
        assert all(torch.isfinite(value).all() for value in head.state_dict().values())
        assert torch.isfinite(head.log_prob(torch.zeros(1, WIDTH), rows[:1], torch.zeros(1, dtype=torch.int64))).all()


@kinds
def test_as_many_components_as_targets_stay_near(kind: str) -> None:
    """The targets of the last level are the vectors of its codebook: nothing is left within their clusters."""
    rows = torch.randn(10, DIM, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    head = _new(kind, depth=2, components=32, fixed=True)
    start_mixture(head, lambda _: rows, torch.Generator().manual_seed(0))
    hidden, visible = torch.zeros(10, WIDTH), torch.ones(10, dtype=torch.int64)
    means = head.mixture.means(head.flagged(hidden, visible)[:, -head.mixture.mean_width :])
    assert 1 < means.square().mean().sqrt() < 1.01 * MAX_SPREAD
    drawn = head.sample(hidden, visible, ProposalNoise(torch.rand(10, 1), torch.randn(10, DIM)), temperature=0.0)[0]
    assert (torch.cdist(drawn, rows[:10]).min(1).values < 0.05).all(), "components are the targets"


@pytest.mark.parametrize("rank", [None, 2])
def test_fixed_means_depend_on_the_count_alone(rank: int | None) -> None:
    """What the components are apart is the same for every input, and another for every c."""
    head = _head("triangular", rank, fixed=True)
    component = torch.arange(COMPONENTS)

    def means(c: int) -> torch.Tensor:
        visible = torch.full((COMPONENTS,), c)
        with torch.no_grad():
            return head.mixture.component_mean(head.flagged(torch.randn(COMPONENTS, WIDTH), visible), component)

    torch.testing.assert_close(means(0), means(0))
    assert not torch.allclose(means(0), means(1))
    assert head.mixture.means.weight.shape[1] == head.num_flags, "no weights of the input"


def test_stays_float32_in_a_bfloat16_network() -> None:
    head = _head("triangular")
    hidden, visible = torch.randn(5, WIDTH), torch.arange(5) % DEPTH
    noise = ProposalNoise(torch.rand(5, 1), torch.randn(5, DIM))
    full = head.sample(hidden, visible, noise)[0]
    cast_parameters(head, torch.bfloat16)
    assert head.mixture.means.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in head.metric.parameters()} == {torch.float32}
    rounded = head.sample(hidden.bfloat16(), visible, noise)[0]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, full, rtol=0.1, atol=0.1 * float(full.abs().max()))


def test_learned_are_the_shapes_alone() -> None:
    learned = {
        kind: [n for n, p in TargetMetric(2, 3, kind).named_parameters() if p.requires_grad] for kind in METRICS[1:]
    }
    assert learned == {"scale": [], "diagonal": ["log_diagonal"], "triangular": ["log_diagonal", "below"]}
    assert all(p.ndim == 1 for p in TargetMetric(2, 3, "triangular").parameters()), "flat tensors do not decay"


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'round'"):
        TargetMetric(2, 3, "round")


def test_fixed_means_need_a_metric() -> None:
    with pytest.raises(ConfigError, match="fixed_means=true needs a metric, one of scale, diagonal, triangular"):
        ResGenConfig(fixed_means=True)
