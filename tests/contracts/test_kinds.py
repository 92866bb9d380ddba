"""What every kind of generator keeps to, from training loss to samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from kind_parts import matched_config
from processes import ThreadReduce, run_threads
from resgen.checkpoints.artefacts import load_pipeline, save_pipeline
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import ConfigError
from resgen.kinds import (
    KINDS,
    GeneratorLossConfig,
    build,
    count_parameters,
    get_kind,
    kind_of,
    make_objective,
    sample,
    sampling_with,
    without_guidance,
)
from resgen.modalities import load_recipe
from resgen.models.base import CodeModel
from resgen.models.resgen import ResGenConfig
from resgen.quantizers import QuantizerConfig
from resgen.recipes import images
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.training.stages import with_kind
from resgen.types import CodeSpec

SPEC = CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(3, 2))
BASE = ResGenConfig(
    width=16,
    num_layers=3,
    num_heads=2,
    mlp_width=32,
    condition_width=16,
    num_components=6,
    num_classes=3,
    head="residual",
)


def make(kind: str, spec: CodeSpec = SPEC, *, noise: float = 0.3) -> CodeModel:
    torch.manual_seed(0)
    model = build(matched_config(BASE, spec, kind), spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    codes = torch.randint(spec.codebook_size, (40, spec.num_positions, spec.depth))
    model.set_codebooks(torch.randn(spec.depth, spec.codebook_size, spec.code_dim), torch.ones(spec.depth), codes)
    return model


def settings(kind: str, guidance_scale: float = 1.5):
    sampling = get_kind(kind).sampling(guidance_scale=guidance_scale)
    if hasattr(sampling, "num_steps"):
        sampling = dataclasses.replace(sampling, num_steps=2 if kind == "ar_resgen" else 5)
    return sampling


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def objective_of(model: CodeModel, **changes):
    return make_objective(model, GeneratorLossConfig(**changes))


def test_the_kind_of_a_model_is_its_name(kind: str) -> None:
    model = make(kind)
    assert kind_of(model.config).name == kind and isinstance(model, KINDS[kind].model)
    again = config_from_dict(KINDS[kind].config, config_to_dict(model.config))
    assert again == model.config and kind_of(again).name == kind


@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_samples_do_not_depend_on_their_batch(kind: str, guidance_scale: float) -> None:
    model, sampling = make(kind).eval(), settings(kind, guidance_scale)
    class_ids = torch.tensor([0, 1, 2, 1, 0])

    def run(rows: list[int], seed: int = 7) -> torch.Tensor:
        return sample(model, class_ids[rows], seed=seed, indices=rows, sampling=sampling).codes

    whole = run([0, 1, 2, 3, 4])
    assert whole.shape == (5, 6, 4) and whole.min() >= 0 and whole.max() < 9
    assert torch.equal(run([3])[0], whole[3]) and torch.equal(run([4, 0]), whole[[4, 0]])
    assert not torch.equal(run([0, 1, 2, 3, 4], seed=8), whole)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_calls_of_several_seeds_share_a_batch(kind: str, guidance_scale: float) -> None:
    """What a server does: sample k of each call is the one that the call alone would have drawn."""
    model, sampling = make(kind).eval(), settings(kind, guidance_scale)
    class_ids = torch.tensor([0, 1, 2, 1, 0])
    seeds, indices = [7, 7, 8, 2**40, 8], [0, 1, 0, 0, 1]
    mixed = sample(model, class_ids, seed=seeds, indices=indices, sampling=sampling).codes
    for row, (seed, index) in enumerate(zip(seeds, indices, strict=True)):
        alone = sample(model, class_ids[row, None], seed=seed, indices=[index], sampling=sampling).codes
        assert torch.equal(mixed[row], alone[0]), row
    with pytest.raises(ValueError):
        sample(model, class_ids, seed=[1, 2], indices=indices, sampling=sampling)


def test_what_is_given_is_kept(kind: str) -> None:
    model = make(kind).eval()
    stream = torch.Generator().manual_seed(2)
    codes = torch.randint(9, (3, 6, 4), generator=stream)
    visible = torch.randint(5, (3, 6), generator=stream)
    samples = sample(
        model, torch.tensor([0, 1, 2]), seed=0, indices=range(3), sampling=settings(kind), start=(codes, visible)
    ).codes
    known = torch.arange(4) < visible[..., None]
    assert torch.equal(samples[known], codes[known]) and not torch.equal(samples, codes)


def test_guidance_moves_towards_the_class(kind: str) -> None:
    """Where the class decides the codes alone, more guidance gives them more often."""
    model = make(kind, noise=0.0)
    sampling = settings(kind, 0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    objective = objective_of(model)
    stream = torch.Generator().manual_seed(0)
    class_ids = torch.arange(96) % 3
    codes = (class_ids[:, None, None] * 3 + torch.randint(2, (96, 6, 4), generator=stream)).clamp(max=8)
    objective.start(codes, stream)
    first = None
    for _ in range(60):
        dropped = torch.where(torch.rand(96, generator=stream) < 0.2, 3, class_ids)
        loss, _ = objective.loss((codes, dropped, None), objective.draw(torch.ones(96, 6, dtype=torch.bool), stream))
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first
    model.eval()
    samples = sample(model, class_ids, seed=1, indices=range(96), sampling=sampling).codes
    right = (samples // 3 == class_ids[:, None, None]).float().mean()
    guided = sample(
        model, class_ids, seed=1, indices=range(96), sampling=dataclasses.replace(sampling, guidance_scale=2.0)
    ).codes
    more = (guided // 3 == class_ids[:, None, None]).float().mean()
    assert right > 0.4 and more >= right - 0.02


def test_validation_is_repeatable_and_finite(kind: str) -> None:
    model = make(kind).eval()
    stream = torch.Generator().manual_seed(4)
    batches = [(torch.randint(9, (8, 6, 4), generator=stream), torch.arange(8) % 3, None) for _ in range(2)]
    objective = objective_of(model)
    with torch.no_grad():
        first, second = objective.validate(batches), objective.validate(iter(batches))
    assert first == second and "val_loss" in first

    def share(reduce: ThreadReduce) -> dict[str, float]:
        with torch.no_grad():
            return objective.validate(batches[reduce.rank :: reduce.world_size], reduce)

    for shared in run_threads(3, share):  # the last has nothing to do
        assert shared == pytest.approx(first, rel=1e-9) and list(shared) == list(first)
    assert all(value == value and abs(value) < 1e4 for value in first.values())


def test_a_start_from_data_lowers_the_loss(kind: str) -> None:
    model = make(kind, noise=0.0)
    stream = torch.Generator().manual_seed(4)
    codes = torch.randint(3, (64, 6, 4), generator=stream)  # six of nine codes never occur
    batches = [(codes, torch.zeros(64, dtype=torch.int64), None)]
    objective = objective_of(model)
    with torch.no_grad():
        before = objective.validate(batches)["val_loss"]
        objective.start(codes, stream)
        assert objective.validate(batches)["val_loss"] < before - 0.1
        untouched = objective_of(make(kind, noise=0.0), data_start=False)
        untouched.start(codes, stream)
        assert untouched.validate(batches)["val_loss"] == pytest.approx(before)


def test_a_pipeline_of_every_kind_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        image_size=12,
        channels=1,
        width=8,
        multipliers=(1, 1, 1),
        num_res_blocks=1,
        code_dim=6,
        quantizer=QuantizerConfig(depth=4, codebook_size=9),
    )
    tokenizer = ImageTokenizer(config).eval()
    model = make(kind, tokenizer.spec).eval()
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        tokenizer.quantizer.codebooks.copy_(torch.randn(tokenizer.quantizer.codebooks.shape, generator=stream))
    codes = torch.randint(9, (20, tokenizer.spec.num_positions, 4), generator=stream)
    model.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # what a saved model keeps
    sampling = settings(kind)
    save_pipeline(tmp_path / "m", tokenizer, model, sampling=sampling, class_names=("a", "b", "c"))
    loaded = load_pipeline(tmp_path / "m")
    assert loaded.sampling == sampling and kind_of(loaded.generator.config).name == kind
    class_ids = torch.tensor([0, 2])
    first, second = (
        sample(m, class_ids, seed=3, indices=range(2), sampling=sampling).codes for m in (model, loaded.generator)
    )
    assert torch.equal(first, second)


def test_valle_guides_every_level_with_the_whole_scale() -> None:
    """The first level position by position, the other three in one evaluation each."""
    sampling = dataclasses.replace(settings("valle", 1.5), guidance_first=0.5)
    steps = sample(make("valle").eval(), torch.zeros(1).long(), seed=0, indices=[0], sampling=sampling).steps
    first, rest = steps[: SPEC.num_positions], steps[SPEC.num_positions :]
    assert first[0].guidance_scale < 1.5 and len(rest) >= SPEC.depth - 1
    assert {step.guidance_scale for step in rest} == {1.5}


def test_settings_of_another_kind_are_refused(kind: str) -> None:
    other = "rq_transformer" if kind not in ("rq_transformer", "valle") else "maskgit"
    with pytest.raises(ConfigError, match=f"kind '{kind}'"):
        sample(make(kind), torch.tensor([0]), seed=0, indices=[0], sampling=settings(other))


def test_settings_by_name() -> None:
    sampling = SamplingConfig()
    assert sampling_with(sampling, {"num_steps": 3, "top_p": None}).num_steps == 3
    with pytest.raises(ConfigError, match="unknown sampling setting 'top_k'"):
        sampling_with(sampling, {"top_k": 4})
    with pytest.raises(ConfigError, match="num_steps=0"):
        sampling_with(sampling, {"num_steps": 0})
    off = without_guidance(dataclasses.replace(sampling, guidance_first=1.0))
    assert off.guidance_scale == 0 and off.guidance_first == 0
    with pytest.raises(ConfigError, match="unknown kind 'maskgti'.*maskgit"):
        get_kind("maskgti")


@pytest.mark.parametrize("name", images.RECIPES)
def test_every_kind_of_a_recipe_has_its_parameters(name: str, kind: str) -> None:
    recipe = load_recipe(name)[1]
    spec = recipe.tokenizer.spec
    other = with_kind(recipe, kind)
    assert kind_of(other.generator).name == kind and isinstance(other.sampling, KINDS[kind].sampling)
    ratio = count_parameters(other.generator, spec) / count_parameters(recipe.generator, spec)
    assert 0.85 <= ratio <= 1.15 if name == "digits" else 0.9 <= ratio <= 1.1, ratio


def test_a_metric_is_of_the_mixture_alone() -> None:
    """Other kinds of the same recipe are made without it; a configuration that would pass it over is refused."""
    config = dataclasses.replace(BASE, head="mixture", metric="triangular")
    assert matched_config(config, SPEC, "residual").metric == matched_config(config, SPEC, "direct").metric == "none"
    assert matched_config(config, SPEC, "ar_resgen").metric == "triangular"
    assert build(config, SPEC).head.metric.form == "triangular"
    with pytest.raises(ConfigError, match="metric='scale' is of head='mixture', not of 'residual'"):
        dataclasses.replace(BASE, metric="scale")
