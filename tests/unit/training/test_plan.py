"""Plans: what is traced against what autograd keeps and PyTorch counts, memory by item, and advice that helps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kind_parts import matched_config
from resgen.errors import ConfigError
from resgen.kinds import build, make_objective
from resgen.modalities import load_recipe
from resgen.nn.attention import Attention
from resgen.tokenizers.image import ImageTokenizer
from resgen.training import Trainer, plan
from resgen.training.image.plan import stages_of, tokenizer_step
from resgen.training.image.recipe import Recipe
from resgen.training.plan import (
    Stage,
    choose_stages,
    cost_of,
    count,
    generator_step,
    measure_rate,
    memory_of,
    plan_stage,
)
from resgen.training.speech.plan import stages_of as speech_stages_of
from resgen.training.tracing import Cost, trace
from resgen.types import SequenceCondition

LENGTH, WIDTH = 16, 64
KINDS = ("resgen", "residual", "direct", "maskgit", "rq_transformer", "ar_resgen", "valle")


class OneModule(contextlib.nullcontext):
    """Keeps a counter from looking for modules: its hooks bear no gradients taken within a forward pass."""

    parents = frozenset({"Global"})


def kept_bytes(run: Callable[[], object], weights: nn.Module) -> int:
    """Bytes of all storages that autograd keeps, weights and buffers aside."""
    own = {tensor.untyped_storage()._cdata for tensor in (*weights.parameters(), *weights.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    count = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    del result
    return count


def activations(cost: Cost) -> float:
    """All that is alive when the loss is known."""
    return sum(value for name, value in cost.items() if name not in ("forward", "backward", "operations"))


@functools.cache
def pictures(name: str) -> list[Stage]:
    """Stages of a recipe for images."""
    return stages_of(load_recipe(name)[1])


def small(kind: str = "residual", num_layers: int = 3) -> Recipe:
    """The recipe for digits with a small generator of a kind."""
    recipe = load_recipe("digits")[1]
    config = replace(
        recipe.generator, width=WIDTH, num_layers=num_layers, num_heads=4, mlp_width=4 * WIDTH, condition_width=WIDTH
    )
    return replace(recipe, generator=matched_config(config, recipe.tokenizer.spec, kind))


def real_loss(recipe: Recipe, samples: int, sequences: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    spec = recipe.tokenizer.spec
    features = {"feature_width": 8, "feature_stride": 2} if sequences else {}
    model = build(replace(recipe.generator, **features), spec)
    with torch.no_grad():
        model.codebooks.normal_(generator=torch.Generator().manual_seed(1))
    objective = make_objective(model, recipe.generator_loss)
    stream = torch.Generator().manual_seed(0)
    codes = torch.randint(spec.codebook_size, (samples, LENGTH, spec.depth), generator=stream)
    condition = None
    if sequences:
        rows = [torch.zeros(2 * LENGTH, 8)] * samples
        condition = SequenceCondition.of([LENGTH] * samples, [0] * samples, rows)
    targets, class_ids = torch.ones(samples, LENGTH, dtype=torch.bool), torch.zeros(samples, dtype=torch.int64)
    return model, lambda: objective.loss((codes, class_ids, condition), objective.draw(targets, stream))[0]


@pytest.mark.parametrize(("kind", "sequences"), [*((kind, False) for kind in KINDS[:-1]), ("residual", True)])
def test_a_trace_is_what_autograd_keeps_and_pytorch_counts(
    kind: str, sequences: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, samples = small(kind), 16
    features = {"feature_width": 8, "feature_stride": 2} if sequences else {}
    step = partial(generator_step, recipe, LENGTH, features, recipe.generator.num_layers)
    cost = trace(step, samples=samples, bf16=False)
    model, run = real_loss(recipe, samples, sequences)
    monkeypatch.setattr(Attention, "max_plain_length", 512)  # the counter does not know the CPU's fused kernel
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = OneModule()  # type: ignore[assignment]
    with counter:
        run().backward()
    assert cost["operations"] == pytest.approx(counter.get_total_flops(), rel=0.05)
    monkeypatch.setattr(Attention, "max_plain_length", 0)
    if kind != "resgen":  # whose loss has graphs of its own within the forward pass, gone when it ends
        assert activations(cost) == pytest.approx(kept_bytes(run, model), rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
def test_more_layers_are_a_straight_line(recompute: bool) -> None:
    stage = stages_of(small(num_layers=5))[1]
    whole = trace(partial(stage.step, 5, recompute), samples=8, bf16=True)
    line = cost_of(stage, 8, recompute=recompute)
    assert line == {name: pytest.approx(value, rel=0.01) for name, value in whole.items()}


def test_recomputation_keeps_inputs_of_blocks_and_repeats_their_products() -> None:
    stage = stages_of(small())[1]
    whole, again = (cost_of(stage, 16, recompute=recompute) for recompute in (False, True))
    rows = 16 * LENGTH
    assert again["mlp"] == 3 * 4 * rows * WIDTH and "attention" not in again
    repeated = 3 * rows * WIDTH * (4 * WIDTH + 2 * 4 * WIDTH + 2 * LENGTH)
    assert again["operations"] - whole["operations"] == pytest.approx(2 * repeated, rel=0.02)


def test_bf16_halves_what_products_keep_and_copies_weights() -> None:
    step = partial(generator_step, small(), LENGTH, {}, 1)
    single, half = (trace(step, samples=16, bf16=bf16) for bf16 in (False, True))
    assert "bf16 weights" not in single and 0.5 * single["mlp"] < half["mlp"] < 0.8 * single["mlp"]
    block = WIDTH * (3 * WIDTH + WIDTH + 8 * WIDTH)
    assert half["bf16 weights"] > 2 * block


def test_networks_of_convolutions_are_counted_as_they_run() -> None:
    recipe = load_recipe("digits")[1]
    cost = trace(partial(tokenizer_step, recipe), samples=2, bf16=False)
    tokenizer = ImageTokenizer(recipe.tokenizer)
    images = torch.zeros(2, 1, 8, 8)
    assert cost["tokenizer"] == pytest.approx(kept_bytes(lambda: tokenizer(images), tokenizer), rel=0.1)
    with FlopCounterMode(display=False) as counter:
        (tokenizer(images).images.sum()).backward()
    assert cost["operations"] == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_memory_by_item_and_over_shards() -> None:
    stage = stages_of(small())[1]
    size, cost = stage.parameters, cost_of(stage, 8)
    whole = memory_of(stage, 8)
    assert whole["weights"] == whole["gradients"] == 4 * size and whole["optimizer"] == 8 * size
    assert whole["averages"] == 4 * size and whole["frozen"] > 4 * stage.frozen > 0
    assert whole["activations: mlp"] == cost["mlp"] and whole["bf16 weights"] == cost["bf16 weights"]
    peak = max(cost["forward"], cost["backward"])
    assert activations(cost) + whole["workspace"] == pytest.approx(peak)
    assert whole["total"] == pytest.approx(sum(value for name, value in whole.items() if name != "total"))
    divided = memory_of(stage, 8, shards=4)
    for name in ("weights", "gradients", "optimizer", "averages"):
        assert divided[name] == whole[name] / 4
    block = count(stage.module.get_submodule("transformer.blocks.0"))
    assert divided["gathered weights"] == 4 * (2 * (size - 3 * block) + 3 * block)
    assert divided["activations: mlp"] == whole["activations: mlp"] and divided["frozen"] == whole["frozen"]
    assert memory_of(replace(stage, training=replace(stage.training, ema_decay=0.0)), 8)["averages"] == 0


def test_known_sizes() -> None:
    tokenizer, generator = pictures("imagenet256")
    assert 515e6 < generator.parameters < 573e6
    assert generator.codes == 64 * 16 and tokenizer.positions == 64
    rvqvae = load_recipe("rvqvae")[1]
    small_crops = replace(
        rvqvae, tokenizer_loss=replace(rvqvae.tokenizer_loss, crop_seconds=0.1, adversarial_weight=0.0)
    )
    waveform, text, generator = speech_stages_of(small_crops)
    assert round(waveform.parameters / 1e6) == 185 and text.name == "text"
    assert generator.positions == 216 and waveform.positions == 2  # 20 and 0.1 seconds at 10.77 Hz


def test_a_plan_divides_the_batch_and_adds_up() -> None:
    generator = pictures("digits")[1]
    one = plan_stage(generator, devices=1, device_bytes=1e9)
    four = plan_stage(generator, devices=4, device_bytes=1e9)
    assert (one["samples_per_micro_batch"], four["samples_per_micro_batch"]) == (128, 32)
    assert four["operations_per_step"] == pytest.approx(one["operations_per_step"], rel=0.02)
    assert four["operations"] == four["operations_per_step"] * 1500 and four["samples_seen"] == 1500 * 128
    assert four["memory_bytes"]["weights"] == one["memory_bytes"]["weights"] == 4 * generator.parameters
    assert four["memory_bytes"]["activations: mlp"] == pytest.approx(one["memory_bytes"]["activations: mlp"] / 4)
    assert one["codes_per_step"] == 128 * 16 * 4 and one["positions_per_step"] == 128 * 16
    divided = plan_stage(generator, devices=4, device_bytes=1e9, shard=True)
    assert divided["shards"] == 4 and divided["memory_bytes"]["optimizer"] == 2 * generator.parameters
    tokenizer = plan_stage(pictures("digits")[0], devices=4, device_bytes=1e9, shard=True)
    assert tokenizer["shards"] == 1  # the trainer divides generators only


@pytest.fixture
def simple_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte per sample, a fifth of it with recomputation."""

    def cost(stage: Stage, samples: int, *, recompute: bool = False) -> Cost:
        size = samples * (2e8 if recompute else 1e9)
        return {"mlp": size, "forward": size, "backward": size, "operations": 1e9}

    monkeypatch.setattr(plan, "cost_of", cost)


