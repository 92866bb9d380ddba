"""Speech in memory: what is kept of every utterance, batches, crops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resgen.data.sound.decode import loudness_db
from resgen.data.sound.sources import SpeechSource
from resgen.data.sound.store import SpeechStore
from resgen.errors import ConfigError, DataError
from resgen.ops.random import generator

RATE = 8_000


def source(*sounds: Tensor) -> SpeechSource:
    count = range(len(sounds))

    def read(index: int, sample_rate_hz: int) -> Tensor:
        assert sample_rate_hz == RATE
        return sounds[index]

    return SpeechSource(
        name="fake",
        split="train",
        texts=tuple(f"text {i}" for i in count),
        speakers=tuple(f"speaker {i}" for i in count),
        ids=tuple(f"id {i}" for i in count),
        read=read,
    )


def ramp(num_samples: int, first: int) -> Tensor:
    """Counts up from `first` in steps of 2**-15, so that every sample says where it is from."""
    return torch.arange(first, first + num_samples) / 32768


def plain(*sounds: Tensor) -> SpeechStore:
    return SpeechStore(source(*sounds), RATE, trim=False, loudness_db=None)


def tone(seconds: float, amplitude: float = 0.1) -> Tensor:
    return amplitude * torch.sin(torch.arange(int(seconds * RATE)) * (2 * math.pi * 440 / RATE))


def test_sixteen_bit_samples_are_kept_exactly() -> None:
    store = plain(ramp(5, 10), ramp(3, -20), torch.tensor([1.0, -1.0, 0.5]))
    assert len(store) == 3 and store.lengths.tolist() == [5, 3, 3] and store.lengths.dtype == torch.int64
    assert store.texts == ("text 0", "text 1", "text 2") and store.speakers[2] == "speaker 2"
    assert store.sample_rate_hz == RATE and store.num_left_out == 0
    assert torch.equal(store.samples(0), ramp(5, 10)) and torch.equal(store.samples(1), ramp(3, -20))
    assert store.samples(-1).tolist() == [32767 / 32768, -1.0, 0.5]
    assert store.samples(0).dtype == torch.float32
    with pytest.raises(IndexError):
        store.samples(3)


def test_many_utterances_stay_in_order() -> None:
    store = plain(*(ramp(2 + i % 3, 1 + i) for i in range(100)))  # several pieces of work
    assert all(torch.equal(store.samples(i), ramp(2 + i % 3, 1 + i)) for i in range(100))


def test_batches_equal_single_reads() -> None:
    store = plain(ramp(5, 10), ramp(9, 100), ramp(3, 200), ramp(8, 300))
    for indices in ([2, 0, 2], [1], [3, 1, 0, 2]):
        samples, lengths = store.batch(torch.tensor(indices), multiple=4)
        assert lengths.tolist() == [store.lengths[i] for i in indices] and lengths.dtype == torch.int64
        assert samples.shape[1] == -(-max(lengths.tolist()) // 4) * 4
        for row, index in enumerate(indices):
            assert torch.equal(samples[row, : lengths[row]], store.samples(index))
            assert not samples[row, lengths[row] :].any()
    assert store.batch([3], multiple=8)[0].shape == (1, 8)


def crops(store: SpeechStore, indices: torch.Tensor, *stream: str | int) -> torch.Tensor:
    return store.crops(indices, store.crop_starts(indices, 10, generator(*stream)), 10)


def test_crops_are_pieces_and_follow_the_generator() -> None:
    store = plain(ramp(50, 1000), ramp(4, 2000), ramp(30, 3000))
    indices = torch.tensor([0, 1, 2] * 20)
    samples, lengths = crops(store, indices, "crops", 1), store.lengths[indices].clamp(max=10)
    assert samples.shape == (60, 10) and lengths.tolist() == [10, 4, 10] * 20
    for row, index in enumerate(indices.tolist()):
        piece = samples[row, : lengths[row]]
        start = round(piece[0].item() * 32768) - 1000 * (index + 1)
        assert torch.equal(piece, store.samples(index)[start : start + lengths[row]])
        assert not samples[row, lengths[row] :].any()
    assert torch.equal(samples, crops(store, indices, "crops", 1))
    assert not torch.equal(samples, crops(store, indices, "crops", 2))


def test_crops_reach_every_start_equally_often() -> None:
    store = plain(ramp(12, 1))
    starts = crops(store, torch.tensor([0] * 3000), "starts")[:, 0] * 32768 - 1
    counts = starts.long().bincount(minlength=3)
    assert counts.shape == (3,) and counts.min() > 900  # 1,000 each expected, standard deviation 26


def test_crops_of_one_row_do_not_depend_on_the_lengths_of_others() -> None:
    long, short = plain(ramp(50, 1), ramp(50, 100)), plain(ramp(5, 1), ramp(50, 100))
    first, second = (crops(store, torch.tensor([0, 1]), "rows")[1] for store in (long, short))
    assert torch.equal(first, second)


def test_silence_is_trimmed_and_loudness_set() -> None:
    quiet = torch.cat([torch.zeros(RATE), tone(0.5, 0.01), torch.zeros(RATE)])
    store = SpeechStore(source(quiet, tone(0.6, 0.2)), RATE, loudness_db=-30.0)
    assert RATE // 2 <= store.lengths[0] <= 0.7 * RATE
    assert store.lengths[1] == int(0.6 * RATE)
    assert [loudness_db(store.samples(i), RATE) for i in range(2)] == pytest.approx([-30, -30], abs=0.1)
    kept = SpeechStore(source(quiet), RATE, trim=False, loudness_db=None)
    assert torch.allclose(kept.samples(0), quiet, atol=2**-15)


def test_default_loudness() -> None:
    assert loudness_db(SpeechStore(source(tone(1)), RATE).samples(0), RATE) == pytest.approx(-23, abs=0.1)


def test_long_utterances_are_left_out_after_trimming() -> None:
    padded = torch.cat([tone(0.5), torch.zeros(RATE)])
    store = SpeechStore(source(tone(0.5), tone(1.5), padded), RATE, max_seconds=1.0)
    assert store.texts == ("text 0", "text 2") and store.ids == ("id 0", "id 2")
    assert store.speakers == ("speaker 0", "speaker 2") and store.num_left_out == 1 and len(store.lengths) == 2
    assert len(SpeechStore(source(tone(25)), RATE, max_seconds=None, trim=False)) == 1
    with pytest.raises(DataError, match="'fake' has no utterance of at most 0.2 s among 1"):
        SpeechStore(source(tone(0.5)), RATE, max_seconds=0.2)


def test_silent_and_damaged_utterances_are_named() -> None:
    for offset in (0.0, 0.01):
        with pytest.raises(DataError, match="'fake' train 'id 1' holds nothing but digital silence"):
            SpeechStore(source(tone(0.5), torch.full((100,), offset)), RATE)

    def read(index: int, sample_rate_hz: int) -> Tensor:
        raise DataError("row 0 is damaged")

    broken = SpeechSource(name="x", split="train", texts=("a",), speakers=("b",), ids=("c",), read=read)
    with pytest.raises(DataError, match="row 0 is damaged"):
        SpeechStore(broken, RATE)


def test_all_that_cannot_be_read_is_named_at_once_or_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    data = source(*([tone(0.5), torch.zeros(100)] * 22), tone(1.5))
    with pytest.raises(DataError) as caught:
        SpeechStore(data, RATE, max_seconds=1.0)
    line = str(caught.value)
    assert line.startswith("22 of 45 recordings of 'fake' split 'train' cannot be read: 'fake' train 'id 1' holds")
    assert "'id 39'" in line and "'id 41'" not in line
    assert line.endswith("; and 2 more; remove them, or leave them out with --skip-unreadable")
    store = SpeechStore(data, RATE, max_seconds=1.0, skip_unreadable=True)
    assert store.ids == tuple(f"id {i}" for i in range(0, 44, 2)) and store.num_left_out == 23
    assert capsys.readouterr().err.startswith("left out: 22 of 45 recordings of 'fake' split 'train' cannot be read: ")
    silent = source(torch.zeros(100), torch.zeros(50))
    with pytest.raises(DataError, match="2 of 2 recordings"):
        SpeechStore(silent, RATE, skip_unreadable=True)
    assert len(SpeechStore(silent, RATE, skip_unreadable=True, may_be_empty=True)) == 0


def test_settings_and_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_seconds=0.0 must be above 0"):
        SpeechStore(source(tone(0.5)), RATE, max_seconds=0.0)
    with pytest.raises(ConfigError, match="loudness_db=23.0 must be in -70..0"):
        SpeechStore(source(tone(0.5)), RATE, loudness_db=23.0)
    store = plain(ramp(5, 1))
    with pytest.raises(ConfigError, match="multiple=0"):
        store.batch([0], multiple=0)
    with pytest.raises(ConfigError, match="num_samples=0"):
        store.crop_starts([0], 0, generator("x"))
    with pytest.raises(ConfigError, match="at least one index"):
        store.batch([], multiple=1)
    for index in (1, -1):
        with pytest.raises(IndexError, match=r"allowed: 0\.\.0"):
            store.batch([index], multiple=1)
