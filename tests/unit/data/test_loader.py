"""The order of batches is a function of (seed, step)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resgen.data import CounterSampler
from resgen.errors import ConfigError

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 2**63 - 1))
def test_every_epoch_holds_every_sample_at_most_once(sizes: tuple[int, int], seed: int) -> None:
    num_samples, batch_size = sizes
    sampler = CounterSampler(num_samples, batch_size, seed)
    if batch_size <= num_samples:
        per_epoch = sampler.batches_per_epoch
        for epoch in range(2):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            seen = torch.cat([sampler.indices(step) for step in steps])
            assert len(seen) == per_epoch * batch_size == len(seen.unique())
            assert seen.min() >= 0 and seen.max() < num_samples
            assert {sampler.epoch(step) for step in steps} == {epoch}
    else:
        stream = torch.cat([sampler.indices(step) for step in range(4)])
        assert len(stream) == 4 * batch_size
        for start in range(0, len(stream) - num_samples + 1, num_samples):
            assert sorted(stream[start : start + num_samples].tolist()) == list(range(num_samples))


@settings(max_examples=30, deadline=None)
@given(SIZES, st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_any_order_of_asking_gives_the_same(sizes: tuple[int, int], steps: list[int]) -> None:
    used = CounterSampler(*sizes, 3)
    for step in steps:
        assert torch.equal(used.indices(step), CounterSampler(*sizes, 3).indices(step))


def test_seed_and_epoch_change_the_order() -> None:
    first = CounterSampler(100, 100, 0)
    assert not torch.equal(first.indices(0), first.indices(1))
    assert not torch.equal(first.indices(0), CounterSampler(100, 100, 1).indices(0))
    assert not torch.equal(first.indices(0), torch.arange(100))


def test_global_generator_is_not_touched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    CounterSampler(10, 2, 0).indices(0)
    assert torch.equal(before, torch.get_rng_state())


def test_result_may_be_changed_by_the_caller() -> None:
    sampler = CounterSampler(10, 10, 0)
    kept = sampler.indices(0).clone()
    sampler.indices(0).zero_()
    assert torch.equal(sampler.indices(0), kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CounterSampler(**{"num_samples": 10, "batch_size": 4, "seed": 0} | arguments)


def test_negative_step() -> None:
    with pytest.raises(ConfigError, match="step=-1"):
        CounterSampler(10, 4, 0).indices(-1)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 2**63 - 1))
def test_batches_of_like_length_are_the_same_samples(sizes: tuple[int, int], seed: int) -> None:
    num_samples, batch_size = sizes
    lengths = torch.randint(1, 100, (num_samples,), generator=torch.Generator().manual_seed(seed % 1000))
    sampler = CounterSampler(num_samples, batch_size, seed, lengths=lengths)
    seen = torch.cat([sampler.indices(step) for step in range(max(1, sampler.batches_per_epoch))])
    assert len(seen.unique()) == min(len(seen), num_samples)
    assert torch.equal(CounterSampler(num_samples, batch_size, seed, lengths=lengths).indices(1), sampler.indices(1))


def test_lengths_within_a_batch_are_alike() -> None:
    lengths = torch.arange(4096)[torch.randperm(4096, generator=torch.Generator().manual_seed(0))]
    plain, bucketed = (CounterSampler(4096, 32, 0, lengths=given) for given in (None, lengths))
    spread = [
        sum(float(lengths[sampler.indices(step)].max() - lengths[sampler.indices(step)].min()) for step in range(128))
        for sampler in (plain, bucketed)
    ]
    assert spread[1] < spread[0] / 8
    firsts = [float(lengths[bucketed.indices(step)].float().mean()) for step in range(128)]
    assert firsts != sorted(firsts), "batches come in random order"
    with pytest.raises(ConfigError, match="5 lengths are given for num_samples=6"):
        CounterSampler(6, 2, 0, lengths=torch.ones(5, dtype=torch.int64))


def test_stretches_one_after_the_other() -> None:
    """Every sample once per epoch; a stretch is finished before the next begins, each in an order of its own."""
    blocks = torch.tensor([5, 9, 20])
    sampler = CounterSampler(20, 4, 3, blocks=blocks)
    epochs = [torch.cat([sampler.indices(5 * epoch + step) for step in range(5)]) for epoch in range(4)]
    firsts = set()
    for order in epochs:
        assert sorted(order.tolist()) == list(range(20))
        places = torch.searchsorted(blocks, order, right=True)
        assert len(places.unique_consecutive()) == 3
        firsts.add(int(places[0]))
        assert all(not torch.equal(order[places == block], order[places == block].sort().values) for block in range(3))
    assert len(firsts) > 1 and len({tuple(order.tolist()) for order in epochs}) == 4
    fresh = CounterSampler(20, 4, 3, blocks=blocks)
    assert torch.equal(fresh.indices(13), sampler.indices(13))
    for changes in ({"blocks": torch.tensor([5, 19])}, {"blocks": blocks, "lengths": torch.arange(20)}):
        with pytest.raises(ConfigError, match="blocks end at"):
            CounterSampler(20, 4, 3, **changes)
