"""Depth-by-depth sampling: what it evaluates, in which order it reveals, what it keeps, what it draws."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from latent_parts import recorded
from resgen.errors import ConfigError
from resgen.models.maskgit import MaskGIT, MaskGITConfig
from resgen.ops.masking import SCHEDULES, num_masked
from resgen.samplers import depthwise
from resgen.samplers.depthwise import (
    DepthwiseConfig,
    DepthwiseNoise,
    draw_noise,
    steps_per_level,
)
from resgen.types import CodeSpec

sample_codes = partial(recorded, depthwise.sample_codes)
SPEC = CodeSpec(depth=3, codebook_size=8, code_dim=6, shape=(3, 2))


class Scripted:
    """Logits that depend on position, level and what is visible; it watches its input."""

    def __init__(self, spec: CodeSpec = SPEC) -> None:
        self.spec = spec
        self.table = 2 * torch.randn(
            spec.depth, spec.num_positions, spec.codebook_size, generator=torch.Generator().manual_seed(1)
        )
        self.inputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.levels: list[int] = []
        self.scales: list[float] = []

    def __call__(self, codes: torch.Tensor, visible: torch.Tensor, level: int, guidance_scale: float) -> torch.Tensor:
        masked = torch.arange(self.spec.depth) >= visible[..., None]
        assert (codes[masked] == 0).all(), "codes of masked levels leak"
        assert (visible >= level).all() and (visible <= level + 1).all(), "levels out of order"
        self.inputs.append((codes.clone(), visible.clone()))
        self.levels.append(level)
        self.scales.append(guidance_scale)
        return self.table[level] * (1 + codes.sum((1, 2)) % 5 / 5)[:, None, None]

    def run(self, config: DepthwiseConfig, batch: int = 3, seed: int = 0, **given):
        noise = draw_noise(seed, range(batch), config.num_steps, self.spec)
        return sample_codes(self, self.spec, noise, config, **given)


def settings(**changes) -> DepthwiseConfig:
    return DepthwiseConfig(**({"num_steps": 12, "guidance_scale": 0.0} | changes))


# How steps are spread.


@pytest.mark.parametrize("decay", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("depth", [1, 3, 8, 16])
@pytest.mark.parametrize("extra", [0, 1, 7, 50])
def test_all_steps_are_spread_and_coarse_levels_get_no_fewer(decay: float, depth: int, extra: int) -> None:
    steps = steps_per_level(depth + extra, depth, decay)
    assert len(steps) == depth and sum(steps) == depth + extra and min(steps) >= 1
    if decay == 1:
        assert max(steps) - min(steps) <= 1 and steps == sorted(steps, reverse=True)
    elif extra == 50:
        assert steps[0] >= steps[-1]


def test_known_spreads() -> None:
    assert steps_per_level(63, 16) == [4] * 15 + [3]
    assert steps_per_level(10, 3, 0.5) == [5, 3, 2]


def test_fewer_steps_than_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_steps=2 must be at least depth=3"):
        Scripted().run(settings(num_steps=2))


# The order of revealing.


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [3, 12, 40])
def test_counts_order_and_permanence(schedule: str, num_steps: int) -> None:
    model, states = Scripted(), []
    config = settings(num_steps=num_steps, mask_schedule=schedule)
    samples = model.run(config, callback=lambda *state: states.append(state))
    expected = []  # (global step, level, masked positions after it) of the steps that reveal something
    offset = 0
    for level, steps in enumerate(steps_per_level(num_steps, 3)):
        left = 6
        for t in range(1, steps + 1):
            stay = int(num_masked(schedule, t / steps, 6))
            if stay < left:
                expected.append((offset + t, level, stay))
            left = stay
        offset += steps
    assert len(model.levels) == len(samples.steps) == len(expected) <= num_steps
    codes, visible = torch.zeros_like(samples.codes), torch.zeros(3, 6, dtype=torch.int64)
    for (step, level, stay), record, state, at in zip(expected, samples.steps, states, model.levels, strict=True):
        same, now, now_visible = state
        assert same is record and record.step == step and at == level and record.num_steps == num_steps
        assert ((now_visible == level).sum(1) == stay).all() and ((now_visible == level + 1).sum(1) == 6 - stay).all()
        kept = torch.arange(3) < visible[..., None]
        assert torch.equal(now[kept], codes[kept]), "revealed tokens never change"
        assert (now_visible >= visible).all()
        assert (now[torch.arange(3) >= now_visible[..., None]] == 0).all()
        assert record.revealed == int((now_visible - visible).sum())
        assert record.visible_tokens == int(now_visible.sum()) and record.seconds >= 0
        codes, visible = now, now_visible
    assert (visible == 3).all() and torch.equal(codes, samples.codes)
    assert samples.codes.unique().numel() > 4, "codes are drawn, not left at 0"


def test_the_most_confident_are_kept() -> None:
    """Without choice noise, with nearly certain codes: positions in the order of their peaks."""
    spec = CodeSpec(depth=1, codebook_size=4, code_dim=2, shape=(4,))
    peaks = torch.tensor([30.0, 60.0, 20.0, 40.0])

    def predict(codes: torch.Tensor, visible: torch.Tensor, level: int, guidance_scale: float) -> torch.Tensor:
        # Two codes tie up to `peaks`-dependent odds, so that log-probabilities differ by position.
        logits = torch.full((2, 4, 4), -100.0)
        logits[..., 2] = 0.0
        logits[..., 3] = (1 / peaks).log()
        return logits

    states: list[torch.Tensor] = []
    config = settings(num_steps=4, mask_schedule="linear", choice_temperature=0.0, top_p=0.5)
    noise = draw_noise(0, [0, 1], 4, spec)
    samples = sample_codes(predict, spec, noise, config, callback=lambda *state: states.append(state[2]))
    assert (samples.codes == 2).all()
    assert [visible[0].nonzero().flatten().tolist() for visible in states] == [[1], [1, 3], [0, 1, 3], [0, 1, 2, 3]]


def test_choice_noise_falls_to_zero_within_a_level() -> None:
    """At the last step but one of a level a huge Gumbel still decides; with the schedule's last factor 0 nothing is
    left to decide, so the scale is seen from what it does at step 1 of 2: choice_temperature / 2."""
    spec = CodeSpec(depth=1, codebook_size=2, code_dim=2, shape=(2,))
    logits = torch.tensor([[[0.0, -50.0], [0.0, 0.0]]])  # confidence 0 against -log 2
    gumbel = torch.tensor([0.0, 1.0])  # position 1 wins if scale > log 2
    choice = torch.exp(-torch.exp(-gumbel)).expand(1, 2, 2)
    for tau, first in ((1.3, 0), (1.5, 1)):  # log 2 = 0.693 lies between their halves
        states: list[torch.Tensor] = []
        sample_codes(
            lambda *_: logits,
            spec,
            DepthwiseNoise(torch.full((1, 2, 2), 0.25, dtype=torch.float64), choice),
            settings(num_steps=2, mask_schedule="linear", choice_temperature=tau),
            callback=lambda *state, seen=states: seen.append(state[2]),
        )
        assert states[0][0].tolist() == [int(first == 0), int(first == 1)]


def test_a_step_that_reveals_nothing_costs_nothing() -> None:
    spec = CodeSpec(depth=2, codebook_size=8, code_dim=6, shape=(3,))
    model = Scripted(spec)
    samples = model.run(settings(num_steps=40, mask_schedule="circle"), batch=2)
    assert len(model.levels) == 6 and samples.steps[-1].step == 40 and samples.steps[0].step > 1


# Prompts.


def prompt() -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(5)
    codes = torch.randint(8, (3, 6, 3), generator=stream)
    visible = torch.tensor([[0, 1, 2, 3, 0, 0], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 2]])
    return codes, visible


def test_given_levels_are_kept_and_nothing_else_is_read() -> None:
    codes, visible = prompt()
    config = settings(num_steps=9)
    seen: list[torch.Tensor] = []
    samples = Scripted().run(config, codes=codes, visible=visible, callback=lambda *state: seen.append(state[2]))
    given = torch.arange(3) < visible[..., None]
    assert torch.equal(samples.codes[given], codes[given])
    assert all((now >= visible).all() for now in seen) and (seen[-1] == 3).all()
    other = torch.where(given, codes, (codes + 1) % 8)
    assert torch.equal(Scripted().run(config, codes=other, visible=visible).codes, samples.codes)
    assert samples.steps[-1].visible_tokens == 54
    assert sum(record.revealed for record in samples.steps) == 54 - int(visible.sum())


def test_a_position_ahead_counts_as_visible_at_the_level() -> None:
    """The model sees its code of the level at hand, none of its deeper ones."""
    codes, visible = prompt()
    model = Scripted()
    model.run(settings(num_steps=3), codes=codes, visible=visible)
    first_codes, first_visible = model.inputs[0]
    assert model.levels[0] == 0 and first_visible[0].tolist() == [0, 1, 1, 1, 0, 0]
    assert first_codes[0, 1:4, 0].tolist() == codes[0, 1:4, 0].tolist() and not first_codes[..., 1:].any()


def test_a_finished_prompt_costs_nothing() -> None:
    codes, visible = prompt()
    model = Scripted()
    samples = model.run(settings(), codes=codes, visible=torch.full_like(visible, 3))
    assert torch.equal(samples.codes, codes) and not samples.steps and not model.levels


# Batches and guidance.


def tiny_model() -> MaskGIT:
    torch.manual_seed(0)
    model = MaskGIT(
        MaskGITConfig(width=16, num_layers=2, num_heads=2, mlp_width=32, condition_width=16, num_classes=3), SPEC
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    codes = torch.randint(8, (64, 6, 3))
    model.set_codebooks(torch.randn(3, 8, 6), torch.ones(3), codes)
    return model.eval().requires_grad_(False)


def test_samples_do_not_depend_on_their_batch() -> None:
    """With prompts of different lengths, too: a neighbour's schedule is its own."""
    model, config = tiny_model(), settings(num_steps=12, guidance_scale=1.5, top_p=0.9)
    class_ids = torch.tensor([0, 1, 2])
    codes, visible = prompt()

    def run(indices: list[int], given: bool) -> torch.Tensor:
        start = {"codes": codes[indices], "visible": visible[indices]} if given else {}
        noise = draw_noise(7, indices, 12, SPEC)
        return sample_codes(model.predictor(class_ids[indices]), SPEC, noise, config, **start).codes

    for given in (False, True):
        whole = run([0, 1, 2], given)
        assert torch.equal(run([2], given)[0], whole[2])
        assert torch.equal(run([2, 0], given), whole[[2, 0]])
    assert not torch.equal(run([0], False), run([1], False))


