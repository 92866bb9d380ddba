"""Small versions of every measurement: what is counted and compared is right; times themselves are not judged."""

from __future__ import annotations

import sys

import pytest
import torch

from resgen.errors import ConfigError, MissingExtraError
from resgen.evaluation import bench
from resgen.evaluation.memory import extra_peak_bytes
from resgen.models.resgen import ResGenConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec

TINY = ResGenConfig(width=32, num_layers=1, num_heads=2, mlp_width=64, condition_width=32, num_components=8)
SPEC = CodeSpec(depth=2, codebook_size=16, code_dim=8, shape=(4, 4))


def _network() -> bench.ResGen:
    return bench.random_model(TINY, SPEC, torch.device("cpu"), torch.float32, 0)


def test_quantizer() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    result = bench.bench_quantizer(num_vectors=8192, code_dim=8, codebook_size=64, depth=3, repetitions=2)
    assert result["agreement"] == 1 and result["codes_equal"] > 0.999
    assert result["speedup"] > 0 and result["seconds"].keys() == {"ours", "peer"}
    memory = result["extra_memory_bytes"]
    assert memory["ours"] >= 8192 * 3 * 8  # the codes themselves
    assert result["memory_ratio"] == memory["ours"] / memory["peer"] < 1
    assert result["settings"]["num_vectors"] == 8192 and result["settings"]["threads"] == torch.get_num_threads()


def test_quantizer_without_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"resgen\[bench\]"):
        bench.bench_quantizer(num_vectors=8, code_dim=2, codebook_size=4, depth=1)


def test_compare_codes_tells_ties_from_errors() -> None:
    codebooks = torch.tensor([[[0.0], [2.0], [5.0]], [[0.0], [1.0], [-1.0]]])
    vectors = torch.tensor([[1.0], [0.0], [0.1]])
    first = torch.tensor([[0, 1], [0, 0], [0, 0]])
    # Row 0: 1.0 lies between 0 and 2, so code 1 on level 0 is as good; row 1 agrees; row 2: an error on level 1.
    second = torch.tensor([[1, 2], [0, 0], [0, 1]])
    result = bench.compare_codes(vectors, codebooks, first, second)
    assert result == pytest.approx({"agreement": 2 / 3, "ties": 1, "codes_equal": 3 / 6})
    # The residual counts, not the vector: after 2.0, code 2 (-1.0) is right for 1.0 and code 0 is not.
    third = torch.tensor([[1, 0], [0, 0], [0, 0]])
    assert bench.compare_codes(vectors, codebooks, second, third)["ties"] == 0


def test_depth() -> None:
    result = bench.bench_depth(
        model=TINY, side=4, codebook_size=16, code_dim=8, num_steps=5, batch_size=2, repetitions=2, depths=(1, 2, 3)
    )
    assert result["passes"] == {"1": 10, "2": 10, "3": 10}
    assert result["seconds"].keys() == result["passes"].keys()
    assert result["ratio_3_over_2"] > 0
    low, high = result["spread"]["3"]
    assert 0 < low <= result["seconds"]["3"] <= high


def test_depth_refuses_empty_steps() -> None:
    with pytest.raises(ConfigError, match="num_steps=17 must be at most 16"):
        bench.bench_depth(model=TINY, side=4, num_steps=17)
    with pytest.raises(ConfigError, match="repetitions=0"):
        bench.bench_depth(model=TINY, side=4, repetitions=0)


def test_sampler() -> None:
    result = bench.bench_sampler(
        model=TINY, side=4, depth=2, codebook_size=16, code_dim=8, num_steps=3, batch_sizes=(1, 3), repetitions=2
    )
    assert result["overhead"].keys() == result["seconds"].keys() == {"1", "3"}
    assert all(value > 0 for value in result["overhead"].values())
    assert result["seconds"]["3"].keys() == {"sampling", "network"}


def test_bare_passes_see_what_sampling_saw() -> None:
    network = _network()
    sampling = SamplingConfig(num_steps=4, mask_schedule="linear", guidance_scale=0.0)
    inputs = bench._recorded_inputs(network, sampling, 3, 0)
    seen: list[torch.Tensor] = []
    network.transformer.register_forward_hook(lambda _module, _arguments, out: seen.append(out.clone()))
    bench._sampling_run(network, sampling, 3, 0)()
    bench._bare_passes(network, inputs, 3)()
    assert len(inputs) == 4 and len(seen) == 8
    for sampled, bare in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(sampled, bare)
    assert not torch.equal(seen[0], seen[1])


def test_passes_count_both_branches_of_guidance() -> None:
    network = _network()
    for scale, expected in ((0.0, 4 * 3), (2.0, 2 * 4 * 3)):
        sampling = SamplingConfig(num_steps=4, mask_schedule="linear", guidance_first=scale, guidance_scale=scale)
        assert bench.count_passes(network, bench._sampling_run(network, sampling, 3, 0)) == expected
    assert not network.transformer._forward_pre_hooks


def test_random_model_is_reproducible_and_not_degenerate() -> None:
    first, second = _network(), _network()
    for (name, one), (_, two) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, two), name
    assert all(parameter.abs().max() > 0 for parameter in first.parameters())
    assert (first.codebooks.flatten(1).std(1).diff() < 0).all()


def test_memory_is_that_of_the_work() -> None:
    sizes = {"num_components": 64, "code_dim": 32, "width": 16, "dtype": "float32", "seed": 0}
    means = 8192 * 64 * 32 * 4  # 64 MiB, all means of all rows
    plain = extra_peak_bytes(bench.mixture_work, version="plain", rows=8192, **sizes)
    chunked = extra_peak_bytes(bench.mixture_work, version="chunked", rows=8192, **sizes)
    assert means <= plain < 8 * means
    assert chunked < 0.75 * plain


def test_mixture_refuses() -> None:
    with pytest.raises(ConfigError, match="rising"):
        bench.bench_mixture(rows=(64, 64))


@pytest.mark.parametrize("version", ["chunked", "plain"])
def test_mixture_versions_compute_the_same(version: str) -> None:
    sizes = {"num_components": 8, "code_dim": 4, "width": 16, "dtype": "float32", "seed": 0}
    _, reference = bench.mixture_work(version="plain", rows=100, **sizes)
    _, work = bench.mixture_work(version=version, rows=100, **sizes)
    assert work() == pytest.approx(reference(), rel=1e-5)


def test_interleaved_takes_turns() -> None:
    order: list[str] = []
    times = bench.interleaved({name: (lambda n=name: order.append(n)) for name in "abc"}, 2)
    assert "".join(order) == "abccba"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}
    assert bench.paired_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 1.0]) == 2
