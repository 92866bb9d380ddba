"""Small versions of the speed measurement: what is counted and compared is right; times themselves are not judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from resgen.errors import ConfigError
from resgen.evaluation.bench import cases, speed
from resgen.evaluation.bench.cases import MEASURED, Case, Shape, random_network
from resgen.evaluation.bench.memory import extra_peak_bytes, largest_batch
from resgen.evaluation.bench.products import record_products
from resgen.evaluation.bench.speed import BenchConfig, bench, count_passes
from resgen.evaluation.bench.timing import interleaved, ratio
from resgen.kinds import KINDS, kind_of
from resgen.models.ar_resgen import ARResGenConfig
from resgen.models.maskgit import MaskGITConfig
from resgen.models.resgen import ResGenConfig
from resgen.models.rq_transformer import RQTransformerConfig
from resgen.types import CodeSpec

SIZES = {"width": 32, "num_layers": 1, "num_heads": 2, "mlp_width": 64, "condition_width": 32}
MICRO = Shape(preset="micro", grid=(2, 3), codebook_size=16, code_dim=8, num_classes=5, num_steps=6)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def micro() -> Iterator[pytest.MonkeyPatch]:
    """A shape for tests, `micro`, with presets of every kind."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(cases.SHAPES, "micro", MICRO)
    for kind in (KINDS[name] for name in ("resgen", "residual", "direct")):
        monkeypatch.setitem(kind.presets, "micro", ResGenConfig(**SIZES, num_components=8, head=kind.head))
    monkeypatch.setitem(KINDS["maskgit"].presets, "micro", MaskGITConfig(**SIZES))
    monkeypatch.setitem(KINDS["rq_transformer"].presets, "micro", RQTransformerConfig(**SIZES, depth_layers=1))
    mixture = {"num_components": 8, "head_layers": 1, "head_width": 32}
    monkeypatch.setitem(KINDS["ar_resgen"].presets, "micro", ARResGenConfig(**SIZES, **mixture))
    yield monkeypatch
    monkeypatch.undo()


def case(kind: str, **changes: Any) -> Case:
    values: dict[str, Any] = {"shape": "micro", "iterations": None, "depth": 2, "batch_size": 1, "num_steps": 6}
    return Case(kind=kind, **{**values, "guidance": True, "dtype": "float32", "seed": 0, **changes})


def network(one: Case) -> Any:
    return random_network(one.config, one.spec, CPU, torch.float32)