def test_guidance_grows_over_all_steps_and_is_off_at_zero() -> None:
    model = Scripted()
    model.run(settings(num_steps=6, guidance_first=0.5, guidance_scale=3.0))
    assert model.scales == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    model = Scripted()
    model.run(settings(num_steps=6, guidance_first=0.5, guidance_scale=0.0))
    assert model.scales == [0.0] * 6


def test_without_guidance_only_the_conditional_branch_counts() -> None:
    model, config = tiny_model(), settings(num_steps=6)
    noise, class_ids = draw_noise(0, range(4), 6, SPEC), torch.tensor([0, 1, 2, 0])
    samples = sample_codes(model.predictor(class_ids), SPEC, noise, config)

    def conditional(codes: torch.Tensor, visible: torch.Tensor, level: int, guidance_scale: float) -> torch.Tensor:
        return model(codes, visible, torch.full((4,), level), class_ids)

    assert torch.equal(sample_codes(conditional, SPEC, noise, config).codes, samples.codes)
    guided = sample_codes(model.predictor(class_ids), SPEC, noise, settings(num_steps=6, guidance_scale=3.0))
    assert not torch.equal(guided.codes, samples.codes)


# The distribution.

TINY = CodeSpec(depth=2, codebook_size=2, code_dim=1, shape=(2,))
OUTCOMES = list(itertools.product(range(2), repeat=4))  # codes (position, level) = (0,0) (0,1) (1,0) (1,1)


