"""The loop of iterative unmasking: what it evaluates, keeps, skips and reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from latent_parts import LatentPrediction, recorded
from resgen.errors import ConfigError
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.ops.masking import SCHEDULES, reveal_plan
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.order import ORDERS
from resgen.samplers.unmasking import Noise, SamplingConfig, draw_noise, sample_codes
from resgen.types import CodeSpec, NoiseSize

SPEC = CodeSpec(depth=4, codebook_size=8, code_dim=6, shape=(3, 2))
SIZE = NoiseSize(uniform=1, normal=6)


class Scripted(LatentPrediction):
    """A model whose latents depend on the noise and on what is visible; it counts its calls and watches its input."""

    def __init__(self, spec: CodeSpec = SPEC) -> None:
        self.spec = spec
        stream = torch.Generator().manual_seed(1)
        scale = 0.5 ** torch.arange(spec.depth)[:, None, None]
        self.codebooks = torch.randn(spec.depth, spec.codebook_size, spec.code_dim, generator=stream) * scale
        self.level_std = 0.5 ** torch.arange(1, spec.depth + 1).float()
        self.scales: list[float] = []
        self.inputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.rows: list[int] = []

    def __call__(self, codes: torch.Tensor, visible: torch.Tensor, guidance_scale: float) -> Scripted:
        masked = torch.arange(self.spec.depth) >= visible[..., None]
        assert (codes[masked] == 0).all(), "codes of masked levels leak"
        self.scales.append(guidance_scale)
        self.inputs.append((codes.clone(), visible.clone()))
        self.visible = visible.flatten()
        self.mean = (codes.sum((1, 2), keepdim=True)[..., 0] % 5 / 5 + visible).flatten()
        return self

    def sample(
        self, rows: torch.Tensor, uniform: torch.Tensor, normal: torch.Tensor, *, top_p: float, temperature: float
    ) -> torch.Tensor:
        self.rows.append(len(rows))
        return (self.mean[rows] - uniform * top_p)[:, None] * 0.2 + temperature * normal

    def run(self, config: SamplingConfig, batch: int = 3, seed: int = 0, **given):
        size = NoiseSize(uniform=1, normal=self.spec.code_dim)
        noise = draw_noise(seed, range(batch), config.num_steps, self.spec, size)
        return recorded(sample_codes, self, noise, config, **given)


def settings(**changes) -> SamplingConfig:
    return SamplingConfig(**({"num_steps": 6, "choice_temperature": 1.0} | changes))


def tiny_model(num_classes: int = 3, spec: CodeSpec = SPEC) -> ResGen:
    torch.manual_seed(0)
    config = ResGenConfig(
        width=16, num_layers=2, num_heads=2, mlp_width=32, condition_width=16, num_components=5, num_classes=num_classes
    )
    model = ResGen(config, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    codes = torch.randint(spec.codebook_size, (64, spec.num_positions, spec.depth))
    model.set_codebooks(Scripted(spec).codebooks, torch.full((spec.depth,), 0.04), codes)
    return model.eval().requires_grad_(False)


def run_model(model: ResGen, class_ids: list[int], indices, config: SamplingConfig, seed: int = 0, **given):
    noise = draw_noise(seed, indices, config.num_steps, model.spec, model.head.noise)
    predict = model.predictor(torch.tensor(class_ids))
    return recorded(sample_codes, predict, noise, config, **given)


# What is evaluated.


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("unmasking", ORDERS)
@pytest.mark.parametrize("num_steps", [1, 2, 6, 50])
def test_every_token_is_revealed_once(schedule: str, unmasking: str, num_steps: int) -> None:
    model, states = Scripted(), []
    config = settings(num_steps=num_steps, mask_schedule=schedule, unmasking=unmasking)
    samples = model.run(config, callback=lambda *state: states.append(state))
    plan = reveal_plan(schedule, num_steps, torch.full((3,), SPEC.num_positions * SPEC.depth))
    assert all((part >= 0).all() for part in plan) and int(sum(plan)[0]) == SPEC.num_positions * SPEC.depth
    working = [k for k, part in enumerate(plan) if part.any()]
    assert len(model.scales) == len(samples.steps) == len(states) == len(working)
    assert [record.step for record in samples.steps] == [k + 1 for k in working]
    codes, visible = torch.zeros_like(samples.codes), torch.zeros(3, SPEC.num_positions, dtype=torch.int64)
    for k, (record, now, now_visible) in zip(working, states, strict=True):
        assert record is samples.steps[working.index(k)]
        kept = torch.arange(SPEC.depth) < visible[..., None]
        assert torch.equal(now[kept], codes[kept]), "revealed tokens never change"
        assert (now_visible >= visible).all()
        assert torch.equal((now_visible - visible).sum(1), plan[k])
        assert (now[torch.arange(SPEC.depth) >= now_visible[..., None]] == 0).all()
        assert record.revealed == int(plan[k].sum()) and record.visible_tokens == int(now_visible.sum())
        assert record.num_steps == num_steps and record.seconds >= 0
        codes, visible = now, now_visible
    assert (visible == SPEC.depth).all() and torch.equal(codes, samples.codes)
    assert samples.codes.unique().numel() > 4, "codes are drawn, not left at 0"


def test_a_step_that_reveals_nothing_costs_nothing() -> None:
    """With `circle` and many steps the first ones leave everything masked."""
    spec = CodeSpec(depth=1, codebook_size=8, code_dim=6, shape=(3,))
    model = Scripted(spec)
    samples = model.run(settings(num_steps=20, mask_schedule="circle"), batch=2)
    assert len(model.scales) <= 3 < 20 and samples.steps[-1].step == 20
    assert samples.steps[0].step > 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_evaluations_do_not_grow_with_depth(schedule: str) -> None:
    counts = {}
    for depth in (1, 4, 8, 16):
        model = Scripted(CodeSpec(depth=depth, codebook_size=4, code_dim=2, shape=(16, 16)))
        model.run(settings(num_steps=4, mask_schedule=schedule), batch=1)
        plan = reveal_plan(schedule, 4, torch.tensor([256 * depth]))
        assert len(model.scales) == sum(1 for part in plan if part.any())
        counts[depth] = len(model.scales)
    assert counts == dict.fromkeys(counts, 4)


def test_finished_positions_are_not_drawn() -> None:
    model = Scripted()
    model.run(settings(num_steps=12, mask_schedule="linear"))
    unfinished = [int((visible < SPEC.depth).sum()) for _, visible in model.inputs]
    assert model.rows == unfinished and unfinished[-1] < unfinished[0]


@pytest.mark.parametrize(
    ("first", "last", "doubled"), [(0.0, 0.0, 0), (1.5, 0.0, 0), (0.0, 2.0, 5), (0.5, 2.0, 6), (2.0, 2.0, 6)]
)
def test_the_second_pass_runs_only_where_guidance_is_on(first: float, last: float, doubled: int) -> None:
    model = tiny_model()
    rows: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    config = settings(guidance_first=first, guidance_scale=last, mask_schedule="linear")
    samples = run_model(model, [0, 1], range(2), config)
    assert rows.count(4) == doubled and rows.count(2) == 6 - doubled
    weights = [record.guidance_scale for record in samples.steps]
    expected = [first + (last - first) * k / 5 for k in range(6)] if last else [0.0] * 6
    assert weights == pytest.approx(expected)


def test_no_second_pass_outside_of_the_interval() -> None:
    model = tiny_model()
    rows: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    interval = {"guidance_start": 0.3, "guidance_end": 0.7}
    run_model(model, [0, 1], range(2), settings(guidance_first=1.0, mask_schedule="linear", **interval))
    assert rows == [2, 2, 4, 4, 2, 2]


@pytest.mark.parametrize(("start", "end"), [(-0.1, 1.0), (0.5, 0.5), (0.2, 1.1), (0.8, 0.7)])
def test_the_interval_of_guidance_lies_within_the_steps(start: float, end: float) -> None:
    for config in (SamplingConfig, DepthwiseConfig):
        with pytest.raises(ConfigError, match=f"guidance_start={start} and guidance_end={end}"):
            config(guidance_start=start, guidance_end=end)


def test_guidance_changes_the_codes() -> None:
    model = tiny_model()
    plain, guided = (run_model(model, [0, 1], range(2), settings(guidance_scale=w)).codes for w in (0.0, 4.0))
    assert not torch.equal(plain, guided)


# Given codes.


@pytest.mark.parametrize("unmasking", ORDERS)
@pytest.mark.parametrize("seed", range(4))
def test_given_codes_are_never_altered(unmasking: str, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    model = Scripted()
    codes = torch.randint(8, (4, SPEC.num_positions, SPEC.depth), generator=stream)
    visible = torch.randint(SPEC.depth + 1, (4, SPEC.num_positions), generator=stream)
    visible[0], visible[1] = SPEC.depth, 0
    kept = torch.arange(SPEC.depth) < visible[..., None]
    states = []
    samples = model.run(
        settings(unmasking=unmasking),
        batch=4,
        codes=codes,
        visible=visible,
        callback=lambda record, now, levels: states.append((now, levels)),
    )
    for now, levels in [*states, (samples.codes, torch.full_like(visible, SPEC.depth))]:
        assert torch.equal(now[kept], codes[kept]) and (levels >= visible).all()
    assert torch.equal(samples.codes[0], codes[0])
    assert not torch.equal(samples.codes[1], codes[1])
    assert samples.steps[-1].visible_tokens == samples.codes.numel()
    assert sum(record.revealed for record in samples.steps) == int((~kept).sum())


def test_what_stands_in_masked_levels_is_not_read() -> None:
    codes = torch.randint(8, (3, SPEC.num_positions, SPEC.depth), generator=torch.Generator().manual_seed(0))
    visible = torch.full((3, SPEC.num_positions), 2)
    scrambled = torch.where(torch.arange(SPEC.depth) < 2, codes, 7 - codes)
    results = [Scripted().run(settings(), codes=value, visible=visible).codes for value in (codes, scrambled)]
    assert torch.equal(*results)


def test_everything_given_needs_no_evaluation() -> None:
    model = Scripted()
    codes = torch.randint(8, (3, SPEC.num_positions, SPEC.depth))
    called = []
    samples = model.run(
        settings(),
        codes=codes,
        visible=torch.full((3, SPEC.num_positions), SPEC.depth),
        callback=lambda *state: called.append(state),
    )
    assert torch.equal(samples.codes, codes)
    assert model.scales == [] and samples.steps == [] and called == []


def test_codes_without_visible_are_refused() -> None:
    codes = torch.zeros(3, SPEC.num_positions, SPEC.depth, dtype=torch.int64)
    for given in ({"codes": codes}, {"visible": codes[..., 0]}):
        with pytest.raises(ConfigError, match="together"):
            Scripted().run(settings(), **given)


def test_noise_for_another_number_of_steps_is_refused() -> None:
    model = Scripted()
    with pytest.raises(ConfigError, match="3 steps.*num_steps=6"):
        sample_codes(model, draw_noise(0, [0], 3, SPEC, SIZE), settings())


# Random numbers.


def test_the_noise_of_a_sample_depends_on_nothing_else() -> None:
    together = draw_noise(3, range(8), 5, SPEC, SIZE)
    for index in (0, 3, 7):
        alone = draw_noise(3, [index], 5, SPEC, SIZE)
        assert all(torch.equal(a[0], t[index]) for a, t in zip(alone, together, strict=True))
    shuffled = draw_noise(3, [5, 2], 5, SPEC, SIZE)
    assert all(torch.equal(s, t[[5, 2]]) for s, t in zip(shuffled, together, strict=True))
    for other in (draw_noise(4, [0], 5, SPEC, SIZE), draw_noise(3, [1], 5, SPEC, SIZE)):
        assert all((o[0] != t[0]).float().mean() > 0.99 for o, t in zip(other, together, strict=True))


def test_noise_shapes_and_ranges() -> None:
    noise = draw_noise(0, range(40), 9, SPEC, SIZE)
    assert noise.uniform.shape == (40, 9, 6, 1) and noise.choice.shape == (40, 9, 6, 4)
    assert noise.normal.shape == (40, 9, 6, 6)
    assert noise.uniform.min() >= 0 and noise.uniform.max() < 1
    assert noise.choice.min() > 0 and noise.choice.max() < 1
    assert noise.uniform.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.normal.mean() == pytest.approx(0, abs=0.03) and noise.normal.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("unmasking", ORDERS)
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_batches_change_nothing(unmasking: str, guidance_scale: float) -> None:
    model = tiny_model()
    classes = [k % 4 for k in range(8)]
    config = settings(unmasking=unmasking, guidance_scale=guidance_scale)
    whole = run_model(model, classes, range(8), config).codes
    for size in (1, 3):
        parts = [
            run_model(model, classes[k : k + size], range(k, min(k + size, 8)), config).codes for k in range(0, 8, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(run_model(model, [classes[5]], [5], config).codes[0], whole[5])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 8
    assert not torch.equal(run_model(model, classes, range(8), config, seed=1).codes, whole)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = Scripted().run(settings()).codes
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    assert torch.equal(Scripted().run(settings()).codes, first)


def test_extreme_choice_noise_reveals_all_the_same() -> None:
    model = Scripted()
    noise = draw_noise(0, range(2), 6, SPEC, SIZE)
    least = torch.finfo(torch.float32).tiny
    choice = torch.where(noise.choice < 0.5, least, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    noise = Noise(noise.uniform, noise.normal, choice)
    states = []
    sample_codes(
        model,
        noise,
        settings(choice_temperature=1e6),
        record=lambda *state: states.append(state[-1]),
    )
    assert (states[-1] == SPEC.depth).all()


# Confidence.


def test_without_choice_noise_the_most_confident_position_comes_first() -> None:
    """Two positions, one of them near its codes: it is revealed before the other."""
    spec = CodeSpec(depth=2, codebook_size=2, code_dim=1, shape=(2,))

    class Near(LatentPrediction):
        codebooks = torch.tensor([[[-10.0], [10.0]], [[-1.0], [1.0]]])
        level_std = torch.ones(2)

        def __call__(self, codes: torch.Tensor, visible: torch.Tensor, guidance_scale: float) -> Near:
            self.visible = visible.flatten()
            return self

        def sample(self, rows: torch.Tensor, *noise: torch.Tensor, **_: float) -> torch.Tensor:
            # The residual after both levels is 0 at position 1, and 3 at position 0.
            whole = torch.tensor([[14.0], [11.0]])[rows]
            return torch.where(self.visible[rows, None] > 0, whole - 10, whole)

    states: list[torch.Tensor] = []
    sample_codes(
        Near(),
        draw_noise(0, [0], 4, spec, NoiseSize(uniform=1, normal=1)),
        SamplingConfig(num_steps=4, mask_schedule="linear", choice_temperature=0.0, guidance_scale=0.0),
        record=lambda *state: states.append(state[-1][0]),
    )
    assert [state.tolist() for state in states[:2]] == [[0, 1], [0, 2]]


# Settings.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": -3}, "num_steps=-3"),
        ({"mask_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"unmasking": "randon"}, "did you mean 'random'"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1e-31}, "top_p=1e-31"),
        ({"top_p": 1.01}, "top_p=1.01"),
        ({"top_p": math.nan}, "top_p=nan"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"choice_temperature": -1.0}, "choice_temperature=-1.0"),
        ({"choice_temperature": math.nan}, "choice_temperature=nan"),
        ({"guidance_first": -1.0}, "guidance_first=-1.0"),
        ({"guidance_scale": math.inf}, "guidance_scale=inf"),
        ({"num_steps": 10_001}, "num_steps=10001 must be at most 10,000"),  # noise of all steps is drawn at once
        ({"prompt_guidance": 1.2}, "prompt_guidance=1.2"),
        ({"prompt_guidance": math.nan}, "prompt_guidance=nan"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SamplingConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"top_p": 0.3}, {"temperature": 0.3}, {"choice_temperature": 20.0}, {"num_steps": 5}]
)
def test_every_setting_matters(changes: dict[str, float]) -> None:
    model = tiny_model()
    config = settings(guidance_scale=0.0)
    changed: Callable[[SamplingConfig], torch.Tensor] = lambda c: run_model(model, [0, 1, 2], range(3), c).codes  # noqa: E731
    assert not torch.equal(changed(config), changed(dataclasses.replace(config, **changes)))
