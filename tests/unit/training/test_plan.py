"""Plans: what is counted against what autograd keeps and PyTorch counts, memory by item, and advice that helps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resgen.errors import ConfigError
from resgen.kinds import GeneratorLossConfig, ModelConfig, build, make_objective, matched_config
from resgen.models.base import CodeModel
from resgen.models.resgen import ResGenConfig
from resgen.nn import attention
from resgen.recipes import get_recipe, get_speech_recipe
from resgen.tokenizers.image import ImageTokenizer
from resgen.training import Trainer
from resgen.training.plan import Size, Stage, choose_stages, measure_rate, memory_of, plan_stage, stages_of
from resgen.training.plan_counts import Batch, generator_work, mean_masked_share
from resgen.types import CodeSpec, SequenceCondition

SIDE, DEPTH = 4, 4
LENGTH = SIDE * SIDE
KINDS = ("residual", "direct", "maskgit", "rq_transformer", "ar_resgen", "valle")


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


@functools.cache
def pictures(name: str) -> list[Stage]:
    """Stages of a recipe for pictures."""
    return stages_of(get_recipe(name))


def small(kind: str = "residual", width: int = 64, sequences: bool = False, **changes: Any) -> CodeModel:
    spec = CodeSpec(depth=DEPTH, codebook_size=64, code_dim=16, shape=(LENGTH,) if sequences else (SIDE, SIDE))
    config: ModelConfig = ResGenConfig(
        width=width, num_layers=3, num_heads=4, mlp_width=4 * width, condition_width=width, num_components=32
    )
    config = replace(config, head="residual", **changes)
    model = build(matched_config(config, spec, kind), spec)
    with torch.no_grad():
        model.codebooks.normal_(generator=torch.Generator().manual_seed(1))
    return model


def loss_of(model: CodeModel, samples: int, sequences: bool = False) -> Callable[[], Tensor]:
    objective = make_objective(model, GeneratorLossConfig(data_start=False))
    stream = torch.Generator().manual_seed(0)
    codes = torch.randint(64, (samples, LENGTH, DEPTH), generator=stream)
    condition = SequenceCondition.of([LENGTH] * samples, [0] * samples) if sequences else None
    return lambda: objective.loss(codes, torch.zeros(samples, dtype=torch.int64), stream, condition)[0]


def batch(samples: int, size: int = 4, **settings: Any) -> Batch:
    share = mean_masked_share("circle", LENGTH * DEPTH)
    return Batch(samples=samples, positions=LENGTH, size=size, masked_share=share, **settings)


def kept(activations: dict[str, float] | Any) -> float:
    return sum(value for name, value in activations.items() if name != "loss workspace")


@pytest.mark.parametrize("samples", [4, 16])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("fused", "size"), [(True, 4), (False, 2)])
def test_activations_are_those_that_autograd_keeps(
    samples: int, width: int, fused: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MAX_PLAIN_LENGTH", 0 if fused else 512)
    model = small(width=width)
    with torch.autocast("cpu", torch.bfloat16) if size == 2 else contextlib.nullcontext():
        measured = kept_bytes(loss_of(model, samples), model)
    estimate = kept(generator_work(model, batch(samples, size, fused=fused)).activations)
    if size == 2:  # the copies of the weights; the head's are gone when its loss is known
        memory = memory_of(Size.of(model, averaged=None), {}, ema=False, bf16=True)
        estimate += memory["bf16 weights"] - size * sum(parameter.numel() for parameter in model.head.parameters())
    assert estimate == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(("kind", "sequences"), [*((kind, False) for kind in KINDS), ("rq_transformer", True)])
def test_every_kind_on_grids_and_sequences(kind: str, sequences: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(kind, sequences=sequences)
    run = loss_of(model, 8, sequences)
    monkeypatch.setattr(attention, "MAX_PLAIN_LENGTH", 0)
    work = generator_work(model, batch(8))
    assert kept(work.activations) == pytest.approx(kept_bytes(run, model), rel=0.1)
    monkeypatch.setattr(attention, "MAX_PLAIN_LENGTH", 512)  # the counter does not know the CPU's fused kernel
    with FlopCounterMode(display=False) as counter:
        run().backward()
    assert work.operations == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("rank", [None, 4])
def test_operations_of_the_mixture_head(rank: int | None) -> None:
    model = build(replace(small().config, head="mixture", mean_rank=rank), small().spec)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss_of(model, 64)()
    # rows with nothing masked are counted as well
    assert counter.get_total_flops() <= 2 * generator_work(model, batch(64)).multiply_adds
    assert 2 * generator_work(model, batch(64)).multiply_adds == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_recomputation_keeps_inputs_of_blocks_and_repeats_their_products() -> None:
    model = small()
    whole, again = (generator_work(model, batch(16, recompute=recompute)) for recompute in (False, True))
    assert again.activations["block inputs"] == 3 * 4 * 16 * LENGTH * 64
    assert again.activations["mlp"] == pytest.approx(whole.activations["mlp"] / 3)
    assert again.multiply_adds == whole.multiply_adds
    assert again.operations - whole.operations == 2 * 3 * 16 * LENGTH * 64 * (4 * 64 + 2 * 256 + 2 * LENGTH)


def test_networks_of_convolutions_are_counted_as_they_run() -> None:
    recipe = get_recipe("digits")
    tokenizer = ImageTokenizer(recipe.tokenizer)
    images = torch.zeros(2, 1, 8, 8)
    measured = kept_bytes(lambda: tokenizer(images), tokenizer)
    stage = pictures("digits")[0]
    assert kept(stage.work(2, 4, False).activations) == pytest.approx(measured, rel=0.1)
    with FlopCounterMode(display=False) as counter:
        (tokenizer(images).images.sum()).backward()
    assert stage.work(2, 4, False).operations == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_memory_by_item_and_over_shards() -> None:
    size = Size(parameters=1000, averaged=800, frozen=50, matrices=900, blocks=600, num_blocks=3)
    whole = memory_of(size, {"mlp": 7.0}, ema=True, bf16=True)
    assert whole == {
        "weights": 4000,
        "gradients": 4000,
        "optimizer": 8000,
        "averages": 3200,
        "frozen": 200,
        "bf16 weights": 1800,
        "gathered weights": 0,
        "activations: mlp": 7,
        "total": 21207,
    }
    divided = memory_of(size, {"mlp": 7.0}, ema=True, bf16=True, shards=4)
    assert [divided[name] for name in ("weights", "gradients", "optimizer", "averages")] == [1000, 1000, 2000, 800]
    assert divided["gathered weights"] == 4 * (2 * 400 + 3 * 200)
    assert divided["activations: mlp"] == 7 and divided["frozen"] == 200
    plain = memory_of(size, {}, ema=False, bf16=False)
    assert plain["total"] == 16200
    assert memory_of(size, {}, ema=False, bf16=True, recompute=True)["bf16 weights"] == 2 * (900 - 600 + 200)


def test_known_sizes() -> None:
    tokenizer, generator = pictures("imagenet256")
    assert 515e6 < generator.size.parameters < 573e6
    assert generator.codes == 64 * 16 and tokenizer.positions == 64
    rvqvae = get_speech_recipe("rvqvae")
    small_crops = replace(
        rvqvae, tokenizer_loss=replace(rvqvae.tokenizer_loss, crop_seconds=0.1, adversarial_weight=0.0)
    )
    waveform, text, generator = stages_of(small_crops)
    assert round(waveform.size.parameters / 1e6) == 185 and text.name == "text"
    assert generator.positions == 216 and waveform.positions == 2  # 20 and 0.1 seconds at 10.77 Hz


def test_a_plan_divides_the_batch_and_adds_up() -> None:
    generator = pictures("digits")[1]
    one = plan_stage(generator, devices=1, device_bytes=1e9)
    four = plan_stage(generator, devices=4, device_bytes=1e9)
    assert (one["samples_per_micro_batch"], four["samples_per_micro_batch"]) == (128, 32)
    assert four["operations_per_step"] == pytest.approx(one["operations_per_step"])
    assert four["operations"] == four["operations_per_step"] * 1500 and four["samples_seen"] == 1500 * 128
    assert four["memory_bytes"]["weights"] == one["memory_bytes"]["weights"] == 4 * generator.size.parameters
    assert four["memory_bytes"]["activations: mlp"] == one["memory_bytes"]["activations: mlp"] / 4
    assert one["codes_per_step"] == 128 * 16 * 4 and one["positions_per_step"] == 128 * 16
    divided = plan_stage(generator, devices=4, device_bytes=1e9, shard=True)
    assert divided["shards"] == 4 and divided["memory_bytes"]["optimizer"] == 2 * generator.size.parameters
    tokenizer = plan_stage(pictures("digits")[0], devices=4, device_bytes=1e9, shard=True)
    assert tokenizer["shards"] == 1  # the trainer divides generators only


def test_the_advice_helps_and_is_the_least_change() -> None:
    stage = pictures("digits")[1]
    available = 0.6 * plan_stage(stage, devices=1, device_bytes=1e9)["memory_bytes"]["total"]
    with pytest.raises(ConfigError, match=r"'generator' needs .* GB .* available; most is activations: mlp") as caught:
        plan_stage(stage, devices=1, device_bytes=available)
    advised = int(str(caught.value).split("accumulate=")[1].split(":")[0])
    with_advice = replace(stage, training=replace(stage.training, accumulate=advised))
    assert plan_stage(with_advice, devices=1, device_bytes=available)
    with pytest.raises(ConfigError):
        plan_stage(
            replace(stage, training=replace(stage.training, accumulate=advised // 2)), devices=1, device_bytes=available
        )


def test_advice_where_not_even_one_sample_fits() -> None:
    tokenizer, generator = pictures("imagenet256")
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
    rate = measure_rate(get_recipe("digits"), samples=4, positions=16, seconds=0.0)
    assert rate["source"] == "measured" and rate["width"] == 128
    assert 1e6 < rate["operations_per_second"] < 1e16