class Exact:
    """The conditionals of a given joint distribution over all 16 outcomes."""

    def __init__(self) -> None:
        self.joint = (1.2 * torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))).softmax(0)
        self.outcomes = torch.tensor(OUTCOMES).view(16, 2, 2)

    def conditional(self, codes: torch.Tensor, visible: torch.Tensor, level: int) -> torch.Tensor:
        """`[B, L, V]` probabilities."""
        known = torch.arange(2) < visible[..., None]
        fits = ((self.outcomes == codes[:, None]) | ~known[:, None]).all((2, 3)) * self.joint
        onehot = torch.nn.functional.one_hot(self.outcomes[..., level], 2).double()
        mass = torch.einsum("bn,nlv->blv", fits, onehot)
        return mass / mass.sum(-1, keepdim=True)

    def __call__(self, codes: torch.Tensor, visible: torch.Tensor, level: int, guidance_scale: float) -> torch.Tensor:
        return self.conditional(codes, visible, level).log().float()

    def most_confident_first(self) -> torch.Tensor:
        """The law of sampling without choice noise, by enumeration: in each level both codes are drawn, the likelier
        one is kept, the other one is drawn again given it."""
        law: dict[tuple[int, ...], float] = {}

        def recurse(codes: torch.Tensor, level: int, weight: float) -> None:
            if level == 2:
                key = tuple(codes.flatten().tolist())
                law[key] = law.get(key, 0.0) + weight
                return
            visible = torch.full((1, 2), level)
            p = self.conditional(codes[None], visible, level)[0]
            for a, b in itertools.product(range(2), repeat=2):
                kept = int(p[1, b] > p[0, a])
                first, second = codes.clone(), visible.clone()
                first[kept, level] = (a, b)[kept]
                second[0, kept] += 1
                q = self.conditional(first[None], second, level)[0, 1 - kept]
                for c in range(2):
                    expected = first.clone()
                    expected[1 - kept, level] = c
                    recurse(expected, level + 1, weight * float(p[0, a] * p[1, b] * q[c]))

        recurse(torch.zeros(2, 2, dtype=torch.int64), 0, 1.0)
        return torch.tensor([law[outcome] for outcome in OUTCOMES], dtype=torch.float64)


