"""What every quantizer promises, whatever its kind."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.ops.residual import residual_decode, residual_encode
from resgen.quantizers import Quantization, Quantizer, QuantizerConfig, make_quantizer
from resgen.quantizers.ema import EMAQuantizer
from resgen.quantizers.probabilistic import ProbabilisticQuantizer
from resgen.quantizers.rfsq import RFSQuantizer

DEPTH, SIZE, DIM = 3, 16, 4
KINDS = ("probabilistic", "ema", "rfsq")
every_kind = pytest.mark.parametrize("kind", KINDS)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _make(kind: str, **settings: Any) -> Quantizer:
    options = {"depth": DEPTH, "codebook_size": SIZE, "momentum": 0.9, "variance_momentum": 0.8} | settings
    return make_quantizer(QuantizerConfig(kind=kind, **options), DIM)  # type: ignore[arg-type]


def _latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, DIM, generator=_generator(seed))


def _state(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance)


def _update(quantizer: Quantizer, latents: Tensor, valid: Tensor | None = None, seed: int = 0) -> dict[str, Tensor]:
    return quantizer.update(quantizer.quantize(latents, valid), _generator(seed))


def _error(quantizer: Quantizer, latents: Tensor) -> float:
    return float((latents - quantizer.decode(quantizer.encode(latents))).square().sum(-1).mean())


def test_kinds() -> None:
    assert type(_make("probabilistic")) is ProbabilisticQuantizer
    assert type(_make("ema")) is EMAQuantizer
    assert type(_make("rfsq")) is RFSQuantizer


@every_kind
def test_start_of_the_codebooks(kind: str) -> None:
    """Unit-norm rows times (D - j) / D, variance 1 (App. A.1); the same in every process. A grid's rows differ in
    norm: they are of unit size on the whole."""
    quantizer = _make(kind)
    scale = torch.tensor([1, 2 / 3, 1 / 3])[:, None].expand(DEPTH, SIZE)
    norms = quantizer.codebooks.norm(dim=-1)
    if kind == "rfsq":
        size = norms.square().mean(1).sqrt() / scale[:, 0]
        torch.testing.assert_close(size, size[:1].expand(DEPTH))
        assert 0.9 < size[0] < 1.0, "a grid is a little narrower than what it stands for"
    else:
        torch.testing.assert_close(norms, scale)
    assert quantizer.codebooks.flatten(0, 1).unique(dim=0).shape[0] == DEPTH * SIZE
    assert quantizer.variances.tolist() == [1.0] * DEPTH
    torch.manual_seed(5)
    assert _same(_state(quantizer), _state(_make(kind)))
    assert not list(quantizer.parameters()), "codebooks learn by update, not by gradients"


@every_kind
@settings(deadline=None, max_examples=20)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    scale=st.floats(0.01, 30),
    seed=st.integers(0, 2**31),
    padded=st.booleans(),
)
def test_identities(kind: str, shape: list[int], scale: float, seed: int, padded: bool) -> None:
    quantizer = _make(kind)
    latents = _latents(*shape, seed=seed) * scale
    valid = torch.rand(shape, generator=_generator(seed)) < 0.6 if padded else None
    result = quantizer.quantize(latents, valid)
    keep = torch.ones(shape, dtype=torch.bool) if valid is None else valid
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=2e-6 * max(scale, 1))
    assert result.codes.shape == (*shape, DEPTH)
    assert result.codes.min() >= 0 and result.codes.max() < SIZE if result.codes.numel() else True
    assert torch.equal(result.valid_codes, result.codes[keep])
    assert torch.equal(result.valid_codes, quantizer.encode(latents)[keep])
    assert result.codes[~keep].eq(0).all() and result.quantized[~keep].eq(0).all()
    rows = latents[keep]
    decoded = quantizer.decode(result.valid_codes)
    close(result.quantized[keep], decoded)
    assert result.residuals.shape == (DEPTH + 1, len(rows), DIM)
    assert torch.equal(result.residuals[0], rows)
    for level in range(DEPTH + 1):
        prefix = quantizer.decode(result.valid_codes, level)
        close(rows - prefix, result.residuals[level])
        suffix = residual_decode(result.valid_codes[:, level:], quantizer.codebooks[level:])
        close(prefix + suffix, decoded)


@every_kind
@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
def test_empty_batches(kind: str, shape: tuple[int, ...]) -> None:
    quantizer = _make(kind)
    assert quantizer.encode(_latents(*shape)).shape == (*shape, DEPTH)
    assert quantizer.decode(quantizer.encode(_latents(*shape))).shape == (*shape, DIM)
    before = _state(quantizer)
    result = quantizer.quantize(_latents(*shape))
    assert float(result.commitment) == 0
    statistics = quantizer.update(result, _generator())
    quantizer.initialize(_latents(0), _generator())
    assert _same(before, _state(quantizer))
    assert all(torch.isfinite(value).all() for value in statistics.values())


@every_kind
def test_a_batch_of_padding_changes_nothing(kind: str) -> None:
    quantizer = _make(kind)
    before = _state(quantizer)
    _update(quantizer, _latents(2, 5), torch.zeros(2, 5, dtype=torch.bool))
    assert _same(before, _state(quantizer))


@every_kind
def test_encode_takes_the_nearest_code_of_each_level(kind: str) -> None:
    quantizer = _make(kind)
    residual = _latents(40)
    codes = quantizer.encode(residual)
    for level, entries in enumerate(quantizer.codebooks):
        assert torch.equal(codes[:, level], (residual[:, None] - entries).square().sum(-1).argmin(1))
        residual = residual - entries[codes[:, level]]


@every_kind
def test_consistent_codes_are_given_back_by_their_sum(kind: str) -> None:
    plain, consistent = _make(kind), _make(kind, consistent_rounds=50)
    rows = _latents(300)
    codes = consistent.encode(rows)
    assert not torch.equal(codes, plain.encode(rows)), "some codes had to move"
    settled = (plain.encode(plain.decode(codes)) == codes).all(1)
    assert settled.float().mean() > 0.97
    start = torch.arange(300) % (DEPTH + 1)
    targets = plain.decode(codes) - plain.decode(codes, start)
    masked = torch.arange(DEPTH) >= start[:, None]
    again = residual_encode(targets, plain.codebooks, start).codes
    assert ((again == codes) | ~masked)[settled].float().mean() > 0.999  # but for rounding at ties
    valid = torch.arange(300) % 3 > 0
    result = consistent.quantize(rows.view(3, 100, DIM), valid.view(3, 100))
    assert torch.equal(result.valid_codes, codes[valid]) and torch.equal(
        result.codes.view(300, -1)[valid], codes[valid]
    )
    torch.testing.assert_close(result.quantized.view(300, DIM)[valid], plain.decode(codes)[valid])


@every_kind
@pytest.mark.parametrize("padded", [False, True])
def test_commitment_counts_every_level(kind: str, padded: bool) -> None:
    quantizer = _make(kind)
    latents = _latents(4, 6).requires_grad_()
    valid = torch.arange(6) < torch.tensor([[6], [2], [0], [5]]) if padded else None
    result = quantizer.quantize(latents, valid)
    keep = torch.ones(4, 6, dtype=torch.bool) if valid is None else valid
    rows, codes = latents.detach()[keep].double(), result.codes[keep]
    shares, slopes = [], []
    for level in range(1, DEPTH + 1):
        residual = rows - sum(quantizer.codebooks[j].double()[codes[:, j]] for j in range(level))
        shares.append(residual.square().mean())
        slopes.append(2 * residual / residual.numel())
    assert min(shares) > 0.01, "every level has a share large enough to be missed"
    torch.testing.assert_close(result.commitment.double(), sum(shares), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(result.commitment, latents)
    torch.testing.assert_close(gradient[keep].double(), sum(slopes), rtol=1e-5, atol=1e-7)
    assert gradient[~keep].eq(0).all()


@every_kind
def test_straight_through_gradient_is_the_identity(kind: str) -> None:
    quantizer = _make(kind)
    latents = _latents(3, 5).requires_grad_()
    valid = torch.arange(5) < torch.tensor([[5], [3], [1]])
    upstream = _latents(3, 5, seed=9)
    result = quantizer.quantize(latents)
    assert not result.residuals.requires_grad
    assert torch.equal(torch.autograd.grad(result.quantized, latents, upstream)[0], upstream)
    (gradient,) = torch.autograd.grad(quantizer.quantize(latents, valid).quantized, latents, upstream)
    assert torch.equal(gradient, upstream * valid[..., None])


@every_kind
@pytest.mark.parametrize("train", [True, False])
def test_quantize_never_changes_state_and_update_always_does(kind: str, train: bool) -> None:
    quantizer = _make(kind).train(train)
    before = _state(quantizer)
    latents = _latents(50)
    result = quantizer.quantize(latents)
    quantizer.encode(latents)
    quantizer.decode(result.codes)
    assert _same(before, _state(quantizer))
    statistics = quantizer.update(result, _generator())
    after = _state(quantizer)
    assert (after["codebooks"] != before["codebooks"]).flatten(1).any(1).all(), "every level learns"
    assert (after["variances"] != before["variances"]).all()
    assert all(value.shape == (DEPTH,) for value in statistics.values())
    other = _make(kind).train(not train)
    _update(other, latents)
    assert _same(after, _state(other))


@every_kind
@pytest.mark.parametrize("junk", [0.0, 1e6, torch.nan, torch.inf])
def test_padding_changes_nothing(kind: str, junk: float) -> None:
    plain, padded = _make(kind), _make(kind)
    rows = _latents(11)
    valid = torch.arange(8) < torch.tensor([[8], [3], [0]])
    latents = torch.full((3, 8, DIM), junk)
    latents[valid] = rows
    results = plain.quantize(rows), padded.quantize(latents, valid)
    assert torch.equal(results[0].codes, results[1].codes[valid])
    assert torch.equal(results[0].quantized, results[1].quantized[valid])
    assert results[1].quantized[~valid].eq(0).all()
    assert torch.equal(results[0].commitment, results[1].commitment)
    logs = [q.update(result, _generator()) for q, result in zip((plain, padded), results, strict=True)]
    assert _same(logs[0], logs[1])
    assert _same(_state(plain), _state(padded))


@every_kind
def test_duplicated_batch_changes_nothing(kind: str) -> None:
    """Means and shares, not sums and counts: learning does not depend on the batch size."""
    once, twice = _make(kind), _make(kind)
    for step in range(4):
        latents = _latents(60, seed=step)
        logs = _update(once, latents), _update(twice, torch.cat([latents, latents]))
        _close(*logs)
        _close(_state(once), _state(twice))


@every_kind
def test_order_of_the_batch_changes_nothing(kind: str) -> None:
    one, other = _make(kind), _make(kind)
    latents = _latents(60)
    order = torch.randperm(60, generator=_generator())
    _update(one, latents)
    _update(other, latents[order])
    _close(_state(one), _state(other))


@every_kind
def test_running_variances(kind: str) -> None:
    quantizer = _make(kind)
    expected = torch.ones(DEPTH, dtype=torch.float64)
    for step in range(3):
        latents = _latents(30, seed=step)
        codes = quantizer.encode(latents)
        left = [latents - quantizer.decode(codes, level) for level in range(1, DEPTH + 1)]
        batch = torch.stack([h.double().square().mean() for h in left])
        expected = 0.8 * expected + 0.2 * batch
        statistics = _update(quantizer, latents)
        torch.testing.assert_close(statistics["variance"].double(), batch, rtol=1e-5, atol=0)
        torch.testing.assert_close(quantizer.variances.double(), expected, rtol=1e-5, atol=0)


@every_kind
@pytest.mark.parametrize("convert", ["bfloat16", "half", "double"])
def test_codebooks_stay_float32(kind: str, convert: str) -> None:
    quantizer = _make(kind)
    _update(quantizer, _latents(20))
    module = nn.Sequential(nn.Linear(DIM, DIM), quantizer)
    before = _state(quantizer)
    assert not torch.equal(before["codebooks"], before["codebooks"].bfloat16().float())
    getattr(module, convert)()
    module.to(getattr(torch, convert)).float().to("cpu")
    getattr(module, convert)()
    assert module[0].weight.dtype == getattr(torch, convert)
    assert all(buffer.dtype == torch.float32 for buffer in quantizer.buffers())
    assert _same(before, _state(quantizer))
    assert dict(quantizer.named_buffers()).keys() == before.keys()


@every_kind
def test_moving_to_the_meta_device_and_back(kind: str) -> None:
    quantizer = _make(kind).to("meta")
    assert quantizer.codebooks.is_meta
    expected = _make(kind)
    _update(expected, _latents(20))
    quantizer.to_empty(device="cpu").load_state_dict(expected.state_dict())
    assert _same(_state(quantizer), _state(expected))


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_latents_of_other_types(kind: str, dtype: torch.dtype) -> None:
    quantizer, other = _make(kind), _make(kind)
    latents = _latents(4, 30).to(dtype).requires_grad_()
    result, expected = quantizer.quantize(latents), other.quantize(latents.detach().float())
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(quantizer.encode(latents), expected.codes)
    assert torch.equal(result.residuals, expected.residuals) and result.residuals.dtype == torch.float32
    assert torch.equal(result.commitment, expected.commitment)
    assert torch.equal(result.quantized, expected.quantized)
    (result.quantized.sum() + result.commitment).backward()
    assert latents.grad is not None and latents.grad.dtype == dtype
    quantizer.update(result, _generator())
    other.update(expected, _generator())
    assert _same(_state(quantizer), _state(other))
    assert quantizer.codebooks.dtype == torch.float32


@every_kind
def test_autocast_changes_nothing(kind: str) -> None:
    plain, casted = _make(kind), _make(kind)
    latents, more = _latents(200), _latents(100, seed=1)
    plain.initialize(latents, _generator())
    expected = plain.quantize(more)
    plain.update(expected, _generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert (latents @ latents.T).dtype == torch.bfloat16, "autocast is not active: the test shows nothing"
        casted.initialize(latents, _generator())
        result = casted.quantize(more)
        casted.update(result, _generator())
        codes = casted.encode(more)
        decoded = casted.decode(codes)
    for name in ("codes", "quantized", "commitment", "residuals", "valid_codes"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    assert _same(_state(plain), _state(casted))
    assert torch.equal(codes, plain.encode(more))
    assert torch.equal(decoded, plain.decode(codes)) and decoded.dtype == torch.float32


@every_kind
def test_randomness_comes_from_the_generator_only(kind: str) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        quantizer = _make(kind, dead_threshold=0.9)
        quantizer.initialize(_latents(100), _generator())
        for step in range(3):
            _update(quantizer, _latents(40, seed=step), seed=step)
        assert torch.equal(before, torch.get_rng_state())
        states.append(_state(quantizer))
    assert _same(*states)


@every_kind
def test_learning_lowers_the_error(kind: str) -> None:
    quantizer = _make(kind)
    centres = _latents(8) * 2 + 1
    latents = centres.repeat(20, 1) + 0.1 * _latents(160, seed=1)
    before = _error(quantizer, latents)
    for step in range(60):
        _update(quantizer, latents, seed=step)
    assert _error(quantizer, latents) < 0.2 * before


@every_kind
@pytest.mark.parametrize("latents", [torch.zeros(9, DIM), torch.full((9, DIM), 1e5), torch.full((1, DIM), -3.0)])
def test_degenerate_batches_stay_finite(kind: str, latents: Tensor) -> None:
    quantizer = _make(kind, momentum=0.5)
    quantizer.initialize(latents, _generator())
    for step in range(40):
        _update(quantizer, latents, seed=step)
    assert all(torch.isfinite(value).all() for value in _state(quantizer).values())
    assert (quantizer.variances > 0).all()


@every_kind
def test_state_round_trip(kind: str) -> None:
    quantizer, restored = _make(kind), _make(kind)
    for step in range(3):
        _update(quantizer, _latents(30, seed=step))
    restored.load_state_dict(quantizer.state_dict())
    twin = copy.deepcopy(quantizer)
    latents = _latents(30, seed=7)
    assert torch.equal(quantizer.encode(latents), restored.encode(latents))
    for other in (quantizer, restored, twin):
        _update(other, latents)
    assert _same(_state(quantizer), _state(restored))
    assert _same(_state(quantizer), _state(twin))


def test_micro_batches_together() -> None:
    """`update` needs only the residuals and codes of the valid positions, so parts of a batch can be joined."""
    for kind in KINDS:
        whole, parts = _make(kind), _make(kind)
        latents = _latents(30)
        _update(whole, latents)
        pieces = [parts.quantize(piece) for piece in latents.split(7)]
        joint: Quantization = replace(
            pieces[0],
            residuals=torch.cat([piece.residuals for piece in pieces], dim=1),
            valid_codes=torch.cat([piece.valid_codes for piece in pieces]),
        )
        parts.update(joint, _generator())
        _close(_state(whole), _state(parts))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 0),
        ("codebook_size", -1),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", float("nan")),
        ("variance_momentum", 1.5),
        ("dead_threshold", -0.1),
        ("dead_threshold", 1.0),
        ("dead_threshold", float("nan")),
        ("kmeans_iterations", -1),
    ],
)
def test_config_errors_name_the_value(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^(quantizer )?{name}={value} must"):
        QuantizerConfig(**{name: value})  # type: ignore[arg-type]


def test_unknown_kind() -> None:
    config = QuantizerConfig()
    object.__setattr__(config, "kind", "vq")  # past the checked signature of these tests
    with pytest.raises(ConfigError, match="quantizer kind='vq' must be 'probabilistic', 'ema' or 'rfsq'"):
        config.__post_init__()


def test_config_accepts_the_ends_of_ranges() -> None:
    QuantizerConfig(
        depth=1, codebook_size=1, momentum=0.0, variance_momentum=0.0, dead_threshold=0.0, kmeans_iterations=0
    )