@pytest.fixture(scope="module")
def report(micro: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three kinds at two depths and two batch sizes, with memory as if a sample took 1,000 bytes and the rest 500."""
    with micro.context() as patch:
        patch.setattr(speed, "extra_peak_bytes", lambda _, **arguments: 500 + 1000 * arguments["batch_size"])
        config = BenchConfig(
            shape="micro",
            kinds=("resgen", "rq_transformer", "ar_resgen"),
            depths=(2, 1),
            batch_sizes=(3, 1),
            iterations=(1, 2),
            repetitions=2,
            dtypes=("float32",),
        )
        return bench(config)


def test_rows(report: dict[str, Any]) -> None:
    rows = report["rows"]
    expected = {(name, depth, batch) for name in ("resgen", "rq_transformer") for depth in (1, 2) for batch in (1, 3)}
    expected |= {("ar_resgen x1", depth, batch) for depth in (1, 2) for batch in (1, 3)}
    expected |= {("ar_resgen x2", 2, batch) for batch in (1, 3)}  # two iterations need two levels
    assert {(row["label"], row["depth"], row["batch_size"]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert report["settings"]["num_steps"] == 6 and report["settings"]["dtype"] == "float32"
    for row in rows:
        assert (row["steps"], row["passes"]) == passes_of(row["kind"], row["depth"], row["iterations"]), row["label"]


def passes_of(kind: str, depth: int, iterations: int | None) -> tuple[int, dict[str, float]]:
    """Evaluations one after the other, and passes per image, of 6 positions with guidance."""
    positions = 6
    if kind == "rq_transformer":
        return positions * depth, {"transformer": 2 * positions, "levels": 2 * positions * depth}
    if kind == "ar_resgen":
        steps = positions * (iterations or 0)
        return steps, {"transformer": 2 * positions, "levels": 2 * steps}
    return 6, {"transformer": 12}  # independent of depth


@pytest.mark.parametrize("kind", MEASURED)
def test_passes_of_every_kind(kind: str) -> None:
    one = case(kind, iterations=1 if kind == "ar_resgen" else None, batch_size=2)
    model = network(one)
    passes, steps = count_passes(model, one, partial(one.sample, model))
    assert (steps, passes) == passes_of(kind, 2, 1)


def test_seconds_and_ratios_fit_together(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        low, high = row["spread"]
        assert 0 < low <= row["seconds"] <= high
        assert row["seconds_per_image"] * row["images_per_second"] == pytest.approx(1)
        assert row["over"][row["label"]] == {"median": 1, "min": 1, "max": 1}
        assert {"resgen", "rq_transformer", "products", "shallowest"} <= row["over"].keys()
        assert row["depth"] != 1 or row["over"]["shallowest"]["median"] == 1
        for share in row["over"].values():
            assert 0 < share["min"] <= share["median"] <= share["max"]
    one, other = (next(row for row in report["rows"] if row["label"] == n) for n in ("resgen", "rq_transformer"))
    assert one["over"]["rq_transformer"]["min"] * other["over"]["resgen"]["max"] == pytest.approx(1)


def test_number_types_take_turns() -> None:
    result = bench(
        BenchConfig(
            shape="micro", kinds=("resgen",), depths=(2,), repetitions=1, memory=False, dtypes=("float32", "bfloat16")
        )
    )
    rows = {row["label"]: row for row in result["rows"]}
    assert list(rows) == ["resgen float32", "resgen bfloat16"] and result["settings"]["dtype"] == "float32, bfloat16"
    assert [row["dtype"] for row in rows.values()] == ["float32", "bfloat16"]
    ratio = rows["resgen float32"]["seconds"] / rows["resgen bfloat16"]["seconds"]
    assert rows["resgen float32"]["over"]["resgen bfloat16"]["median"] == pytest.approx(ratio)
    assert all(row["over"]["shallowest"]["median"] == 1 for row in rows.values())


def test_one_number_type_under_two_names_is_measured_once() -> None:
    config = BenchConfig(
        shape="micro",
        kinds=("resgen",),
        depths=(1,),
        repetitions=1,
        memory=False,
        dtypes=("auto", "float32", "bfloat16"),
    )
    rows = bench(config)["rows"]
    assert sorted(row["dtype"] for row in rows) == ["bfloat16", "float32"]


def test_memory_and_largest_batch(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        memory = row["memory"]
        assert memory["extra_bytes"] == 500 + 1000 * row["batch_size"]
        assert memory["total_bytes"] == memory["weight_bytes"] + memory["extra_bytes"]
        assert memory["batches"] == [1, 3] and memory["bytes_per_image"] == 1000
        assert memory["largest_batch"] == (8 * 10**9 - memory["weight_bytes"] - 500) // 1000
        buffers = 4 * (row["depth"] * 16 * 8)
        assert memory["weight_bytes"] >= 4 * row["parameters"] + buffers


def test_largest_batch() -> None:
    assert largest_batch([(2, 30), (4, 50)], 100, 1000.0)["largest_batch"] == 89
    assert largest_batch([(2, 30), (4, 50)], 2000, 1000.0)["largest_batch"] == 0
    assert largest_batch([(2, 30), (4, 30)], 100, 1000.0)["largest_batch"] is None


def test_products_are_those_with_parameters() -> None:
    linear = nn.Linear(4, 6)
    weights = nn.Parameter(torch.randn(3, 5, 6))
    holder = nn.ParameterDict({"weights": weights, "odd": torch.randn(6, 2)})
    module = nn.ModuleList([linear, holder])
    x, books = torch.randn(2, 7, 4), torch.randn(6, 9)
    seen = []

    def run() -> None:
        h = linear(x)  # 2 * 7 * 6 sums of 4
        seen.append(functional.linear(h, weights[1]))  # 2 * 7 * 5 sums of 6
        seen.append(h @ holder["odd"])  # 2 * 7 * 2 sums of 6
        seen.append(h @ books)  # no parameter
        seen.append(h @ h.transpose(1, 2))  # attention
        seen.append(functional.embedding(torch.tensor([0, 1]), linear.weight))

    with torch.inference_mode():
        products = record_products(module, run)
    assert len(products.calls) == 3
    assert products.multiply_adds == 2 * 7 * (6 * 4 + 5 * 6 + 2 * 6)
    with torch.inference_mode():
        outputs: list[Any] = [call() for call in products.calls]
    assert [tuple(out.shape) for out in outputs] == [(2, 7, 6), (2, 7, 5), (2, 7, 2)]
    products()
    used = products.calls[0].args  # type: ignore[attr-defined]
    assert used[1] is linear.weight and used[0] is not x and used[0].shape == x.shape


@pytest.mark.parametrize("kind", ["resgen", "rq_transformer"])
def test_products_of_a_network(kind: str) -> None:
    one = case(kind, guidance=False, batch_size=2)
    model = network(one)
    products = record_products(model, partial(one.sample, model))
    block = 2 * 6 * 32 * (3 * 32 + 32 + 2 * 64)  # multiply-adds of one pass of both samples' 6 positions
    heads = 2 * 6 * 2 * 32 * 16  # one product per code
    passes = 6 if kind == "resgen" else 1 + 2  # each position once, and each of its two levels
    assert products.multiply_adds >= passes * block + heads
    assert products.multiply_adds < 1.2 * (passes * block + 6 * heads)


@pytest.mark.parametrize("kind", list(MEASURED))
def test_random_networks_are_reproducible_and_not_degenerate(kind: str) -> None:
    sampled = case(kind, iterations=1 if kind == "ar_resgen" else None)
    first, second = network(sampled), network(sampled)
    assert kind_of(first.config).name == kind and not first.training
    for (name, one), (_, two) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, two) and not one.is_meta, name
    for name, parameter in first.named_parameters():
        assert (parameter != 0).float().mean() > 0.9 and not parameter.requires_grad, name
    assert (first.codebooks.flatten(1).std(1).diff() < 0).all() and (first.level_std > 0).all()
    half = random_network(sampled.config, sampled.spec, CPU, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half.codebooks.dtype == torch.float32


def test_networks_of_one_kind_share_what_has_one_shape() -> None:
    pool: dict[Any, torch.Tensor] = {}
    shallow, deep = (
        random_network(case("resgen").config, case("resgen", depth=depth).spec, CPU, torch.float32, pool=pool)
        for depth in (2, 5)
    )
    key = "transformer.blocks.0.up.weight"
    assert shallow.get_parameter(key).data_ptr() == deep.get_parameter(key).data_ptr()
    assert shallow.codebooks.shape != deep.codebooks.shape
    other = random_network(case("maskgit").config, case("maskgit").spec, CPU, torch.float32, pool=pool)
    assert other.get_parameter(key).data_ptr() != deep.get_parameter(key).data_ptr()


def test_rows_of_a_filled_matrix_differ() -> None:
    filled = cases._filled(torch.empty(3, 5), torch.arange(7.0))
    assert filled.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]


def test_guidance_doubles_passes_not_steps() -> None:
    for guidance, factor in ((True, 2), (False, 1)):
        one = case("rq_transformer", guidance=guidance, batch_size=2)
        model = network(one)
        passes, steps = count_passes(model, one, partial(one.sample, model))
        assert passes == {"transformer": 6 * factor, "levels": 12 * factor} and steps == 12
        assert not model.transformer._forward_pre_hooks


def test_one_batch_size_is_extrapolated_from_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def fake(_: object, **arguments: Any) -> int:
        batches.append(arguments["batch_size"])
        return 10 * arguments["batch_size"]

    monkeypatch.setattr(speed, "extra_peak_bytes", fake)
    progress: dict[str, list[tuple[float, float]]] = {}
    result = bench(
        BenchConfig(shape="micro", kinds=("resgen",), depths=(1,), batch_sizes=(2,), repetitions=1),
        lambda done, total, title: progress.setdefault(title, []).append((done, total)),
    )
    assert batches == [2, 16] and [row["batch_size"] for row in result["rows"]] == [2]
    assert result["rows"][0]["memory"]["batches"] == [2, 16]
    assert list(progress) == ["first runs", "timed runs", "memory"]
    for values in progress.values():
        assert values[0][0] == 0 and values[-1][0] == pytest.approx(values[-1][1])


@pytest.mark.slow
def test_memory_is_that_of_the_sampling() -> None:
    few = speed._peak_run(case("resgen", batch_size=2))
    few()  # stops after two evaluations, without an error
    arguments = dataclasses.asdict(case("rq_transformer", shape="tiny", batch_size=128, depth=1))
    extra = extra_peak_bytes(speed.sampling_work, **arguments)
    width, positions, layers = 144, 16, 3
    cache = 2 * 2 * 128 * positions * layers * width * 4  # keys and values of both branches
    assert cache <= extra < 4 * cache


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "papr"}, "unknown shape 'papr'.*did you mean 'paper'"),
        ({"kinds": ("resgen", "rq")}, "unknown kind 'rq'"),
        ({"kinds": ()}, "kinds="),
        ({"kinds": ("resgen", "resgen")}, "different"),
        ({"depths": (0, 2)}, r"depths=\(0, 2\) must be at least 1"),
        ({"depths": (1, 1025)}, r"depths=\(1, 1025\) must be at most 1024"),
        ({"batch_sizes": ()}, "batch_sizes="),
        ({"batch_sizes": (65537,)}, r"batch_sizes=\(65537,\) must be at most 65536"),
        ({"repetitions": 0}, "repetitions=0"),
        ({"memory_gb": float("nan")}, "memory_gb=nan"),
        ({"num_steps": 7, "depths": (1, 4)}, r"steps=7 must lie in 1\.\.6"),
        ({"num_steps": 3, "depths": (4,)}, "at least 4 for maskgit at depth 4"),
        ({"kinds": ("ar_resgen",), "iterations": (4,), "depths": (2,)}, "at most the depth, 2"),
        ({"dtypes": ("float16",), "depths": (1,)}, "unknown dtype"),
        ({"device": "tpu", "depths": (1,)}, "unknown device"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        bench(BenchConfig(**{"shape": "micro", **arguments}))
    assert "\n" not in str(caught.value)


def test_presets_exist_for_every_kind_at_every_shape() -> None:
    for shape in cases.SHAPES.values():
        for kind in MEASURED:
            assert kind_of(cases.preset(kind, shape.preset)).name == kind
    spec = case("resgen", shape="paper", depth=16).spec
    assert spec == CodeSpec(depth=16, codebook_size=1024, code_dim=64, shape=(8, 8))


def test_interleaved_takes_turns() -> None:
    order: list[str] = []
    times = interleaved({name: partial(order.append, name) for name in "abc"}, 2)
    assert "".join(order) == "abccba"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}
    assert ratio([1.0, 4.0, 9.0], [1.0, 2.0, 1.0]) == {"median": 2, "min": 1, "max": 9}
