"""Density, bound and gradients against float64 NumPy written from the equations (Eq. 1, Eq. 3, App. A.2)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mixtures import mixture_bound, mixture_log_prob
from resgen.ops.mixture import low_rank_squared_distance, squared_distance

Arrays = dict[str, np.ndarray]


def _random_mixture(seed: int, rows: int = 4, components: int = 5, dim: int = 3) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "target": rng.normal(size=(rows, dim)),
        "logits": 2 * rng.normal(size=(rows, components)),
        "means": rng.normal(size=(rows, components, dim)),
        "log_scale": 0.5 * rng.normal(size=rows),
        "shift": rng.normal(size=(rows, dim)),
    }


def _softmax(values: np.ndarray) -> np.ndarray:
    exp = np.exp(values - values.max())
    return exp / exp.sum()


def _slow_log_prob(m: Arrays) -> np.ndarray:
    """log sum_v pi_v N(z; b + a mu_v, a^2 I), the mixture in the space of the target."""
    out = []
    for n in range(len(m["target"])):
        a = math.exp(m["log_scale"][n])
        weights = _softmax(m["logits"][n])
        density = 0.0
        for v, pi in enumerate(weights):
            mean = m["shift"][n] + a * m["means"][n, v]
            density += pi * stats.multivariate_normal(mean, a * a * np.eye(len(mean))).pdf(m["target"][n])
        out.append(math.log(density))
    return np.array(out)


def _slow_bound(m: Arrays, smoothing: float) -> dict[str, np.ndarray]:
    """Bound, its parts and its gradients with q held constant, one position and one component at a time."""
    rows, components, dim = m["means"].shape
    out = {key: np.zeros(rows) for key in ("regression", "classification")}
    grads = {key: np.zeros_like(m[key]) for key in ("logits", "means", "log_scale", "shift")}
    for n in range(rows):
        a = math.exp(m["log_scale"][n])
        z = (m["target"][n] - m["shift"][n]) / a
        dist = np.array([((z - mu) ** 2).sum() for mu in m["means"][n]])
        q = (1 - smoothing) * _softmax(-dist / 2) + smoothing / components
        pi = _softmax(m["logits"][n])
        out["regression"][n] = dim * m["log_scale"][n]
        for v in range(components):
            log_normal = -dim / 2 * math.log(2 * math.pi) - dist[v] / 2
            out["regression"][n] -= q[v] * log_normal
            out["classification"][n] += q[v] * math.log(q[v] / pi[v])
            grads["means"][n, v] = q[v] * (m["means"][n, v] - z)
        grads["logits"][n] = pi - q
        grad_z = -grads["means"][n].sum(axis=0)
        grads["shift"][n] = -grad_z / a
        grads["log_scale"][n] = dim - (grad_z * z).sum()
    return out | {f"grad_{key}": value for key, value in grads.items()}


def _tensors(m: Arrays) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value, requires_grad=key != "target") for key, value in m.items()}


@pytest.mark.parametrize("seed", range(3))
def test_log_prob(seed: int) -> None:
    mixture = _random_mixture(seed)
    value = mixture_log_prob(**_tensors(mixture))
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value.detach().numpy(), _slow_log_prob(mixture), rtol=1e-10)


@pytest.mark.parametrize("smoothing", [0.01, 0.3, 1.0])
def test_bound_and_its_gradients(smoothing: float) -> None:
    mixture = _random_mixture(5)
    tensors = _tensors(mixture)
    slow = _slow_bound(mixture, smoothing)
    bound = mixture_bound(**tensors, smoothing=smoothing)
    for name in ("regression", "classification"):
        np.testing.assert_allclose(getattr(bound, name).detach().numpy(), slow[name], rtol=1e-10)
    np.testing.assert_allclose(bound.total.detach().numpy(), slow["regression"] + slow["classification"], rtol=1e-10)
    assert (bound.total.detach().numpy() > -_slow_log_prob(mixture)).all()
    bound.total.sum().backward()
    for name in ("logits", "means", "log_scale", "shift"):
        np.testing.assert_allclose(tensors[name].grad.numpy(), slow[f"grad_{name}"], rtol=1e-9, atol=1e-12)


def test_bound_without_smoothing_is_finite_where_q_vanishes() -> None:
    mixture = _random_mixture(6)
    mixture["means"][:, 0] += 100.0
    bound = mixture_bound(**_tensors(mixture), smoothing=0.0)
    assert torch.isfinite(bound.total).all()


def test_squared_distance() -> None:
    rng = np.random.default_rng(1)
    z, means = rng.normal(size=(3, 4)), rng.normal(size=(3, 5, 4))
    tensors = torch.tensor(z, requires_grad=True), torch.tensor(means, requires_grad=True)
    value = squared_distance(*tensors)
    np.testing.assert_allclose(value.detach().numpy(), ((means - z[:, None]) ** 2).sum(-1), rtol=1e-12)
    assert torch.autograd.gradcheck(squared_distance, tensors)


def test_low_rank_squared_distance() -> None:
    rng = np.random.default_rng(2)
    rows, components, dim, rank = 3, 5, 4, 2
    shapes = [(rows, dim), (rows, components, rank), (components, dim, rank), (components, dim)]
    z, coeff, basis, offset = arrays = [rng.normal(size=shape) for shape in shapes]
    expected = np.zeros((rows, components))
    for n in range(rows):
        for v in range(components):
            mean = basis[v] @ coeff[n, v] + offset[v]
            expected[n, v] = ((z[n] - mean) ** 2).sum()
    tensors = tuple(torch.tensor(value, requires_grad=True) for value in arrays)
    np.testing.assert_allclose(low_rank_squared_distance(*tensors).detach().numpy(), expected, rtol=1e-10)
    assert torch.autograd.gradcheck(low_rank_squared_distance, tensors)