@pytest.mark.parametrize("tau", [1e6, 0.0])
def test_one_step_per_position_gives_the_exact_law(tau: float) -> None:
    """In an order that does not look at the codes the joint itself; by confidence the law that this order implies."""
    model, count = Exact(), 40_000
    law = model.joint if tau else model.most_confident_first()
    assert math.isclose(float(law.sum()), 1.0, abs_tol=1e-9)
    stream = torch.Generator().manual_seed(0)
    shape = (count, 4, 2)
    noise = DepthwiseNoise(
        torch.rand(shape, dtype=torch.float64, generator=stream),
        torch.rand(shape, generator=stream).clamp(min=1e-30),
    )
    config = settings(num_steps=4, mask_schedule="linear", choice_temperature=tau)
    samples = sample_codes(model, TINY, noise, config)
    assert len(samples.steps) == 4
    index = (samples.codes.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    counts = torch.bincount(index, minlength=16).double()
    chi2 = float(((counts - count * law).square() / (count * law)).sum())
    assert chi2 < 38, "15 degrees of freedom: one in a thousand"
    if not tau:  # the test can tell the two laws apart
        assert float(((counts - count * model.joint).square() / (count * model.joint)).sum()) > 100


@pytest.mark.parametrize(("temperature", "top_p"), [(0.5, 1.0), (1.0, 0.6)])
def test_temperature_and_nucleus(temperature: float, top_p: float) -> None:
    spec = CodeSpec(depth=1, codebook_size=3, code_dim=1, shape=(1,))
    probs = torch.tensor([0.5, 0.3, 0.2])
    config = settings(num_steps=1, temperature=temperature, top_p=top_p)
    uniform = torch.rand(20_000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = DepthwiseNoise(uniform, torch.full((20_000, 1, 1), 0.5))
    codes = sample_codes(lambda c, *_: probs.log().expand(len(c), 1, 3), spec, noise, config).codes.flatten()
    expected = probs ** (1 / temperature)
    if top_p < 1:
        expected[2] = 0  # 0.5 does not reach the nucleus' mass, 0.8 does
    shares = torch.bincount(codes, minlength=3) / 20_000
    assert torch.allclose(shares, expected / expected.sum(), atol=0.012)


# Input.


def test_noise_is_of_the_sample_alone() -> None:
    many, one = draw_noise(3, [5, 2], 4, SPEC), draw_noise(3, [2], 4, SPEC)
    assert torch.equal(many.code[1], one.code[0]) and torch.equal(many.choice[1], one.choice[0])
    assert many.code.dtype == torch.float64 and many.code.shape == many.choice.shape == (2, 4, 6)
    assert not torch.equal(many.code[0], many.code[1])


def test_misfits_are_refused() -> None:
    codes, visible = prompt()
    with pytest.raises(ConfigError, match="together"):
        Scripted().run(settings(), codes=codes)
    with pytest.raises(ConfigError, match="noise for 5 steps does not fit num_steps=12"):
        sample_codes(Scripted(), SPEC, draw_noise(0, [0], 5, SPEC), settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 10_001}, "num_steps=10001 must be at most"),
        ({"mask_schedule": "cosin"}, "cosine"),
        ({"level_decay": 0.0}, "level_decay=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"choice_temperature": -1.0}, "choice_temperature=-1.0"),
        ({"guidance_scale": math.inf}, "guidance_scale=inf"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DepthwiseConfig(**changes)
