"""Sampling position by position: the distribution, caches, prompts, noise and settings."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from scipy import stats

from latent_parts import LatentPrediction, recorded
from resgen.errors import ConfigError
from resgen.models.ar_resgen import ARResGen, ARResGenConfig
from resgen.models.rq_transformer import RQTransformer, RQTransformerConfig
from resgen.ops.residual import residual_decode
from resgen.samplers import autoregressive
from resgen.samplers.autoregressive import (
    AutoregressiveConfig,
    LatentAutoregressiveConfig,
    LatentDecoder,
    LatentNoise,
    LevelDecoder,
    draw_autoregressive_noise,
    draw_latent_autoregressive_noise,
    top_k_filter,
)
from resgen.types import CodeSpec, NoiseSize

sample_autoregressive = partial(recorded, autoregressive.sample_autoregressive, num_steps=6)
sample_latent_autoregressive = partial(recorded, autoregressive.sample_latent_autoregressive, num_steps=6)
SPEC = CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(3, 2))
SIZE = NoiseSize(uniform=1, normal=6)


def filled(model):
    spec = model.spec
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    books = torch.randn(spec.depth, spec.codebook_size, spec.code_dim)
    codes = torch.randint(spec.codebook_size, (40, spec.num_positions, spec.depth))
    model.set_codebooks(books, torch.ones(spec.depth), codes)
    return model.eval().requires_grad_(False)


def rq_transformer(spec: CodeSpec) -> RQTransformer:
    torch.manual_seed(0)
    config = RQTransformerConfig(
        width=16, num_layers=2, num_heads=2, mlp_width=32, condition_width=16, depth_layers=2, num_classes=3
    )
    return filled(RQTransformer(config, spec))


def class_ids(indices: list[int]) -> torch.Tensor:
    return torch.tensor([index % 3 for index in indices])


def by_level(indices: list[int], *, callback=None, start=None, **settings):
    decoder = rq_transformer(SPEC).decoder(class_ids(indices))
    assert isinstance(decoder, LevelDecoder)
    codes, visible = (None, None) if start is None else start
    noise, config = draw_autoregressive_noise(5, indices, SPEC), AutoregressiveConfig(**settings)
    return sample_autoregressive(decoder, noise, config, codes=codes, visible=visible, callback=callback)


def ar_resgen(spec: CodeSpec) -> ARResGen:
    torch.manual_seed(0)
    config = ARResGenConfig(
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=32,
        condition_width=16,
        head_layers=2,
        head_width=24,
        num_components=6,
        num_classes=3,
    )
    return filled(ARResGen(config, spec))


def by_latent(indices: list[int], *, callback=None, start=None, **settings):
    model = ar_resgen(SPEC)
    decoder = model.decoder(class_ids(indices))
    assert isinstance(decoder, LatentDecoder)
    codes, visible = (None, None) if start is None else start
    config = LatentAutoregressiveConfig(**settings)
    noise = draw_latent_autoregressive_noise(5, indices, config.num_steps, SPEC, model.head.noise)
    return sample_latent_autoregressive(decoder, SPEC, noise, config, codes=codes, visible=visible, callback=callback)


SAMPLERS = {"by level": by_level, "by latent": by_latent, "at once": partial(by_latent, num_steps=1)}
EVERYONE = list(range(7))


@pytest.fixture(params=SAMPLERS)
def sample(request: pytest.FixtureRequest):
    return SAMPLERS[request.param]


@pytest.mark.parametrize("scale", [0.0, 1.2])
def test_codes_lie_in_the_codebook(sample, scale: float) -> None:
    codes = sample(EVERYONE, guidance_scale=scale).codes
    assert codes.min() >= 0 and codes.max() < 9 and len(codes.unique()) > 5


@pytest.mark.parametrize("scale", [0.0, 1.2])
def test_samples_do_not_depend_on_their_batch(sample, scale: float) -> None:
    codes = sample(EVERYONE, guidance_scale=scale).codes
    assert torch.equal(sample([3], guidance_scale=scale).codes[0], codes[3])
    assert torch.equal(sample([6, 0, 2], guidance_scale=scale).codes, codes[[6, 0, 2]])
    assert not torch.equal(codes[0], codes[3]), "same class, other noise"


def test_guidance_is_off_at_zero_only(sample) -> None:
    codes = sample(EVERYONE).codes
    assert torch.equal(sample(EVERYONE, guidance_scale=0.0, guidance_first=3.0).codes, codes)
    assert torch.equal(sample(EVERYONE, guidance_scale=1e-9).codes, codes), "two branches, the same result"
    assert not torch.equal(sample(EVERYONE, guidance_scale=2.0).codes, codes)
    ramp = sample(EVERYONE, guidance_first=0.0, guidance_scale=2.0)
    assert [round(step.guidance_scale, 6) for step in ramp.steps] == [0.0, 0.4, 0.8, 1.2, 1.6, 2.0]
    assert torch.equal(ramp.codes[:, 0], codes[:, 0])
    assert [step.guidance_scale for step in sample(EVERYONE, guidance_scale=2.0).steps] == [2.0] * 6


def test_records_and_callback(sample) -> None:
    calls = []
    samples = sample(EVERYONE, callback=lambda *call: calls.append(call))
    assert [step.step for step in samples.steps] == [1, 2, 3, 4, 5, 6]
    assert all(step.num_steps == 6 and step.revealed == 28 and step.seconds > 0 for step in samples.steps)
    assert [step.visible_tokens for step in samples.steps] == [28 * i for i in range(1, 7)]
    for position, (record, codes, visible) in enumerate(calls):
        assert record is samples.steps[position]
        assert (visible[:, : position + 1] == 4).all() and (visible[:, position + 1 :] == 0).all()
        assert torch.equal(codes[:, : position + 1], samples.codes[:, : position + 1])
        assert (codes[:, position + 1 :] == 0).all()


def test_what_is_given_is_kept(sample) -> None:
    stream = torch.Generator().manual_seed(8)
    codes = torch.randint(9, (7, 6, 4), generator=stream)
    visible = torch.randint(5, (7, 6), generator=stream)
    visible[:, 0], visible[:, 2] = 4, 4
    visible[3] = 4
    known = torch.arange(4) < visible[..., None]
    before = codes.clone(), visible.clone()
    samples = sample(EVERYONE, start=(codes, visible))
    assert torch.equal(codes, before[0]) and torch.equal(visible, before[1]), "arguments stay"
    assert torch.equal(samples.codes[known], codes[known])
    assert [step.step for step in samples.steps] == [2, 4, 5, 6], "positions given in all samples cost nothing"
    assert sum(step.revealed for step in samples.steps) == int((~known).sum())
    assert samples.steps[-1].visible_tokens == codes.numel()
    masked = torch.where(known, codes, (codes + 1) % 9)
    assert torch.equal(sample(EVERYONE, start=(masked, visible)).codes, samples.codes), "never looked at"
    alone = sample([5], start=(codes[5:6], visible[5:6]))
    assert torch.equal(alone.codes[0], samples.codes[5])


def test_what_was_drawn_is_continued_alike(sample) -> None:
    codes = sample(EVERYONE).codes
    visible = torch.tensor([4, 4, 4, 0, 0, 0]).expand(7, 6)
    assert torch.equal(sample(EVERYONE, start=(codes, visible)).codes, codes)
    everything = sample(EVERYONE, start=(codes, torch.full((7, 6), 4)))
    assert torch.equal(everything.codes, codes) and not everything.steps


def test_codes_and_visible_come_together(sample) -> None:
    with pytest.raises(ConfigError, match="given together"):
        sample([0], start=(torch.zeros(1, 6, 4, dtype=torch.long), None))


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_codes_follow_the_model(scale: float) -> None:
    """All 16 arrays of a model with 2 positions, 2 levels and 2 codes, against the product of their probabilities."""
    spec = CodeSpec(depth=2, codebook_size=2, code_dim=2, shape=(2,))
    model, count = rq_transformer(spec), 6000
    arrays = torch.tensor(list(itertools.product(range(2), repeat=4))).view(16, 2, 2)
    ids = torch.ones(16, dtype=torch.long)
    logits = model(arrays, ids)
    logits = logits + scale * (logits - model(arrays, torch.full_like(ids, 3)))
    probs = logits.double().log_softmax(-1).gather(-1, arrays[..., None]).sum((1, 2, 3)).exp()
    assert torch.allclose(probs.sum(), torch.ones(()).double(), atol=1e-5)
    assert probs.max() / probs.min() > 3, "the model prefers some"
    noise = torch.rand(count, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    decoder = model.decoder(torch.ones(count, dtype=torch.long))
    codes = sample_autoregressive(decoder, noise, AutoregressiveConfig(guidance_scale=scale)).codes
    index = (codes.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    observed = torch.bincount(index, minlength=16).numpy()
    expected = (probs / probs.sum()).numpy() * count
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_settings_narrow_the_choice() -> None:
    model = rq_transformer(SPEC)
    greedy = by_level(EVERYONE, top_k=1).codes
    logits = model(greedy, class_ids(EVERYONE))
    assert torch.equal(logits.argmax(-1), greedy)
    assert torch.equal(by_level(EVERYONE, temperature=1e-4).codes, greedy)
    assert torch.equal(by_level(EVERYONE, top_p=1e-6).codes, greedy)
    two = by_level(EVERYONE, top_k=2).codes
    rank = (model(two, class_ids(EVERYONE)).argsort(-1, descending=True) == two[..., None]).long().argmax(-1)
    assert set(rank.unique().tolist()) == {0, 1}


class Scripted(LatentPrediction):
    """A `LatentDecoder` without a network: the latent is a function of the noise; notes what it was asked."""

    device = torch.device("cpu")

    def __init__(self, codebooks: torch.Tensor) -> None:
        self.codebooks, self.level_std = codebooks, torch.ones(len(codebooks))
        self.read: list[int] = []
        self.uniform: list[torch.Tensor] = []
        self.asked: list[tuple[int, list[int], list[int]]] = []

    def begin(self, guided: bool) -> None:
        self.guided = guided

    def next_position(self, codes: torch.Tensor) -> None:
        self.read.append(codes.shape[1])

    def predict(self, codes: torch.Tensor, visible: torch.Tensor, guidance_scale: float):
        self.visible, self.scale = visible, guidance_scale
        return self

    def sample(self, rows, uniform, normal, *, top_p: float, temperature: float):
        self.asked.append((len(self.read) - 1, rows.tolist(), self.visible[rows].tolist()))
        self.uniform.append(uniform)
        return 0.7 * normal


def test_levels_are_revealed_by_the_schedule() -> None:
    """Circle over 4 levels in 4 iterations: 4, 4, 3 and 0 stay masked, so that the first reveals nothing."""
    books = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(1))
    noise = draw_latent_autoregressive_noise(0, [0, 1], 4, SPEC, SIZE)
    config = LatentAutoregressiveConfig(num_steps=4)
    decoder = Scripted(books)
    samples = sample_latent_autoregressive(decoder, SPEC, noise, config)
    assert decoder.read == [0, 1, 1, 1, 1, 1] and not decoder.guided
    assert torch.equal(torch.stack(decoder.uniform, 1), noise.uniform[:, :, 2:, 0].flatten(1)), "every number once"
    by_position = {p: [seen for where, _, seen in decoder.asked if where == p] for p in range(6)}
    assert all(seen == [[0, 0], [1, 1]] for seen in by_position.values()), by_position
    first = (0.7 * noise.normal[:, :, 2]).view(-1, 6)
    level0 = torch.cdist(first, books[0]).argmin(1).view(2, 6)
    assert torch.equal(samples.codes[..., 0], level0), "of the first latent the coarsest level is kept"
    rest = (0.7 * noise.normal[:, :, 3]).view(-1, 6)
    level1 = torch.cdist(rest, books[1]).argmin(1).view(2, 6)
    assert torch.equal(samples.codes[..., 1], level1), "the second is quantized from level 1 on"


def test_only_samples_with_something_to_reveal_are_drawn() -> None:
    books = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(1))
    noise = draw_latent_autoregressive_noise(0, [0, 1], 2, SPEC, SIZE)
    visible = torch.zeros(2, 6, dtype=torch.long)
    visible[0] = torch.tensor([4, 3, 4, 4, 4, 0])
    visible[1] = torch.tensor([4, 1, 0, 4, 4, 2])
    decoder = Scripted(books)
    config = LatentAutoregressiveConfig(num_steps=2, mask_schedule="linear")
    codes = torch.zeros(2, 6, 4, dtype=torch.long)
    samples = sample_latent_autoregressive(decoder, SPEC, noise, config, codes=codes, visible=visible)
    assert decoder.read == [1, 1, 3]
    assert decoder.asked == [
        (0, [1], [1]),
        (0, [0, 1], [3, 2]),
        (1, [1], [0]),
        (1, [1], [2]),
        (2, [0, 1], [0, 2]),
        (2, [0, 1], [2, 3]),
    ]
    assert [step.revealed for step in samples.steps] == [4, 4, 6]


def test_the_sum_of_a_position_is_near_its_latent() -> None:
    """One iteration: the codes are the residual codes of what the distribution gave."""
    books = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(1))
    books = books * torch.tensor([1, 0.5, 0.3, 0.2])[:, None, None]
    noise = draw_latent_autoregressive_noise(0, [0, 1], 1, SPEC, SIZE)
    samples = sample_latent_autoregressive(Scripted(books), SPEC, noise, LatentAutoregressiveConfig(num_steps=1))
    error = (residual_decode(samples.codes, books) - 0.7 * noise.normal[:, :, 0]).square().mean()
    assert error < 0.5 * (0.7**2)


def test_noise_for_other_steps_is_refused() -> None:
    noise = LatentNoise(torch.zeros(1, 6, 3, 1), torch.zeros(1, 6, 3, 6))
    books = torch.zeros(4, 9, 6)
    with pytest.raises(ConfigError, match="noise for 3 steps does not fit num_steps=2"):
        sample_latent_autoregressive(Scripted(books), SPEC, noise, LatentAutoregressiveConfig(num_steps=2))


def test_top_k_keeps_the_most_likely_and_their_equals() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0, 1.0], [5.0, 5.0, 5.0, -1.0]])
    assert top_k_filter(logits, 2).isfinite().tolist() == [[False, True, True, False], [True, True, True, False]]
    assert torch.equal(top_k_filter(logits, 1)[0, 1:2], logits[0, 1:2])
    for everything in (0, 4, 9):
        assert torch.equal(top_k_filter(logits, everything), logits)
    with pytest.raises(ConfigError, match="top_k=-3"):
        top_k_filter(logits, -3)


def test_each_sample_has_its_own_stream() -> None:
    whole = draw_autoregressive_noise(1, [0, 1, 2], SPEC)
    assert whole.shape == (3, 6, 4) and whole.dtype == torch.float64
    assert torch.equal(draw_autoregressive_noise(1, [2, 1], SPEC), whole[[2, 1]])
    assert not torch.equal(draw_autoregressive_noise(2, [0], SPEC), whole[:1])
    latent = draw_latent_autoregressive_noise(1, [0, 1, 2], 3, SPEC, SIZE)
    assert latent.uniform.shape == (3, 6, 3, 1) and latent.normal.shape == (3, 6, 3, 6)
    one = draw_latent_autoregressive_noise(1, [2], 3, SPEC, SIZE)
    assert all(torch.equal(part[0], all_parts[2]) for part, all_parts in zip(one, latent, strict=True))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (AutoregressiveConfig, {"top_k": -1}, "top_k=-1"),
        (AutoregressiveConfig, {"top_p": 0.0}, "top_p=0.0"),
        (AutoregressiveConfig, {"temperature": 0.0}, "temperature=0.0"),
        (AutoregressiveConfig, {"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        (AutoregressiveConfig, {"guidance_first": float("nan")}, "guidance_first=nan"),
        (LatentAutoregressiveConfig, {"num_steps": 0}, "num_steps=0"),
        (LatentAutoregressiveConfig, {"num_steps": 10_001}, "num_steps=10001 must be at most"),
        (LatentAutoregressiveConfig, {"mask_schedule": "circel"}, "circle"),
        (LatentAutoregressiveConfig, {"temperature": -0.1}, "temperature=-0.1"),
        (LatentAutoregressiveConfig, {"top_p": 1.1}, "top_p=1.1"),
    ],
)
def test_bad_settings(config: type, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)
