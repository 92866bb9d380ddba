"""The sampler against exact enumeration of a toy model.

The toy model knows a joint distribution over the codes of two positions of two levels. Given what is visible it draws
the masked levels of each position from their exact conditional, the positions independently of each other, as the
mixture head does. The codebooks are so far apart (10 and 1) that quantization finds the drawn codes again. What
Algorithm 2 ends with after T steps can then be enumerated: every state, every proposal, every set of revealed tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy import stats

from latent_parts import LatentPrediction
from resgen.ops.masking import reveal_plan
from resgen.samplers.unmasking import SamplingConfig, draw_noise, sample_codes
from resgen.types import CodeSpec, NoiseSize

POSITIONS, DEPTH = 2, 2
SAMPLES = 20_000

Codes = tuple[tuple[int, ...], ...]
State = tuple[tuple[int, ...], Codes]  # visible levels, and the codes of these levels
Law = Callable[[tuple[int, ...], int], dict[tuple[int, ...], float]]


class Toy(LatentPrediction):
    """A `Predictor` and its own `Distribution`, with tables of exact conditionals."""

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.size = size
        self.spec = CodeSpec(depth=DEPTH, codebook_size=size, code_dim=1, shape=(POSITIONS,))
        values = torch.arange(size) - (size - 1) / 2  # -1/2, 1/2 or -1, 0, 1
        self.codebooks = torch.stack([20 * values, 2 * values])[..., None]
        self.tuples = list(product(range(size), repeat=DEPTH))  # all codes of a position
        every = list(product(self.tuples, repeat=POSITIONS))
        weights = rng.gamma(0.7, size=len(every)) + 0.05
        self.joint: dict[Codes, float] = dict(zip(every, weights / weights.sum(), strict=True))
        self.calls = 0
        # Row `state`, position, drawn tuple; the state is one digit per token: 0 for masked, code + 1 for visible.
        table = np.zeros(((size + 1) ** (POSITIONS * DEPTH), POSITIONS, len(self.tuples)))
        for visible in product(range(DEPTH + 1), repeat=POSITIONS):
            for codes in product(*(product(range(size), repeat=count) for count in visible)):
                for position in range(POSITIONS):
                    law = self.conditional((visible, codes), position)
                    table[self.number(codes), position] = [law[t] for t in self.tuples]
        self.cumulative = torch.from_numpy(table.cumsum(-1))
        ranges = torch.tensor(self.tuples)
        self.embedded = torch.stack([self.codebooks[d, ranges[:, d], 0] for d in range(DEPTH)], dim=1)

    def number(self, codes: Codes) -> int:
        digits = [codes[i][d] + 1 if d < len(codes[i]) else 0 for i in range(POSITIONS) for d in range(DEPTH)]
        return sum(digit * (self.size + 1) ** k for k, digit in enumerate(digits))

    def conditional(self, state: State, position: int) -> dict[tuple[int, ...], float]:
        """p(all codes of `position` | everything visible)."""
        visible, codes = state
        law = dict.fromkeys(self.tuples, 0.0)
        for every, p in self.joint.items():
            if all(every[i][: visible[i]] == codes[i] for i in range(POSITIONS)):
                law[every[position]] += p
        total = sum(law.values())
        return {key: p / total for key, p in law.items()}

    def __call__(self, codes: torch.Tensor, visible: torch.Tensor, guidance_scale: float) -> Toy:
        self.calls += 1
        known = torch.arange(DEPTH) < visible[..., None]
        digits = torch.where(known, codes + 1, 0).flatten(1)
        state = (digits * (self.size + 1) ** torch.arange(POSITIONS * DEPTH)).sum(1)
        self.rows = self.cumulative[state].flatten(0, 1)
        self.visible = visible.flatten()
        return self

    def sample(
        self, rows: torch.Tensor, uniform: torch.Tensor, normal: torch.Tensor, *, top_p: float, temperature: float
    ) -> torch.Tensor:
        drawn = (self.rows[rows] <= uniform[:, None].double()).sum(1).clamp(max=len(self.tuples) - 1)
        masked = torch.arange(DEPTH) >= self.visible[rows][:, None]
        return torch.where(masked, self.embedded[drawn], 0.0).sum(1, keepdim=True)


def hypergeometric(masked: tuple[int, ...], revealed: int) -> dict[tuple[int, ...], float]:
    """BinaryUnmask: how many tokens of each position are revealed (Sec. 3.2)."""
    law = {}
    for counts in product(*(range(k + 1) for k in masked)):
        if sum(counts) == revealed:
            ways = math.prod(math.comb(k, c) for k, c in zip(masked, counts, strict=True))
            law[counts] = ways / math.comb(sum(masked), revealed)
    return law


def by_confidence(level_std: tuple[float, ...], temperature: float) -> Law:
    """Gumbel noise on the confidence of two-entry codebooks: tokens drawn one after another in proportion to
    `exp(score / temperature)`. What is left after level 0 is always 1, after level 1 nothing, whatever was drawn."""

    def law(masked: tuple[int, ...], revealed: int) -> dict[tuple[int, ...], float]:
        result: dict[tuple[int, ...], float] = defaultdict(float)
        coarse = -1.0 / (2 * level_std[0] ** 2)
        weights = []
        for position, count in enumerate(masked):
            weights += [(position, math.exp((coarse if count == DEPTH else 0.0) / temperature))] * count
        for order in permutations(range(len(weights)), revealed):
            p, left = 1.0, sum(w for _, w in weights)
            for index in order:
                p, left = p * weights[index][1] / left, left - weights[index][1]
            positions = [weights[index][0] for index in order]
            result[tuple(positions.count(i) for i in range(POSITIONS))] += p
        return dict(result)

    return law


def enumerate_sampler(toy: Toy, plan: list[int], law: Law, start: State | None = None) -> dict[Codes, float]:
    """The exact distribution of the final codes when the steps reveal `plan` tokens."""
    states: dict[State, float] = {start or ((0,) * POSITIONS, ((),) * POSITIONS): 1.0}
    for revealed in filter(None, plan):
        after: dict[State, float] = defaultdict(float)
        for (visible, codes), p in states.items():
            laws = [toy.conditional((visible, codes), i) for i in range(POSITIONS)]
            for counts, q in law(tuple(DEPTH - v for v in visible), revealed).items():
                now = tuple(v + c for v, c in zip(visible, counts, strict=True))
                for proposal in product(toy.tuples, repeat=POSITIONS):
                    r = math.prod(laws[i][proposal[i]] for i in range(POSITIONS))
                    after[now, tuple(proposal[i][: now[i]] for i in range(POSITIONS))] += p * q * r
        states = after
    assert all(visible == (DEPTH,) * POSITIONS for visible, _ in states)
    result = dict.fromkeys(toy.joint, 0.0)
    result.update({codes: p for (_, codes), p in states.items()})
    return result


def sampled(toy: Toy, config: SamplingConfig, *, level_std: tuple[float, ...] = (1.0, 1.0), **given: torch.Tensor):
    toy.level_std = torch.tensor(level_std)
    noise = draw_noise(1, range(SAMPLES), config.num_steps, toy.spec, NoiseSize(uniform=1, normal=1))
    return sample_codes(toy, noise, config, **given)


def counts_of(toy: Toy, codes: torch.Tensor) -> np.ndarray:
    order = {every: k for k, every in enumerate(toy.joint)}
    flat = [order[tuple(tuple(position) for position in sample)] for sample in codes.tolist()]
    return np.bincount(flat, minlength=len(order))


def p_value(counts: np.ndarray, expected: dict[Codes, float]) -> float:
    p = np.array(list(expected.values()))
    assert p.sum() == pytest.approx(1, abs=1e-9)
    possible = p > 0
    if counts[~possible].any():
        return 0.0
    target = p[possible] * counts.sum()
    assert target.min() > 5, "too few samples for the test"
    return float(stats.chisquare(counts[possible], target * (counts.sum() / target.sum())).pvalue)


def plan_of(config: SamplingConfig, masked: int = POSITIONS * DEPTH) -> list[int]:
    plan = reveal_plan(config.mask_schedule, config.num_steps, torch.tensor([masked]))
    return [int(part) for part in plan]


RANDOM = {"unmasking": "random", "top_p": 1.0, "guidance_scale": 0.0}
CASES = {
    "all at once": ("linear", 1, [4]),
    "two steps": ("linear", 2, [2, 2]),
    "coarse steps grow": ("circle", 3, [0, 1, 3]),
    "three steps": ("linear", 3, [1, 1, 2]),
    "one token per step": ("linear", 4, [1, 1, 1, 1]),
}


@pytest.fixture(scope="module", params=[2, 3], ids=["V=2", "V=3"])
def toy(request: pytest.FixtureRequest) -> Toy:
    return Toy(request.param, seed=request.param)


@pytest.mark.parametrize("case", CASES)
def test_random_unmasking(toy: Toy, case: str) -> None:
    schedule, num_steps, plan = CASES[case]
    config = SamplingConfig(num_steps=num_steps, mask_schedule=schedule, **RANDOM)
    assert plan_of(config) == plan
    toy.calls = 0
    counts = counts_of(toy, sampled(toy, config))
    assert toy.calls == len([n for n in plan if n])
    assert p_value(counts, enumerate_sampler(toy, plan, hypergeometric)) > 1e-3


def test_the_comparison_tells_the_cases_apart(toy: Toy) -> None:
    """The check above has the power to fail: samples of T steps are not taken for samples of another T."""
    exact = {case: enumerate_sampler(toy, plan, hypergeometric) for case, (_, _, plan) in CASES.items()}
    config = SamplingConfig(num_steps=2, mask_schedule="linear", **RANDOM)
    counts = counts_of(toy, sampled(toy, config))
    assert p_value(counts, exact["all at once"]) < 1e-6
    assert p_value(counts, exact["one token per step"]) < 1e-6


def test_all_at_once_is_the_product_of_the_marginals(toy: Toy) -> None:
    exact = enumerate_sampler(toy, [POSITIONS * DEPTH], hypergeometric)
    start: State = ((0,) * POSITIONS, ((),) * POSITIONS)
    marginals = [toy.conditional(start, i) for i in range(POSITIONS)]
    for codes, p in exact.items():
        assert p == pytest.approx(math.prod(marginals[i][codes[i]] for i in range(POSITIONS)), abs=1e-12)


def test_one_token_per_step_is_the_joint_distribution(toy: Toy) -> None:
    """In whatever order single tokens are revealed, exact conditionals multiply to the joint distribution."""
    exact = enumerate_sampler(toy, [1] * (POSITIONS * DEPTH), hypergeometric)
    for codes, p in exact.items():
        assert p == pytest.approx(toy.joint[codes], abs=1e-12)


@pytest.mark.parametrize(("given", "steps", "plan"), [((1, 0), 1, [3]), ((1, 0), 2, [1, 2]), ((1, 1), 2, [1, 1])])
def test_given_codes_condition_the_rest(toy: Toy, given: tuple[int, int], steps: int, plan: list[int]) -> None:
    config = SamplingConfig(num_steps=steps, mask_schedule="linear", **RANDOM)
    assert plan_of(config, POSITIONS * DEPTH - sum(given)) == plan
    start: State = (given, tuple((1,) * count for count in given))
    codes = torch.ones(SAMPLES, POSITIONS, DEPTH, dtype=torch.int64)
    visible = torch.tensor(given).expand(SAMPLES, -1)
    counts = counts_of(toy, sampled(toy, config, codes=codes, visible=visible))
    assert p_value(counts, enumerate_sampler(toy, plan, hypergeometric, start)) > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize(("given", "steps", "plan"), [((0, 0), 3, [1, 1, 2]), ((1, 0), 2, [1, 2])])
def test_confidence_unmasking(temperature: float, given: tuple[int, int], steps: int, plan: list[int]) -> None:
    """The same with confidence, whose Gumbel noise makes the order of the tokens a known random one."""
    toy = Toy(2, seed=5)
    level_std = (0.4, 0.1)
    settings = {**RANDOM, "unmasking": "confidence"}
    config = SamplingConfig(num_steps=steps, mask_schedule="linear", choice_temperature=temperature, **settings)
    codes = torch.ones(SAMPLES, POSITIONS, DEPTH, dtype=torch.int64)
    visible = torch.tensor(given).expand(SAMPLES, -1)
    counts = counts_of(toy, sampled(toy, config, level_std=level_std, codes=codes, visible=visible))
    start: State = (given, tuple((1,) * count for count in given))
    exact, other = (
        enumerate_sampler(toy, plan, by_confidence(level_std, tau), start) for tau in (temperature, 1.5 / temperature)
    )
    assert p_value(counts, exact) > 1e-3
    assert p_value(counts, other) < 1e-6, "another temperature gives another distribution"


def test_equal_weights_are_the_hypergeometric_law() -> None:
    law = by_confidence((1e9, 1.0), 1.0)
    for masked, revealed in (((2, 2), 2), ((1, 2), 2), ((2, 2), 3)):
        exact = hypergeometric(masked, revealed)
        assert law(masked, revealed) == pytest.approx(exact, abs=1e-9)