def test_the_advice_helps_and_is_the_least_change(simple_costs: None) -> None:
    stage = pictures("digits")[1]
    available = 0.6 * plan_stage(stage, devices=1, device_bytes=1e12)["memory_bytes"]["total"]
    with pytest.raises(ConfigError, match=r"'generator' needs .* GB .* available; most is activations: mlp") as caught:
        plan_stage(stage, devices=1, device_bytes=available)
    advised = int(str(caught.value).split("accumulate=")[1].split(":")[0])
    with_advice = replace(stage, training=replace(stage.training, accumulate=advised))
    assert plan_stage(with_advice, devices=1, device_bytes=available)
    with pytest.raises(ConfigError):
        plan_stage(
            replace(stage, training=replace(stage.training, accumulate=advised // 2)), devices=1, device_bytes=available
        )


def test_advice_where_not_even_one_sample_fits(simple_costs: None) -> None:
    tokenizer, generator = pictures("imagenet256")
    with pytest.raises(ConfigError, match="not even one sample fits; with generator_training.recompute=true and"):
        plan_stage(generator, devices=4, device_bytes=12.5e9)
    with pytest.raises(ConfigError, match="not even one sample fits; with --shard and generator_training.accumulate"):
        plan_stage(generator, devices=4, device_bytes=11e9)
    with pytest.raises(ConfigError, match="not even one sample fits; take a smaller model"):
        plan_stage(generator, devices=1, device_bytes=5e9)
    with pytest.raises(ConfigError, match="not even one sample fits; take a smaller model"):
        plan_stage(tokenizer, devices=4, device_bytes=2e9)


def test_a_batch_that_cannot_be_divided_is_the_trainers_error() -> None:
    stage = pictures("digits")[1]

    class Three:
        rank, world_size = 0, 3

        def sum(self, value: Tensor) -> Tensor:
            return value

        max = sum

    with pytest.raises(ConfigError) as planned:
        plan_stage(stage, devices=3, device_bytes=1e9)
    with pytest.raises(ConfigError) as trained:
        Trainer(None, stage.training, "unused", reduce=Three())  # type: ignore[arg-type]
    assert str(planned.value) == str(trained.value)


def test_stages_by_name() -> None:
    stages = pictures("digits")
    assert [stage.name for stage in choose_stages(stages, "generator")] == ["generator"]
    assert choose_stages(stages, None) == stages
    with pytest.raises(ConfigError, match="vocoder.*tokenizer, generator"):
        choose_stages(stages, "vocoder")


def test_a_rate_is_measured() -> None:
    rate = measure_rate(load_recipe("digits")[1], samples=4, positions=16, seconds=0.0)
    assert rate["source"] == "measured" and rate["width"] == 128
    assert 1e6 < rate["operations_per_second"] < 1e16
